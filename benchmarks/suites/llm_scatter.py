"""Writes of slices by index of npu-ops-llm: scatter_update_, npu_quant_scatter_, npu_scatter_nd_update_."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import torch_npu

from ..fused import FusedOp, decode, prefill
from ..harness import Case, Settings

HEADS, WIDTH = 8, 128


def write_slices(cache: Tensor, start: Tensor, updates: Tensor) -> Tensor:
    """Put updates[i] at start[i] on dim 2 of cache[i], from stock operators."""
    batch = torch.arange(start.shape[0])[:, None]
    where = start[:, None] + torch.arange(updates.shape[2])
    cache.transpose(1, 2)[batch, where] = updates.transpose(1, 2)
    return cache


def quantise(updates: Tensor, scales: Tensor) -> Tensor:
    """Round and saturate to int8."""
    return (updates.float() / scales).round().clamp(-128, 127).to(torch.int8)


def update(batch: int, length: int, context: int) -> FusedOp:
    """`length` tokens for each of `batch` sequences into a cache for `context`."""
    return FusedOp(
        name=f"scatter_update_ {batch}x{HEADS}x{length}x{WIDTH} of {context} bfloat16",
        ours=lambda cache, start, updates: torch_npu.scatter_update_(cache, start, updates, -2),
        composition=write_slices,
        inputs=lambda: (
            torch.zeros(batch, HEADS, context, WIDTH).bfloat16(),
            torch.randint(0, context - length + 1, (batch,)),
            torch.randn(batch, HEADS, length, WIDTH).bfloat16(),
        ),
        bytes_moved=2.0 * 2 * batch * HEADS * length * WIDTH,
    )


def functional(batch: int, context: int) -> FusedOp:
    """One token into a copy of the cache."""
    return FusedOp(
        name=f"scatter_update {batch}x{HEADS}x1x{WIDTH} of {context} bfloat16",
        ours=lambda cache, start, updates: torch_npu.scatter_update(cache, start, updates, -2),
        composition=lambda cache, start, updates: write_slices(cache.clone(), start, updates),
        inputs=update(batch, 1, context).inputs,
        bytes_moved=2.0 * 2 * batch * HEADS * context * WIDTH,
        speedup=0.9,
    )


def quant(batch: int, length: int, context: int) -> FusedOp:
    """As `update`, quantised to int8."""
    return FusedOp(
        name=f"npu_quant_scatter_ {batch}x{HEADS}x{length}x{WIDTH} of {context} bfloat16",
        ours=lambda cache, start, updates, scales: torch_npu.npu_quant_scatter_(cache, start, updates, scales),
        composition=lambda cache, start, updates, scales: write_slices(cache, start, quantise(updates, scales)),
        inputs=lambda: (
            torch.zeros(batch, HEADS, context, WIDTH, dtype=torch.int8),
            torch.randint(0, context - length + 1, (batch,)),
            torch.randn(batch, HEADS, length, WIDTH).bfloat16(),
            torch.rand(WIDTH) * 0.1 + 0.01,
        ),
        bytes_moved=3.0 * batch * HEADS * length * WIDTH,
    )


def put_rows(cache: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    """Put the rows at index[:, 0], from stock operators."""
    cache[index[:, 0]] = updates
    return cache


def scatter(rows: int, columns: int, slots: int) -> FusedOp:
    """`rows` rows into different ones of `slots`."""
    return FusedOp(
        name=f"npu_scatter_nd_update_ {rows}x{columns} of {slots} bfloat16",
        ours=torch_npu.npu_scatter_nd_update_,
        composition=put_rows,
        inputs=lambda: (
            torch.zeros(slots, columns).bfloat16(),
            torch.randperm(slots)[:rows, None],
            torch.randn(rows, columns).bfloat16(),
        ),
        bytes_moved=2.0 * 2 * rows * columns,
    )


def copy_rows(cache: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    """The cheapest stock operator that writes rows by index."""
    return cache.index_copy_(0, index[:, 0], updates)


def cases(settings: Settings) -> Iterator[Case]:
    """Prefill and decode sizes."""
    length = 64 if settings.quick else 2048
    yield from prefill(update(2, length, 2 * length), settings)
    yield from prefill(functional(2, 2 * length), settings)
    yield from prefill(quant(2, length, 2 * length), settings)
    for columns in (1024, 128):
        yield from prefill(scatter(2 * length, columns, 4 * length), settings)
    for batch in (1, 32):
        yield from decode(scatter(batch, 1024, 4096), copy_rows)
        yield from decode(
            update(batch, 1, 256), lambda cache, start, updates: cache[: start.shape[0], :, 7:8].copy_(updates)
        )
