"""RMS norms of npu-ops-llm."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import torch_npu

from ..fused import FusedOp, decode, prefill
from ..harness import Case, Settings

ROWS, WIDTH = 2048, 4096


def rms_norm(rows: int) -> FusedOp:
    """The norm of `rows` rows."""
    return FusedOp(
        name=f"npu_rms_norm {rows}x{WIDTH} bfloat16",
        ours=lambda x, gamma: torch_npu.npu_rms_norm(x, gamma, 1e-6),
        composition=lambda x, gamma: F.rms_norm(x, (WIDTH,), gamma, 1e-6),
        inputs=lambda: (torch.randn(rows, WIDTH).bfloat16(), torch.randn(WIDTH).bfloat16()),
        bytes_moved=2.0 * 2 * rows * WIDTH,
    )


def gemma_rms_norm(rows: int) -> FusedOp:
    """The norm with ``1 + gamma``."""
    return FusedOp(
        name=f"npu_gemma_rms_norm {rows}x{WIDTH} bfloat16",
        ours=lambda x, gamma: torch_npu.npu_gemma_rms_norm(x, gamma, 1e-6),
        composition=lambda x, gamma: F.rms_norm(x, (WIDTH,), 1 + gamma, 1e-6),
        inputs=lambda: (torch.randn(rows, WIDTH).bfloat16(), torch.randn(WIDTH).bfloat16()),
        bytes_moved=2.0 * 2 * rows * WIDTH,
    )


def _gradient(dy: Tensor, x: Tensor, gamma: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    wide, upstream = x.float() * rstd, dy.float()
    scaled = upstream * gamma.float()
    dx = rstd * (scaled - wide * (scaled * wide).mean(-1, keepdim=True))
    return dx.bfloat16(), (upstream * wide).sum(0)


def rms_norm_backward(rows: int) -> FusedOp:
    """The gradient of `rows` rows."""
    return FusedOp(
        name=f"npu_rms_norm_backward {rows}x{WIDTH} bfloat16",
        ours=torch_npu.npu_rms_norm_backward,
        composition=_gradient,
        inputs=lambda: (
            torch.randn(rows, WIDTH).bfloat16(),
            torch.randn(rows, WIDTH).bfloat16(),
            torch.randn(WIDTH).bfloat16(),
            torch.rand(rows, 1) + 0.5,
        ),
        bytes_moved=3.0 * 2 * rows * WIDTH,
    )


def cases(settings: Settings) -> Iterator[Case]:
    """Prefill and decode sizes."""
    for op in (rms_norm, gemma_rms_norm, rms_norm_backward):
        yield from prefill(op(64 if settings.quick else ROWS), settings)
    for rows in (1, 32):
        for op in (rms_norm, gemma_rms_norm):
            yield from decode(op(rows), lambda x, gamma: F.layer_norm(x, (WIDTH,), gamma))
