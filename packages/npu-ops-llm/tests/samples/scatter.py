"""Calls of the scatter operators for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments."""
    for name in ("scatter_update", "scatter_update_"):
        cache, updates = torch.randn(3, 4, 6, 8), torch.randn(3, 4, 2, 8)
        yield name, (cache, torch.tensor([4, 0, 2]), updates, -2), {}
        pairs = torch.tensor([[2, 1], [2, 2], [0, 0]], dtype=torch.int32)
        yield name, (cache.bfloat16().transpose(1, 2), pairs, updates.bfloat16().transpose(1, 2), 1), {}
    for name in ("npu_quant_scatter", "npu_quant_scatter_"):
        quantised = torch.randint(-128, 128, (3, 5, 16), dtype=torch.int8)
        x, scales = torch.randn(2, 2, 16).bfloat16(), torch.rand(1, 1, 16) + 0.1
        yield name, (quantised, torch.tensor([3, 0]), x, scales), {}
        points = torch.randint(-9, 9, (16,), dtype=torch.int32)
        yield name, (quantised, torch.tensor([3, 0]), x.half(), scales.bfloat16(), points), {"dst_type": torch.int8}
    for name in ("npu_scatter_nd_update", "npu_scatter_nd_update_"):
        yield name, (torch.randn(4, 5, 6), torch.tensor([[3, 0], [1, 4], [3, 0]]), torch.randn(3, 6)), {}
        yield name, (torch.arange(12).reshape(3, 4).t(), torch.tensor([[[0]], [[3]]]), torch.zeros(2, 1, 3).long()), {}
