"""Writers of paged caches of npu-ops-llm."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import torch_npu

from ..fused import FusedOp, decode, prefill
from ..harness import Case, Settings

HEADS, WIDTH, BLOCK = 8, 128, 128


def slots_of(tokens: int, blocks: int) -> Tensor:
    """Whole blocks in any order, or single tokens anywhere for the sizes of decoding."""
    if tokens < BLOCK:
        return torch.randperm(blocks * BLOCK)[:tokens]
    chosen = torch.randperm(blocks)[: -(-tokens // BLOCK)]
    return (chosen[:, None] * BLOCK + torch.arange(BLOCK)).flatten()[:tokens]


def put_plain(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """From stock operators."""
    key_cache.view(-1, HEADS, WIDTH)[slots] = key
    value_cache.view(-1, HEADS, WIDTH)[slots] = value


def put_blocked(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """The same for caches of the NZ layout."""
    block, row = slots // BLOCK, slots % BLOCK
    key_cache[block, :, row] = key.view(-1, HEADS * WIDTH // 16, 16)
    value_cache[block, :, row] = value.view(-1, HEADS * WIDTH // 16, 16)


def write(tokens: int, blocked: bool) -> FusedOp:
    """Keys and values of `tokens` tokens."""
    blocks = max(64, 2 * tokens // BLOCK)
    shape = (blocks, HEADS * WIDTH // 16, BLOCK, 16) if blocked else (blocks, BLOCK, HEADS, WIDTH)
    mode = "PA_NZ" if blocked else "Norm"

    def ours(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
        torch_npu.npu_scatter_pa_kv_cache(key, value, key_cache, value_cache, slots, cache_mode=mode)

    return FusedOp(
        name=f"npu_scatter_pa_kv_cache {mode} {tokens}x{HEADS}x{WIDTH} bfloat16",
        ours=ours,
        composition=put_blocked if blocked else put_plain,
        inputs=lambda: (
            *(torch.randn(tokens, HEADS, WIDTH).bfloat16() for _ in range(2)),
            *(torch.zeros(shape).bfloat16() for _ in range(2)),
            slots_of(tokens, blocks),
        ),
        bytes_moved=2.0 * 2 * 2 * tokens * HEADS * WIDTH,
        bandwidth_bound=not blocked,
    )


def reshape(tokens: int) -> FusedOp:
    """The same through _npu_reshape_and_cache."""
    plain = write(tokens, False)
    return FusedOp(
        name=f"_npu_reshape_and_cache {tokens}x{HEADS}x{WIDTH} bfloat16",
        ours=torch_npu._npu_reshape_and_cache,
        composition=put_plain,
        inputs=plain.inputs,
        bytes_moved=plain.bytes_moved,
    )


def index_copy(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """The cheapest stock operators that write rows by index."""
    key_cache.view(-1, HEADS, WIDTH).index_copy_(0, slots, key)
    value_cache.view(-1, HEADS, WIDTH).index_copy_(0, slots, value)


def cases(settings: Settings) -> Iterator[Case]:
    """Prefill and decode sizes."""
    tokens = 256 if settings.quick else 4096
    yield from prefill(write(tokens, False), settings)
    yield from prefill(write(tokens, True), settings)
    yield from prefill(reshape(tokens), settings)
    for batch in (1, 32):
        yield from decode(reshape(batch), index_copy)
