"""RMS norms of npu-ops-llm."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

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


def cases(settings: Settings) -> Iterator[Case]:
    """Prefill and decode sizes."""
    yield from prefill(rms_norm(64 if settings.quick else ROWS), settings)
    for rows in (1, 32):
        yield from decode(rms_norm(rows), lambda x, gamma: F.layer_norm(x, (WIDTH,), gamma))
