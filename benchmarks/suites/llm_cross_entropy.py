"""Cross entropy of npu-ops-llm."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

import torch_npu

from ..fused import FusedOp, prefill
from ..harness import Case, Settings


def loss(rows: int, classes: int) -> FusedOp:
    """Loss and log probabilities of `rows` tokens."""

    def composition(x: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, ...]:
        log_prob = F.log_softmax(x, -1)
        return F.nll_loss(log_prob, target), log_prob

    return FusedOp(
        name=f"npu_cross_entropy_loss {rows}x{classes} bfloat16",
        ours=lambda x, target: torch_npu.npu_cross_entropy_loss(x, target),
        composition=composition,
        inputs=lambda: (torch.randn(rows, classes).bfloat16(), torch.randint(0, classes, (rows,))),
        bytes_moved=2.0 * 2 * rows * classes,
    )


def gradient(rows: int, classes: int) -> FusedOp:
    """The gradient of the mean loss."""

    def composition(grad: torch.Tensor, log_prob: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        ones = torch.zeros_like(log_prob).scatter_(1, target[:, None], 1.0)
        return (log_prob.exp() - ones) * (grad / rows)

    def inputs() -> tuple[torch.Tensor, ...]:
        log_prob = torch.log_softmax(torch.randn(rows, classes), -1).bfloat16()
        return torch.ones(1).bfloat16(), log_prob, torch.randint(0, classes, (rows,))

    return FusedOp(
        name=f"npu_cross_entropy_loss_backward {rows}x{classes} bfloat16",
        ours=lambda grad, log_prob, target: torch_npu.npu_cross_entropy_loss_backward(grad, log_prob, target),
        composition=composition,
        inputs=inputs,
        bytes_moved=2.0 * 2 * rows * classes,
    )


def cases(settings: Settings) -> Iterator[Case]:
    """Tokens by vocabulary."""
    for rows, classes in ((16, 1000),) if settings.quick else ((1024, 32000), (256, 152064)):
        for op in (loss, gradient):
            yield from prefill(op(rows, classes), settings)
