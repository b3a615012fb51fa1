"""Calls of the cross entropy for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments.  Tensors that can be differentiated require a gradient."""
    target = torch.randint(0, 29, (7,))
    weight = torch.rand(29)
    everything = {"ignore_index": int(target[2]), "label_smoothing": 0.1, "lse_square_scale_for_zloss": 0.01}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(7, 29).to(dtype)
        log_prob, lse = torch.log_softmax(x, -1), torch.logsumexp(x, -1)
        yield "npu_cross_entropy_loss", (x.clone().requires_grad_(), target), {}
        yield "npu_cross_entropy_loss_backward", (torch.randn(1).to(dtype), log_prob, target), {}
        for reduction, losses in (("none", 7), ("sum", 1)):
            keywords = {"reduction": reduction, **everything}
            grad = torch.randn(losses).to(dtype)
            trained = x.clone().requires_grad_()
            yield "npu_cross_entropy_loss", (trained, target, weight), {"return_zloss": True, **keywords}
            yield "npu_cross_entropy_loss_backward", (grad, log_prob, target, weight, grad, lse), keywords
