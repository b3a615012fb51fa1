"""Calls of the softmax operators for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch

#: Drawn from the generator of the tensors' device.
RANDOM = ("npu_dropout_with_add_softmax",)


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments.  Tensors that can be differentiated require a gradient."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 3, 5, 37).to(dtype)
        mask = torch.rand(2, 1, 5, 37) < 0.3
        yield "npu_scaled_masked_softmax", (x.clone().requires_grad_(), mask, 0.5), {}
        y = torch.softmax(x, -1)
        yield "npu_scaled_masked_softmax_backward", (torch.randn(x.shape).to(dtype), y, mask, 0.5, False), {}
    yield "npu_scaled_masked_softmax", (x.float(), mask), {"fixed_triu_mask": True}
    yield "npu_scaled_masked_softmax", (x.float().transpose(1, 2), torch.rand(37) < 0.5, 2), {}
    for dtype in (torch.float32, torch.float16):
        a, b = (torch.randn(2, 3, 5, 37).to(dtype) for _ in range(2))
        trained = (a.clone().requires_grad_(), b.clone().requires_grad_())
        yield "npu_dropout_with_add_softmax", (*trained, 0.5, 0.25, -1), {}
        mask = torch.zeros(1152, dtype=torch.uint8)
        mask[: a.numel()] = torch.randint(0, 2, (a.numel(),))
        yield "npu_dropout_with_add_softmax_backward", (b, mask, torch.softmax(a, -1), 2, 0.25, -1), {}
        yield "npu_dropout_with_add_softmax_backward", (b, mask, torch.softmax(a, 1), 2, 0.25, 1), {}
