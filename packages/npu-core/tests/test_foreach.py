"""torch._foreach_* and the optimisers built on them: one task per call, the CPU's results."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import torch_npu  # noqa: F401

SHAPES = [(3, 4), (7,), (), (0, 2), (2, 3, 5), (17,)]


def _list(seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=generator) + 2.5 for shape in SHAPES]
    return [v.to(dtype) if dtype.is_floating_point else (v * 3).to(dtype) for v in values]


def _npu(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [t.npu() for t in tensors]


def _same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    torch.testing.assert_close([t.cpu() for t in ours], list(theirs), equal_nan=True)


UNARY = ("abs", "exp", "sqrt", "neg", "reciprocal", "sigmoid", "log", "ceil", "sign", "tanh")
BINARY = ("add", "sub", "mul", "div", "maximum", "minimum", "pow")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str, dtype: torch.dtype) -> None:
    a = _list(1, dtype)
    _same(getattr(torch, f"_foreach_{name}")(_npu(a)), getattr(torch, f"_foreach_{name}")(a))
    ours, theirs = _npu(a), [t.clone() for t in a]
    getattr(torch, f"_foreach_{name}_")(ours)
    getattr(torch, f"_foreach_{name}_")(theirs)
    _same(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64], ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_binary(name: str, dtype: torch.dtype) -> None:
    a, b = _list(1, dtype), _list(2, dtype)
    if name == "pow" and dtype == torch.int64:
        b = [t.abs() for t in b]
    function = getattr(torch, f"_foreach_{name}")
    _same(function(_npu(a), _npu(b)), function(a, b))
    for other in (2, [float(i + 1) for i in range(len(a))]):
        _same(function(_npu(a), other), function(a, other))
    ours, theirs = _npu(a), [t.clone() for t in a]
    if name != "div" or dtype != torch.int64:
        getattr(torch, f"_foreach_{name}_")(ours, _npu(b))
        getattr(torch, f"_foreach_{name}_")(theirs, b)
        _same(ours, theirs)


def test_fused_combinations() -> None:
    a, b, c = _list(1), _list(2), _list(3)
    for name in ("addcmul", "addcdiv"):
        function = getattr(torch, f"_foreach_{name}")
        _same(function(_npu(a), _npu(b), _npu(c), 0.5), function(a, b, c, 0.5))
        _same(
            function(_npu(a), _npu(b), _npu(c), [0.1 * i for i in range(len(a))]),
            function(a, b, c, [0.1 * i for i in range(len(a))]),
        )
    _same(torch._foreach_lerp(_npu(a), _npu(b), 0.3), torch._foreach_lerp(a, b, 0.3))
    full = [t for t in a if t.numel() > 0]
    _same(torch._foreach_norm(_npu(full)), torch._foreach_norm(full))
    _same(torch._foreach_mul(_npu(a), torch.tensor(3.0).npu()), torch._foreach_mul(a, torch.tensor(3.0)))
    ours = _npu(a)
    torch._foreach_zero_(ours)
    assert all(not t.cpu().any() for t in ours)


def test_many_tensors() -> None:
    a = [torch.full((1 + i % 5,), float(i)) for i in range(1000)]
    _same(torch._foreach_add(_npu(a), 1.0), [t + 1 for t in a])


def test_copies_between_devices() -> None:
    a = _list(5)
    ours = [torch.empty_like(t, device="npu") for t in a]
    torch._foreach_copy_(ours, a)
    _same(ours, a)


def test_lists_over_two_devices() -> None:
    a = _list(1)
    mixed = [t.to(f"npu:{i % 2}") for i, t in enumerate(a)]
    result = torch._foreach_add(mixed, 1.0)
    assert [t.device.index for t in result] == [i % 2 for i in range(len(a))]
    _same(result, torch._foreach_add(a, 1.0))


def test_lists_of_different_length() -> None:
    with pytest.raises(RuntimeError, match="same number of tensors"):
        torch._foreach_add(_npu(_list(1)), _npu(_list(2))[:2])


def test_does_not_wait() -> None:
    a = _npu(_list(1))
    torch.npu.set_sync_debug_mode("error")
    try:
        torch._foreach_mul_(a, 2.0)
        torch._foreach_sqrt(a)
    finally:
        torch.npu.set_sync_debug_mode("default")
    torch.npu.synchronize()


def _train(device: str, make: Callable) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    parameters = [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in SHAPES]
    optimizer = make(parameters)
    for step in range(4):
        for p in parameters:
            p.grad = (p.detach() * 0.3 + step).clone()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().cpu() for p in parameters]


OPTIMIZERS = {
    "sgd": lambda p, **kw: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, **kw),
    "adam": lambda p, **kw: torch.optim.Adam(p, lr=0.1, amsgrad=True, **kw),
    "adamw": lambda p, **kw: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, **kw),
    "adagrad": lambda p, **kw: torch.optim.Adagrad(p, lr=0.1, **kw),
}


@pytest.mark.parametrize("how", ["fused", "foreach", "for-loop"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str, how: str) -> None:
    options = {"fused": {"fused": True}, "foreach": {"foreach": True}, "for-loop": {"foreach": False}}[how]
    make = OPTIMIZERS[name]
    ours = _train("npu", lambda p: make(p, **options))
    torch.testing.assert_close(ours, _train("cpu", lambda p: make(p, foreach=False)), rtol=1e-5, atol=1e-6)


def test_fused_optimizer_does_not_wait() -> None:
    parameter = torch.ones(4, device="npu", requires_grad=True)
    optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
    parameter.grad = torch.ones(4, device="npu")
    optimizer.step()
    torch.npu.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.npu.set_sync_debug_mode("default")
    assert parameter.detach().cpu().lt(1).all()
