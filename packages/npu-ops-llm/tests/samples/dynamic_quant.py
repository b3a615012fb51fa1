"""Calls of the dynamic quantisers for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments.  Tensors that can be differentiated require a gradient."""
    ends = torch.tensor([2, 2, 12], dtype=torch.int32)
    for op in ("npu_dynamic_quant", "npu_dynamic_quant_asymmetric"):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(4, 3, 24).to(dtype)
            yield op, (x,), {}
            yield op, (x[..., 8:],), {"dst_type": torch.quint4x2, "smooth_scales": torch.rand(16).to(dtype)}
            yield op, (x,), {"smooth_scales": torch.rand(3, 24).to(dtype), "group_index": ends}
            yield op, (x,), {"smooth_scales": torch.rand(3), "quant_mode": "perchannel"}
            yield op, (x,), {"quant_mode": "pertensor"}
    yield "npu_dynamic_quant", (torch.randn(5, 24),), {"dst_type": torch.float8_e4m3fn}
