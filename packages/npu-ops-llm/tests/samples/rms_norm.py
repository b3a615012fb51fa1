"""Calls of the RMS norms for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments.  Tensors that can be differentiated require a gradient."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(4, 3, 16).to(dtype).requires_grad_()
        gamma = torch.randn(16).to(dtype).requires_grad_()
        yield "npu_rms_norm", (x, gamma), {"epsilon": 1e-5}
        yield "npu_gemma_rms_norm", (x.detach(), gamma.detach()), {"epsilon": 1e-5}
        rstd = torch.rand(4, 3, 1)
        yield "npu_rms_norm_backward", (torch.randn(4, 3, 16).to(dtype), x.detach(), gamma.detach(), rstd), {}
    yield "npu_rms_norm", (torch.randn(2, 3, 4), torch.randn(3, 4)), {}
