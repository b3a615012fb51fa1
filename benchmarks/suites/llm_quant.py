"""Quantisers of npu-ops-llm: dynamic, with given scales, and back."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

import torch_npu

from ..fused import FusedOp, decode, prefill
from ..harness import Case, Settings

ROWS, WIDTH = 2048, 4096


def hidden(rows: int) -> torch.Tensor:
    """Hidden states of `rows` tokens."""
    return torch.randn(rows, WIDTH).bfloat16()


def dynamic(rows: int) -> FusedOp:
    """int8 by the largest magnitude of each token."""

    def composition(x: torch.Tensor) -> object:
        values = x.float()
        largest = values.abs().amax(-1, keepdim=True)
        return (values * (127 / largest)).round().clamp(-128, 127).to(torch.int8), largest / 127

    return FusedOp(
        name=f"npu_dynamic_quant {rows}x{WIDTH} bfloat16",
        ours=lambda x: torch_npu.npu_dynamic_quant(x),
        composition=composition,
        inputs=lambda: (hidden(rows),),
        bytes_moved=3.0 * rows * WIDTH,
    )


def dynamic_int4(rows: int) -> FusedOp:
    """int4, eight values per int32."""

    def composition(x: torch.Tensor) -> object:
        values = x.float()
        largest = values.abs().amax(-1, keepdim=True)
        nibbles = (values * (7 / largest)).round().clamp(-8, 7).to(torch.int32) & 15
        shifts = torch.arange(0, 32, 4, dtype=torch.int32)
        return (nibbles.unflatten(-1, (-1, 8)) << shifts).sum(-1, dtype=torch.int32), largest / 7

    return FusedOp(
        name=f"npu_dynamic_quant {rows}x{WIDTH} bfloat16 to int4",
        ours=lambda x: torch_npu.npu_dynamic_quant(x, dst_type=torch.quint4x2),
        composition=composition,
        inputs=lambda: (hidden(rows),),
        bytes_moved=2.5 * rows * WIDTH,
    )


def asymmetric(rows: int) -> FusedOp:
    """int8 by the range of each token."""

    def composition(x: torch.Tensor) -> object:
        values = x.float()
        top, bottom = values.amax(-1, keepdim=True), values.amin(-1, keepdim=True)
        scale = ((top - bottom) / 255).clamp(min=1e-12)
        offset = 127 - top / scale
        return (values / scale + offset).round().clamp(-128, 127).to(torch.int8), scale, offset

    return FusedOp(
        name=f"npu_dynamic_quant_asymmetric {rows}x{WIDTH} bfloat16",
        ours=lambda x: torch_npu.npu_dynamic_quant_asymmetric(x),
        composition=composition,
        inputs=lambda: (hidden(rows),),
        bytes_moved=3.0 * rows * WIDTH,
    )


def static(rows: int) -> FusedOp:
    """int8 with a scale for every column."""
    return FusedOp(
        name=f"npu_quantize {rows}x{WIDTH} bfloat16",
        ours=lambda x, scale, zero: torch_npu.npu_quantize(x, scale, zero, torch.qint8, -1),
        composition=lambda x, scale, zero: (x / scale + zero).round().clamp(-128, 127).to(torch.int8),
        inputs=lambda: (hidden(rows), torch.rand(WIDTH) + 0.5, torch.zeros(WIDTH)),
        bytes_moved=3.0 * rows * WIDTH,
    )


def grouped(rows: int) -> FusedOp:
    """int8 with the scales of the row's expert."""
    experts = 8

    def composition(x: torch.Tensor, scale: torch.Tensor, ends: torch.Tensor) -> object:
        counts = torch.diff(ends, prepend=ends.new_zeros(1))
        factors = scale.repeat_interleave(counts, 0, output_size=len(x))
        return (x * factors).round().clamp(-128, 127).to(torch.int8)

    return FusedOp(
        name=f"npu_group_quant {rows}x{WIDTH} bfloat16",
        ours=lambda x, scale, ends: torch_npu.npu_group_quant(x, scale, ends),
        composition=composition,
        inputs=lambda: (hidden(rows), torch.rand(experts, WIDTH), torch.arange(1, experts + 1) * (rows // experts)),
        bytes_moved=3.0 * rows * WIDTH,
        compiled=False,
    )


def back(rows: int) -> FusedOp:
    """bfloat16 from int8."""
    return FusedOp(
        name=f"npu_anti_quant {rows}x{WIDTH} int8",
        ours=lambda x, scale: torch_npu.npu_anti_quant(x, scale, offset=scale, dst_dtype=torch.bfloat16),
        composition=lambda x, scale: ((x + scale) * scale).bfloat16(),
        inputs=lambda: (torch.randint(-128, 128, (rows, WIDTH), dtype=torch.int8), torch.rand(WIDTH)),
        bytes_moved=3.0 * rows * WIDTH,
    )


def back_int4(rows: int) -> FusedOp:
    """bfloat16 from int4."""

    def composition(x: torch.Tensor, scale: torch.Tensor) -> object:
        nibbles = (x[..., None] >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15
        return ((torch.where(nibbles > 7, nibbles - 16, nibbles).flatten(-2) + scale) * scale).bfloat16()

    def inputs() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randint(-(2**31), 2**31, (rows, WIDTH // 8), dtype=torch.int32), torch.rand(WIDTH)

    return FusedOp(
        name=f"npu_anti_quant {rows}x{WIDTH} int4",
        ours=lambda x, scale: torch_npu.npu_anti_quant(x, scale, offset=scale, dst_dtype=torch.bfloat16),
        composition=composition,
        inputs=inputs,
        bytes_moved=2.5 * rows * WIDTH,
    )


def packed_scales(count: int) -> FusedOp:
    """The 64-bit parameter of a quantised product."""

    def composition(scale: torch.Tensor, offset: torch.Tensor) -> object:
        words = scale.view(torch.int32).long() & 0xFFFFE000
        return words | (1 << 46) | ((offset.round().clamp(-256, 255).long() & 0x1FF) << 37)

    return FusedOp(
        name=f"npu_trans_quant_param {count}",
        ours=lambda scale, offset: torch_npu.npu_trans_quant_param(scale, offset),
        composition=composition,
        inputs=lambda: (torch.rand(count), torch.randn(count)),
        bytes_moved=16.0 * count,
        bandwidth_bound=False,
    )


def cases(settings: Settings) -> Iterator[Case]:
    """Prefill and decode sizes."""
    rows = 64 if settings.quick else ROWS
    for make in (dynamic, dynamic_int4, asymmetric, static, grouped, back, back_int4):
        yield from prefill(make(rows), settings)
    yield from prefill(packed_scales(4096 if settings.quick else 262144), settings)
    for tokens in (1, 32):
        for make in (dynamic, static):
            norm = torch.randn(tokens, WIDTH).bfloat16()
            yield from decode(make(tokens), lambda *_, norm=norm: F.layer_norm(norm, (WIDTH,)))
