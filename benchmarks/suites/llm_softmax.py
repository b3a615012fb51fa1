"""Scaled masked softmax and softmax with dropout of npu-ops-llm."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import torch_npu

from ..fused import FusedOp, decode, prefill
from ..harness import Case, Settings

HEADS, LENGTH = 8, 1024


def scaled_masked(heads: int, rows: int, width: int) -> FusedOp:
    """Attention scores of `heads` heads under a mask that they share."""
    size = heads * rows * width
    return FusedOp(
        name=f"npu_scaled_masked_softmax {heads}x{rows}x{width} bfloat16",
        ours=lambda x, mask: torch_npu.npu_scaled_masked_softmax(x, mask, 0.125),
        composition=lambda x, mask: torch.softmax((x * 0.125).masked_fill(mask, -10000.0), -1),
        inputs=lambda: (torch.randn(1, heads, rows, width).bfloat16(), torch.rand(1, 1, rows, width) < 0.5),
        bytes_moved=2.0 * 2 * size + rows * width,
    )


def scaled_masked_backward(heads: int, rows: int, width: int) -> FusedOp:
    """The gradient of the same."""
    size = heads * rows * width

    def composition(dy: torch.Tensor, y: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (torch._softmax_backward_data(dy, y, -1, torch.bfloat16) * 0.125).masked_fill(mask, 0.0)

    def inputs() -> tuple[torch.Tensor, ...]:
        shape = (1, heads, rows, width)
        y = torch.softmax(torch.randn(shape), -1).bfloat16()
        return torch.randn(shape).bfloat16(), y, torch.rand(1, 1, rows, width) < 0.5

    return FusedOp(
        name=f"npu_scaled_masked_softmax_backward {heads}x{rows}x{width} bfloat16",
        ours=lambda dy, y, mask: torch_npu.npu_scaled_masked_softmax_backward(dy, y, mask, 0.125, False),
        composition=composition,
        inputs=inputs,
        bytes_moved=3.0 * 2 * size + rows * width,
    )


def dropout(heads: int, rows: int, width: int) -> FusedOp:
    """Softmax of scores plus a bias, with dropout: ten rounds of Philox per element outweigh the memory."""
    size = heads * rows * width

    def composition(scores: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
        softmax = torch.softmax(bias + 0.5 * scores, -1)
        out, mask = torch.native_dropout(softmax, 0.1, True)
        return mask, softmax, out

    return FusedOp(
        name=f"npu_dropout_with_add_softmax {heads}x{rows}x{width} float16",
        ours=lambda scores, bias: torch_npu.npu_dropout_with_add_softmax(scores, bias, 0.5, 0.1, -1),
        composition=composition,
        inputs=lambda: tuple(torch.randn(1, heads, rows, width).half() for _ in range(2)),
        bytes_moved=4.0 * 2 * size + size,
        bandwidth_bound=False,
    )


def dropout_backward(heads: int, rows: int, width: int) -> FusedOp:
    """The gradient of the same."""
    size = heads * rows * width

    def composition(grad: torch.Tensor, mask: torch.Tensor, softmax: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = torch.ops.aten.native_dropout_backward(grad, mask.view(grad.shape).bool(), 1 / 0.9)
        g = torch._softmax_backward_data(h, softmax, -1, torch.float16)
        return 0.5 * g, g

    def inputs() -> tuple[torch.Tensor, ...]:
        shape = (1, heads, rows, width)
        keep = (torch.rand(size) < 0.9).to(torch.uint8)
        return torch.randn(shape).half(), keep, torch.softmax(torch.randn(shape), -1).half()

    return FusedOp(
        name=f"npu_dropout_with_add_softmax_backward {heads}x{rows}x{width} float16",
        ours=lambda g, mask, y: torch_npu.npu_dropout_with_add_softmax_backward(g, mask, y, 0.5, 0.1, -1),
        composition=composition,
        inputs=inputs,
        bytes_moved=4.0 * 2 * size + size,
    )


def cases(settings: Settings) -> Iterator[Case]:
    """Scores of a prefill, and of one token."""
    sizes = (2, 32, 128) if settings.quick else (HEADS, LENGTH, LENGTH)
    for op in (scaled_masked, scaled_masked_backward, dropout, dropout_backward):
        yield from prefill(op(*sizes), settings)
    yield from decode(scaled_masked(1, 1, 4096), lambda x, mask: torch.softmax(x, -1))
