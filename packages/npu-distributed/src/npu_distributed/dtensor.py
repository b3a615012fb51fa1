"""What DTensor must know of npu: how many random numbers an operator takes, and how attention may be sharded."""

from __future__ import annotations

import functools
from typing import Any

import torch

from npu_core.late_import import after_import

#: A random operator on npu takes its numbers in blocks of this many, at most this many blocks per 64 elements.
_BLOCK = 64
_BLOCKS_PER_BLOCK = 2


def register() -> None:
    """Extend DTensor when a program imports it."""
    after_import("torch.distributed.tensor", _extend)


def _extend() -> None:
    _keep_random_shards_apart()
    _shard_attention()


def _keep_random_shards_apart() -> None:
    """Give each shard of a random tensor numbers of its own.

    DTensor moves the generator by the number of elements before each shard, which suits generators with one sequence
    per thread. On npu number i of a call is number i after the offset, block by block: shards must start at a block.
    """
    from torch.distributed.tensor import _random

    original = _random.OffsetBasedRNGTracker._compute_rng_offsets

    @functools.wraps(original)
    def compute(self: Any, spec: Any) -> tuple[Any, Any]:
        if spec.mesh.device_type != "npu":
            return original(self, spec)
        coordinate = [spec.mesh._sym_get_coordinate(dim) for dim in range(spec.mesh.ndim)]
        index, counts = _random._calc_shard_info(coordinate, spec)
        elements = 1
        for length in _random._calc_first_shard_size(spec):
            elements = elements * length
        step = _BLOCKS_PER_BLOCK * ((elements + _BLOCK - 1) // _BLOCK * _BLOCK)
        shards = 1
        for count in counts:
            shards = shards * count
        return self._calc_shard_linear_idx(index, counts) * step, shards * step

    _random.OffsetBasedRNGTracker._compute_rng_offsets = compute


def _shard_attention() -> None:
    """Let attention on DTensors be sharded over batch and heads, as torch does for its cuda kernels."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.experimental._register_sharding import register_sharding

    aten = torch.ops.aten

    def shardings(outputs: int, tensors: int, mask: Any, options: int) -> list[tuple[list[Any], list[Any]]]:
        """Everything whole, or split along batch or heads; a mask may broadcast, so it forbids the split."""
        allowed = [Replicate()] if mask is not None else [Replicate(), Shard(0), Shard(1)]
        masks = [Replicate()] if mask is not None else [None]
        return [([kind] * outputs, [kind] * tensors + [None] * options + masks + [None]) for kind in allowed]

    @register_sharding(aten._scaled_dot_product_flash_attention_for_cpu.default)
    def forward(
        query: Any,
        key: Any,
        value: Any,
        dropout: float = 0.0,
        causal: bool = False,
        *,
        attn_mask: Any = None,
        scale: Any = None,
    ) -> Any:
        return shardings(2, 3, attn_mask, 2)

    @register_sharding(aten._scaled_dot_product_flash_attention_for_cpu_backward.default)
    def backward(
        gradient: Any,
        query: Any,
        key: Any,
        value: Any,
        out: Any,
        logsumexp: Any,
        dropout: float,
        causal: bool,
        *,
        attn_mask: Any = None,
        scale: Any = None,
    ) -> Any:
        return shardings(3, 6, attn_mask, 2)
