"""Routing operators of npu-ops-llm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import torch_npu

from ..fused import FusedOp, decode, prefill
from ..harness import Case, Settings

EXPERTS, CHOSEN = 256, 8


def chosen_experts(tokens: int) -> torch.Tensor:
    return torch.rand(tokens, EXPERTS).topk(CHOSEN).indices.int()


def eager_sort(experts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Order of the slots, its inverse and the slots per expert."""
    flat = experts.flatten()
    order = torch.argsort(flat, stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order))
    return order, inverse.int(), torch.bincount(flat, minlength=EXPERTS)


def eager_routing(x: torch.Tensor, experts: torch.Tensor) -> tuple[torch.Tensor, ...]:
    order, inverse, counts = eager_sort(experts)
    return x.index_select(0, order // CHOSEN), inverse, counts


def eager_quantised(x: torch.Tensor, experts: torch.Tensor) -> tuple[torch.Tensor, ...]:
    order, inverse, counts = eager_sort(experts)
    r = x.index_select(0, order // CHOSEN).float()
    d = r.abs().amax(-1) / 127
    return (r / d[:, None]).round().to(torch.int8), inverse, counts, d


def routing(tokens: int, hidden: int, quant_mode: int = -1) -> FusedOp:
    """Sort by expert, expand, quantise."""
    size = 2 if quant_mode == -1 else 1
    counted: dict[str, Any] = {
        "expert_num": EXPERTS, "expert_tokens_num_type": 1, "expert_tokens_num_flag": True, "quant_mode": quant_mode
    }  # fmt: skip
    return FusedOp(
        name=f"npu_moe_init_routing_v2 {tokens}x{hidden} k {CHOSEN} quant_mode {quant_mode} bfloat16",
        ours=lambda x, experts: torch_npu.npu_moe_init_routing_v2(x, experts, **counted),
        composition=eager_routing if quant_mode == -1 else eager_quantised,
        inputs=lambda: (torch.randn(tokens, hidden).bfloat16(), chosen_experts(tokens)),
        bytes_moved=tokens * hidden * (2.0 + size * CHOSEN),
        bandwidth_bound=False,
        speedup=1.2 if quant_mode == -1 else 5.0,
    )


def eager_first_version(x: torch.Tensor, row_idx: torch.Tensor, experts: torch.Tensor) -> tuple[torch.Tensor, ...]:
    sorted_experts, order = torch.sort(experts.flatten(), stable=True)
    source = row_idx.flatten()[order]
    expanded_row_idx = torch.empty_like(source)
    expanded_row_idx[source.long()] = torch.arange(len(order), dtype=torch.int32)
    return x.index_select(0, source % len(x)), expanded_row_idx, sorted_experts


def first_version(tokens: int, hidden: int) -> FusedOp:
    """The deprecated operator."""
    return FusedOp(
        name=f"npu_moe_init_routing {tokens}x{hidden} k {CHOSEN} bfloat16",
        ours=lambda x, row_idx, experts: torch_npu.npu_moe_init_routing(x, row_idx, experts, tokens),
        composition=eager_first_version,
        inputs=lambda: (
            torch.randn(tokens, hidden).bfloat16(),
            torch.arange(tokens * CHOSEN, dtype=torch.int32).view(CHOSEN, tokens).t().contiguous(),
            chosen_experts(tokens),
        ),
        bytes_moved=tokens * hidden * 2.0 * (1 + CHOSEN),
        bandwidth_bound=False,
    )


def eager_re_routing(tokens: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, ...]:
    experts = torch.arange(numbers.shape[1]).repeat(numbers.shape[0]).repeat_interleave(numbers.flatten())
    order = torch.argsort(experts, stable=True)
    return tokens.index_select(0, order), order.int(), numbers.sum(0)


def re_routing(rows: int, hidden: int) -> FusedOp:
    """From rank-major to expert-major."""
    ranks, experts = 8, 32
    return FusedOp(
        name=f"npu_moe_re_routing {rows}x{hidden} bfloat16",
        ours=lambda tokens, numbers: torch_npu.npu_moe_re_routing(tokens, numbers),
        composition=eager_re_routing,
        inputs=lambda: (torch.randn(rows, hidden).bfloat16(), torch.full((ranks, experts), rows // ranks // experts)),
        bytes_moved=rows * hidden * 4.0,
        compiled=False,
    )


def cases(settings: Settings) -> Iterator[Case]:
    """Prefill and decode sizes."""
    tokens = 64 if settings.quick else 4096
    for hidden in (4096, 7168):
        for quant_mode in (-1, 1):
            yield from prefill(routing(tokens, hidden, quant_mode), settings)
    yield from prefill(first_version(tokens, 4096), settings)
    yield from prefill(re_routing(256 if settings.quick else 8192, 4096), settings)
    for rows in (1, 32):
        yield from decode(routing(rows, 4096, 1), lambda x, experts: x.index_select(0, experts.flatten() // EXPERTS))
