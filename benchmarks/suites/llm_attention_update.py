"""Combination of attention results of npu-ops-llm."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import torch_npu

from ..fused import FusedOp, prefill
from ..harness import Case, Settings

WIDTH, PARTS = 4096, 2


def combined(lse0: torch.Tensor, lse1: torch.Tensor, out0: torch.Tensor, out1: torch.Tensor) -> torch.Tensor:
    """The formula in stock operators."""
    lse = torch.stack((lse0, lse1))
    weights = torch.softmax(lse, 0)[..., None]
    return (out0.float() * weights[0] + out1.float() * weights[1]).to(out0.dtype)


def attention_update(rows: int) -> FusedOp:
    """Two parts of `rows` rows."""
    return FusedOp(
        name=f"npu_attention_update 2 x {rows}x{WIDTH} bfloat16",
        ours=lambda lse0, lse1, out0, out1: torch_npu.npu_attention_update([lse0, lse1], [out0, out1], 0),
        composition=combined,
        inputs=lambda: (
            *(torch.randn(rows) for _ in range(PARTS)),
            *(torch.randn(rows, WIDTH).bfloat16() for _ in range(PARTS)),
        ),
        bytes_moved=2.0 * (PARTS + 1) * rows * WIDTH,
    )


def cases(settings: Settings) -> Iterator[Case]:
    """Prefill sizes; calls with lists of tensors cost 5 us in the dispatcher, more than stock addition of one row."""
    yield from prefill(attention_update(64 if settings.quick else 2048), settings)
