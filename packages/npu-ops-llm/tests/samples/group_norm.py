"""Calls of the group norms for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments.  Tensors that can be differentiated require a gradient."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 6, 5, 7).to(dtype)
        weight, bias = torch.randn(6).to(dtype), torch.randn(6).to(dtype)
        yield "npu_group_norm_silu", (x, weight, bias, 3), {"eps": 1e-4}
        yield "npu_group_norm_silu", (x, None, None, 2), {}
        trained = x.clone().requires_grad_(), 3, weight.clone().requires_grad_(), bias.clone().requires_grad_()
        yield "npu_group_norm_swish", trained, {"swish_scale": 1.5}
        statistics = torch.randn(2, 3).to(dtype), torch.rand(2, 3).to(dtype)
        mask = [True, dtype == torch.float32, True]
        yield "npu_group_norm_swish_grad", (torch.randn_like(x), x, 3, weight, bias, *statistics, mask), {}
    half = torch.randn(3, 40).half().requires_grad_()
    yield "npu_group_norm_swish", (half, 2, torch.randn(40), torch.randn(40)), {"eps": None}
    channels_last = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    yield "npu_group_norm_silu", (channels_last, torch.randn(8), None, 4), {}
