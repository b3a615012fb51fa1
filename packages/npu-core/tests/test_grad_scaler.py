"""Gradient scalers: upstream's on npu, the plugin's own, and the two operators behind them."""

from __future__ import annotations

import math

import pytest
import torch

from torch_npu.npu.amp import GradScaler

INF, NAN = float("inf"), float("nan")
FLOATING = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
SCALERS = {"upstream": lambda **kw: torch.amp.GradScaler("npu", **kw), "own": GradScaler}


def cell(value: float, dtype: torch.dtype = torch.float32, device: str = "npu") -> torch.Tensor:
    return torch.full((), value, dtype=dtype, device=device)


# ---- the operators


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("bad", [None, INF, -INF, NAN])
def test_unscale_multiplies_and_finds_what_is_not_finite(dtype, bad):
    base = torch.arange(1, 61, dtype=dtype)
    gradients = [
        base.npu().view(5, 12),
        base.npu().view(12, 5).t(),
        torch.empty(0, dtype=dtype, device="npu"),
        torch.full((7,), 4, dtype=dtype, device="npu"),
        torch.ones(9, dtype=dtype, device="npu")[::2],
    ]
    if bad is not None:
        gradients[1][3, 2] = bad
    expected = [gradient.cpu() * 0.25 for gradient in gradients]
    found, scale = cell(0), torch.tensor([0.25], device="npu")
    torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, scale)
    assert found.item() == (0 if bad is None else 1) and found.dtype == torch.float32
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient.cpu(), reference, rtol=0, atol=0, equal_nan=True)


def test_unscale_never_clears_the_flag():
    found = cell(1)
    torch._amp_foreach_non_finite_check_and_unscale_([torch.ones(2, device="npu")], found, cell(1))
    torch._amp_foreach_non_finite_check_and_unscale_([], found, cell(1))
    assert found.item() == 1


def test_unscale_is_in_the_order_of_the_stream():
    """The gradient is written, unscaled and read by tasks of a side stream; the host waits once, at the end."""
    side = torch.npu.Stream()
    with torch.npu.stream(side):
        gradient = torch.ones(1 << 20, device="npu")
        found = cell(0)
        for _ in range(20):
            gradient.mul_(2)
            torch._amp_foreach_non_finite_check_and_unscale_([gradient], found, cell(0.5))
        gradient[7] = INF
        torch._amp_foreach_non_finite_check_and_unscale_([gradient], found, cell(0.5))
        after = found.clone()
    side.synchronize()
    assert after.item() == 1 and gradient[0].item() == 0.5


def test_unscale_of_a_thousand_gradients():
    gradients = [torch.full((3,), float(i), device="npu") for i in range(1000)]
    torch._amp_foreach_non_finite_check_and_unscale_(gradients, cell(0), cell(2))
    assert torch.stack(gradients).sum().item() == 3 * 2 * sum(range(1000))


def test_unscale_says_what_is_wrong():
    unscale = torch._amp_foreach_non_finite_check_and_unscale_
    good = [torch.ones(2, device="npu")]
    with pytest.raises(RuntimeError, match=r"found_inf must be a tensor on npu with one element of Float, but got 2"):
        unscale(good, torch.zeros(2, device="npu"), cell(1))
    with pytest.raises(RuntimeError, match=r"inv_scale must be .* of Float, but got 1 element\(s\) of Double"):
        unscale(good, cell(0), cell(1, torch.float64))
    with pytest.raises(RuntimeError, match=r"scaled_grads must be strided tensors on npu, but one is Strided on cpu"):
        unscale([*good, torch.ones(2)], cell(0), cell(1))
    with pytest.raises(RuntimeError, match=r"scaled_grads must have a floating dtype, but one has Int"):
        unscale([torch.ones(2, dtype=torch.int32, device="npu")], cell(0), cell(1))
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        unscale([torch.ones(1, device="npu").expand(3)], cell(0), cell(1))
    with pytest.raises(RuntimeError, match="same device"):
        unscale([torch.ones(2, device="npu:1")], cell(0), cell(1))


@pytest.mark.parametrize(
    ("scale", "tracker", "found", "expected"),
    [
        (8.0, 0, 0, (8.0, 1)),
        (8.0, 1, 0, (8.0, 2)),
        (8.0, 2, 0, (32.0, 0)),
        (8.0, 2, 1, (2.0, 0)),
        (8.0, 0, 2, (2.0, 0)),
        (2.0**127, 2, 0, (2.0**127, 0)),
    ],
)
def test_update_scale(scale, tracker, found, expected):
    current, growth = cell(scale), cell(tracker, torch.int32)
    assert torch._amp_update_scale_(current, growth, cell(found), 4.0, 0.25, 3) is current
    assert (current.item(), growth.item()) == expected


def test_update_scale_says_what_is_wrong():
    with pytest.raises(
        RuntimeError, match=r"_amp_update_scale_: growth_tracker must be .* of Int, but got .* of Float"
    ):
        torch._amp_update_scale_(cell(1), cell(0), cell(0), 2.0, 0.5, 1)
    with pytest.raises(RuntimeError, match=r"_amp_update_scale_: found_inf must be a tensor on npu .* on cpu"):
        torch._amp_update_scale_(cell(1), cell(0, torch.int32), torch.zeros(()), 2.0, 0.5, 1)


# ---- both scalers


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "sgd_foreach": lambda p: torch.optim.SGD(p, lr=0.1, foreach=True),
    "sgd_fused": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adam_foreach": lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
    "adam_fused": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


def weights(device: str) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.arange(1.0, 1 + n).to(device)) for n in (3, 4)]


def loss_of(parameters: list[torch.nn.Parameter], factor: float) -> torch.Tensor:
    return sum((p.square() * factor).sum() for p in parameters)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", SCALERS)
def test_scaled_training_equals_unscaled_training_without_the_overflows(kind, name):
    factors = [1.0, 0.5, INF, 0.25, NAN, 2.0]
    mine, reference = weights("npu"), weights("cpu")
    optimizer, plain = OPTIMIZERS[name](mine), OPTIMIZERS[name](reference)
    scaler = SCALERS[kind](init_scale=1024.0, growth_interval=2)
    scales = []
    for factor in factors:
        optimizer.zero_grad()
        scaler.scale(loss_of(mine, factor)).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        if math.isfinite(factor):
            plain.zero_grad()
            loss_of(reference, factor).backward()
            plain.step()
    for parameter, expected in zip(mine, reference, strict=True):
        torch.testing.assert_close(parameter.detach().cpu(), expected.detach(), rtol=1e-5, atol=1e-6)
    assert scales == [1024, 2048, 1024, 1024, 512, 512]


@pytest.mark.parametrize("kind", SCALERS)
def test_clipping_sees_unscaled_gradients(kind):
    parameter = torch.nn.Parameter(torch.tensor([3.0, 4.0], device="npu"))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = SCALERS[kind](init_scale=256.0)
    scaler.scale((parameter * parameter.detach()).sum()).backward()
    assert parameter.grad.tolist() == [3 * 256, 4 * 256]
    scaler.unscale_(optimizer)
    assert torch.nn.utils.clip_grad_norm_([parameter], 1.0).item() == 5
    scaler.step(optimizer)
    torch.testing.assert_close(parameter.detach().cpu(), torch.tensor([2.4, 3.2]))


@pytest.mark.parametrize("kind", SCALERS)
def test_optimizers_are_skipped_one_by_one(kind):
    good, bad = weights("npu")
    optimizers = [torch.optim.SGD([p], lr=1.0) for p in (good, bad)]
    scaler = SCALERS[kind](init_scale=4.0)
    before = bad.detach().clone()
    scaler.scale(good.sum() + (bad * INF).sum()).backward()
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    assert good.tolist() == [0, 1, 2] and torch.equal(bad.detach(), before)
    assert scaler.get_scale() == 2, "one overflow anywhere shrinks the scale"


@pytest.mark.parametrize("kind", SCALERS)
def test_parameters_on_two_devices(kind):
    parameters = [torch.nn.Parameter(torch.ones(2, device=f"npu:{i}")) for i in (0, 1)]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    scaler = SCALERS[kind](init_scale=4.0)
    for factor in (1.0, INF):
        optimizer.zero_grad()
        losses = scaler.scale([p.sum() * (factor if i else 1.0) for i, p in enumerate(parameters)])
        (losses[0] + losses[1].to("npu:0")).backward()
        scaler.step(optimizer)
        scaler.update()
    assert [p.tolist() for p in parameters] == [[0, 0], [0, 0]] and scaler.get_scale() == 2


@pytest.mark.parametrize("kind", SCALERS)
def test_gradients_of_mixed_dtypes_in_one_optimizer(kind):
    parameters = [torch.nn.Parameter(torch.ones(2, dtype=d, device="npu")) for d in (torch.float32, torch.bfloat16)]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    scaler = SCALERS[kind](init_scale=4.0)
    scaler.scale(sum(p.float().sum() for p in parameters)).backward()
    scaler.step(optimizer)
    assert [p.tolist() for p in parameters] == [[0, 0], [0, 0]]


@pytest.mark.parametrize("kind", SCALERS)
def test_order_of_calls(kind):
    parameters = weights("npu")
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    scaler = SCALERS[kind]()
    with pytest.raises(AssertionError):
        scaler.update()
    scaler.scale(loss_of(parameters, 1.0)).backward()
    with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
        scaler.step(optimizer, closure=lambda: None)
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="already been called on this optimizer"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"step\(\) has already been called"):
        scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"being called after step\(\)"):
        scaler.unscale_(optimizer)
    scaler.update()
    scaler.scale(loss_of(parameters, 1.0)).backward()
    scaler.unscale_(optimizer)


@pytest.mark.parametrize("kind", SCALERS)
def test_disabled_scaler_does_nothing(kind):
    scaler = SCALERS[kind](enabled=False)
    parameters = weights("npu")
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    loss = loss_of(parameters, 0.5)
    assert scaler.scale(loss) is loss and scaler.get_scale() == 1 and not scaler.is_enabled()
    loss.backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert [p.tolist() for p in parameters] == [[0] * 3, [0] * 4] and scaler.state_dict() == {}
    scaler.load_state_dict({})


@pytest.mark.parametrize("kind", SCALERS)
def test_state_survives_a_checkpoint(kind, tmp_path):
    scaler = SCALERS[kind](init_scale=64.0, growth_factor=3.0, backoff_factor=0.25, growth_interval=7)
    parameters = weights("npu")
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for factor in (1.0, INF, 1.0, 1.0):
        optimizer.zero_grad()
        scaler.scale(loss_of(parameters, factor)).backward()
        scaler.step(optimizer)
        scaler.update()
    state = scaler.state_dict()
    assert (state["scale"], state["_growth_tracker"], state["growth_interval"]) == (16, 2, 7)
    torch.save(state, tmp_path / "scaler.pt")
    other = SCALERS[kind]()
    other.load_state_dict(torch.load(tmp_path / "scaler.pt"))
    assert other.state_dict() == state
    parameters[0].grad = None
    other.scale(loss_of(parameters, 1.0)).backward()
    assert other.get_scale() == 16


@pytest.mark.parametrize("kind", SCALERS)
def test_scale_can_be_set(kind):
    scaler = SCALERS[kind](init_scale=8.0)
    scaler.scale(cell(1))
    scaler.update(32.0)
    assert scaler.get_scale() == 32
    scaler.update(torch.tensor(2.0, device="npu"))
    assert scaler.get_scale() == 2


@pytest.mark.parametrize("kind", SCALERS)
def test_whole_step_waits_once_per_optimizer(kind):
    """Scaling, unscaling and growing are queued; only the decision to step makes the host wait."""
    parameters = weights("npu")
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    scaler = torch.amp.GradScaler("npu", init_scale=4.0)
    scaler.scale(loss_of(parameters, 1.0)).backward()
    torch.npu.set_sync_debug_mode("error")
    try:
        scaler.unscale_(optimizer)
        with pytest.raises(RuntimeError, match="called a synchronizing NPU operation"):
            scaler.step(optimizer)
        scaler.update()
    finally:
        torch.npu.set_sync_debug_mode("default")


# ---- what the plugin's own scaler adds


def test_fused_optimizer_reports_its_skipped_step(capsys):
    parameters = weights("npu")
    optimizer = torch.optim.Adam(parameters, lr=0.1, fused=True)
    scaler = GradScaler(init_scale=4.0, growth_interval=1)
    scaler.scale(loss_of(parameters, INF)).backward()
    assert scaler.step(optimizer) is None
    with pytest.raises(RuntimeError, match=r"step\(\) has already been called"):
        scaler.step(optimizer)
    scaler.update()
    assert capsys.readouterr().out == "Gradient overflow. Skipping step\nLoss scaler reducing loss scale to 2.0\n"
    assert parameters[0].tolist() == [1, 2, 3] and optimizer.state[parameters[0]] == {}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_constant_scale_equals_unscaled_training(name, capsys):
    mine, reference = weights("npu"), weights("cpu")
    optimizer, plain = OPTIMIZERS[name](mine), OPTIMIZERS[name](reference)
    scaler = GradScaler(init_scale=512.0, growth_interval=1, dynamic=False)
    for factor in (1.0, 0.5):
        optimizer.zero_grad()
        scaler.scale(loss_of(mine, factor)).backward()
        scaler.step(optimizer)
        scaler.update()
        plain.zero_grad()
        loss_of(reference, factor).backward()
        plain.step()
    for parameter, expected in zip(mine, reference, strict=True):
        torch.testing.assert_close(parameter.detach().cpu(), expected.detach(), rtol=1e-5, atol=1e-6)
    assert scaler.get_scale() == 512 and capsys.readouterr().out == ""


def test_constant_scale_does_not_look_for_overflows(capsys):
    parameters = weights("npu")
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    scaler = GradScaler(dynamic=False)
    scaler.scale(loss_of(parameters, INF)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert not parameters[0].isfinite().any().item() and capsys.readouterr().out == ""


def test_without_a_device_the_scaler_disables_itself(run_python):
    code = """
        import warnings
        import torch, torch_npu
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scaler = torch_npu.npu.amp.GradScaler()
        print(scaler.is_enabled(), any("Disabling" in str(w.message) for w in caught))
        """
    assert run_python(code, ASCEND_RT_VISIBLE_DEVICES="").stdout.split() == ["False", "True"]
