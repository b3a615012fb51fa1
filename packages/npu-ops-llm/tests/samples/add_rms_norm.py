"""Calls of the sums with an RMS norm for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x1, x2 = torch.randn(4, 3, 16).to(dtype), torch.randn(4, 3, 16).to(dtype)
        gamma, beta = torch.randn(16).to(dtype), torch.randn(16).to(dtype)
        for name in ("npu_add_rms_norm", "npu_add_rms_norm_v2", "npu_add_rms_norm_v2_functional"):
            yield name, (x1, x2, gamma), {"epsilon": 1e-5}
        scales = torch.rand(16) / 10 + 0.01
        zeros = torch.randint(-9, 9, (16,), dtype=torch.int32)
        yield "npu_add_rms_norm_quant", (x1, x2, gamma, scales, zeros), {}
        yield (
            "npu_add_rms_norm_quant",
            (x1, x2, gamma, scales[:1], None, beta, scales.bfloat16(), zeros.bfloat16()),
            {"div_mode": False},
        )
        smooth = torch.rand(16).to(dtype)
        yield "npu_add_rms_norm_dynamic_quant", (x1, x2, gamma), {}
        both = {"smooth_scale1": smooth, "smooth_scale2": smooth * 2, "beta": beta}
        yield "npu_add_rms_norm_dynamic_quant", (x1, x2, gamma), both
        yield (
            "npu_add_rms_norm_dynamic_quant",
            (x1, x2, gamma),
            {"output_mask": [False, True], "smooth_scale2": smooth, "y_dtype": torch.quint4x2},
        )
    strided = torch.randn(4, 3, 32)[..., :16], torch.randn(3, 4, 16).transpose(0, 1), torch.randn(16)
    for name in ("npu_add_rms_norm", "npu_add_rms_norm_v2"):
        yield name, strided, {}
    columns = torch.randn(16, 4).t(), torch.randn(32, 4).t()[:, ::2], torch.randn(16)
    yield "npu_add_rms_norm_v2", columns, {}
