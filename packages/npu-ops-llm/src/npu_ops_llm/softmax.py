"""Softmax with scale, mask and dropout.  Checks and kernels: ``csrc/ops/softmax.cpp``, ``csrc/kernels/softmax.inc``."""

from typing import Any

import torch
from torch import Tensor

from npu_ops_llm.dtypes import check_dtype, check_same_dtype
from npu_ops_llm.registration import check, differentiable, fake, kernel, once_differentiable

Number = int | float

_SCALED_MASKED = torch.ops.npu._npu_scaled_masked_softmax.default
_SCALED_MASKED_BACKWARD = torch.ops.npu._npu_scaled_masked_softmax_backward.default
_DROPOUT = torch.ops.npu._npu_dropout_with_add_softmax.default
_DROPOUT_BACKWARD = torch.ops.npu._npu_dropout_with_add_softmax_backward.default

# A random operator says so, and the stable C++ interface of torch 2.11 has no tags.
torch.library.define(
    "npu::npu_dropout_with_add_softmax",
    "(Tensor self, Tensor x1, Scalar alpha, float prob, int dim) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.nondeterministic_seeded,),
)


def _real(op: str, argument: str, number: Number | complex) -> float:
    if isinstance(number, complex):
        raise RuntimeError(f"{op}: argument {argument}: expected an int or a float, got the complex number {number}")
    return float(number)


def _check_mask(op: str, mask: Tensor, x: Tensor) -> None:
    def message() -> str:
        return f"expected a shape that broadcasts to {list(x.shape)}, got {list(mask.shape)}"

    check_dtype(op, "mask", mask, (torch.bool,))
    check(mask.dim() <= x.dim(), op, "mask", message)
    own = x.shape[x.dim() - mask.dim() :]
    for ours, theirs in zip(mask.shape, own, strict=True):
        if not (isinstance(ours, int) and ours == 1):
            check(ours == theirs, op, "mask", message)


def _check_like(op: str, argument: str, tensor: Tensor, model_name: str, model: Tensor) -> None:
    check_same_dtype(op, argument, tensor, model_name, model)
    check(
        tensor.dim() == model.dim()
        and all(ours == theirs for ours, theirs in zip(tensor.shape, model.shape, strict=True)),
        op,
        argument,
        lambda: f"expected shape {list(model.shape)} (as {model_name}), got {list(tensor.shape)}",
    )


# ---- scaled masked softmax ---------------------------------------------------------------------------------------


@kernel("npu_scaled_masked_softmax")
def _scaled_masked_softmax(x: Tensor, mask: Tensor, scale: Number = 1, fixed_triu_mask: bool = False) -> Tensor:
    factor = _real("npu_scaled_masked_softmax", "scale", scale)
    return _SCALED_MASKED(x, mask, factor, fixed_triu_mask)


@kernel("npu_scaled_masked_softmax_backward")
def _scaled_masked_softmax_backward(
    y_grad: Tensor, y: Tensor, mask: Tensor, scale: Number, fixed_triu_mask: bool
) -> Tensor:
    factor = _real("npu_scaled_masked_softmax_backward", "scale", scale)
    return _SCALED_MASKED_BACKWARD(y_grad, y, mask, factor, fixed_triu_mask)


@fake
def npu_scaled_masked_softmax(x: Tensor, mask: Tensor, scale: Number = 1, fixed_triu_mask: bool = False) -> Tensor:
    """Softmax over the last dim of scaled and masked scores.

    ``t = x * scale``, -10000 where `mask` is True; ``softmax(t)`` over the last dim, in float32 with one rounding to
    the dtype of `x`.  A row that is masked throughout is uniform.  Differentiable in `x`.

    Parameters
    ----------
    x : Tensor
        At least 1 dim; float16, bfloat16 or float32.
    mask : Tensor
        bool, of a shape that broadcasts to the shape of `x`; True masks.  Broadcast without a copy.
    scale : int or float
        Factor of `x`.
    fixed_triu_mask : bool
        If True, `mask` is ignored: what lies right of the diagonal of the last two dims is masked.

    Returns
    -------
    Tensor
        Shape and dtype of `x`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, `scale` is complex, or the tensors are on different devices.

    Examples
    --------
    >>> mask = torch.tensor([False, False, True])
    >>> torch.ops.npu.npu_scaled_masked_softmax(torch.tensor([1.0, 2.0, 3.0]), mask, 0.5)
    tensor([0.3775, 0.6225, 0.0000])
    """
    op = "npu_scaled_masked_softmax"
    check_dtype(op, "x", x)
    check(x.dim() >= 1, op, "x", "expected at least 1 dim, got a tensor without dims")
    if not fixed_triu_mask:
        _check_mask(op, mask, x)
    return x.new_empty(x.shape)


@fake
def npu_scaled_masked_softmax_backward(
    y_grad: Tensor, y: Tensor, mask: Tensor, scale: Number, fixed_triu_mask: bool
) -> Tensor:
    """Gradient of :func:`npu_scaled_masked_softmax`.

    ``y * (y_grad - sum(y_grad * y)) * scale`` with the sum over the last dim, 0 where `mask` is True; in float32.

    Parameters
    ----------
    y_grad, y : Tensor
        Upstream gradient and output of :func:`npu_scaled_masked_softmax`: one shape, one dtype.
    mask : Tensor
        As given to :func:`npu_scaled_masked_softmax`.
    scale : int or float
        As given to :func:`npu_scaled_masked_softmax`.
    fixed_triu_mask : bool
        As given to :func:`npu_scaled_masked_softmax`.

    Returns
    -------
    Tensor
        Gradient of `x`: shape and dtype of `y_grad`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, `scale` is complex, or the tensors are on different devices.
    """
    op = "npu_scaled_masked_softmax_backward"
    check_dtype(op, "y_grad", y_grad)
    check(y_grad.dim() >= 1, op, "y_grad", "expected at least 1 dim, got a tensor without dims")
    _check_like(op, "y", y, "y_grad", y_grad)
    if not fixed_triu_mask:
        _check_mask(op, mask, y_grad)
    return y_grad.new_empty(y_grad.shape)


def _setup_scaled(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, mask, ctx.scale, ctx.fixed_triu_mask = inputs
    ctx.save_for_backward(output, mask)


def _scaled_gradient(ctx: Any, y_grad: Tensor) -> tuple[Tensor, None, None, None]:
    y, mask = ctx.saved_tensors
    dx = torch.ops.npu.npu_scaled_masked_softmax_backward(y_grad, y, mask, ctx.scale, ctx.fixed_triu_mask)
    return dx, None, None, None


differentiable("npu_scaled_masked_softmax", _setup_scaled, _scaled_gradient)
once_differentiable("npu_scaled_masked_softmax", "npu_scaled_masked_softmax_backward")


# ---- softmax of a sum, with dropout ------------------------------------------------------------------------------


def _is_last(op: str, dim: int, dims: int) -> bool:
    if not -max(dims, 1) <= dim < max(dims, 1):
        raise IndexError(f"{op}: argument dim: expected a dim of a tensor with {dims} dims, got {dim}")
    return dim in (-1, dims - 1)


def _mask_with_dim_last(mask: Tensor, shape: torch.Size, dim: int) -> Tensor:
    """The mask of a tensor of `shape` for the same tensor with its dim `dim` swapped with the last."""
    swapped = torch.zeros_like(mask)
    count = shape.numel()
    swapped[:count] = mask[:count].view(shape).transpose(dim, -1).reshape(-1)
    return swapped


@kernel("npu_dropout_with_add_softmax")
def _dropout_with_add_softmax(
    self: Tensor, x1: Tensor, alpha: Number, prob: float, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    op = "npu_dropout_with_add_softmax"
    factor = _real(op, "alpha", alpha)
    last = _is_last(op, dim, self.dim())
    # CPU tensors draw from torch's generator; npu tensors, in C++, from the one of their device.
    seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_()) if self.device.type == "cpu" else 0
    if last or self.shape != x1.shape:
        return _DROPOUT(self, x1, factor, prob, seed)
    mask, softmax, out = _DROPOUT(self.transpose(dim, -1), x1.transpose(dim, -1), factor, prob, seed)
    return (
        _mask_with_dim_last(mask, softmax.shape, dim),
        softmax.transpose(dim, -1).contiguous(),
        out.transpose(dim, -1).contiguous(),
    )


@kernel("npu_dropout_with_add_softmax_backward")
def _dropout_with_add_softmax_backward(
    grad: Tensor, mask: Tensor, softmax_out: Tensor, alpha: Number, prob: float, dim: int
) -> tuple[Tensor, Tensor]:
    op = "npu_dropout_with_add_softmax_backward"
    factor = _real(op, "alpha", alpha)
    last = _is_last(op, dim, grad.dim())
    if last or grad.shape != softmax_out.shape or mask.numel() != _mask_bytes(grad):
        return _DROPOUT_BACKWARD(grad, mask, softmax_out, factor, prob)
    swapped = _mask_with_dim_last(mask, grad.shape, dim)
    self_grad, x1_grad = _DROPOUT_BACKWARD(
        grad.transpose(dim, -1), swapped, softmax_out.transpose(dim, -1), factor, prob
    )
    return self_grad.transpose(dim, -1).contiguous(), x1_grad.transpose(dim, -1).contiguous()


def _mask_bytes(tensor: Tensor) -> Any:
    return (tensor.numel() + 127) // 128 * 128


@fake
def npu_dropout_with_add_softmax(
    self: Tensor, x1: Tensor, alpha: Number, prob: float, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax of a sum, and its dropout.

    ``s = softmax(x1 + alpha * self)`` over `dim`; each element is kept with probability ``1 - prob``:
    ``out = s * keep / (1 - prob)``.  In float32, each output rounded once.  Differentiable in `self` and `x1`
    through `out`.

    Random numbers are words of Philox4x32-10.  For npu tensors they come from the default generator of the device
    (``torch.npu.manual_seed``), for CPU tensors their seed comes from torch's default generator
    (``torch.manual_seed``).  They do not depend on the number of threads or the CPU.

    Parameters
    ----------
    self, x1 : Tensor
        One shape of at least 1 dim, one dtype of float16, bfloat16 and float32.
    alpha : int or float
        Factor of `self`.
    prob : float
        Probability of dropping an element, in [0, 1).
    dim : int
        Dim of the softmax.  Other dims than the last cost a copy of every tensor.

    Returns
    -------
    mask : Tensor
        uint8, 1-D: a byte per element in row-major order, 1 = kept, padded with 0 to a multiple of 128.
    softmax : Tensor
        ``s``: shape and dtype of `self`.
    out : Tensor
        Shape and dtype of `self`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, `prob` is not in [0, 1), `alpha` is complex, or the tensors are on different
        devices.
    IndexError
        If `dim` is not a dim of `self`.

    Notes
    -----
    Source of the random numbers: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2,
    3", SC 2011.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 2.0, 3.0]])
    >>> torch.ops.npu.npu_dropout_with_add_softmax(x, torch.zeros(1, 3), 0.5, 0.0, -1)[2]
    tensor([[0.1863, 0.3072, 0.5065]])
    """
    op = "npu_dropout_with_add_softmax"
    check_dtype(op, "self", self)
    check(self.dim() >= 1, op, "self", "expected at least 1 dim, got a tensor without dims")
    _check_like(op, "x1", x1, "self", self)
    _check_probability(op, prob)
    _is_last(op, dim, self.dim())
    mask = self.new_empty((_mask_bytes(self),), dtype=torch.uint8)
    return mask, self.new_empty(self.shape), self.new_empty(self.shape)


@fake
def npu_dropout_with_add_softmax_backward(
    grad: Tensor, mask: Tensor, softmax_out: Tensor, alpha: Number, prob: float, dim: int
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`npu_dropout_with_add_softmax`.

    ``h = grad * keep / (1 - prob)``, ``g = s * (h - sum(h * s))`` with the sum over `dim`; ``alpha * g`` for `self` and
    ``g`` for `x1`.  In float32.

    Parameters
    ----------
    grad : Tensor
        Upstream gradient of the third output.
    mask, softmax_out : Tensor
        First and second output of :func:`npu_dropout_with_add_softmax`; `softmax_out` like `grad`.
    alpha : int or float
        As given to :func:`npu_dropout_with_add_softmax`.
    prob : float
        As given to :func:`npu_dropout_with_add_softmax`.
    dim : int
        As given to :func:`npu_dropout_with_add_softmax`.

    Returns
    -------
    self_grad, x1_grad : Tensor
        Shape and dtype of `grad`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, `prob` is not in [0, 1), `alpha` is complex, or the tensors are on different
        devices.
    IndexError
        If `dim` is not a dim of `grad`.
    """
    op = "npu_dropout_with_add_softmax_backward"
    check_dtype(op, "grad", grad)
    check(grad.dim() >= 1, op, "grad", "expected at least 1 dim, got a tensor without dims")
    _check_like(op, "softmax_out", softmax_out, "grad", grad)
    check_dtype(op, "mask", mask, (torch.uint8,))
    _check_probability(op, prob)
    _is_last(op, dim, grad.dim())
    check(
        mask.dim() == 1 and mask.shape[0] == _mask_bytes(grad),
        op,
        "mask",
        lambda: f"expected shape [{_mask_bytes(grad)}], got {list(mask.shape)}",
    )
    return grad.new_empty(grad.shape), grad.new_empty(grad.shape)


def _check_probability(op: str, prob: float) -> None:
    check(
        0 <= prob < 1,
        op,
        "prob",
        lambda: f"expected a probability of dropping in [0, 1), got {prob}",
    )


def _setup_dropout(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, _, ctx.alpha, ctx.prob, ctx.dim = inputs
    mask, softmax, _ = output
    ctx.mark_non_differentiable(mask, softmax)
    ctx.save_for_backward(mask, softmax)


def _dropout_gradient(
    ctx: Any, _mask_grad: Tensor | None, _softmax_grad: Tensor | None, grad: Tensor
) -> tuple[Tensor, Tensor, None, None, None]:
    mask, softmax = ctx.saved_tensors
    self_grad, x1_grad = torch.ops.npu.npu_dropout_with_add_softmax_backward(
        grad, mask, softmax, ctx.alpha, ctx.prob, ctx.dim
    )
    return self_grad, x1_grad, None, None, None


differentiable("npu_dropout_with_add_softmax", _setup_dropout, _dropout_gradient)
once_differentiable("npu_dropout_with_add_softmax", "npu_dropout_with_add_softmax_backward")
