"""A training step of the small CNN of examples/digits_cnn.py."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F

from ..harness import Case, Settings, Target

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits_cnn.py"


def example() -> ModuleType:
    """The demo script as a module, so that benchmark and demo train the same network."""
    specification = importlib.util.spec_from_file_location("digits_cnn", EXAMPLE)
    if specification is None or specification.loader is None:
        raise ImportError(f"cannot load {EXAMPLE}")
    module = importlib.util.module_from_spec(specification)
    sys.modules["digits_cnn"] = module
    specification.loader.exec_module(module)
    return module


def step(device: str, batch: int) -> Callable[[], None]:
    """A function that trains the CNN on one batch of 8x8 images, dropout off so that both sides do equal work."""
    torch.manual_seed(0)
    model = example().build_model(dropout=0.0)
    images = torch.randn(batch, 1, 8, 8).to(device)
    labels = torch.randint(10, (batch,)).to(device)
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return run


def cases(settings: Settings) -> Iterator[Case]:
    """The demo's batch and a larger one."""
    for batch in (64, 256):
        yield Case(
            name=f"digits CNN, batch {batch}, float32",
            subject=step("npu", batch),
            baseline=step("cpu", batch),
            finish=torch.npu.synchronize,
            target=Target("ratio", 1.05),
        )
