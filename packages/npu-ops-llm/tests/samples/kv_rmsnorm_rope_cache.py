"""Calls of npu_kv_rmsnorm_rope_cache for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch

WRITES_UNMARKED_ARGUMENTS = ("npu_kv_rmsnorm_rope_cache",)


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments."""
    name = "npu_kv_rmsnorm_rope_cache"
    for dtype in (torch.float32, torch.bfloat16):

        def random(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.randn(shape).to(dtype)

        kv, gamma = random(2, 3, 1, 48 + 3).transpose(1, 2)[..., :48], random(32)
        rope = random(2, 1, 3, 16), random(2, 1, 3, 16)
        rows = torch.tensor([[0, 4, 2], [-1, 3, 1]])
        yield name, (kv, gamma, *rope, rows, random(2, 1, 5, 16), random(2, 1, 5, 32)), {}
        slots = torch.randperm(12)[:6]
        for mode in ("PA", "PA_NZ"):
            options = {"cache_mode": mode, "is_output_kv": True}
            yield name, (kv, gamma, *rope, slots, random(3, 4, 1, 16), random(3, 4, 1, 32)), options
        pages = torch.tensor([2, 6, 0, 4])
        quantised = torch.zeros(4, 2, 1, 32, dtype=torch.int8)
        options = {"cache_mode": "PA_BLK_NZ", "c_kv_scale": torch.rand(32) * 9, "c_kv_offset": torch.rand(32)}
        yield name, (kv, gamma, *rope, pages, random(4, 2, 1, 16), quantised), options
        options = {"cache_mode": "PA_BLK_BNSD", "v": random(2, 1, 3, 24), "is_output_kv": True}
        yield name, (kv, random(48), *rope, pages, random(4, 2, 1, 48), random(4, 2, 1, 24)), options
