"""Calls of the gather operators for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments.  Tensors that can be differentiated require a gradient."""
    index = torch.tensor([[4, 0, 4], [2, 2, 3]])
    for dtype in (torch.float32, torch.bfloat16):
        yield "npu_gather_sparse_index", (torch.randn(5, 3, 4).to(dtype).requires_grad_(), index), {}
        yield "npu_gather_sparse_index_backward", (torch.randn(2, 3, 7).to(dtype), [5, 7], index.int()), {}
    yield "npu_gather_sparse_index", (torch.arange(12).reshape(3, 4).t(), torch.tensor(2)), {}
    yield "npu_gather_sparse_index", (torch.tensor(2.5), torch.tensor([0, 0])), {}
