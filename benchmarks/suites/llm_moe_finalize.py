"""Merging the outputs of experts, npu-ops-llm."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

import torch_npu

from ..fused import Arguments, FusedOp, decode, prefill
from ..harness import Case, Settings

TOKENS, K, WIDTH = 4096, 8, 7168


def finalize(tokens: int) -> FusedOp:
    """Rows of K experts for each of `tokens` tokens, with a residual."""

    def inputs() -> Arguments:
        rows = torch.randn(tokens * K, WIDTH, dtype=torch.bfloat16)
        index = torch.randperm(tokens * K).to(torch.int32)
        return rows, torch.randn(tokens, WIDTH).bfloat16(), torch.rand(tokens, K), index

    def composition(rows: torch.Tensor, skip: torch.Tensor, scales: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        picked = rows.index_select(0, index).view(tokens, K, WIDTH)
        return (skip + (picked * scales.unsqueeze(-1)).sum(1)).to(rows.dtype)

    return FusedOp(
        name=f"npu_moe_finalize_routing {tokens}x{K}x{WIDTH} bfloat16",
        ours=lambda rows, skip, scales, index: torch_npu.npu_moe_finalize_routing(
            rows, skip, None, None, scales, index, None, drop_pad_mode=2
        ),
        composition=composition,
        inputs=inputs,
        bytes_moved=2.0 * tokens * WIDTH * (K + 2),
        speedup=5.0,
    )


def cases(settings: Settings) -> Iterator[Case]:
    """Prefill and decode sizes."""
    yield from prefill(finalize(64 if settings.quick else TOKENS), settings)
    for tokens in (1, 32):
        yield from decode(finalize(tokens), lambda rows, *_: F.layer_norm(rows, (WIDTH,)))
