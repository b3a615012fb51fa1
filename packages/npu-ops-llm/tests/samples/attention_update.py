"""Calls of npu_attention_update for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments."""
    for dtype, update_type in ((torch.float32, 1), (torch.bfloat16, 0)):
        lse = [torch.randn(5) for _ in range(3)]
        local_out = [torch.randn(5, 24).to(dtype) for _ in range(3)]
        yield "npu_attention_update", (lse, local_out, update_type), {}
