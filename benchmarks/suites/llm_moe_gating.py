"""Gating operators of npu-ops-llm."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import torch_npu

from ..fused import FusedOp, decode, prefill
from ..harness import Case, Settings

EXPERTS, CHOSEN, GROUPS, KEPT_GROUPS = 256, 8, 8, 4


def scores(rows: int) -> torch.Tensor:
    return torch.randn(rows, EXPERTS).bfloat16()


def eager_softmax(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y, experts = torch.topk(torch.softmax(x.float(), -1), CHOSEN, -1)
    rows = torch.arange(CHOSEN * len(x), dtype=torch.int32).view(CHOSEN, len(x)).t().contiguous()
    return y.to(x.dtype), experts.int(), rows


def softmax(rows: int) -> FusedOp:
    """Top-k of a softmax."""
    return FusedOp(
        name=f"npu_moe_gating_top_k_softmax {rows}x{EXPERTS} k {CHOSEN} bfloat16",
        ours=lambda x: torch_npu.npu_moe_gating_top_k_softmax(x, None, CHOSEN),
        composition=eager_softmax,
        inputs=lambda: (scores(rows),),
        bytes_moved=rows * (2.0 * EXPERTS + 10 * CHOSEN),
        bandwidth_bound=False,
        speedup=5.0,
    )


def eager_grouped(x: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
    p = x.float().sigmoid()
    v = p + bias.float()
    groups = v.view(len(x), GROUPS, -1)
    best = groups.topk(2, -1).values.sum(-1).topk(KEPT_GROUPS, -1).indices
    kept = torch.zeros(len(x), GROUPS, dtype=torch.bool).scatter_(1, best, True)
    experts = groups.masked_fill(~kept[:, :, None], float("-inf")).view_as(v).topk(CHOSEN, -1).indices
    g = p.gather(-1, experts)
    return (g / (g.sum(-1, keepdim=True) + 1e-20) * 2.5).to(x.dtype), experts.int(), p


def grouped(rows: int) -> FusedOp:
    """Sigmoid, bias, groups of experts."""
    return FusedOp(
        name=f"npu_moe_gating_top_k {rows}x{EXPERTS} groups {KEPT_GROUPS} of {GROUPS} k {CHOSEN} bfloat16",
        ours=lambda x, bias: torch_npu.npu_moe_gating_top_k(
            x,
            CHOSEN,
            bias=bias,
            k_group=KEPT_GROUPS,
            group_count=GROUPS,
            group_select_mode=1,
            norm_type=1,
            routed_scaling_factor=2.5,
        ),
        composition=eager_grouped,
        inputs=lambda: (scores(rows), torch.randn(EXPERTS).bfloat16()),
        bytes_moved=rows * (6.0 * EXPERTS + 6 * CHOSEN),
        bandwidth_bound=False,
        speedup=5.0,
    )


def renormalised(rows: int) -> FusedOp:
    """Softmax of the chosen scores."""
    return FusedOp(
        name=f"npu_moe_gating_top_k_softmax_v2 {rows}x{EXPERTS} k {CHOSEN} renorm bfloat16",
        ours=lambda x: torch_npu.npu_moe_gating_top_k_softmax_v2(x, k=CHOSEN, renorm=1),
        composition=lambda x: torch.topk(x.float(), CHOSEN, -1).values.softmax(-1).to(x.dtype),
        inputs=lambda: (scores(rows),),
        bytes_moved=rows * (2.0 * EXPERTS + 6 * CHOSEN),
        bandwidth_bound=False,
        speedup=5.0,
    )


def eager_backward(p: torch.Tensor, dy: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    indices = experts.long()
    g, u = p.gather(-1, indices), dy.float() * 2.5
    s = g.sum(-1, keepdim=True) + 1e-20
    dg = u / s - (u * g).sum(-1, keepdim=True) / s.square()
    dp = torch.zeros_like(p).scatter_add_(-1, indices, dg)
    return (dp * p * (1 - p)).to(dy.dtype)


def backward(rows: int) -> FusedOp:
    """Gradient of the grouped gate."""
    return FusedOp(
        name=f"npu_moe_gating_top_k_backward {rows}x{EXPERTS} k {CHOSEN} bfloat16",
        ours=lambda p, dy, experts: torch_npu.npu_moe_gating_top_k_backward(
            p, dy, experts, norm_type=1, routed_scaling_factor=2.5
        ),
        composition=eager_backward,
        inputs=lambda: (
            torch.rand(rows, EXPERTS),
            torch.randn(rows, CHOSEN).bfloat16(),
            torch.rand(rows, EXPERTS).topk(CHOSEN).indices.int(),
        ),
        bytes_moved=rows * (2.0 * EXPERTS + 10 * CHOSEN),
        bandwidth_bound=False,
        speedup=5.0,
    )


def expert_tokens(rows: int) -> FusedOp:
    """Rows per expert of sorted slots."""
    return FusedOp(
        name=f"npu_moe_compute_expert_tokens {rows} of {EXPERTS}",
        ours=lambda experts: torch_npu.npu_moe_compute_expert_tokens(experts, EXPERTS),
        composition=lambda experts: torch.bincount(experts, minlength=EXPERTS).cumsum(0).int(),
        inputs=lambda: (torch.randint(0, EXPERTS, (rows,), dtype=torch.int32).sort().values,),
        bytes_moved=4.0 * (rows + EXPERTS),
        bandwidth_bound=False,
        compiled=False,
    )


def cases(settings: Settings) -> Iterator[Case]:
    """Prefill and decode sizes."""
    rows = 64 if settings.quick else 4096
    for make in (softmax, renormalised, grouped, backward):
        yield from prefill(make(rows), settings)
    yield from prefill(expert_tokens(rows * CHOSEN), settings)
    for rows in (1, 32):
        yield from decode(softmax(rows), lambda x: torch.softmax(x, -1))
        yield from decode(grouped(rows), lambda x, bias: torch.softmax(x, -1))
