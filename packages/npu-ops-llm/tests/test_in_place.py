"""Operators that write arguments behave to autograd as torch's in-place operators do."""

from typing import Any

import pytest
import torch
from torch import Tensor

import npu_ops_llm

# Not listed: npu_silu_, which has a gradient.
KV = (torch.ones(1, 1, 1, 6), torch.ones(2), torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4), torch.tensor([[0]]))
CALLS: dict[str, tuple[tuple[Any, ...], tuple[int, ...]]] = {
    "scatter_update_": ((torch.zeros(2, 3, 4), torch.tensor([0, 1]), torch.ones(2, 1, 4), 1), (0,)),
    "npu_scatter_nd_update_": ((torch.zeros(3, 2), torch.tensor([[1]]), torch.ones(1, 2)), (0,)),
    "npu_scatter_pa_kv_cache": (
        (
            *(torch.ones(1, 2, 4) for _ in range(2)),
            *(torch.zeros(1, 1, 2, 4) for _ in range(2)),
            torch.tensor([0]),
            None,
            None,
            None,
            "Norm",
        ),
        (2, 3),
    ),
    "_npu_reshape_and_cache": (
        (*(torch.ones(1, 2, 4) for _ in range(2)), *(torch.zeros(1, 1, 2, 4) for _ in range(2)), torch.tensor([0])),
        (2, 3),
    ),
    "npu_kv_rmsnorm_rope_cache": ((*KV, torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 2)), (5, 6)),
    "npu_apply_rotary_pos_emb": (
        (*(torch.ones(1, 1, 1, 4) for _ in range(2)), *(torch.full((1, 1, 1, 4), 0.5) for _ in range(2))),
        (0, 1),
    ),
    "npu_add_rms_norm_v2": ((torch.ones(2, 4), torch.ones(2, 4), torch.ones(4)), (0, 1)),
}

every_call = pytest.mark.parametrize("name", CALLS)


def run(name: str, args: tuple[Any, ...]) -> Any:
    if name in ("npu_scatter_pa_kv_cache",):
        names = ("compress_lens", "compress_seq_offsets", "seq_lens", "cache_mode")
        return torch.ops.npu.npu_scatter_pa_kv_cache(*args[:5], **dict(zip(names, args[5:], strict=True)))
    return getattr(torch.ops.npu, name)(*args)


def arguments(name: str, device: str) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    args, written = CALLS[name]
    return tuple(one.clone().to(device) if isinstance(one, Tensor) else one for one in args), written


@every_call
def test_written_tensors_count_their_versions(name: str, device: str) -> None:
    args, written = arguments(name, device)
    before = [one._version if isinstance(one, Tensor) else None for one in args]
    run(name, args)
    for place, (one, version) in enumerate(zip(args, before, strict=True)):
        if isinstance(one, Tensor):
            assert (one._version > version) == (place in written), place


@every_call
def test_a_saved_tensor_may_not_be_overwritten(name: str, device: str) -> None:
    for place in arguments(name, device)[1]:
        args, _ = arguments(name, device)
        leaf = torch.zeros_like(args[place], requires_grad=True)
        result = leaf.exp()  # saves its result
        with torch.no_grad():
            run(name, (*args[:place], result, *args[place + 1 :]))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.sum().backward()


@every_call
@pytest.mark.parametrize("leaf", [True, False])
def test_a_tensor_that_requires_grad_is_refused(name: str, leaf: bool, device: str) -> None:
    for place in arguments(name, device)[1]:
        args, _ = arguments(name, device)
        tracked = args[place].clone().requires_grad_()
        tracked = tracked if leaf else tracked * 1
        content = tracked.detach().clone()
        with pytest.raises(RuntimeError, match=f"{name}: argument .*: it is written and has no gradient"):
            run(name, (*args[:place], tracked, *args[place + 1 :]))
        assert torch.equal(tracked.detach(), content)


def test_inference_mode_needs_no_versions(device: str) -> None:
    with torch.inference_mode():
        x = torch.zeros(3, 2, device=device)
        torch.ops.npu.npu_scatter_nd_update_(x, torch.tensor([[1]], device=device), torch.ones(1, 2, device=device))
    assert x.tolist() == [[0, 0], [1, 1], [0, 0]]


def test_pending_negation(device: str) -> None:
    x = torch.zeros(3, 2, device=device)
    indices = torch.tensor([[1]], device=device)
    with pytest.raises(RuntimeError, match="npu_scatter_nd_update_: argument self: a view with a pending negation"):
        torch.ops.npu.npu_scatter_nd_update_(torch._neg_view(x), indices, torch.ones(1, 2, device=device))
    torch.ops.npu.npu_scatter_nd_update_(x, indices, torch._neg_view(torch.ones(1, 2, device=device)))
    assert x.tolist() == [[0, 0], [-1, -1], [0, 0]]


def test_every_operator_that_writes_is_here() -> None:
    """By their schemas, and by names for those whose schemas do not tell."""
    unmarked = {"npu_kv_rmsnorm_rope_cache", "npu_apply_rotary_pos_emb"}
    elsewhere = {
        "npu_silu_",  # differentiable, see test_activation.py
        "npu_quant_scatter_",  # int8, which cannot require grad
        "npu_advance_step_flashattn",  # integers
    }
    writing = {
        name
        for name in (*npu_ops_llm.OPERATORS, *npu_ops_llm.ATB_OPERATORS)
        if any(a.alias_info and a.alias_info.is_write for a in getattr(torch.ops.npu, name).default._schema.arguments)
    }
    assert writing | unmarked == {*CALLS, *elsewhere}


def test_errors_are_plain(device: str) -> None:
    """Also where they come through a kernel in Python beneath a composite in C++."""
    x, updates = torch.zeros(3, 2, device=device), torch.ones(1, 3, device=device)
    with pytest.raises(RuntimeError, match="^npu_scatter_nd_update_: argument updates: expected shape") as raised:
        torch.ops.npu.npu_scatter_nd_update_(x, torch.tensor([[1]], device=device), updates)
    assert "At:" not in str(raised.value)


def test_integers_count_their_versions_too(device: str) -> None:
    cache = torch.zeros(1, 2, 3, dtype=torch.int8, device=device)
    updates = torch.ones(1, 1, 3, dtype=torch.float16, device=device)
    scales = torch.ones(3, device=device)
    torch.ops.npu.npu_quant_scatter_(cache, torch.tensor([1], device=device), updates, scales)
    assert cache._version == 1
