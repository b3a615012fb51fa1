"""Elementwise operations from cache-sized to memory-sized tensors, outputs newly allocated as in user code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F

from ..harness import Case, Settings

OPERATIONS: dict[str, tuple[Callable[..., torch.Tensor], int]] = {
    "add": (torch.add, 3),
    "gelu": (lambda x, _: F.gelu(x), 2),
    "where": (lambda x, y: torch.where(x > 0, x, y), 4),
}


def cases(settings: Settings) -> Iterator[Case]:
    """Each operation at four sizes in float32."""
    for name, (operation, passes) in OPERATIONS.items():
        for size in (2**10, 2**16, 2**20, 2**24):
            generator = torch.Generator().manual_seed(0)
            x, y = (torch.randn(size, generator=generator) for _ in range(2))
            on_npu = (x.to("npu"), y.to("npu"))
            yield Case(
                name=f"{name} 2^{size.bit_length() - 1} float32",
                subject=partial(operation, *on_npu),
                baseline=partial(operation, x, y),
                finish=torch.npu.synchronize,
                bytes_moved=passes * 4 * size,
            )
