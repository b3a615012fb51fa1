"""Training steps of networks so small that only the cost of dispatching their operations counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from ..harness import Case, Settings, Target

WIDTH, CLASSES, STEPS = 32, 10, 8
Optimizer = Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Optimizer] = {
    "SGD": partial(torch.optim.SGD, lr=0.01),
    "Adam foreach": partial(torch.optim.Adam, lr=1e-3, foreach=True),
    "Adam fused": partial(torch.optim.Adam, lr=1e-3, fused=True),
}


class Recurrent(nn.Module):
    """A recurrent layer whose last output is classified.

    Parameters
    ----------
    kind : type
        ``nn.RNN`` or ``nn.LSTM``.
    """

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = kind(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, steps, width) to (batch, classes)."""
        return self.head(self.layer(x)[0][:, -1])


def perceptron() -> nn.Module:
    """Three layers, 32 wide."""
    layers = (nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
    return nn.Sequential(*layers)


def step(
    device: str, build: Callable[[], nn.Module], shape: tuple[int, ...], optimizer: Optimizer
) -> Callable[[], None]:
    """A function that trains what `build` makes on one batch of `shape`."""
    torch.manual_seed(0)
    model = build().to(device)
    inputs = torch.randn(shape).to(device)
    labels = torch.randint(CLASSES, shape[:1]).to(device)
    updates = optimizer(model.parameters())

    def run() -> None:
        updates.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs), labels).backward()
        updates.step()

    return run


def cases(settings: Settings) -> Iterator[Case]:
    """A perceptron with three optimizers, an RNN and an LSTM."""
    shapes: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], str]] = [
        ("MLP 3x32", perceptron, (batch, WIDTH), name) for batch in (8, 16, 32, 64) for name in OPTIMIZERS
    ]
    shapes += [
        (f"{kind.__name__} 32, {STEPS} steps", partial(Recurrent, kind), (batch, STEPS, WIDTH), "SGD")
        for kind in (nn.RNN, nn.LSTM)
        for batch in (8, 64)
    ]
    for network, build, shape, optimizer in shapes:
        if settings.quick and shape[0] != 8:
            continue
        yield Case(
            name=f"{network}, batch {shape[0]}, {optimizer}",
            subject=step("npu", build, shape, OPTIMIZERS[optimizer]),
            baseline=step("cpu", build, shape, OPTIMIZERS[optimizer]),
            finish=torch.npu.synchronize,
            target=Target("ratio", 1.1),
        )
