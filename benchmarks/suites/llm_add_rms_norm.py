"""Sums with an RMS norm, and with quantisation, of npu-ops-llm."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import torch_npu

from ..fused import FusedOp, decode, prefill
from ..harness import Case, Settings

ROWS, WIDTH = 2048, 4096


def _inputs(rows: int) -> tuple[Tensor, ...]:
    return tuple(torch.randn(shape).bfloat16() for shape in ((rows, WIDTH), (rows, WIDTH), (WIDTH,)))


def _norm(x1: Tensor, x2: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x1 + x2
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
    return wide * rstd * gamma.float(), rstd, x


def _add(x1: Tensor, x2: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y, rstd, x = _norm(x1, x2, gamma)
    return y.bfloat16(), rstd, x


def _quant(x1: Tensor, x2: Tensor, gamma: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    y, _, x = _norm(x1, x2, gamma)
    return (y / scales).round().clamp(-128, 127).to(torch.int8), x


def _dynamic(x1: Tensor, x2: Tensor, gamma: Tensor, smooth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y, _, x = _norm(x1, x2, gamma)
    v = y * smooth.float()
    largest = v.abs().amax(-1, keepdim=True)
    return (v * (127 / largest)).round().clamp(-128, 127).to(torch.int8), x, largest[:, 0] / 127


def operators(rows: int) -> Iterator[FusedOp]:
    """The family at `rows` rows."""
    elements = float(rows * WIDTH)
    yield FusedOp(
        name=f"npu_add_rms_norm {rows}x{WIDTH} bfloat16",
        ours=torch_npu.npu_add_rms_norm,
        composition=_add,
        inputs=lambda: _inputs(rows),
        bytes_moved=8 * elements,
    )
    yield FusedOp(
        name=f"npu_add_rms_norm_v2 {rows}x{WIDTH} bfloat16",
        ours=torch_npu.npu_add_rms_norm_v2,
        composition=lambda x1, x2, gamma: tuple(
            a.copy_(b) for a, b in zip((x1, x2), _add(x1, x2, gamma)[::2], strict=True)
        ),
        inputs=lambda: _inputs(rows),
        bytes_moved=8 * elements,
        compiled=False,
    )
    yield FusedOp(
        name=f"npu_add_rms_norm_quant {rows}x{WIDTH} bfloat16",
        ours=lambda x1, x2, gamma, scales: torch_npu.npu_add_rms_norm_quant(x1, x2, gamma, scales, None),
        composition=_quant,
        inputs=lambda: (*_inputs(rows), torch.rand(WIDTH) + 0.1),
        bytes_moved=8 * elements,  # the second result, all zeros, counts
    )
    yield FusedOp(
        name=f"npu_add_rms_norm_dynamic_quant {rows}x{WIDTH} bfloat16",
        ours=lambda x1, x2, gamma, smooth: torch_npu.npu_add_rms_norm_dynamic_quant(
            x1, x2, gamma, smooth_scale1=smooth
        ),
        composition=_dynamic,
        inputs=lambda: (*_inputs(rows), torch.rand(WIDTH).bfloat16()),
        bytes_moved=7 * elements,
    )


def cases(settings: Settings) -> Iterator[Case]:
    """Prefill and decode sizes."""
    for op in operators(64 if settings.quick else ROWS):
        yield from prefill(op, settings)
    for rows in (1, 32):
        for op in operators(rows):
            yield from decode(op, lambda x1, x2, gamma, *_: F.layer_norm(x1, (WIDTH,), gamma))
