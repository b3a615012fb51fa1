"""Group norms with SiLU and swish of npu-ops-llm, at sizes of image diffusion models."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import torch_npu

from ..fused import FusedOp, decode, prefill
from ..harness import Case, Settings

GROUPS = 32


def _gradient(x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    with torch.inference_mode(False), torch.enable_grad():
        trained = [t.clone().requires_grad_() for t in (x, weight, bias)]
        return torch.autograd.grad(F.silu(F.group_norm(trained[0], GROUPS, *trained[1:])), trained, dy.clone())


def _ours_gradient(x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    _, mean, rstd = torch_npu.npu_group_norm_swish(x, GROUPS, weight, bias)
    return torch_npu.npu_group_norm_swish_grad(dy, x, GROUPS, weight, bias, mean, rstd, [True, True, True])


def operators(shape: tuple[int, ...]) -> Iterator[FusedOp]:
    """The forward operators for one input shape."""
    text, elements = "x".join(map(str, shape)), float(torch.Size(shape).numel())

    def inputs() -> tuple[Tensor, ...]:
        return tuple(torch.randn(size).bfloat16() for size in (shape, shape[1:2], shape[1:2]))

    yield FusedOp(
        name=f"npu_group_norm_silu {text} bfloat16",
        ours=lambda x, weight, bias: torch_npu.npu_group_norm_silu(x, weight, bias, GROUPS),
        composition=lambda x, weight, bias: F.silu(F.group_norm(x, GROUPS, weight, bias)),
        inputs=inputs,
        bytes_moved=4 * elements,
    )
    yield FusedOp(
        name=f"npu_group_norm_swish {text} bfloat16",
        ours=lambda x, weight, bias: torch_npu.npu_group_norm_swish(x, GROUPS, weight, bias),
        composition=lambda x, weight, bias: F.silu(F.group_norm(x, GROUPS, weight, bias)),
        inputs=inputs,
        bytes_moved=4 * elements,
    )


def training(shape: tuple[int, ...]) -> FusedOp:
    """Forward and backward."""
    text, elements = "x".join(map(str, shape)), float(torch.Size(shape).numel())
    return FusedOp(
        name=f"npu_group_norm_swish and gradient {text} bfloat16",
        ours=_ours_gradient,
        composition=_gradient,
        inputs=lambda: tuple(torch.randn(size).bfloat16() for size in (shape, shape, shape[1:2], shape[1:2])),
        bytes_moved=10 * elements,
        bandwidth_bound=False,
        compiled=False,
    )


def cases(settings: Settings) -> Iterator[Case]:
    """Large and small images."""
    large = (2, 64, 16, 16) if settings.quick else (2, 320, 128, 128)
    for op in operators(large):
        yield from prefill(op, settings)
    yield from prefill(training(large), settings)
    for op in operators((1, 320, 16, 16)):
        yield from decode(op, lambda x, weight, bias: F.group_norm(x, GROUPS, weight, bias))
