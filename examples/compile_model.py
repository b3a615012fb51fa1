"""Train a small network on npu, once as it is and once compiled, and compare.

python examples/compile_model.py                      # Inductor: needs a C++ compiler
python examples/compile_model.py --backend aot_eager
"""

from __future__ import annotations

import argparse
import copy

import torch
from torch import nn


def train(forward: nn.Module, model: nn.Module, steps: int) -> list[float]:
    """Return the loss of every step."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 16, generator=generator).npu()
    targets = inputs.square().sum(1, keepdim=True).sin()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(forward(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 1)).npu()
    other = copy.deepcopy(model)
    eager = train(model, model, options.steps)
    compiled = train(torch.compile(other, backend=options.backend), other, options.steps)
    print(f"eager    {eager[0]:.5f} -> {eager[-1]:.5f}")
    print(f"compiled {compiled[0]:.5f} -> {compiled[-1]:.5f}")
    difference = max(abs(a - b) for a, b in zip(eager, compiled, strict=True))
    if difference > 1e-3:
        raise SystemExit(f"the compiled model differs by {difference}")


if __name__ == "__main__":
    main()
