"""Gated SiLU and its quantising forms.

Schemas and kernels: ``csrc/ops/glu.cpp``, ``csrc/ops/swiglu_quant.cpp`` and the kernels of these names.
"""

import math
from typing import Any

import torch
from torch import Tensor

from npu_ops_llm.dtypes import FLOATS, INDICES, check_dtype, check_same_dtype, int4_hint
from npu_ops_llm.registration import check, differentiable, fake, kernel, once_differentiable


def _half(op: str, x: Tensor, dim: int) -> list[int | torch.SymInt]:
    """Check dtype and dim; return x's sizes with half of it."""
    check_dtype(op, "self", x)
    rank = x.dim()
    check(
        -rank <= dim < rank,
        op,
        "dim",
        lambda: f"dim out of range: expected at least {-rank} and less than {rank}, got {dim}",
    )
    check(
        x.shape[dim] % 2 == 0,
        op,
        "self",
        lambda: f"expected an even size of dim {dim % rank}, got shape {list(x.shape)}",
    )
    sizes: list[int | torch.SymInt] = list(x.shape)
    sizes[dim] = sizes[dim] // 2
    return sizes


@fake
def npu_swiglu(self: Tensor, dim: int = -1) -> Tensor:
    """Gated SiLU: ``silu(a) * b``, where `dim` of `self` is `a`, then `b`.

    In float32 with one rounding to the dtype of `self`.  Differentiable in `self`.

    Parameters
    ----------
    self : Tensor
        Any shape and strides, `dim` even; float16, bfloat16 or float32.
    dim : int
        The dim that holds both halves.

    Returns
    -------
    Tensor
        Shape of `self` with half of `dim`; contiguous.

    Raises
    ------
    RuntimeError
        If the dtype, `dim` or the shape does not fit.

    Notes
    -----
    Source: N. Shazeer, "GLU Variants Improve Transformer", 2020.

    Examples
    --------
    >>> torch.ops.npu.npu_swiglu(torch.tensor([1.0, -2.0, 3.0, 0.5]))
    tensor([ 2.1932, -0.1192])
    """
    return self.new_empty(_half("npu_swiglu", self, dim))


@fake
def npu_swiglu_backward(grad_output: Tensor, self: Tensor, dim: int = -1) -> Tensor:
    """Gradient of :func:`npu_swiglu`.

    With the halves ``a, b`` and ``s = sigmoid(a)``: ``da = grad_output * b * (s + a * s * (1 - s))`` and
    ``db = grad_output * a * s``, in float32, one after the other along `dim`.

    Parameters
    ----------
    grad_output : Tensor
        Shape of the result of :func:`npu_swiglu`, dtype of `self`.
    self : Tensor
        As given to :func:`npu_swiglu`.
    dim : int
        As given to :func:`npu_swiglu`.

    Returns
    -------
    Tensor
        Shape and dtype of `self`; contiguous.

    Raises
    ------
    RuntimeError
        If a dtype, `dim` or a shape does not fit, or the tensors are on different devices.
    """
    op = "npu_swiglu_backward"
    sizes = _half(op, self, dim)
    check_same_dtype(op, "grad_output", grad_output, "self", self)
    check(
        grad_output.dim() == len(sizes)
        and all(ours == theirs for ours, theirs in zip(grad_output.shape, sizes, strict=True)),
        op,
        "grad_output",
        lambda: f"expected shape {sizes} (of npu_swiglu's result), got {list(grad_output.shape)}",
    )
    return self.new_empty(self.shape)


def _save_self(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.dim = inputs[1]


def _swiglu_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (x,) = ctx.saved_tensors
    return torch.ops.npu.npu_swiglu_backward(grad, x, ctx.dim), None


differentiable("npu_swiglu", _save_self, _swiglu_backward)
once_differentiable("npu_swiglu", "npu_swiglu_backward")


# ---- with quantisation ----------------------------------------------------------------------------------------------


def _check_quant(op: str, x: Tensor, quant_mode: int, packed: bool) -> None:
    check(
        quant_mode in (0, 1),
        op,
        "quant_mode",
        lambda: f"quant_mode should be 0 (static) or 1 (dynamic), got {quant_mode}",
    )
    check(x.dim() > 1, op, "x", lambda: f"x dim should larger than 1, got shape {list(x.shape)}")
    check(x.shape[-1] % 2 == 0, op, "x", lambda: f"x last dim should be even, got shape {list(x.shape)}")
    check(
        not packed or x.shape[-1] % 4 == 0,
        op,
        "x",
        lambda: f"last dim should be a multiple of 4 for int4 results (two per byte), got shape {list(x.shape)}",
    )


def _quantised_dtype(dst_type: torch.dtype | None) -> int:
    """Number of the result's dtype: int8, or quint4x2 for int4."""
    check(
        dst_type in (None, torch.int8, torch.quint4x2),
        "npu_swiglu_quant",
        "dst_type",
        lambda: f"expected None, torch.int8 or torch.quint4x2, got {dst_type}{int4_hint(dst_type)}",
    )
    return 16 if dst_type == torch.quint4x2 else 1


@fake
def npu_swiglu_quant(
    x: Tensor,
    *,
    smooth_scales: Tensor | None = None,
    offsets: Tensor | None = None,
    group_index: Tensor | None = None,
    activate_left: bool = False,
    quant_mode: int = 0,
    group_list_type: int = 0,
    dst_type: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Gated SiLU of rows, quantised to int8 or int4.

    The last dim of `x` is a left and a right half of `N` columns each: ``s = left * silu(right)``, or
    ``silu(left) * right`` with `activate_left`; ``v = s * smooth_scales`` of the row's group.  Then ``y = rint(v +
    offsets)`` (static), or ``y = rint(v * scale)`` with ``scale = largest / max|v|`` of the row (dynamic); `largest` is
    127, for int4 7.  In float32, saturating.

    Parameters
    ----------
    x : Tensor
        Shape ``(..., 2 * N)``, at least 2 dims; float16, bfloat16 or float32.
    smooth_scales : Tensor, optional
        float32, ``(G, N)`` or ``(G,)``, one row or value per group.  Static quantisation needs it.
    offsets : Tensor, optional
        float32, shape of `smooth_scales`.  Static quantisation needs it, dynamic ignores it.
    group_index : Tensor, optional
        int32 or int64, ``(G,)``: ends of the groups' rows, or row counts.  None: one group of all rows.
    activate_left : bool
        Which half goes through SiLU.
    quant_mode : int
        0 static, 1 dynamic.
    group_list_type : int
        0: `group_index` holds ends, not decreasing; 1: counts.
    dst_type : torch.dtype, optional
        torch.int8, or torch.quint4x2 for int4.

    Returns
    -------
    y : Tensor
        int8, shape ``(..., N)``; int4 ``(..., N / 2)``, two values per byte, the first in the low nibble.  Rows of no
        group are 0.
    scale : Tensor
        float32, shape of `x` without the last dim: what rows were multiplied with (infinity for a row of zeros);
        0 when static.

    Raises
    ------
    RuntimeError
        If a dtype, shape or mode does not fit, or the tensors are on different devices.
    ValueError
        If `group_index` does not fit the rows; at the next synchronisation on npu.

    Examples
    --------
    >>> torch.ops.npu.npu_swiglu_quant(torch.tensor([[1.0, -2.0, 3.0, 0.5]]), quant_mode=1, activate_left=True)
    (tensor([[127,  -7]], dtype=torch.int8), tensor([57.9069]))
    """
    op = "npu_swiglu_quant"
    check_dtype(op, "x", x)
    check_dtype(op, "smooth_scales", smooth_scales, (torch.float32,))
    check_dtype(op, "offsets", offsets, (torch.float32,))
    check_dtype(op, "group_index", group_index, INDICES)
    packed = _quantised_dtype(dst_type) == 16
    _check_quant(op, x, quant_mode, packed)
    check(
        group_list_type in (0, 1),
        op,
        "group_list_type",
        lambda: f"group_list_type should be 0 (ends of rows) or 1 (row counts), got {group_list_type}",
    )
    width = x.shape[-1] // (4 if packed else 2)
    return x.new_empty([*x.shape[:-1], width], dtype=torch.int8), x.new_empty(x.shape[:-1], dtype=torch.float32)


#: Looked up once: a call with one row takes about 10 us.
_INTERNAL_SWIGLU_QUANT = torch.ops.npu._npu_swiglu_quant.default


@kernel("npu_swiglu_quant")
def _swiglu_quant(
    x: Tensor,
    *,
    smooth_scales: Tensor | None = None,
    offsets: Tensor | None = None,
    group_index: Tensor | None = None,
    activate_left: bool = False,
    quant_mode: int = 0,
    group_list_type: int = 0,
    dst_type: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    number = 1 if dst_type is None else _quantised_dtype(dst_type)
    return _INTERNAL_SWIGLU_QUANT(
        x, smooth_scales, offsets, group_index, activate_left, quant_mode, group_list_type, number
    )


#: Numbers of dtypes as `int? dst_type` arguments carry them.
_DEQUANT_DTYPES = {
    1: torch.int8,
    12: torch.int8,
    23: torch.float8_e5m2,
    24: torch.float8_e4m3fn,
    291: torch.float8_e5m2,
    292: torch.float8_e4m3fn,
}


_PARAMETERS = (torch.float32, torch.float16, torch.bfloat16)


@fake
def npu_dequant_swiglu_quant(
    x: Tensor,
    *,
    weight_scale: Tensor | None = None,
    activation_scale: Tensor | None = None,
    bias: Tensor | None = None,
    quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None,
    group_index: Tensor | None = None,
    activate_left: bool = False,
    quant_mode: int = 0,
    dst_type: int | None = None,
    round_mode: int | None = None,
    activate_dim: int | None = None,
    swiglu_mode: int = 0,
    clamp_limit: float = 7.0,
    glu_alpha: float = 1.702,
    glu_bias: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Dequantise the result of an integer matmul, apply a gated SiLU to its rows and quantise again.

    1. Rows of int32: ``r = x * weight_scale * activation_scale``; an int32 `bias` is added to `x`, a float one to the
       product.  Floating rows are taken as they are, these three arguments are then not used.
    2. `swiglu_mode` 0: ``s = left * silu(right)`` of the halves of `r`, or ``silu(left) * right`` with `activate_left`.
       Mode 1: ``u = r[0::2]``, ``w = r[1::2]``, ``u`` at most `clamp_limit`, ``w`` within +-`clamp_limit`,
       ``s = u * sigmoid(glu_alpha * u) * (w + glu_bias)``.  Mode 2: mode 1 on the halves of mode 0, ``u`` being the
       activated one.
    3. Static: ``y = rint(s / quant_scale + quant_offset)``.  Dynamic: ``v = s * quant_scale``,
       ``scale = max|v| / 127`` of the row, ``y = rint(v / scale)``.

    In float32, saturating.

    Parameters
    ----------
    x : Tensor
        Shape ``(..., 2 * H)``, at least 2 dims; int32, float16, bfloat16 or float32.
    weight_scale : Tensor, optional
        float32, ``(2 * H,)`` or ``(G, 2 * H)``; int32 rows need it.
    activation_scale : Tensor, optional
        float32, one value per row.
    bias : Tensor, optional
        ``(2 * H,)`` or ``(G, 2 * H)``; int32, float32, float16 or bfloat16.
    quant_scale, quant_offset : Tensor, optional
        ``(G, H)``, ``(G,)`` or ``(1,)``; float32, float16 or bfloat16.  None: 1 and 0.
    group_index : Tensor, optional
        int64 or int32, ``(G,)``: row counts of the groups.  None: one group of all rows.
    activate_left : bool
        Which half goes through SiLU, modes 0 and 2.
    quant_mode : int
        0 static, 1 dynamic.
    dst_type : int, optional
        torch.int8, torch.float8_e4m3fn or torch.float8_e5m2 (`largest` 448 and 57344 instead of 127).
    round_mode : int, optional
        For int8: 0 half to even, 1 half away from zero, 2 down, 3 up, 4 towards zero.
    activate_dim : int, optional
        -1; another dim than the last is not supported on this device.
    swiglu_mode : int
        0, 1 or 2.
    clamp_limit, glu_alpha, glu_bias : float
        Of modes 1 and 2.

    Returns
    -------
    y : Tensor
        Shape ``(..., H)``.  Rows of no group are 0.
    scale : Tensor
        float32, shape of `x` without the last dim; 0 when static.

    Raises
    ------
    RuntimeError
        If a dtype, shape, mode or number does not fit, or the tensors are on different devices.
    ValueError
        If the counts of `group_index` do not fit the rows; at the next synchronisation on npu.

    Examples
    --------
    >>> torch.ops.npu.npu_dequant_swiglu_quant(torch.tensor([[1.0, -2.0, 3.0, 0.5]]), quant_mode=1, swiglu_mode=1)
    (tensor([[-24, 127]], dtype=torch.int8), tensor([0.0352]))
    """
    op = "npu_dequant_swiglu_quant"
    check_dtype(op, "x", x, (torch.int32, *FLOATS))
    if x.dtype == torch.int32:
        check_dtype(op, "weight_scale", weight_scale, (torch.float32,))
        check_dtype(op, "activation_scale", activation_scale, (torch.float32,))
        check_dtype(op, "bias", bias, (torch.int32, *FLOATS))
    check_dtype(op, "quant_scale", quant_scale, _PARAMETERS)
    check_dtype(op, "quant_offset", quant_offset, _PARAMETERS)
    check_dtype(op, "group_index", group_index, INDICES)
    _check_quant(op, x, quant_mode, False)
    check(swiglu_mode in (0, 1, 2), op, "swiglu_mode", lambda: f"swiglu_mode should be 0, 1 or 2, got {swiglu_mode}")
    check(
        math.isfinite(clamp_limit) and clamp_limit > 0,
        op,
        "clamp_limit",
        lambda: f"clamp_limit should be positive finite, got {clamp_limit}",
    )
    check(
        round_mode is None or 0 <= round_mode <= 4,
        op,
        "round_mode",
        lambda: f"round_mode should be 0 (rint), 1 (round), 2 (floor), 3 (ceil) or 4 (trunc), got {round_mode}",
    )
    number = 1 if dst_type is None else dst_type
    check(
        number in _DEQUANT_DTYPES,
        op,
        "dst_type",
        lambda: f"expected one of int8, float8_e4m3fn, float8_e5m2, got number {number}",
    )
    y = x.new_empty([*x.shape[:-1], x.shape[-1] // 2], dtype=_DEQUANT_DTYPES[number])
    return y, x.new_empty(x.shape[:-1], dtype=torch.float32)
