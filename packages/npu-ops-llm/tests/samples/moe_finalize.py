"""Calls of finalize routing for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments."""
    tokens, k, hidden = 6, 3, 20
    for dtype in (torch.float32, torch.bfloat16):
        rows, skip = torch.randn(tokens * k, hidden).to(dtype), torch.randn(tokens, hidden).to(dtype)
        index = torch.randperm(tokens * k).to(torch.int32)
        bias, scales = torch.randn(5, hidden).to(dtype), torch.rand(tokens, k).to(dtype)
        experts = torch.randint(5, (tokens, k)).to(torch.int32)
        name = "npu_moe_finalize_routing"
        yield name, (rows, skip, skip.flip(0), bias, scales, index, experts), {"drop_pad_mode": 2}
        yield name, (rows, None, None, None, scales, index, None), {}
        yield name, (rows.view(3, tokens, hidden), None, None, None, None, index, None, 1, k), {}
