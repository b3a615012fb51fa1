"""Rows by index of npu-ops-llm and their gradient."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

import torch_npu

from ..fused import FusedOp, decode, prefill
from ..harness import Case, Settings


def gather(rows: int, columns: int, table: int) -> FusedOp:
    """`rows` rows of `table`."""
    return FusedOp(
        name=f"npu_gather_sparse_index {rows}x{columns} of {table} bfloat16",
        ours=torch_npu.npu_gather_sparse_index,
        composition=lambda x, index: x[index],
        inputs=lambda: (torch.randn(table, columns).bfloat16(), torch.randint(0, table, (rows,))),
        bytes_moved=2.0 * 2 * rows * columns,
        speedup=0.9,
    )


def gradient(rows: int, columns: int, table: int, different: int) -> FusedOp:
    """The gradient of `rows` rows, of which `different` are."""
    return FusedOp(
        name=f"npu_gather_sparse_index_backward {rows}x{columns}, {different} of {table} bfloat16",
        ours=lambda grad, index: torch.ops.npu.npu_gather_sparse_index_backward(grad, [table, columns], index),
        composition=lambda grad, index: grad.new_zeros(table, columns).index_add_(0, index, grad),
        inputs=lambda: (torch.randn(rows, columns).bfloat16(), torch.randint(0, different, (rows,))),
        bytes_moved=2.0 * (rows + table) * columns,
    )


def cases(settings: Settings) -> Iterator[Case]:
    """Prefill and decode sizes."""
    rows = 256 if settings.quick else 4096
    yield from prefill(gather(rows, 4096, rows * 2), settings)
    yield from prefill(gather(rows * 16, 64, rows * 16), settings)
    for different in (1, 64, rows):
        yield from prefill(gradient(rows, 2048, rows, different), settings)
    for batch in (1, 32):
        yield from decode(gather(batch, 4096, 1024), lambda x, index: F.embedding(index, x))
