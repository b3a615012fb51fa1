"""A training step of a multilayer perceptron: forward, backward and SGD."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from ..harness import Case, Settings, Target

WIDTH = 1024


def step(device: str, batch: int) -> Callable[[], None]:
    """A function that trains a 3x1024 perceptron on one batch."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)
    )
    inputs = torch.randn(batch, WIDTH).to(device)
    labels = torch.randint(WIDTH, (batch,)).to(device)
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    return run


def cases(settings: Settings) -> Iterator[Case]:
    """A small and a usual batch."""
    for batch in (16, 64, 256):
        yield Case(
            name=f"3x{WIDTH}, batch {batch}, float32",
            subject=step("npu", batch),
            baseline=step("cpu", batch),
            finish=torch.npu.synchronize,
            target=Target("ratio", 1.05),
        )
