"""Calls of the quantisers with given scales for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments.  Tensors that can be differentiated require a gradient."""
    scale, offset = torch.rand(24) + 0.5, torch.randn(24)
    yield "npu_trans_quant_param", (scale, offset), {"round_mode": 1}
    yield "npu_trans_quant_param", (scale[None],), {}
    x = torch.randn(4, 3, 24).bfloat16()
    yield "npu_quantize", (x, scale, offset.int(), torch.quint8, -1), {}
    yield "npu_quantize", (x, scale[:3], None, torch.qint32), {}
    yield "npu_quantize", (x, torch.ones(1), None, torch.quint4x2, -1, False), {}
    yield "npu_quantize", (x, torch.rand(3, 1)[None].bfloat16(), None, torch.qint8, -2, False), {}
    values = torch.randint(-128, 128, (4, 3, 24), dtype=torch.int8)
    yield "npu_anti_quant", (values, scale), {"offset": offset, "dst_dtype": torch.bfloat16}
    packed = torch.randint(-(2**31), 2**31, (4, 3), dtype=torch.int32)
    yield "npu_anti_quant", (packed, scale), {"offset": offset, "src_dtype": torch.quint4x2}
    ends = torch.tensor([1, 1, 5])
    rows = torch.randn(5, 24).half()
    yield "npu_group_quant", (rows, torch.rand(3, 24), ends), {"offset": torch.ones(1)}
    yield "npu_group_quant", (rows, torch.rand(3, 24).half(), ends), {"dst_dtype": torch.quint4x2}
