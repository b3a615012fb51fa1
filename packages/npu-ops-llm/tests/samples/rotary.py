"""Calls of the rotary embeddings for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch

WRITES_UNMARKED_ARGUMENTS = ("npu_apply_rotary_pos_emb",)


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments.  Tensors that can be differentiated require a gradient."""
    for dtype in (torch.float32, torch.bfloat16):

        def random(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.randn(shape).to(dtype)

        x = random(2, 5, 3, 8)
        for mode in ("half", "interleave"):
            factors = random(1, 5, 1, 8).requires_grad_(), random(1, 5, 1, 8).requires_grad_()
            yield "npu_rotary_mul", (x.clone().requires_grad_(), *factors), {"rotary_mode": mode}
            yield (
                "npu_rotary_mul_backward",
                (random(2, 5, 3, 8), x, random(2, 5, 1, 8), random(2, 5, 1, 8), mode),
                {},
            )
        yield "npu_rotary_mul", (x.transpose(1, 2).requires_grad_(), random(1, 1, 5, 8), random(1, 1, 5, 8)), {}
        yield "npu_rotary_mul", (x, random(2, 5, 1, 8), random(2, 5, 1, 8)), {"rotate": random(8, 8)}
        yield "npu_interleave_rope", (x, random(2, 1, 3, 8), random(2, 1, 3, 8)), {}
        q, k = random(2, 5, 6, 8).split([4, 2], 2)
        for mode in ("half", "interleave", "quarter"):
            yield "npu_apply_rotary_pos_emb", (q, k, random(1, 5, 1, 8), random(1, 5, 1, 8)), {"rotary_mode": mode}
        yield (
            "npu_apply_rotary_pos_emb",
            (random(5, 4, 8), random(5, 1, 8), random(5, 1, 4), random(5, 1, 4), "TND"),
            {},
        )
