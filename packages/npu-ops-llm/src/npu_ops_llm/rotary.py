"""Rotary position embeddings.  Schemas and kernels: ``csrc/ops/rotary.cpp``, ``csrc/kernels/rotary.inc``."""

from typing import Any

import torch
from torch import Tensor

from npu_ops_llm.registration import check, differentiable, documented, fake, once_differentiable, writes_arguments


def _check_factors(op: str, name: str, x: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str) -> None:
    """The checks of shapes that the kernel makes of ``x``, called `name`, and its factors."""
    check(
        rotary_mode in ("half", "interleave"),
        op,
        "rotary_mode",
        f"The rotary_mode of npu_rotary_mul should be half or interleave, but got {rotary_mode}",
    )
    if x.dim() == 0 or x.shape[-1] % 2 != 0:
        check(False, op, name, f"expected at least one dim and an even last dim, got shape {list(x.shape)}")
    shapes = f"{name} has shape {list(x.shape)}, r1 has shape {list(r1.shape)}"
    if r1.dim() != x.dim() or r1.shape[-1] != x.shape[-1]:
        check(False, op, "r1", f"expected as many dims as {name} and the same last dim; {shapes}")
    for ours, theirs in zip(r1.shape, x.shape, strict=True):
        check(ours == 1 or ours == theirs, op, "r1", f"expected a shape that broadcasts to {name}'s; {shapes}")
    check(r2.shape == r1.shape, op, "r2", f"expected shape {list(r1.shape)} (as r1), got {list(r2.shape)}")


@fake
def npu_rotary_mul(
    self: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None
) -> Tensor:
    """Rotary position embedding: ``y = self * r1 + rot(self) * r2`` with ``r1`` the cosines and ``r2`` the sines.

    With D the last size, ``rot`` is

    - ``"half"``: ``[-x[D/2:], x[:D/2]]``
    - ``"interleave"``: ``rot(x)[2i] = -x[2i + 1]``, ``rot(x)[2i + 1] = x[2i]``
    - `rotate` given: ``x @ rotate``, rounded to the dtype of `self`; `rotary_mode` then has no effect.

    In float32 with one rounding to the dtype of `self`.  Differentiable in `self`, `r1` and `r2`; `self` is kept for
    the backward pass only when `r1` or `r2` requires a gradient.

    Parameters
    ----------
    self : Tensor
        Any rank (usually (B, S, N, D), (B, N, S, D) or (T, N, D)), any strides; float16, bfloat16 or float32; D even.
    r1, r2 : Tensor
        One shape of as many dims, each of the size of `self` or 1, the last one D.  Converted to the dtype of `self`.
    rotary_mode : str
        ``"half"`` or ``"interleave"``.
    rotate : Tensor, optional
        (D, D), dtype of `self`.

    Returns
    -------
    Tensor
        Shape and dtype of `self`, contiguous.

    Raises
    ------
    RuntimeError
        If a dtype, a shape or `rotary_mode` does not fit, or the tensors are on different devices.
    NotImplementedError
        In the backward pass, if `rotate` was given.

    Notes
    -----
    Source: J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.

    Examples
    --------
    >>> x, cos, sin = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.5, 0.6, 0.5, 0.6], [0.8, 0.7, 0.8, 0.7]])
    >>> torch.ops.npu.npu_rotary_mul(x, cos, sin)
    tensor([-1.9000, -1.6000,  2.3000,  3.8000])
    >>> torch.ops.npu.npu_rotary_mul(x, cos, sin, "interleave")
    tensor([-1.1000,  1.9000, -1.7000,  4.5000])
    """
    _check_factors("npu_rotary_mul", "self", self, r1, r2, rotary_mode)
    if rotate is not None:
        square = [self.shape[-1], self.shape[-1]]
        check(
            list(rotate.shape) == square,
            "npu_rotary_mul",
            "rotate",
            f"expected shape {square} (a matrix for the last dim of self), got {list(rotate.shape)}",
        )
    return self.new_empty(self.shape)


@fake
def npu_rotary_mul_backward(
    grad: Tensor, self: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half"
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`npu_rotary_mul` (without `rotate`).

    ``dself = grad * r1 + rot^T(grad * r2)``; ``dr1 = sum(grad * self)`` and ``dr2 = sum(grad * rot(self))`` over the
    dims that `r1` broadcasts.  In float32; the sums do not depend on the number of threads.

    Parameters
    ----------
    grad, self : Tensor
        Upstream gradient and input: one shape, one dtype of float16, bfloat16 and float32.
    r1, r2 : Tensor
        As given to :func:`npu_rotary_mul`.
    rotary_mode : str
        ``"half"`` or ``"interleave"``.

    Returns
    -------
    dself : Tensor
        Shape and dtype of `self`.
    dr1, dr2 : Tensor
        Shape of `r1`, dtype of `self`.

    Raises
    ------
    RuntimeError
        If a dtype, a shape or `rotary_mode` does not fit, or the tensors are on different devices.
    """
    op = "npu_rotary_mul_backward"
    _check_factors(op, "self", self, r1, r2, rotary_mode)
    check(grad.shape == self.shape, op, "grad", f"expected shape {list(self.shape)} (as self), got {list(grad.shape)}")
    return self.new_empty(self.shape), self.new_empty(r1.shape), self.new_empty(r1.shape)


@fake
def _npu_rotary_mul_grad_self(grad: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str) -> Tensor:
    """The first output of :func:`npu_rotary_mul_backward`."""
    _check_factors("npu_rotary_mul_backward", "grad", grad, r1, r2, rotary_mode)
    return grad.new_empty(grad.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, str, Tensor | None], output: Tensor) -> None:
    x, r1, r2, ctx.rotary_mode, rotate = inputs
    ctx.has_rotate = rotate is not None
    ctx.factors_need_grad = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
    ctx.save_for_backward(r1, r2, *((x,) if ctx.factors_need_grad else ()))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
    if ctx.has_rotate:
        raise NotImplementedError(
            "npu_rotary_mul: argument rotate: there is no gradient with a rotation matrix; use rotary_mode for training"
        )
    r1, r2, *kept = ctx.saved_tensors
    if not ctx.factors_need_grad:
        return torch.ops.npu._npu_rotary_mul_grad_self(grad, r1, r2, ctx.rotary_mode), None, None, None, None
    dx, dr1, dr2 = torch.ops.npu.npu_rotary_mul_backward(grad, kept[0], r1, r2, ctx.rotary_mode)
    return (
        dx if ctx.needs_input_grad[0] else None,
        dr1.to(r1.dtype) if ctx.needs_input_grad[1] else None,
        dr2.to(r2.dtype) if ctx.needs_input_grad[2] else None,
        None,
        None,
    )


differentiable("npu_rotary_mul", _setup_context, _backward)
once_differentiable("npu_rotary_mul", "npu_rotary_mul_backward")
once_differentiable("npu_rotary_mul", "_npu_rotary_mul_grad_self")


@fake
def npu_interleave_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of interleaved elements, with the result de-interleaved.

    ``de = [x[0], x[2], ..., x[1], x[3], ...]``, ``y = de * cos + [-de[D/2:], de[:D/2]] * sin``; in float32 with one
    rounding.  Unlike :func:`npu_rotary_mul` with ``"interleave"``, whose result stays interleaved.

    Parameters
    ----------
    x : Tensor
        (B, N, S, D), any strides, D even; float16, bfloat16 or float32.
    cos, sin : Tensor
        (B, 1, S, D) or (B, 1, 1, D), B may be 1; dtype of `x`.

    Returns
    -------
    Tensor
        Shape and dtype of `x`, contiguous.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, or the tensors are on different devices.

    Examples
    --------
    >>> x, cos, sin = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.5, 0.6, 0.5, 0.6], [0.8, 0.7, 0.8, 0.7]])
    >>> torch.ops.npu.npu_interleave_rope(*(t.view(1, 1, 1, 4) for t in (x, cos, sin))).flatten()
    tensor([-1.1000, -1.0000,  1.8000,  4.5000])
    """
    op = "npu_interleave_rope"
    if x.dim() != 4 or x.shape[3] % 2 != 0:
        check(False, op, "x", f"expected 4 dims (B, N, S, D) with an even D, got shape {list(x.shape)}")
    message = (
        f"expected shape (B, 1, S, D) or (B, 1, 1, D); x has shape {list(x.shape)}, cos has shape {list(cos.shape)}"
    )
    check(cos.dim() == 4, op, "cos", message)
    for d, size in enumerate(cos.shape):
        fits = size == x.shape[3] if d == 3 else size == 1 or (d != 1 and size == x.shape[d])
        check(fits, op, "cos", message)
    check(sin.shape == cos.shape, op, "sin", f"expected shape {list(cos.shape)} (as cos), got {list(sin.shape)}")
    return x.new_empty(x.shape)


@fake
def _npu_apply_rotary_pos_emb_(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, heads_dim: int, rotary_mode: int
) -> None:
    """What :func:`npu_apply_rotary_pos_emb` writes."""
    op = "npu_apply_rotary_pos_emb"
    for name, tensor in (("key", key), ("cos", cos), ("sin", sin)):
        check(
            tensor.dim() == query.dim(),
            op,
            name,
            "expected as many dims as query; "
            f"query has shape {list(query.shape)}, {name} has shape {list(tensor.shape)}",
        )
    last = query.dim() - 1
    for d, size in enumerate(query.shape):
        check(
            d == heads_dim or key.shape[d] == size,
            op,
            "key",
            "expected query's shape except for the number of heads; "
            f"query has shape {list(query.shape)}, key has shape {list(key.shape)}",
        )
        check(
            d == last or cos.shape[d] == 1 or (d != heads_dim and cos.shape[d] == size),
            op,
            "cos",
            "expected query's shape with 1 for the heads (and where it broadcasts); "
            f"query has shape {list(query.shape)}, cos has shape {list(cos.shape)}",
        )
    pieces = 4 if rotary_mode == 2 else 2
    check(
        cos.shape[last] <= query.shape[last] and cos.shape[last] % pieces == 0,
        op,
        "cos",
        f"expected a last dim that is a multiple of {pieces} and at most query's {query.shape[last]}, "
        f"got {cos.shape[last]}",
    )
    check(sin.shape == cos.shape, op, "sin", f"expected shape {list(cos.shape)} (as cos), got {list(sin.shape)}")


@documented
def npu_apply_rotary_pos_emb(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, layout: str = "BSND", rotary_mode: str = "half"
) -> tuple[Tensor, Tensor]:
    """Rotary position embedding of query and key in place.

    ``x = x * cos + rot(x) * sin`` for both, in float32 with one rounding.  With D the last size of `cos`, ``rot`` is

    - ``"half"``: ``[-x[D/2:], x[:D/2]]``
    - ``"interleave"``: ``rot(x)[2i] = -x[2i + 1]``, ``rot(x)[2i + 1] = x[2i]``
    - ``"quarter"``: ``[-x2, x1, -x4, x3]`` of the quarters x1 to x4

    Elements of the last dim beyond D stay as they are.

    **Writes** `query` and `key`, of any strides, and returns the same tensors, although the schema does not say so.
    Under ``torch.compile`` the operator is traced as one whose schema does say so: the writes are kept, in order, and
    the results are the arguments.

    Parameters
    ----------
    query, key : Tensor
        (B, S, N, D'), (S, B, N, D'), (B, N, S, D') or (T, N, D'); they differ in N only.  One dtype of float16,
        bfloat16 and float32.
    cos, sin : Tensor
        As `query`, with N = 1, B and S of `query` or 1, and D <= D'.  Dtype of `query`.
    layout : str
        ``"BSND"``, ``"SBND"``, ``"BNSD"`` or ``"TND"``; another text means ``"BSND"``.
    rotary_mode : str
        ``"half"``, ``"interleave"`` or ``"quarter"``.

    Returns
    -------
    query, key : Tensor
        The arguments.

    Raises
    ------
    RuntimeError
        If a dtype, a shape or `rotary_mode` does not fit, D is odd (for ``"quarter"``: no multiple of 4), `query` or
        `key` is an expanded tensor, or the tensors are on different devices.

    Examples
    --------
    >>> q, cos, sin = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.5, 0.6, 0.5, 0.6], [0.8, 0.7, 0.8, 0.7]]).view(3, 1, 1, 4)
    >>> _ = torch.ops.npu.npu_apply_rotary_pos_emb(q, q.clone(), cos, sin, "TND")
    >>> q.flatten()
    tensor([-1.9000, -1.6000,  2.3000,  3.8000])
    """
    raise NotImplementedError  # documentation only: the operator is a composite in C++


writes_arguments(
    "_npu_apply_rotary_pos_emb_",
    public="npu_apply_rotary_pos_emb",
    advice=", or use npu_rotary_mul, which has a gradient",
)
