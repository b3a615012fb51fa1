"""Rotary embeddings, the latent cache writer and the decode step of npu-ops-llm."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import torch_npu

from ..fused import FusedOp, decode, prefill
from ..harness import Case, Settings

HEADS, WIDTH = 32, 128
HIDDEN = HEADS * WIDTH
NORM, ROPE = 512, 64


def rotate_half(x: Tensor) -> Tensor:
    """As models write it."""
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def eager(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The embedding from stock operators."""
    return x * cos + rotate_half(x) * sin


def angles(rows: int) -> tuple[Tensor, Tensor]:
    """cos and sin of `rows` tokens.  They keep lengths, so that operators in place can be repeated."""
    angle = torch.rand(1, rows, 1, WIDTH // 2).repeat(1, 1, 1, 2) * 6
    return angle.cos().bfloat16(), angle.sin().bfloat16()


def rotary_mul(rows: int) -> FusedOp:
    """Heads of `rows` tokens."""
    return FusedOp(
        name=f"npu_rotary_mul {rows}x{HEADS}x{WIDTH} bfloat16",
        ours=lambda x, cos, sin: torch_npu.npu_rotary_mul(x, cos, sin),
        composition=eager,
        inputs=lambda: (torch.randn(1, rows, HEADS, WIDTH).bfloat16(), *angles(rows)),
        bytes_moved=2.0 * rows * WIDTH * (2 * HEADS + 2),
    )


def interleaved(rows: int) -> FusedOp:
    """The same for neighbours."""

    def composition(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return x * cos + torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2) * sin

    return FusedOp(
        name=f"npu_rotary_mul interleave {rows}x{HEADS}x{WIDTH} bfloat16",
        ours=lambda x, cos, sin: torch_npu.npu_rotary_mul(x, cos, sin, "interleave"),
        composition=composition,
        inputs=rotary_mul(rows).inputs,
        bytes_moved=rotary_mul(rows).bytes_moved,
    )


def rotary_mul_backward(rows: int) -> FusedOp:
    """All three gradients."""

    def composition(grad: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dcos = (grad * x).sum((0, 2), keepdim=True)
        dsin = (grad * rotate_half(x)).sum((0, 2), keepdim=True)
        return grad * cos - rotate_half(grad * sin), dcos, dsin

    return FusedOp(
        name=f"npu_rotary_mul_backward {rows}x{HEADS}x{WIDTH} bfloat16",
        ours=lambda *arguments: torch_npu.npu_rotary_mul_backward(*arguments),
        composition=composition,
        inputs=lambda: (torch.randn(1, rows, HEADS, WIDTH).bfloat16(), *rotary_mul(rows).inputs()),
        bytes_moved=2.0 * rows * WIDTH * (3 * HEADS + 4),
    )


def interleave_rope(rows: int) -> FusedOp:
    """Heads-first views of `rows` tokens, as latent attention has them."""

    def composition(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return eager(torch.cat([x[..., 0::2], x[..., 1::2]], -1), cos, sin)

    return FusedOp(
        name=f"npu_interleave_rope {rows}x{HEADS}x{ROPE} bfloat16",
        ours=lambda x, cos, sin: torch_npu.npu_interleave_rope(x, cos, sin),
        composition=composition,
        inputs=lambda: (
            torch.randn(1, rows, HEADS, ROPE).bfloat16().transpose(1, 2),
            torch.randn(1, 1, rows, ROPE).bfloat16(),
            torch.randn(1, 1, rows, ROPE).bfloat16(),
        ),
        bytes_moved=2.0 * rows * ROPE * (2 * HEADS + 2),
    )


def apply_rotary(rows: int) -> FusedOp:
    """Query and key of `rows` tokens, in place."""

    def composition(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return query.copy_(eager(query, cos, sin)), key.copy_(eager(key, cos, sin))

    def inputs() -> tuple[Tensor, ...]:
        query, key = (torch.randn(1, rows, heads, WIDTH).bfloat16() for heads in (HEADS, 8))
        return query, key, *angles(rows)

    return FusedOp(
        name=f"npu_apply_rotary_pos_emb {rows}x{HEADS}+8x{WIDTH} bfloat16",
        ours=lambda *arguments: torch_npu.npu_apply_rotary_pos_emb(*arguments),
        composition=composition,
        inputs=inputs,
        bytes_moved=2.0 * rows * WIDTH * (2 * (HEADS + 8) + 2),
    )


def cache(rows: int) -> FusedOp:
    """Latent key-values of `rows` tokens into blocks anywhere in paged caches, with outputs."""
    size = 128
    blocks = -(-rows // size)

    def composition(
        kv: Tensor, gamma: Tensor, cos: Tensor, sin: Tensor, index: Tensor, k_cache: Tensor, ckv_cache: Tensor
    ) -> tuple[Tensor, Tensor]:
        latent, rope = kv.split([NORM, ROPE], -1)
        y = F.rms_norm(latent, (NORM,), gamma, 1e-5)
        k = eager(torch.cat([rope[..., 0::2], rope[..., 1::2]], -1), cos, sin)
        k_cache.view(-1, ROPE).index_copy_(0, index, k.view(-1, ROPE))
        ckv_cache.view(-1, NORM).index_copy_(0, index, y.view(-1, NORM))
        return k, y

    def inputs() -> tuple[Tensor, ...]:
        angle = torch.randn(2, rows, 1, 1, ROPE).bfloat16()
        caches = torch.zeros(blocks, size, 1, ROPE).bfloat16(), torch.zeros(blocks, size, 1, NORM).bfloat16()
        kv = torch.randn(rows, 1, 1, NORM + ROPE).bfloat16()
        slots = (torch.randperm(blocks)[:, None] * size + torch.arange(size)).flatten()[:rows]
        return kv, torch.randn(NORM).bfloat16(), angle[0], angle[1], slots, *caches

    return FusedOp(
        name=f"npu_kv_rmsnorm_rope_cache {rows}x{NORM}+{ROPE} bfloat16",
        ours=lambda *arguments: torch_npu.npu_kv_rmsnorm_rope_cache(*arguments, cache_mode="PA", is_output_kv=True),
        composition=composition,
        inputs=inputs,
        bytes_moved=2.0 * rows * (3 * (NORM + ROPE) + 2 * ROPE),
    )


def advance_step(rows: int) -> FusedOp:
    """One step of `rows` sequences."""
    size, blocks = 128, 32

    def composition(
        tokens: Tensor, sampled: Tensor, positions: Tensor, lens: Tensor, slots: Tensor, tables: Tensor
    ) -> None:
        tokens.copy_(sampled[:, 0])
        positions.copy_(lens)
        slots.copy_(tables.gather(1, (lens // size)[:, None])[:, 0] * size + lens % size)
        lens.clamp_(max=size * blocks - 2).add_(1)

    def ours(*arguments: Tensor) -> None:
        torch_npu.npu_advance_step_flashattn(*arguments, rows, rows, size)
        arguments[3].clamp_(max=size * blocks - 1)  # however often it is repeated

    def inputs() -> tuple[Tensor, ...]:
        return (
            *(torch.randint(1000, shape) for shape in ((rows,), (rows, 1), (rows,), (rows,), (rows,))),
            torch.randint(1000, (rows, blocks)),
        )

    return FusedOp(
        name=f"npu_advance_step_flashattn {rows} sequences",
        ours=ours,
        composition=composition,
        inputs=inputs,
        bytes_moved=8.0 * rows * 7,
        bandwidth_bound=False,
    )


def cases(settings: Settings) -> Iterator[Case]:
    """Prefill and decode sizes."""
    rows = 64 if settings.quick else 2048
    for op in (rotary_mul, interleaved, rotary_mul_backward, interleave_rope, apply_rotary):
        yield from prefill(op(rows), settings)
    yield from prefill(cache(4 * rows), settings)
    yield from prefill(advance_step(256), settings)
    for count in (1, 32):
        hidden = torch.randn(count, HIDDEN).bfloat16()

        def cheapest(*arguments: Tensor, x: Tensor = hidden) -> Tensor:
            return F.layer_norm(x, (HIDDEN,))

        for op in (rotary_mul, interleave_rope, apply_rotary, cache):
            yield from decode(op(count), cheapest)
