"""Calls of the activations for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments.  Tensors that can be differentiated require a gradient."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):

        def x(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.randn(shape).to(dtype)

        for name in ("npu_fast_gelu", "fast_gelu", "npu_gelu", "npu_silu"):
            yield name, (x(4, 3, 17).requires_grad_(),), {}
        yield "npu_gelu", (x(3, 7).requires_grad_(),), {"approximate": "tanh"}
        yield "npu_fast_gelu_backward", (x(4, 17), x(4, 17)), {}
        yield "npu_gelu_backward", (x(4, 17), x(4, 17)), {}
        yield "npu_gelu_backward", (x(4, 17), x(4, 17)), {"approximate": "tanh"}
        yield "npu_gelu_mul", (x(5, 34),), {}
        yield "npu_silu_", (x(4, 17),), {}
        yield "npu_silu_backward", (x(4, 17), x(4, 17), x(4, 17)), {}
    yield "npu_gelu", (torch.randn(5, 3).t(),), {}
    yield "npu_silu", (torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),), {}
    yield "npu_fast_gelu", (torch.randn(2, 3, 8)[:, :, ::2],), {}
    yield "npu_silu_", (torch.randn(6, 5).t(),), {}
    yield "npu_gelu_backward", (torch.randn(4, 1), torch.randn(3, 1, 5).bfloat16()), {}
    yield "npu_silu_backward", (torch.randn(5, 3).t(), torch.randn(3, 5), torch.randn(3, 5)), {}
    yield "npu_gelu_mul", (torch.randn(2, 3, 8).transpose(0, 1),), {"approximate": "tanh"}
