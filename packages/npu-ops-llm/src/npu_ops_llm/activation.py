"""Activations.  Schemas and kernels: ``csrc/ops/{activation,glu}.cpp``, ``csrc/kernels/{activation,glu}.inc``."""

from typing import Any

import torch
from torch import Tensor

from npu_ops_llm.dtypes import check_dtype, check_same_dtype
from npu_ops_llm.registration import check, differentiable, documented, fake, once_differentiable


def _check_like(op: str, argument: str, tensor: Tensor, like: str, x: Tensor) -> None:
    check_same_dtype(op, argument, tensor, like, x)
    check(
        tensor.dim() == x.dim() and all(ours == theirs for ours, theirs in zip(tensor.shape, x.shape, strict=True)),
        op,
        argument,
        lambda: f"expected shape {list(x.shape)} (as {like}), got {list(tensor.shape)}",
    )


def _check_approximate(op: str, approximate: str) -> None:
    check(
        approximate in ("none", "tanh"),
        op,
        "approximate",
        lambda: f"approximate argument must be either none or tanh, got '{approximate}'",
    )


def _save_self(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


# ---- fast gelu ------------------------------------------------------------------------------------------------------


@fake
def npu_fast_gelu(self: Tensor) -> Tensor:
    """Fast approximation of the Gaussian error linear unit: ``self * sigmoid(1.702 * self)``.

    In float32 with one rounding to the dtype of `self`.  Differentiable in `self`.

    Parameters
    ----------
    self : Tensor
        Any shape and strides; float16, bfloat16 or float32.

    Returns
    -------
    Tensor
        Shape, dtype and order of elements of `self`.

    Raises
    ------
    RuntimeError
        If the dtype does not fit.

    Notes
    -----
    Source: D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units (GELUs)", 2016, section 2.

    Examples
    --------
    >>> torch.ops.npu.npu_fast_gelu(torch.tensor([1.0, 2.0, -1.0]))
    tensor([ 0.8458,  1.9357, -0.1542])
    """
    check_dtype("npu_fast_gelu", "self", self)
    return torch.empty_like(self)


@fake
def fast_gelu(self: Tensor) -> Tensor:
    """Another name of :func:`npu_fast_gelu`.

    Parameters
    ----------
    self : Tensor
        Any shape and strides; float16, bfloat16 or float32.

    Returns
    -------
    Tensor
        ``self * sigmoid(1.702 * self)``.

    Raises
    ------
    RuntimeError
        If the dtype does not fit.

    Examples
    --------
    >>> torch.ops.npu.fast_gelu(torch.tensor([1.0, 2.0, -1.0]))
    tensor([ 0.8458,  1.9357, -0.1542])
    """
    check_dtype("fast_gelu", "self", self)
    return torch.empty_like(self)


@fake
def npu_fast_gelu_backward(grad: Tensor, self: Tensor) -> Tensor:
    """Gradient of :func:`npu_fast_gelu`.

    With ``s = sigmoid(1.702 * self)``: ``grad * s * (1 + 1.702 * self * (1 - s))``, in float32.

    Parameters
    ----------
    grad, self : Tensor
        Upstream gradient and input: one shape, one dtype of float16, bfloat16 and float32.

    Returns
    -------
    Tensor
        Shape, dtype and order of elements of `self`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, or the tensors are on different devices.

    Examples
    --------
    >>> torch.ops.npu.npu_fast_gelu_backward(torch.ones(3), torch.tensor([1.0, 2.0, -1.0]))
    tensor([ 1.0678,  1.0738, -0.0678])
    """
    op = "npu_fast_gelu_backward"
    check_dtype(op, "self", self)
    _check_like(op, "grad", grad, "self", self)
    return torch.empty_like(self)


def _fast_gelu_backward(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return torch.ops.npu.npu_fast_gelu_backward(grad, x)


differentiable("npu_fast_gelu", _save_self, _fast_gelu_backward)
differentiable("fast_gelu", _save_self, _fast_gelu_backward)
once_differentiable("npu_fast_gelu", "npu_fast_gelu_backward")


# ---- gelu -----------------------------------------------------------------------------------------------------------


@fake
def npu_gelu(self: Tensor, *, approximate: str = "none") -> Tensor:
    """Gaussian error linear unit, as :func:`torch.nn.functional.gelu`.

    ``self * (1 + erf(self / sqrt(2))) / 2``, or with ``approximate="tanh"``
    ``self * (1 + tanh(sqrt(2 / pi) * (self + 0.044715 * self^3))) / 2``; in float32 with one rounding to the dtype of
    `self`.  Differentiable in `self`.

    Parameters
    ----------
    self : Tensor
        Any shape and strides; float16, bfloat16 or float32.
    approximate : str
        ``"none"`` or ``"tanh"``.

    Returns
    -------
    Tensor
        Shape, dtype and order of elements of `self`.

    Raises
    ------
    RuntimeError
        If the dtype or `approximate` does not fit.

    Notes
    -----
    Source: D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units (GELUs)", 2016.

    Examples
    --------
    >>> torch.ops.npu.npu_gelu(torch.tensor([1.0, 2.0, -1.0]))
    tensor([ 0.8413,  1.9545, -0.1587])
    """
    _check_approximate("npu_gelu", approximate)
    check_dtype("npu_gelu", "self", self)
    return torch.empty_like(self)


@fake
def npu_gelu_backward(grad_output: Tensor, self: Tensor, *, approximate: str = "none") -> Tensor:
    """Gradient of :func:`npu_gelu`.

    `grad_output` times the derivative at `self`, in float32.  The arguments broadcast and their dtypes promote as
    :func:`torch.result_type` says: one without dims does not count beside one with dims.

    Parameters
    ----------
    grad_output, self : Tensor
        Upstream gradient and input; float16, bfloat16 or float32.
    approximate : str
        As given to :func:`npu_gelu`.

    Returns
    -------
    Tensor
        Shape that both broadcast to, dtype that both promote to; order of elements of `self` where nothing is
        broadcast or promoted.

    Raises
    ------
    RuntimeError
        If a dtype, the shapes or `approximate` do not fit, or the tensors are on different devices.

    Examples
    --------
    >>> torch.ops.npu.npu_gelu_backward(torch.ones(2), torch.tensor([0.0, 1.0]))
    tensor([0.5000, 1.0833])
    """
    op = "npu_gelu_backward"
    _check_approximate(op, approximate)
    check_dtype(op, "self", self)
    check_dtype(op, "grad_output", grad_output)
    if self.dtype == grad_output.dtype and self.dim() == grad_output.dim() and self.shape == grad_output.shape:
        return torch.empty_like(self)
    sizes: list[int | torch.SymInt] = []
    for d in range(1, max(self.dim(), grad_output.dim()) + 1):
        ours = self.shape[-d] if d <= self.dim() else 1
        theirs = grad_output.shape[-d] if d <= grad_output.dim() else 1
        check(
            ours == theirs or ours == 1 or theirs == 1,
            op,
            "grad_output",
            lambda: (
                f"expected a shape that broadcasts with self's; self has shape {list(self.shape)}, "
                f"grad_output has shape {list(grad_output.shape)}"
            ),
        )
        sizes.insert(0, theirs if ours == 1 else ours)
    return self.new_empty(sizes, dtype=torch.result_type(grad_output, self))


def _save_gelu(ctx: Any, inputs: tuple[Tensor], keyword_only_inputs: dict[str, str], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.approximate = keyword_only_inputs["approximate"]


def _gelu_backward(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return torch.ops.npu.npu_gelu_backward(grad, x, approximate=ctx.approximate)


differentiable("npu_gelu", _save_gelu, _gelu_backward)
once_differentiable("npu_gelu", "npu_gelu_backward")


@fake
def npu_gelu_mul(input: Tensor, *, approximate: str = "none") -> Tensor:
    """Gated GELU: ``gelu(a) * b``, where the last dim of `input` is `a`, then `b`.

    In float32 with one rounding to the dtype of `input`.

    Parameters
    ----------
    input : Tensor
        At least 2 dims, the last one even; float16, bfloat16 or float32.
    approximate : str
        ``"none"`` or ``"tanh"``, as for :func:`npu_gelu`.

    Returns
    -------
    Tensor
        Shape of `input` with half of the last dim; contiguous.

    Raises
    ------
    RuntimeError
        If the dtype, the shape or `approximate` does not fit.

    Notes
    -----
    Source: N. Shazeer, "GLU Variants Improve Transformer", 2020 (GEGLU, with the first half activated).

    Examples
    --------
    >>> torch.ops.npu.npu_gelu_mul(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    tensor([[2.5240, 7.8180]])
    """
    op = "npu_gelu_mul"
    _check_approximate(op, approximate)
    check_dtype(op, "input", input)
    check(input.dim() >= 2, op, "input", lambda: f"expected at least 2 dims, got shape {list(input.shape)}")
    check(
        input.shape[-1] % 2 == 0,
        op,
        "input",
        lambda: f"expected an even size of dim {input.dim() - 1}, got shape {list(input.shape)}",
    )
    return input.new_empty([*input.shape[:-1], input.shape[-1] // 2])


# ---- silu -----------------------------------------------------------------------------------------------------------


@fake
def npu_silu(self: Tensor) -> Tensor:
    """Sigmoid linear unit: ``self * sigmoid(self)``.

    In float32 with one rounding to the dtype of `self`.  Differentiable in `self`.  Deprecated: the first call warns
    and names :func:`torch.nn.functional.silu`.

    Parameters
    ----------
    self : Tensor
        Any shape and strides; float16, bfloat16 or float32.

    Returns
    -------
    Tensor
        Shape, dtype and order of elements of `self`.

    Raises
    ------
    RuntimeError
        If the dtype does not fit.

    Examples
    --------
    >>> torch.ops.npu.npu_silu(torch.tensor([1.0, -1.0]))
    tensor([ 0.7311, -0.2689])
    """
    check_dtype("npu_silu", "self", self)
    return torch.empty_like(self)


@fake
def _npu_silu_(self: Tensor) -> None:
    check_dtype("npu_silu_", "self", self)


@documented
def npu_silu_(self: Tensor) -> Tensor:
    """:func:`npu_silu` in place.

    Differentiable in `self`; a leaf that requires grad is refused as by any in-place operator of torch.

    Parameters
    ----------
    self : Tensor
        Any shape and strides, but no element twice; float16, bfloat16 or float32.  It is overwritten.

    Returns
    -------
    Tensor
        `self`.

    Raises
    ------
    RuntimeError
        If the dtype does not fit, or `self` is an expanded tensor.

    Examples
    --------
    >>> x = torch.tensor([1.0, -1.0])
    >>> torch.ops.npu.npu_silu_(x)
    tensor([ 0.7311, -0.2689])
    >>> x
    tensor([ 0.7311, -0.2689])
    """
    torch.ops.npu._npu_silu_(self)
    return self


def _autograd_of_silu_in_place(self: Tensor) -> None:
    if torch.is_grad_enabled() and self.requires_grad:
        # copy_ knows leaves, views and versions.  Of a clone, because backward needs the input.
        self.copy_(torch.ops.npu.npu_silu(self.clone()))
        return
    with torch._C._AutoDispatchBelowAutograd():
        torch.ops.npu._npu_silu_.default(self)
    if not self.is_inference():
        torch.autograd.graph.increment_version(self)  # others may have saved it for their backward


_LIBRARY = torch.library.Library("npu", "FRAGMENT")
_LIBRARY.impl("_npu_silu_", _autograd_of_silu_in_place, "Autograd")


@fake
def npu_silu_backward(grad_output: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
    """Gradient of :func:`npu_silu`.

    With ``s = sigmoid(x0)``: ``grad_output * (s + x1 * (1 - s))``, in float32.

    Parameters
    ----------
    grad_output, x0, x1 : Tensor
        Upstream gradient, input and result of :func:`npu_silu`: one shape, one dtype of float16, bfloat16 and float32.

    Returns
    -------
    Tensor
        Shape, dtype and order of elements of `x0`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, or the tensors are on different devices.
    """
    op = "npu_silu_backward"
    check_dtype(op, "x0", x0)
    _check_like(op, "grad_output", grad_output, "x0", x0)
    _check_like(op, "x1", x1, "x0", x0)
    return torch.empty_like(x0)


def _save_silu(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output)


def _silu_backward(ctx: Any, grad: Tensor) -> Tensor:
    x, y = ctx.saved_tensors
    return torch.ops.npu.npu_silu_backward(grad, x, y)


differentiable("npu_silu", _save_silu, _silu_backward)
once_differentiable("npu_silu", "npu_silu_backward")
