"""Mixed precision: autocast and the gradient scaler."""

from __future__ import annotations

import pytest
import torch

import torch_npu
from torch_npu.npu.amp import GradScaler, autocast, custom_bwd, custom_fwd


def test_state_functions():
    assert torch.npu.get_amp_supported_dtype() == [torch.float16, torch.bfloat16, torch.float32]
    assert torch.npu.get_autocast_dtype() == torch.float16
    assert torch.npu.is_autocast_enabled() is False
    with torch.autocast("npu", dtype=torch.bfloat16):
        assert torch.npu.is_autocast_enabled() and torch.npu.get_autocast_dtype() == torch.bfloat16
    torch.npu.set_autocast_enabled(True)
    assert torch.is_autocast_enabled("npu")
    torch.npu.set_autocast_enabled(False)
    with pytest.raises(TypeError, match=r"enabled must be a bool \(got int\)"):
        torch.npu.set_autocast_enabled(1)
    with pytest.raises(TypeError, match=r"dtype must be a torch.dtype \(got str\)"):
        torch.npu.set_autocast_dtype("half")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_lowers_matmul_and_keeps_softmax(dtype):
    a, b = torch.randn(4, 8, device="npu"), torch.randn(8, 3, device="npu")
    with autocast(dtype=dtype):
        product = a @ b
        assert product.dtype == dtype
        assert torch.softmax(product, -1).dtype == torch.float32
        with autocast(enabled=False):
            assert (a @ b).dtype == torch.float32
    torch.testing.assert_close(product.float().cpu(), a.cpu() @ b.cpu(), rtol=5e-2, atol=5e-2)
    assert (a @ b).dtype == torch.float32


def test_unsupported_dtype_disables_with_a_warning():
    with pytest.warns(UserWarning, match="the target dtype is not supported"):
        context = torch.autocast("npu", dtype=torch.int32)
    with context:
        assert not torch.npu.is_autocast_enabled()


def test_custom_functions_are_deprecated_and_work():
    with pytest.warns(FutureWarning):

        class Product(torch.autograd.Function):
            @staticmethod
            @custom_fwd(cast_inputs=torch.float32)
            def forward(ctx, x, y):
                ctx.save_for_backward(x, y)
                return x * y

            @staticmethod
            @custom_bwd
            def backward(ctx, grad):
                x, y = ctx.saved_tensors
                return grad * y, grad * x

    x = torch.ones(3, device="npu", dtype=torch.float16, requires_grad=True)
    with torch.autocast("npu"):
        out = Product.apply(x, x)
    assert out.dtype == torch.float32
    out.sum().backward()
    assert x.grad.eq(2).all().item()


def make_problem(gradient: float):
    parameter = torch.nn.Parameter(torch.ones(2, device="npu"))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    return parameter, optimizer, torch.tensor(gradient, device="npu")


def run_step(scaler, parameter, optimizer, factor):
    optimizer.zero_grad()
    scaler.scale((parameter * factor).sum()).backward()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("make", [GradScaler, lambda **kw: torch.amp.GradScaler("npu", **kw)])
def test_scaler_steps_shrinks_and_grows(make):
    scaler = make(init_scale=8.0, growth_interval=2)
    parameter, optimizer, factor = make_problem(0.25)
    run_step(scaler, parameter, optimizer, factor)
    assert parameter.tolist() == [0.75, 0.75] and scaler.get_scale() == 8
    run_step(scaler, parameter, optimizer, factor)
    assert parameter.tolist() == [0.5, 0.5] and scaler.get_scale() == 16
    run_step(scaler, parameter, optimizer, torch.tensor(float("inf"), device="npu"))
    assert parameter.tolist() == [0.5, 0.5] and scaler.get_scale() == 8


def test_scaler_reports_what_it_does(capsys):
    scaler = GradScaler(init_scale=4.0, growth_interval=1)
    parameter, optimizer, factor = make_problem(0.5)
    run_step(scaler, parameter, optimizer, factor)
    assert capsys.readouterr().out == "Loss scaler increasing loss scale to 8.0\n"
    run_step(scaler, parameter, optimizer, factor * float("nan"))
    assert capsys.readouterr().out == "Gradient overflow. Skipping step\nLoss scaler reducing loss scale to 4.0\n"


def test_scale_never_grows_to_infinity():
    scaler = GradScaler(init_scale=2.0**127, growth_interval=1)
    parameter, optimizer, _ = make_problem(1)
    run_step(scaler, parameter, optimizer, torch.tensor(2.0**-127, device="npu"))
    assert scaler.get_scale() == 2.0**127


def test_constant_scale():
    scaler = GradScaler(128.0, 2.0, 0.5, 2000, False)
    parameter, optimizer, factor = make_problem(0.5)
    run_step(scaler, parameter, optimizer, factor)
    assert parameter.tolist() == [0.5, 0.5]
    run_step(scaler, parameter, optimizer, factor * float("inf"))
    assert scaler.get_scale() == 128 and not parameter.isfinite().any().item()


def test_scaler_state_round_trip():
    scaler = GradScaler(init_scale=4.0, dynamic=False)
    state = scaler.state_dict()
    assert state["dynamic"] is False and state["scale"] == 4.0
    other = GradScaler()
    other.load_state_dict(state)
    assert other.state_dict() == state
    with pytest.raises(RuntimeError, match="empty"):
        other.load_state_dict({})


def test_scaler_misuse():
    with pytest.raises(ValueError, match="growth factor must be > 1.0"):
        GradScaler(growth_factor=1.0)
    with pytest.raises(ValueError, match="backoff factor must be < 1.0"):
        GradScaler(backoff_factor=1.0)
    scaler = GradScaler()
    with pytest.raises(ValueError, match="Device type of outputs should be npu"):
        scaler.scale(torch.ones(1))
    with pytest.raises(TypeError, match="iterable of Tensors"):
        scaler.scale(3)
    parameter = torch.nn.Parameter(torch.ones(2, device="npu", dtype=torch.float16))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler.scale(parameter.float().sum()).backward()
    with pytest.raises(TypeError, match="Attempting to unscale FP16 gradients."):
        scaler.unscale_(optimizer)


def test_scaler_scales_nested_outputs():
    scaler = GradScaler(init_scale=2.0)
    outputs = scaler.scale([torch.ones(1, device="npu"), (torch.ones(1, device="npu"),)])
    assert type(outputs) is list and type(outputs[1]) is tuple and outputs[1][0].item() == 2


def test_overflow_check():
    check = torch_npu.npu.utils.npu_check_overflow
    assert torch_npu.npu.utils.is_support_inf_nan()
    assert check(torch.tensor([65535.0]).half().npu())
    assert check(torch.tensor([3e38, 3e38]).npu())
    assert check(float("nan")) and not check(1.0) and not check(torch.ones(2).npu())
    with pytest.raises(RuntimeError, match="Unsupported type."):
        check("1.0")
