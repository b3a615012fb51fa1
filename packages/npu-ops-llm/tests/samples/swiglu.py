"""Calls of the gated SiLU operators for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments.  Tensors that can be differentiated require a gradient."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):

        def x(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.randn(shape).to(dtype)

        yield "npu_swiglu", (x(4, 3, 18).requires_grad_(),), {}
        yield "npu_swiglu", (x(4, 6, 5).requires_grad_(), 1), {}
        yield "npu_swiglu_backward", (x(4, 9), x(4, 18)), {}
        yield "npu_swiglu_backward", (x(2, 3, 5), x(4, 3, 5), 0), {}
        yield "npu_swiglu_quant", (x(4, 3, 36),), {"quant_mode": 1}
        yield "npu_dequant_swiglu_quant", (x(4, 3, 36),), {"quant_mode": 1}
    groups = torch.tensor([2, 3, 7], dtype=torch.int32)
    smooth, offsets = torch.rand(3, 10), torch.randn(3, 10)
    yield (
        "npu_swiglu_quant",
        (torch.randn(8, 20),),
        {"smooth_scales": smooth, "offsets": offsets, "group_index": groups, "activate_left": True},
    )
    yield (
        "npu_swiglu_quant",
        (torch.randn(8, 20).bfloat16(),),
        {"group_index": groups, "quant_mode": 1, "dst_type": torch.quint4x2, "smooth_scales": torch.rand(3)},
    )
    yield (
        "npu_dequant_swiglu_quant",
        (torch.randint(-1000, 1000, (8, 20), dtype=torch.int32),),
        {
            "weight_scale": torch.rand(3, 20) / 1000,
            "activation_scale": torch.rand(8),
            "bias": torch.randint(-100, 100, (3, 20), dtype=torch.int32),
            "quant_scale": torch.rand(3, 10),
            "group_index": torch.tensor([2, 0, 5]),
            "quant_mode": 1,
            "swiglu_mode": 1,
        },
    )
    yield (
        "npu_dequant_swiglu_quant",
        (torch.randn(8, 20),),
        {"quant_scale": torch.tensor([0.01]), "quant_offset": torch.tensor([3.0]), "swiglu_mode": 2, "round_mode": 3},
    )
    yield "npu_dequant_swiglu_quant", (torch.randn(3, 20),), {"quant_mode": 1, "dst_type": 24}
