"""Calls of the writers of paged caches for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments."""
    slots = torch.tensor([17, -1, 3, 3])
    key, value = torch.randn(4, 2, 32).bfloat16(), torch.randn(4, 2, 16)
    plain = (torch.randn(5, 6, 2, 32).bfloat16(), torch.randn(5, 6, 2, 16))
    blocked = (torch.randn(5, 4, 6, 16).bfloat16(), torch.randn(5, 4, 6, 8))
    for name in ("npu_scatter_pa_kv_cache", "npu_scatter_pa_kv_cache_functional"):
        yield name, (key, value, *plain, slots), {"cache_mode": "Norm"}
        yield name, (key, value, *blocked, slots.int()), {}
    yield "_npu_reshape_and_cache", (key, value, *plain, slots.int()), {}
    yield "_npu_reshape_and_cache", (key.transpose(0, 1).contiguous().transpose(0, 1), value, *blocked, slots), {}
