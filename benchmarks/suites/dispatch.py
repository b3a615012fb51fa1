"""What one operation costs from Python when the work itself costs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from ..harness import Case, Settings, Target

CHAIN = 10_000


def cases(settings: Settings) -> Iterator[Case]:
    """Chains of small dependent operations with one synchronisation at the end."""
    for size in (16, 1024):
        yield from chains(size)


def chains(size: int) -> Iterator[Case]:
    """Three ways to add `size` elements ten thousand times."""

    def in_place(x: torch.Tensor, y: torch.Tensor) -> None:
        for _ in range(CHAIN):
            x.add_(y)

    def new_output(x: torch.Tensor, y: torch.Tensor) -> None:
        for _ in range(CHAIN):
            x = x + y

    def scalar(x: torch.Tensor, _: torch.Tensor) -> None:
        for _ in range(CHAIN):
            x.mul_(0.5)

    for name, chain in (("add_", in_place), ("add", new_output), ("mul_ by a number", scalar)):
        tensors = {
            device: (torch.ones(size, device=device), torch.ones(size, device=device)) for device in ("npu", "cpu")
        }
        yield Case(
            name=f"{name}, {size} elements",
            subject=partial(chain, *tensors["npu"]),
            baseline=partial(chain, *tensors["cpu"]),
            finish=torch.npu.synchronize,
            operations=CHAIN,
            target=Target("ratio", 1.05) if name != "mul_ by a number" and size == 16 else None,
        )
