"""Root-mean-square norm.  Schemas and kernels: ``csrc/ops/rms_norm.cpp``, ``csrc/kernels/rms_norm.inc``."""

from typing import Any

import torch
from torch import Tensor

from npu_ops_llm.registration import check, differentiable, fake, once_differentiable


def rstd_shape(op: str, x: Tensor, gamma: Tensor) -> list[int | torch.SymInt]:
    """Check gamma's shape; return x's leading sizes followed by a 1 for each dim of gamma."""
    if gamma.dim() > x.dim():
        raise RuntimeError(
            f"{op}: argument gamma: The gamma shape should not be bigger than self shape. "
            f"self has shape {list(x.shape)}, gamma has shape {list(gamma.shape)}"
        )
    leading = x.dim() - gamma.dim()
    check(
        all(ours == theirs for ours, theirs in zip(gamma.shape, x.shape[leading:], strict=True)),
        op,
        "gamma",
        lambda: (
            "expected the shape of self's last dims; "
            f"self has shape {list(x.shape)}, gamma has shape {list(gamma.shape)}"
        ),
    )
    return [*x.shape[:leading], *([1] * gamma.dim())]


@fake
def npu_rms_norm(self: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Root-mean-square norm over the last dims.

    ``rstd = 1 / sqrt(mean(self^2) + epsilon)`` over the dims of `gamma`, ``y = self * rstd * gamma``, in float32 with
    one rounding to the dtype of `self`.  Differentiable in `self` and `gamma` through `y`.

    Parameters
    ----------
    self : Tensor
        Any shape; float16, bfloat16 or float32.
    gamma : Tensor
        Shape of the last ``gamma.dim()`` dims of `self`; dtype of `self` or float32.
    epsilon : float
        Added to the mean of squares.

    Returns
    -------
    y : Tensor
        Shape and dtype of `self`.
    rstd : Tensor
        float32, shape of `self` with 1 for each dim of `gamma`; not differentiable.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, or the tensors are on different devices.

    Notes
    -----
    Source: B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019.

    Examples
    --------
    >>> torch.ops.npu.npu_rms_norm(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 0.5, 2.0, 1.0]))
    (tensor([0.3651, 0.3651, 2.1909, 1.4606]), tensor([0.3651]))
    """
    shape = rstd_shape("npu_rms_norm", self, gamma)
    return self.new_empty(self.shape), self.new_empty(shape, dtype=torch.float32)


@fake
def npu_rms_norm_backward(dy: Tensor, self: Tensor, gamma: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`npu_rms_norm`.

    With ``xh = self * rstd`` and ``g = dy * gamma``: ``dself = rstd * (g - xh * mean(g * xh))``, the mean over the dims
    of `gamma`; ``dgamma = sum(dy * xh)`` over the leading dims.  In float32.

    Parameters
    ----------
    dy, self : Tensor
        Upstream gradient and input: one shape, one dtype of float16, bfloat16 and float32.
    gamma : Tensor
        As given to :func:`npu_rms_norm`.
    rstd : Tensor
        Second output of :func:`npu_rms_norm`.

    Returns
    -------
    dself : Tensor
        Shape and dtype of `self`.
    dgamma : Tensor
        Shape of `gamma`, float32.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, or the tensors are on different devices.
    """
    rstd_shape("npu_rms_norm_backward", self, gamma)
    return self.new_empty(self.shape), gamma.new_empty(gamma.shape, dtype=torch.float32)


@fake
def npu_gemma_rms_norm(self: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Root-mean-square norm over the last dims, scaled by ``1 + gamma``.

    ``rstd = 1 / sqrt(mean(self^2) + epsilon)`` over the dims of `gamma`, ``y = self * rstd * (1 + gamma)``, in float32
    with one rounding to the dtype of `self`.  Not differentiable.

    Parameters
    ----------
    self : Tensor
        Any shape; float16, bfloat16 or float32.
    gamma : Tensor
        Shape of the last ``gamma.dim()`` dims of `self`; dtype of `self` or float32.
    epsilon : float
        Added to the mean of squares.

    Returns
    -------
    y : Tensor
        Shape and dtype of `self`.
    rstd : Tensor
        float32, shape of `self` with 1 for each dim of `gamma`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, or the tensors are on different devices.

    Examples
    --------
    >>> torch.ops.npu.npu_gemma_rms_norm(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 0.5, 2.0, 1.0]))
    (tensor([0.7303, 1.0954, 3.2863, 2.9212]), tensor([0.3651]))
    """
    shape = rstd_shape("npu_gemma_rms_norm", self, gamma)
    return self.new_empty(self.shape), self.new_empty(shape, dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    x, gamma, _ = inputs
    _, rstd = output
    ctx.mark_non_differentiable(rstd)
    ctx.save_for_backward(x, gamma, rstd)


def _backward(ctx: Any, dy: Tensor, _drstd: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
    x, gamma, rstd = ctx.saved_tensors
    dx, dgamma = torch.ops.npu.npu_rms_norm_backward(dy, x, gamma, rstd)
    needs_dx, needs_dgamma = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
    return dx if needs_dx else None, dgamma.to(gamma.dtype) if needs_dgamma else None, None


differentiable("npu_rms_norm", _setup_context, _backward)
once_differentiable("npu_rms_norm", "npu_rms_norm_backward")
