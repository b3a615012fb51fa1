"""Train a small transformer whose layers are split over the devices.

    torchrun --nproc-per-node 2 examples/tensor_parallel.py     # npu:0 and npu:1, backend hccl
    python examples/tensor_parallel.py                          # one process, the same losses

Every process computes some heads of attention and some columns of the feed-forward network for all tokens. Between
those parts each process keeps a stretch of the sequence, and the scores of the vocabulary stay split through the loss
(``parallelize_module``, ``loss_parallel``). The number of processes must divide 4, the number of heads; the losses
agree but for rounding (1e-3 over the 40 steps). The text to learn is the Zen of Python.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import io
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

HEADS, WIDTH, LAYERS, CONTEXT, BATCH = 4, 64, 2, 32, 16


class Layer(nn.Module):
    """Attention and feed-forward network, each behind a norm and beside a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, heads here * size) to (batch, heads here, tokens, size)."""
        return x.unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm1(x)
        query, key, value = (self.heads(projection(h)) for projection in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    """Scores of the next character for each place of a text."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, WIDTH)
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, characters)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.layers(self.embedding(text))))


def split(model: Model) -> Model:
    """Split the parameters over all processes: Shard(1) is the sequence in activations of (batch, tokens, width)."""
    mesh = init_device_mesh("npu", (dist.get_world_size(),))
    columns, rows = ColwiseParallel(input_layouts=Shard(1)), RowwiseParallel(output_layouts=Shard(1))
    for layer in model.layers:
        plan = dict.fromkeys(("query", "key", "value", "up"), columns) | {"out": rows, "down": rows}
        parallelize_module(layer, mesh, plan | {"norm1": SequenceParallel(), "norm2": SequenceParallel()})
    plan = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), use_local_output=False),
    }
    return parallelize_module(model, mesh, plan)


def zen() -> torch.Tensor:
    """The Zen of Python as numbers of its characters."""
    with contextlib.redirect_stdout(io.StringIO()):
        import this
    text = codecs.decode(this.s, "rot13")
    alphabet = sorted(set(text))
    return torch.tensor([alphabet.index(character) for character in text])


def train(steps: int) -> None:
    """Train and print the losses."""
    torch.manual_seed(0)
    text = zen()
    characters = (int(text.max()) + 4) // 4 * 4  # evenly split over up to 4 processes
    model = split(Model(characters).npu())
    here = sum(parameter.to_local().numel() for parameter in model.parameters())
    print(f"process {dist.get_rank()} of {dist.get_world_size()} on {torch.npu.current_device()} holds {here} numbers")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        # Every process sees the whole batch.
        starts = torch.randint(len(text) - CONTEXT - 1, (BATCH, 1), generator=generator)
        rows = text[starts + torch.arange(CONTEXT + 1)].npu()
        optimizer.zero_grad()
        with loss_parallel():
            loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
            loss.backward()
        optimizer.step()
        value = loss.full_tensor().item()
        if dist.get_rank() == 0 and (step % 5 == 4 or step == 0):
            print(f"step {step + 1:3d}  loss {value:.6f}", flush=True)


def main() -> None:
    """Join the group, train, leave."""
    parser = argparse.ArgumentParser(description="Train a transformer split over the devices.")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    if "LOCAL_RANK" not in os.environ:  # not started by torchrun: a job of one process
        os.environ |= {
            "LOCAL_RANK": "0",
            "RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
        }
    if HEADS % int(os.environ["WORLD_SIZE"]) != 0:
        parser.error(f"the number of processes should divide {HEADS}, the heads, but is {os.environ['WORLD_SIZE']}")
    torch.npu.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("hccl")
    try:
        train(options.steps)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
