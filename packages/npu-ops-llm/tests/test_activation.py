"""The activations against their formulas in float64."""

import math
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

OPS = torch.ops.npu
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Half a unit in the last place of the result and a few of float32.
RTOL = {torch.float32: 1e-6, torch.bfloat16: 2**-8 + 1e-6, torch.float16: 2**-11 + 1e-6}
ATOL = {torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 2**-24 + 1e-6}
SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 17), (64,), (129, 31), (5, 20011)]


def quick_gelu(x: Tensor) -> Tensor:
    return x / (1 + (-1.702 * x).exp())


def erf_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


Function = Callable[[Tensor], Tensor]
FORWARD: dict[str, tuple[Function, Function]] = {
    "npu_fast_gelu": (OPS.npu_fast_gelu, quick_gelu),
    "fast_gelu": (OPS.fast_gelu, quick_gelu),
    "npu_gelu": (OPS.npu_gelu, erf_gelu),
    "npu_gelu-tanh": (lambda x: OPS.npu_gelu(x, approximate="tanh"), tanh_gelu),
    "npu_silu": (OPS.npu_silu, silu),
}
BACKWARD: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Function]] = {
    "npu_fast_gelu_backward": (OPS.npu_fast_gelu_backward, quick_gelu),
    "npu_gelu_backward": (OPS.npu_gelu_backward, erf_gelu),
    "npu_gelu_backward-tanh": (lambda dy, x: OPS.npu_gelu_backward(dy, x, approximate="tanh"), tanh_gelu),
    "npu_silu_backward": (
        lambda dy, x: OPS.npu_silu_backward(dy, x, silu(x.cpu().double()).to(x.dtype).to(x.device)),
        silu,
    ),
}
every_forward = pytest.mark.parametrize("name", FORWARD)
every_backward = pytest.mark.parametrize("name", BACKWARD)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
properties = settings(
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def derivative(function: Function, x: Tensor) -> Tensor:
    x = x.detach().cpu().double().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype, scale: float = 1.0) -> None:
    assert actual.dtype == dtype
    torch.testing.assert_close(
        actual.cpu().double(), expected.cpu(), rtol=RTOL[dtype] * scale, atol=ATOL[dtype] * scale, equal_nan=True
    )


@every_dtype
@pytest.mark.parametrize("shape", SHAPES)
@every_forward
def test_forward(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    op, reference = FORWARD[name]
    x = (torch.randn(shape) * 3).to(dtype).to(device)
    y = op(x)
    assert y.shape == x.shape and y.device == x.device and y.data_ptr() != x.data_ptr()
    assert_near(y, reference(x.cpu().double()), dtype)


@every_dtype
@pytest.mark.parametrize("shape", SHAPES)
@every_backward
def test_backward(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    op, reference = BACKWARD[name]
    x, dy = ((torch.randn(shape) * 2).to(dtype).to(device) for _ in range(2))
    dx = op(dy, x)
    assert dx.shape == x.shape and dx.device == x.device
    expected = dy.cpu().double() * derivative(reference, x)
    if name == "npu_silu_backward":  # the rounded result is an argument: its error counts
        torch.testing.assert_close(dx.cpu().double(), expected, rtol=RTOL[dtype] * 2, atol=RTOL[dtype] * 16)
    else:
        assert_near(dx, expected, dtype, 4 if dtype == torch.float32 else 1)


@every_dtype
def test_silu_backward_uses_the_result_it_is_given(dtype: torch.dtype, device: str) -> None:
    dy, x0, x1 = (torch.randn(3, 37).to(dtype).to(device) for _ in range(3))
    s = torch.sigmoid(x0.cpu().double())
    expected = dy.cpu().double() * (s + x1.cpu().double() * (1 - s))
    assert_near(OPS.npu_silu_backward(dy, x0, x1), expected, dtype, 2 if dtype == torch.float32 else 1)


def test_specification_examples(device: str) -> None:
    x = torch.tensor([1.0, 2.0, -1.0], device=device)
    y = torch.tensor([0.845796, 1.935659, -0.154204])
    dx = torch.tensor([1.067780, 1.073815, -0.067780])
    for op in (OPS.npu_fast_gelu, OPS.fast_gelu):
        torch.testing.assert_close(op(x).cpu(), y, rtol=0, atol=1e-6)
    torch.testing.assert_close(OPS.npu_fast_gelu_backward(torch.ones_like(x), x).cpu(), dx, rtol=0, atol=1e-6)


@every_dtype
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_that_of_torch(approximate: str, dtype: torch.dtype, device: str) -> None:
    x, dy = (torch.linspace(-12, 12, 100_003).to(dtype), torch.randn(100_003).to(dtype))
    torch.testing.assert_close(
        OPS.npu_gelu(x.to(device), approximate=approximate).cpu(),
        torch.nn.functional.gelu(x, approximate=approximate),
        rtol=RTOL[dtype] * 2,
        atol=ATOL[dtype],
    )
    torch.testing.assert_close(
        OPS.npu_gelu_backward(dy.to(device), x.to(device), approximate=approximate).cpu(),
        torch.ops.aten.gelu_backward(dy, x, approximate=approximate),
        rtol=RTOL[dtype] * 2,
        atol=ATOL[dtype] * 10,  # torch takes 1 - tanh^2, which cancels
    )


# ---- kernels --------------------------------------------------------------------------------------------------------


def float32_values() -> Tensor:
    """Every 4099th float32 in [-30, 30] and a grid, so that all magnitudes and all signs occur."""
    positive = torch.arange(0, 0x41F00000, 4099, dtype=torch.int32).view(torch.float32)
    return torch.cat([positive, -positive, torch.linspace(-12, 12, 200_001)])


@every_forward
def test_every_kernel_table_over_all_magnitudes(name: str, isa: str) -> None:
    op, reference = FORWARD[name]
    x = float32_values()
    expected = reference(x.double())
    actual = op(x).double()
    # 1 + erf and 1 + tanh cancel where x is very negative: there the error is relative to x.
    bound = 4e-7 * torch.maximum(expected.abs(), x.double().abs().clamp(max=12.0) / 2) + 1e-44
    worst = ((actual - expected).abs() / bound).max()
    assert worst < 1, f"{float(worst)} at {float(x[((actual - expected).abs() / bound).argmax()])}"


@every_forward
def test_every_kernel_table_is_accurate_where_nothing_cancels(name: str, isa: str) -> None:
    op, reference = FORWARD[name]
    x = float32_values()
    x = x[(x > -0.5) & (x.abs() > 1e-30)]
    expected = reference(x.double())
    assert float(((op(x).double() - expected) / expected).abs().max()) < 6 * 2.0**-24


@every_dtype
@every_backward
def test_every_kernel_table_differentiates(name: str, dtype: torch.dtype, isa: str) -> None:
    op, reference = BACKWARD[name]
    for count in (*range(1, 20), 63, 64, 65, 1000):
        x, dy = ((torch.randn(count) * 3).to(dtype) for _ in range(2))
        expected = dy.double() * derivative(reference, x)
        torch.testing.assert_close(op(dy, x).double(), expected, rtol=RTOL[dtype] * 2, atol=16 * RTOL[dtype])


@every_dtype
@every_forward
def test_every_kernel_table_has_right_ends(name: str, dtype: torch.dtype, isa: str) -> None:
    op, reference = FORWARD[name]
    for count in (*range(1, 40), 63, 64, 65):
        memory = torch.full((count + 64,), 77.0).to(dtype)
        x = memory[1 : 1 + count].copy_(torch.randn(count))
        assert_near(op(x), reference(x.double()), dtype)
        if name == "npu_silu":
            expected = op(x)
            OPS.npu_silu_(x)
            assert torch.equal(x, expected)
            assert (memory[1 + count :] == 77).all() and memory[0] == 77


@every_dtype
@every_forward
def test_infinities_nan_and_zeros(name: str, dtype: torch.dtype, isa: str) -> None:
    op, _ = FORWARD[name]
    y = op(torch.tensor([math.inf, math.nan, 0.0, -0.0, 60000.0, -60000.0], dtype=dtype)).float()
    assert y[0] == math.inf and y[1].isnan()
    assert y[2] == 0 and y[3] == 0 and not y[2].signbit() and y[3].signbit()
    assert y[4] == torch.tensor(60000.0).to(dtype).float() and y[5] == 0
    # -inf times 0, as in torch.
    assert (
        op(torch.tensor([-math.inf], dtype=dtype)).isnan() == torch.nn.functional.gelu(torch.tensor(-math.inf)).isnan()
    )


# ---- layouts --------------------------------------------------------------------------------------------------------


@every_forward
def test_dense_layouts_are_kept(name: str, device: str) -> None:
    op, reference = FORWARD[name]
    for x in (
        torch.randn(33, 48, device=device).t(),
        torch.randn(2, 3, 5, 7, device=device).to(memory_format=torch.channels_last),
        torch.randn(4, 5, 6, device=device).permute(2, 0, 1),
        torch.randn(1, 6, 1, device=device).as_strided((1, 6, 1), (77, 1, 9)),
    ):
        y = op(x)
        assert y.stride() == torch.empty_like(x).stride()
        assert_near(y, reference(x.cpu().double()), torch.float32)


@every_forward
def test_gaps_and_overlaps_are_read_right(name: str, device: str) -> None:
    op, reference = FORWARD[name]
    base = torch.randn(12, 40, device=device)
    for x in (base[:, ::2], base[::3, 5:21], base[0].expand(7, 40), base.t()[::2], torch.empty(3, 0, 4, device=device)):
        y = op(x)
        assert y.stride() == torch.empty_like(x).stride()
        assert_near(y, reference(x.cpu().double()), torch.float32)


@every_backward
def test_gradients_of_other_layouts(name: str, device: str) -> None:
    if name == "npu_silu_backward":

        def op(dy: Tensor, x: Tensor) -> Tensor:
            return OPS.npu_silu_backward(dy, x, OPS.npu_silu(x).contiguous())
    else:
        op = BACKWARD[name][0]
    base = torch.randn(6, 5, device=device)
    for x in (torch.randn(5, 6, device=device).t(), torch.randn(6, 10, device=device)[:, ::2]):
        for dy in (base, torch.ones(1, device=device).expand(6, 5), torch.randn(5, 6, device=device).t()):
            assert torch.equal(op(dy, x).cpu(), op(dy.contiguous(), x.contiguous()).cpu())


@every_dtype
def test_silu_in_place(dtype: torch.dtype, device: str) -> None:
    x = torch.randn(5, 37).to(dtype).to(device)
    expected = OPS.npu_silu(x)
    address = x.data_ptr()
    result = OPS.npu_silu_(x)
    assert result is x and x.data_ptr() == address
    assert torch.equal(x.cpu(), expected.cpu())


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.t(),
        lambda t: t[:, 3:29],
        lambda t: t[:, ::2],
        lambda t: t[1::2, ::3],
        lambda t: t[:, 5],
        lambda t: t[:0],
        lambda t: t.view(4, 3, 10, 4).permute(2, 0, 3, 1)[1:, :, ::2],
        lambda t: t[2, 3],
    ],
)
@every_dtype
def test_silu_in_place_writes_through_views(view: Callable[[Tensor], Tensor], dtype: torch.dtype, device: str) -> None:
    memory = torch.randn(12, 40).to(dtype).to(device)
    expected = memory.clone()
    view(expected).copy_(OPS.npu_silu(view(memory)))
    OPS.npu_silu_(view(memory))
    assert torch.equal(memory.cpu(), expected.cpu())


@properties
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    steps=st.lists(st.integers(1, 3), min_size=5, max_size=5),
    order=st.permutations(range(5)),
)
def test_silu_in_place_of_any_strides(sizes: list[int], steps: list[int], order: list[int]) -> None:
    memory = torch.randn([size * step for size, step in zip(sizes, steps, strict=False)])
    expected = memory.clone()

    def view(tensor: Tensor) -> Tensor:
        for d, step in enumerate(steps[: len(sizes)]):
            tensor = tensor.narrow(d, 0, tensor.shape[d])[(slice(None),) * d + (slice(None, None, step),)]
        return tensor.permute([d for d in order if d < len(sizes)])

    view(expected).copy_(OPS.npu_silu(view(memory)))
    OPS.npu_silu_(view(memory))
    assert torch.equal(memory, expected)


def test_silu_in_place_refuses_expanded_tensors(device: str) -> None:
    with pytest.raises(RuntimeError, match="npu_silu_: argument self: more than one element refers to a single memory"):
        OPS.npu_silu_(torch.ones(1, 3, device=device).expand(4, 3))


def test_silu_in_place_is_functionalised(device: str) -> None:
    def model(x: Tensor) -> Tensor:
        y = x * 2
        OPS.npu_silu_(y[:, 1:])
        return y + 1

    x = torch.randn(4, 8, device=device)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x).cpu(), model(x).cpu())


def test_silu_in_place_is_differentiated(device: str) -> None:
    base = torch.randn(4, 9, device=device)
    views: list[Callable[[Tensor], Tensor]] = [lambda t: t, lambda t: t[1:3, ::2], lambda t: t.t()[3]]
    for view in views:
        results = []
        for in_place in (OPS.npu_silu_, lambda t: torch.nn.functional.silu(t, inplace=True)):
            x = base.clone().requires_grad_()
            y = x * 2
            in_place(view(y))
            (gradient,) = torch.autograd.grad(y.square().sum(), x)
            results.append((y.detach().cpu(), gradient.cpu()))
        torch.testing.assert_close(results[0], results[1])


def test_silu_in_place_of_a_leaf_is_refused(device: str) -> None:
    x = torch.randn(4, device=device, requires_grad=True)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad is being used in an in-place operation"):
        OPS.npu_silu_(x)
    before = x.detach().clone()
    with torch.no_grad():
        OPS.npu_silu_(x)
    assert torch.equal(x.detach().cpu(), OPS.npu_silu(before).cpu())


def test_silu_in_place_of_a_saved_tensor_is_noticed(device: str) -> None:
    weight, x = torch.randn(4, device=device, requires_grad=True), torch.randn(4, device=device)
    y = weight * x
    OPS.npu_silu_(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_silu_in_place_in_compiled_training(device: str) -> None:
    def model(x: Tensor) -> Tensor:
        y = x * 2
        OPS.npu_silu_(y[:, 1:])
        return y.square().sum()

    x = torch.randn(4, 8, device=device, requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    (expected,), (actual,) = torch.autograd.grad(model(x), x), torch.autograd.grad(compiled(x), x)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_value(dtype: torch.dtype, isa: str) -> None:
    """The nearest value but for ties, and for results too small to matter."""
    x = torch.arange(65536).to(torch.uint16).view(dtype)
    x = x[x.isfinite() & (x.abs() < 1e4)]
    for op, reference in FORWARD.values():
        assert_near(op(x), reference(x.double()).nan_to_num(), dtype)
    for name, (op, reference) in BACKWARD.items():
        if name != "npu_silu_backward":
            found = op(torch.ones_like(x), x)
            inner = x.abs() < 100  # exp of more overflows in the derivative of the reference
            assert_near(found[inner], derivative(reference, x[inner]), dtype)
            assert ((found[~inner] == 0) | (found[~inner] == 1)).all()


@every_dtype
def test_derivative_of_tanh_gelu_does_not_overflow(dtype: torch.dtype, isa: str) -> None:
    large = torch.tensor([60000.0, -60000.0] * 8 if dtype == torch.float16 else [1e30, -1e30] * 8, dtype=dtype)
    found = OPS.npu_gelu_backward(torch.ones_like(large), large, approximate="tanh")
    assert found.tolist() == [1, 0] * 8


# ---- gelu with promotion and broadcasting ---------------------------------------------------------------------------


@pytest.mark.parametrize("other", DTYPES)
@every_dtype
@pytest.mark.parametrize(
    ("grad_shape", "shape"),
    [((4, 5), (4, 5)), ((5,), (4, 5)), ((4, 5), (4, 1)), ((3, 1, 5), (4, 1)), ((), (2, 3)), ((2,), ()), ((), ())],
)
def test_gelu_backward_broadcasts_and_promotes(
    grad_shape: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype, other: torch.dtype, device: str
) -> None:
    dy, x = torch.randn(grad_shape).to(other).to(device), torch.randn(shape).to(dtype).to(device)
    dx = OPS.npu_gelu_backward(dy, x)
    assert dx.dtype == torch.result_type(dy, x)
    assert OPS.npu_gelu_backward(dy.to("meta"), x.to("meta")).dtype == dx.dtype
    dy, x = dy.to(dx.dtype), x.to(dx.dtype)  # both are converted first
    expected = dy.cpu().double() * derivative(erf_gelu, x)
    assert dx.shape == expected.shape
    assert_near(dx, expected, dx.dtype, 4 if dx.dtype == torch.float32 else 1)


def test_gelu_backward_of_one_number_keeps_the_dtype(device: str) -> None:
    one, x = torch.tensor(1.0, device=device), torch.randn(3, device=device).bfloat16()
    assert OPS.npu_gelu_backward(one, x).dtype == torch.bfloat16
    assert OPS.npu_gelu_backward(x, one).dtype == torch.bfloat16


# ---- npu_gelu_mul ---------------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("shape", [(1, 2), (3, 14), (2, 3, 66), (5, 4, 2, 130), (0, 8), (4, 0), (3, 20006)])
def test_gelu_mul(shape: tuple[int, ...], approximate: str, dtype: torch.dtype, device: str) -> None:
    x = (torch.randn(shape) * 2).to(dtype).to(device)
    y = OPS.npu_gelu_mul(x, approximate=approximate)
    a, b = x.cpu().double().chunk(2, dim=-1) if shape[-1] else (x.cpu().double(),) * 2
    assert_near(y, (erf_gelu if approximate == "none" else tanh_gelu)(a) * b, dtype, 4 if dtype == torch.float32 else 1)


def test_gelu_mul_of_strided_rows(device: str) -> None:
    wide = torch.randn(4, 3, 50, device=device)
    for x in (
        wide[:, :, 7:33],
        wide.transpose(0, 1),
        wide[::2],
        wide.permute(2, 0, 1)[:, :, :2],
        wide[:1].expand(6, 3, 50),
    ):
        assert torch.equal(OPS.npu_gelu_mul(x).cpu(), OPS.npu_gelu_mul(x.contiguous()).cpu())


# ---- autograd -------------------------------------------------------------------------------------------------------


@every_dtype
@every_forward
def test_autograd(name: str, dtype: torch.dtype, device: str) -> None:
    op, reference = FORWARD[name]
    x = torch.randn(6, 35).to(dtype).to(device).requires_grad_()
    dy = torch.randn(6, 35).to(dtype).to(device)
    op(x).backward(dy)
    assert x.grad is not None and x.grad.dtype == dtype
    expected = dy.cpu().double() * derivative(reference, x)
    torch.testing.assert_close(x.grad.cpu().double(), expected, rtol=RTOL[dtype] * 2, atol=RTOL[dtype] * 8)


@every_forward
def test_second_derivative_is_refused(name: str) -> None:
    x = torch.randn(3, 8, requires_grad=True)
    (dx,) = torch.autograd.grad(FORWARD[name][0](x).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="has no second derivative"):
        dx.sum().backward()


@every_forward
def test_compiled_training(name: str, device: str) -> None:
    op, _ = FORWARD[name]
    x = torch.randn(6, 24, device=device, requires_grad=True)

    def model(x: Tensor) -> Tensor:
        return (op(x * 2) + 1).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    (expected,), (actual,) = torch.autograd.grad(model(x), x), torch.autograd.grad(compiled(x), x)
    torch.testing.assert_close(actual, expected)


def test_results_do_not_depend_on_threads() -> None:
    x = torch.randn(300, 1001)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([OPS.npu_gelu(x), OPS.npu_gelu_mul(x[:, :1000]), OPS.npu_silu_backward(x, x, x)])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_errors_name_operator_and_argument(device: str) -> None:
    def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    half, whole = torch.float16, torch.int32
    x = ones(2, 4)
    for call, message in [
        (
            lambda: OPS.npu_gelu(x, approximate="sigmoid"),
            "npu_gelu: .* approximate argument must be either none or tanh",
        ),
        (lambda: OPS.npu_gelu_backward(x, x, approximate=""), "approximate argument must be either none or tanh"),
        (lambda: OPS.npu_gelu_mul(x, approximate="erf"), "approximate argument must be either none or tanh"),
        (lambda: OPS.npu_gelu(ones(2, dtype=whole)), "npu_gelu: argument self: .* got int32"),
        (lambda: OPS.npu_fast_gelu(ones(2, dtype=torch.float64)), "npu_fast_gelu: argument self: .* got float64"),
        (lambda: OPS.fast_gelu(ones(2, dtype=whole)), "^fast_gelu: argument self: .* got int32"),
        (lambda: OPS.npu_silu(ones(2, dtype=whole)), "npu_silu: argument self: .* got int32"),
        (lambda: OPS.npu_silu_(ones(2, dtype=whole)), "npu_silu_: argument self: .* got int32"),
        (lambda: OPS.npu_fast_gelu_backward(ones(2, 3), x), r"npu_fast_gelu_backward: argument grad: .* \[2, 4\]"),
        (lambda: OPS.npu_fast_gelu_backward(ones(2, 4, dtype=half), x), r"argument grad: .*float32 \(as self\)"),
        (lambda: OPS.npu_silu_backward(ones(4), x, x), r"argument grad_output: .* \[2, 4\] \(as x0\), got \[4\]"),
        (lambda: OPS.npu_silu_backward(x, x, ones(2, 4, dtype=half)), r"argument x1: .*float32 \(as x0\), got float16"),
        (
            lambda: OPS.npu_gelu_backward(ones(3, 4), x),
            "npu_gelu_backward: argument grad_output: expected a shape that",
        ),
        (lambda: OPS.npu_gelu_backward(ones(2, 4, dtype=whole), x), "argument grad_output: .* got int32"),
        (lambda: OPS.npu_gelu_mul(ones(2, 3)), r"npu_gelu_mul: argument input: expected an even size of dim 1"),
        (lambda: OPS.npu_gelu_mul(ones(4)), "npu_gelu_mul: argument input: expected at least 2 dims"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_meta_tensors_are_checked() -> None:
    x = torch.empty(2, 4, device="meta")
    for call, message in [
        (lambda: OPS.npu_gelu(x, approximate="sigmoid"), "approximate argument must be either none or tanh"),
        (lambda: OPS.npu_gelu_mul(x[:, :3]), "npu_gelu_mul: argument input: expected an even size of dim 1"),
        (lambda: OPS.npu_gelu_backward(x[:1, :3], x), "npu_gelu_backward: argument grad_output: expected a shape that"),
        (lambda: OPS.npu_fast_gelu_backward(x[:1], x), "npu_fast_gelu_backward: argument grad: expected shape"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_devices_must_agree() -> None:
    import torch_npu  # noqa: F401

    x = torch.ones(2, 3)
    for call in (
        lambda: OPS.npu_gelu_backward(x, x.npu()),
        lambda: OPS.npu_fast_gelu_backward(x, x.npu()),
        lambda: OPS.npu_silu_backward(x.npu(), x.npu(), x),
    ):
        with pytest.raises(RuntimeError, match="^Expected all tensors to be on the same device.* npu:0 and cpu!"):
            call()


# ---- deprecation ----------------------------------------------------------------------------------------------------


def test_silu_warns_once_and_names_its_replacement() -> None:
    code = """
import warnings, torch, npu_ops_llm.operators
x = torch.rand(2, 4)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for _ in range(2):
        torch.ops.npu.npu_silu(x)
    torch.ops.npu.npu_silu_(x)
    torch.ops.npu.fast_gelu(x)
print([(str(w.message), w.category.__name__) for w in seen])
"""
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    message = (
        "torch_npu.npu_silu is deprecated and will be removed in future version. Use torch.nn.functional.silu instead."
    )
    assert result.stdout.strip() == str([(message, "UserWarning")]), result.stderr


def test_fake_kernels_refuse_dtypes() -> None:
    x, half = torch.ones(2, 4, dtype=torch.float64, device="meta"), torch.ones(2, 4, dtype=torch.half, device="meta")
    one = torch.ones(2, 4, device="meta")
    wrong = "expected dtype float16, bfloat16 or float32, got float64"
    for call, message in (
        (lambda: OPS.npu_fast_gelu(x), f"npu_fast_gelu: argument self: {wrong}"),
        (lambda: OPS.fast_gelu(x), f"fast_gelu: argument self: {wrong}"),
        (lambda: OPS.npu_fast_gelu_backward(x, x), f"npu_fast_gelu_backward: argument self: {wrong}"),
        (
            lambda: OPS.npu_fast_gelu_backward(half, one),
            r"argument grad: expected dtype float32 \(as self\), got float16",
        ),
        (lambda: OPS.npu_gelu(x), f"npu_gelu: argument self: {wrong}"),
        (lambda: OPS.npu_gelu_backward(one, x), f"npu_gelu_backward: argument self: {wrong}"),
        (lambda: OPS.npu_gelu_backward(x, one), f"npu_gelu_backward: argument grad_output: {wrong}"),
        (lambda: OPS.npu_gelu_mul(x), f"npu_gelu_mul: argument input: {wrong}"),
        (lambda: OPS.npu_silu(x), f"npu_silu: argument self: {wrong}"),
        (lambda: OPS.npu_silu_(x), f"npu_silu_: argument self: {wrong}"),
        (lambda: OPS.npu_silu_backward(x, x, x), f"npu_silu_backward: argument x0: {wrong}"),
        (lambda: OPS.npu_silu_backward(one, one, half), r"argument x1: expected dtype float32 \(as x0\), got float16"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


def test_gelu_mul_of_many_dims(device: str) -> None:
    x = torch.randn(*[2] * 9, 6).to(device).permute(8, 6, 4, 2, 0, 7, 5, 3, 1, 9)
    for y in (x, torch.randn(*[2] * 10).to(device).permute(9, 6, 4, 2, 0, 7, 5, 3, 1, 8)):
        assert torch.equal(OPS.npu_gelu_mul(y).cpu(), OPS.npu_gelu_mul(y.contiguous()).cpu())
