"""Train a small Llama-style language model with the fused operators of npu-ops-llm.

    python examples/tiny_llama.py                    # npu, bfloat16
    python examples/tiny_llama.py --device cpu       # the same operators on CPU tensors
    python examples/tiny_llama.py --plain            # every operator composed from stock ones

The text is the Zen of Python, which comes with the interpreter; the model learns it by heart in a few hundred steps.
``FusedOps`` and ``PlainOps`` show side by side which stock operators each fused one replaces.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import io
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_npu


class FusedOps:
    """The operators as ``torch_npu`` has them; they take npu tensors and CPU tensors."""

    @staticmethod
    def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Norm over the last dim."""
        return torch_npu.npu_rms_norm(x, weight, epsilon)[0]

    @staticmethod
    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotary position embedding of (batch, heads, length, width), halves paired."""
        return torch_npu.npu_rotary_mul(x, cos, sin)

    @staticmethod
    def swiglu(x: Tensor) -> Tensor:
        """Gated linear unit: silu of the first half times the second half."""
        return torch_npu.npu_swiglu(x, dim=-1)

    @staticmethod
    def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
        """Mean negative log-likelihood."""
        return torch_npu.npu_cross_entropy_loss(logits, target)[0].squeeze()


class PlainOps:
    """The same from stock operators."""

    @staticmethod
    def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Norm over the last dim."""
        return F.rms_norm(x, weight.shape, weight, epsilon)

    @staticmethod
    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotary position embedding of (batch, heads, length, width), halves paired."""
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin

    @staticmethod
    def swiglu(x: Tensor) -> Tensor:
        """Gated linear unit: silu of the first half times the second half."""
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value

    @staticmethod
    def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
        """Mean negative log-likelihood."""
        return F.cross_entropy(logits, target)


Ops = type[FusedOps] | type[PlainOps]


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale."""

    def __init__(self, width: int, ops: Ops) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.ops = ops

    def forward(self, x: Tensor) -> Tensor:
        """Norm of x over its last dim."""
        return self.ops.rms_norm(x, self.weight, 1e-5)


class Block(nn.Module):
    """Attention and a gated feed-forward network, each on the normed input and added to it."""

    def __init__(self, width: int, heads: int, ops: Ops) -> None:
        super().__init__()
        self.heads, self.ops = heads, ops
        self.attention_norm, self.feed_norm = RMSNorm(width, ops), RMSNorm(width, ops)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(batch, length, width) to the same."""
        batch, length, width = x.shape
        heads = self.query_key_value(self.attention_norm(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        query, key = self.ops.rotate(query, cos, sin), self.ops.rotate(key, cos, sin)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(self.ops.swiglu(self.gate_up(self.feed_norm(x))))


class TinyLlama(nn.Module):
    """Predicts the next of `vocabulary` tokens."""

    def __init__(self, vocabulary: int, ops: Ops, width: int = 96, heads: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads, ops) for _ in range(depth))
        self.norm = RMSNorm(width, ops)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head_width = width // heads

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, length) token ids to (batch, length, vocabulary) logits."""
        x = self.embedding(tokens)
        cos, sin = rotary_table(tokens.shape[1], self.head_width, x)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.head(self.norm(x))


def rotary_table(length: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of the positions' angles, each (1, 1, length, width), on the device and with the dtype of `like`.

    Source: J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
    """
    frequency = 10000 ** -(torch.arange(0, width, 2, device=like.device) / width)
    angle = torch.outer(torch.arange(length, device=like.device), frequency).repeat(1, 2)[None, None]
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def zen() -> str:
    """The text of ``import this``."""
    with contextlib.redirect_stdout(io.StringIO()):
        import this
    return codecs.decode(this.s, "rot13")


def batches(text: Tensor, length: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random windows of the text and, for each of their tokens, the one that follows."""
    starts = torch.randint(len(text) - length, (size,), generator=generator)
    windows = torch.stack([text[start : start + length + 1] for start in starts])
    return windows[:, :-1], windows[:, 1:]


def continuation(model: TinyLlama, prompt: Tensor, count: int, window: int) -> Tensor:
    """`prompt` (1, length) and the `count` tokens that the model finds most likely after it."""
    for _ in range(count):
        with torch.no_grad():
            following = model(prompt[:, -window:])[:, -1].argmax(-1, keepdim=True)
        prompt = torch.cat((prompt, following), dim=1)
    return prompt


def train(options: argparse.Namespace) -> float:
    """Train and print the loss; return the last one."""
    torch.manual_seed(options.seed)
    text = zen()
    letters = sorted(set(text))
    encoded = torch.tensor([letters.index(letter) for letter in text])
    model = TinyLlama(len(letters), PlainOps if options.plain else FusedOps).to(options.device, torch.bfloat16)
    # The optimiser keeps float32 weights: steps are smaller than half a unit of bfloat16.
    masters = [parameter.detach().float().requires_grad_() for parameter in model.parameters()]
    optimiser = torch.optim.AdamW(masters, lr=3e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(options.seed)

    begin = time.perf_counter()
    loss = torch.zeros(())
    for step in range(1, options.steps + 1):
        tokens, targets = (part.to(options.device) for part in batches(encoded, options.length, 16, generator))
        logits = model(tokens)
        loss = model.blocks[0].ops.cross_entropy(logits.flatten(0, 1), targets.flatten())
        model.zero_grad()
        loss.backward()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            master.grad = parameter.grad.float()
        optimiser.step()
        with torch.no_grad():
            for master, parameter in zip(masters, model.parameters(), strict=True):
                parameter.copy_(master)
        if step % 50 == 0 or step == options.steps:
            print(f"step {step:4}  loss {loss.item():.3f}  {(time.perf_counter() - begin) / step * 1e3:.1f} ms/step")

    prompt = "Beautiful is"
    start = torch.tensor([[letters.index(letter) for letter in prompt]]).to(options.device)
    learned = continuation(model, start, 60, options.length)
    print("".join(letters[token] for token in learned[0].tolist()))
    return loss.item()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a small Llama-style model on the Zen of Python.")
    parser.add_argument("--device", choices=("npu", "cpu"), default="npu")
    parser.add_argument("--plain", action="store_true", help="compose every operator from stock ones")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--length", type=int, default=64, help="tokens in a window (default 64)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(0 if train(parse()) < 1.0 else "the loss did not fall below 1")
