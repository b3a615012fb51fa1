"""Shapes (fake kernels) and gradients of ``npu_rms_norm``.  Schema and kernels: ``csrc/ops/rms_norm.cpp``."""

from typing import Any

import torch
from torch import Tensor


def _check_gamma(op: str, self: Tensor, gamma: Tensor) -> list[int | torch.SymInt]:
    """Check gamma's shape and return the shape of rstd."""
    if gamma.dim() > self.dim():
        raise RuntimeError(
            f"{op}: argument gamma: The gamma shape should not be bigger than self shape. "
            f"self has shape {list(self.shape)}, gamma has shape {list(gamma.shape)}"
        )
    leading = self.dim() - gamma.dim()
    torch._check(
        all(ours == theirs for ours, theirs in zip(gamma.shape, self.shape[leading:], strict=True)),
        lambda: (
            f"{op}: argument gamma: expected the shape of self's last dims; "
            f"self has shape {list(self.shape)}, gamma has shape {list(gamma.shape)}"
        ),
    )
    return [*self.shape[:leading], *([1] * gamma.dim())]


def _forward_fake(self: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    rstd_shape = _check_gamma("npu_rms_norm", self, gamma)
    return self.new_empty(self.shape), self.new_empty(rstd_shape, dtype=torch.float32)


def _backward_fake(dy: Tensor, self: Tensor, gamma: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    _check_gamma("npu_rms_norm_backward", self, gamma)
    return self.new_empty(self.shape), gamma.new_empty(gamma.shape, dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    x, gamma, _ = inputs
    _, rstd = output
    ctx.mark_non_differentiable(rstd)
    ctx.save_for_backward(x, gamma, rstd)


def _backward(ctx: Any, dy: Tensor, _drstd: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
    x, gamma, rstd = ctx.saved_tensors
    dx, dgamma = torch.ops.npu.npu_rms_norm_backward(dy, x, gamma, rstd)
    # Not unpacked: the dispatcher drops arguments that equal their defaults, so epsilon may have no entry.
    needs_dx, needs_dgamma = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
    return dx if needs_dx else None, dgamma.to(gamma.dtype) if needs_dgamma else None, None


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError(
        "npu_rms_norm has no second derivative: npu_rms_norm_backward is not differentiable. "
        "Compute this norm from torch operators where you need double backward."
    )


def register() -> None:
    """Register fake kernels and autograd for the operators of this family."""
    torch.library.register_fake("npu::npu_rms_norm", _forward_fake)
    torch.library.register_fake("npu::npu_rms_norm_backward", _backward_fake)
    torch.library.register_autograd("npu::npu_rms_norm", _backward, setup_context=_setup_context)
    torch.library.register_autograd("npu::npu_rms_norm_backward", _no_second_derivative)
