"""Activations of npu-ops-llm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import torch_npu

from ..fused import FusedOp, decode, prefill
from ..harness import Case, Settings

ROWS, WIDTH = 2048, 4096


def pointwise(
    name: str, ours: Callable[..., object], composition: Callable[..., object], operands: int, rows: int
) -> FusedOp:
    """An operator that reads `operands` tensors of `rows` rows and writes one."""
    return FusedOp(
        name=f"{name} {rows}x{WIDTH} bfloat16",
        ours=ours,
        composition=composition,
        inputs=lambda: tuple(torch.randn(rows, WIDTH).bfloat16() for _ in range(operands)),
        bytes_moved=2.0 * (operands + 1) * rows * WIDTH,
    )


def quick_gelu_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """The derivative as a user would write it."""
    s = torch.sigmoid(1.702 * x)
    return grad * s * (1 + 1.702 * x * (1 - s))


def silu_gradient(grad: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The derivative from input and result."""
    s = torch.sigmoid(x)
    return grad * (s + y * (1 - s))


def gated(x: Tensor) -> Tensor:
    """GEGLU."""
    a, b = x.chunk(2, dim=-1)
    return F.gelu(a) * b


def gelu_mul(rows: int) -> FusedOp:
    """GEGLU of `rows` rows of two halves."""
    return FusedOp(
        name=f"npu_gelu_mul {rows}x2x{WIDTH} bfloat16",
        ours=torch_npu.npu_gelu_mul,
        composition=gated,
        inputs=lambda: (torch.randn(rows, 2 * WIDTH).bfloat16(),),
        bytes_moved=2.0 * 3 * rows * WIDTH,
    )


def silu_in_place(rows: int) -> FusedOp:
    """Over the result of the call before: large values, which SiLU leaves as they are."""
    return FusedOp(
        name=f"npu_silu_ {rows}x{WIDTH} bfloat16",
        ours=torch_npu.npu_silu_,
        composition=lambda x: F.silu(x, inplace=True),
        inputs=lambda: (torch.full((rows, WIDTH), 30.0).bfloat16() + torch.rand(rows, WIDTH).bfloat16(),),
        bytes_moved=2.0 * 2 * rows * WIDTH,
    )


#: Name, operator, composition, number of operands.
OPERATORS: list[tuple[str, Any, Any, int]] = [
    ("npu_fast_gelu", torch_npu.npu_fast_gelu, lambda x: x * torch.sigmoid(1.702 * x), 1),
    ("fast_gelu", torch_npu.fast_gelu, lambda x: x * torch.sigmoid(1.702 * x), 1),
    ("npu_fast_gelu_backward", torch_npu.npu_fast_gelu_backward, quick_gelu_gradient, 2),
    ("npu_gelu", torch_npu.npu_gelu, F.gelu, 1),
    (
        "npu_gelu tanh",
        lambda x: torch_npu.npu_gelu(x, approximate="tanh"),
        lambda x: F.gelu(x, approximate="tanh"),
        1,
    ),
    ("npu_gelu_backward", torch_npu.npu_gelu_backward, torch.ops.aten.gelu_backward, 2),
    ("npu_silu", torch_npu.npu_silu, F.silu, 1),
    ("npu_silu_backward", torch_npu.npu_silu_backward, silu_gradient, 3),
]


def cases(settings: Settings) -> Iterator[Case]:
    """Prefill and decode sizes."""
    rows = 64 if settings.quick else ROWS
    for name, ours, composition, operands in OPERATORS:
        yield from prefill(pointwise(name, ours, composition, operands, rows), settings)
    yield from prefill(silu_in_place(rows), settings)
    yield from prefill(gelu_mul(rows), settings)
    for few in (1, 32):
        for name, ours, composition, operands in OPERATORS:
            if operands == 1:
                yield from decode(pointwise(name, ours, composition, operands, few), F.silu)
        yield from decode(silu_in_place(few), F.silu)
        yield from decode(gelu_mul(few), lambda x: F.silu(x))
