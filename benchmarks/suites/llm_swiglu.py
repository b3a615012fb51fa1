"""Gated SiLU operators of npu-ops-llm."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import torch_npu

from ..fused import FusedOp, decode, prefill
from ..harness import Case, Settings

ROWS, WIDTH = 2048, 4096


def gated(x: Tensor) -> Tensor:
    """Left half through SiLU."""
    a, b = x.chunk(2, dim=-1)
    return F.silu(a) * b


def gated_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient of `gated`."""
    a, b = x.chunk(2, dim=-1)
    s = torch.sigmoid(a)
    return torch.cat((grad * b * (s + a * s * (1 - s)), grad * a * s), dim=-1)


def quantised(value: Tensor) -> tuple[Tensor, Tensor]:
    """Rows to int8, and the largest magnitude by 127."""
    scale = value.abs().amax(-1) / 127
    return torch.round(value / scale[..., None]).clamp(-128, 127).to(torch.int8), scale


def gated_quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Gated SiLU in float32, then int8."""
    a, b = x.float().chunk(2, dim=-1)
    return quantised(F.silu(a) * b)


def dequantised_gated_quantised(x: Tensor, weight_scale: Tensor, row_scale: Tensor) -> tuple[Tensor, Tensor]:
    """From the accumulators of an integer matmul."""
    a, b = (x.float() * weight_scale * row_scale[:, None]).chunk(2, dim=-1)
    return quantised(F.silu(a) * b)


def swiglu(rows: int) -> FusedOp:
    """`rows` rows of two halves."""
    return FusedOp(
        name=f"npu_swiglu {rows}x2x{WIDTH} bfloat16",
        ours=torch_npu.npu_swiglu,
        composition=gated,
        inputs=lambda: (torch.randn(rows, 2 * WIDTH).bfloat16(),),
        bytes_moved=2.0 * 3 * rows * WIDTH,
    )


def swiglu_backward(rows: int) -> FusedOp:
    """The gradient for `rows` rows."""
    return FusedOp(
        name=f"npu_swiglu_backward {rows}x2x{WIDTH} bfloat16",
        ours=torch_npu.npu_swiglu_backward,
        composition=gated_gradient,
        inputs=lambda: (torch.randn(rows, WIDTH).bfloat16(), torch.randn(rows, 2 * WIDTH).bfloat16()),
        bytes_moved=2.0 * 5 * rows * WIDTH,
    )


def swiglu_quant(rows: int) -> FusedOp:
    """Dynamic int8 quantisation."""
    return FusedOp(
        name=f"npu_swiglu_quant {rows}x2x{WIDTH} bfloat16",
        ours=lambda x: torch_npu.npu_swiglu_quant(x, quant_mode=1, activate_left=True),
        composition=gated_quantised,
        inputs=lambda: (torch.randn(rows, 2 * WIDTH).bfloat16(),),
        bytes_moved=5.0 * rows * WIDTH,
    )


def dequant_swiglu_quant(rows: int) -> FusedOp:
    """From int32 to int8."""
    return FusedOp(
        name=f"npu_dequant_swiglu_quant {rows}x2x{WIDTH} int32",
        ours=lambda x, weight_scale, row_scale: torch_npu.npu_dequant_swiglu_quant(
            x, weight_scale=weight_scale, activation_scale=row_scale, activate_left=True, quant_mode=1
        ),
        composition=dequantised_gated_quantised,
        inputs=lambda: (
            torch.randint(-9000, 9000, (rows, 2 * WIDTH), dtype=torch.int32),
            torch.rand(2 * WIDTH) / 1000,
            torch.rand(rows),
        ),
        bytes_moved=9.0 * rows * WIDTH,
    )


def cases(settings: Settings) -> Iterator[Case]:
    """Prefill and decode sizes."""
    rows = 64 if settings.quick else ROWS
    for op in (swiglu, swiglu_backward, swiglu_quant, dequant_swiglu_quant):
        yield from prefill(op(rows), settings)
    for few in (1, 32):
        yield from decode(swiglu(few), lambda x: F.silu(x))
        yield from decode(swiglu_quant(few), lambda x: F.silu(x))
        yield from decode(dequant_swiglu_quant(few), lambda x, weight_scale, row_scale: torch.relu(x))
