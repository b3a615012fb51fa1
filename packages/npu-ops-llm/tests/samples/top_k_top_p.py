"""Calls of npu_top_k_top_p for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments.  Tensors that can be differentiated require a gradient."""
    p, k = torch.tensor([0.9, 0.5, 1.0]), torch.tensor([5, 1, 40], dtype=torch.int32)
    for dtype in (torch.float32, torch.bfloat16):
        logits = (torch.randn(3, 40) * 3).to(dtype)
        yield "npu_top_k_top_p", (logits, p.to(dtype), k), {}
        yield "npu_top_k_top_p", (logits,), {"p": p.to(dtype)}
        yield "npu_top_k_top_p", (logits,), {"k": k}
        yield "npu_top_k_top_p", (logits[:, ::2],), {}
