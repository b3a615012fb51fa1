"""Quantisation with given scales.  Schemas and kernels: ``csrc/ops/quantize.cpp``, ``csrc/kernels/quantize.inc``."""

import torch
from torch import Tensor

from npu_ops_llm.dtypes import INDICES, check_dtype, dtype_name, int4_hint
from npu_ops_llm.registration import check, fake, kernel

_INT4 = (16, 285)
_FLOAT8 = {
    23: torch.float8_e5m2,
    291: torch.float8_e5m2,
    24: torch.float8_e4m3fn,
    292: torch.float8_e4m3fn,
}
_BYTES = {1: torch.int8, 12: torch.int8, 0: torch.uint8, 13: torch.uint8}
#: Numbers of the dtypes that npu_quantize accepts, and the dtype of its result.
_DIVIDED = _BYTES | _FLOAT8 | dict.fromkeys((3, 14), torch.int32)
_FACTORS = (torch.float32, torch.bfloat16, torch.float16)
_GROUP_FACTORS = (torch.float32, torch.float16, torch.bfloat16)
_PACKED = (3, 14, *_INT4)
_MULTIPLIED = _BYTES | _FLOAT8 | dict.fromkeys(_PACKED, torch.int32)


@fake
def npu_trans_quant_param(scale: Tensor, offset: Tensor | None = None, round_mode: int | None = 0) -> Tensor:
    """Scales and offsets of a quantised matrix product as the 64-bit parameter it takes.

    Bits 0 to 31 are the float32 `scale` with a mantissa of 10 bits, bits 37 to 45 ``clip(rint(offset), -256, 255)`` in
    two's complement, bit 46 is set.

    Parameters
    ----------
    scale : Tensor
        float32, one or two dims.
    offset : Tensor, optional
        float32, one dim when `scale` has one (its length, or one of both is 1), else the shape of `scale`.
    round_mode : int, optional
        0: the mantissa is truncated; 1: it is rounded half to even, denormals become zero.

    Returns
    -------
    Tensor
        int64; shape of `scale`, or the length of `offset` when only that is not 1.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit or `round_mode` is neither 0 nor 1.

    Examples
    --------
    >>> hex(torch.ops.npu.npu_trans_quant_param(torch.tensor([2.5]), torch.tensor([3.0])).item())
    '0x406040200000'
    """
    op = "npu_trans_quant_param"
    check_dtype(op, "scale", scale, (torch.float32,))
    check_dtype(op, "offset", offset, (torch.float32,))
    check(round_mode in (None, 0, 1), op, "round_mode", f"round_mode must be 0 or 1, got {round_mode}")
    check(scale.dim() in (1, 2), op, "scale", f"expected one or two dims, got shape {list(scale.shape)}")
    shape = list(scale.shape)
    if offset is not None:
        check(offset.dim() == scale.dim(), op, "offset", f"expected {scale.dim()} dims, got {offset.dim()}")
        if scale.dim() == 2:
            check(
                offset.shape[0] == shape[0] and offset.shape[1] == shape[1],
                op,
                "offset",
                lambda: f"expected shape {shape} (as scale), got {list(offset.shape)}",
            )
        elif shape[0] == 1:
            shape = list(offset.shape)
        else:
            check(
                offset.shape[0] == shape[0] or offset.shape[0] == 1,
                op,
                "offset",
                lambda: (
                    f"expected the length of scale, {shape[0]}, or one of them to have length 1, got {offset.shape[0]}"
                ),
            )
    return scale.new_empty(shape, dtype=torch.int64)


def _check_channels(argument: str, factors: Tensor, x: Tensor, dim: int, div_mode: bool) -> None:
    """Raise unless `factors` has one value or one for each index of x's `dim`."""
    op = "npu_quantize"
    channels = x.shape[dim] if x.dim() > 0 else 1
    if factors.dim() == 1 or div_mode or factors.dim() != x.dim():
        check(
            factors.dim() == 1,
            op,
            argument,
            lambda: f"expected one dim, of length {channels} or 1, got shape {list(factors.shape)}",
        )
        fits = factors.shape[0] == channels or factors.shape[0] == 1
    else:
        fits = all(size == 1 or (d == dim and size == channels) for d, size in enumerate(factors.shape))
    check(
        fits,
        op,
        argument,
        lambda: f"expected shape [{channels}] or [1] (dim {dim} of self), got {list(factors.shape)}",
    )


@fake
def npu_quantize(
    self: Tensor, scales: Tensor, zero_points: Tensor | None, dtype: int, axis: int = 1, div_mode: bool = True
) -> Tensor:
    """Quantise with given scales.

    ``y = saturate(rint(self / scales + zero_points))``, or ``self * scales`` without `div_mode`, in float32, halves
    rounded to even, NaN to 0; scales and zero points belong to one dim of `self`.  Rounding comes after the zero point,
    other than in ``torch.quantize_per_channel``.

    Parameters
    ----------
    self : Tensor
        Any shape; float16, bfloat16 or float32.
    scales : Tensor
        (n,) or (1,) for a dim of length n; float32, bfloat16 or float16.  Without `div_mode` also of the rank of `self`
        with 1 in the other dims.
    zero_points : Tensor, optional
        Shapes as `scales`; int8, uint8, int32 or floating.  None is 0.
    dtype : torch.dtype
        torch.qint8 or int8, quint8 or uint8, float8_e4m3fn, float8_e5m2; with `div_mode` also qint32 or int32; without
        also quint4x2 or torch_npu.int4, for which int32 is another name then.
    axis : int
        With `div_mode` the dim of the scales.  Without, below -1 the second last dim, else the last.
    div_mode : bool
        Whether to divide by the scales.

    Returns
    -------
    Tensor
        int8, uint8, int32 or 8-bit float of the shape of `self`; int4 as int32 with eight values each, the first in the
        lowest bits, last dim divided by 8.

    Raises
    ------
    RuntimeError
        If a dtype, shape or `axis` does not fit, or the last dim is no multiple of 8 for int4.

    Examples
    --------
    >>> x = torch.tensor([[0.5, 1.5, -0.5, 200.0]])
    >>> torch.ops.npu.npu_quantize(x, torch.tensor([1.0]), torch.tensor([1.0]), torch.qint8)
    tensor([[  2,   2,   0, 127]], dtype=torch.int8)
    """
    op = "npu_quantize"
    check_dtype(op, "self", self)
    check_dtype(op, "scales", scales, _FACTORS)
    check_dtype(op, "zero_points", zero_points, (torch.int8, torch.uint8, torch.int32, *_FACTORS))
    dims = max(self.dim(), 1)
    if div_mode:
        if dtype not in _DIVIDED:
            raise RuntimeError(
                f"{op}: argument dtype: Param (dtype) must be Int8, UInt8, Int32, Float8_e4m3fn or Float8_e5m2, "
                f"got number {dtype}"
            )
        if not -dims <= axis < dims:
            raise RuntimeError(
                f"{op}: argument axis: expected a dim of self, between {-dims} and {dims - 1}, got {axis}"
            )
        dim = axis % dims
    else:
        if dtype not in _MULTIPLIED:
            raise RuntimeError(f"{op}: argument dtype: expected one of int8, uint8, quint4x2 ..., got number {dtype}")
        dim = dims - (2 if axis < -1 else 1)
        if dim < 0:
            raise RuntimeError(f"{op}: argument axis: expected self to have a second last dim with axis {axis}")
    _check_channels("scales", scales, self, dim, div_mode)
    if zero_points is not None:
        _check_channels("zero_points", zero_points, self, dim, div_mode)
    shape = list(self.shape)
    if not div_mode and dtype in _PACKED:
        check(
            self.dim() > 0 and shape[-1] % 8 == 0,
            op,
            "self",
            lambda: f"Input shape last dim must be divded by 8, got shape {list(self.shape)}",
        )
        shape[-1] = shape[-1] // 8
    return self.new_empty(shape, dtype=(_DIVIDED if div_mode else _MULTIPLIED)[dtype])


@fake
def npu_anti_quant(
    x: Tensor,
    scale: Tensor,
    *,
    offset: Tensor | None = None,
    dst_dtype: int | None = None,
    src_dtype: int | None = None,
) -> Tensor:
    """Quantised values as floats: ``(x + offset) * scale`` in float32, rounded once.

    Parameters
    ----------
    x : Tensor
        Any shape; int8, float8_e4m3fn or float8_e5m2, or int32 with eight int4 values each, the first in the lowest
        bits.
    scale : Tensor
        One value, or one for each value in the last dim; one dim; float32, bfloat16 or float16.
    offset : Tensor, optional
        Shape and dtype of `scale`; None is 0.
    dst_dtype : torch.dtype, optional
        torch.float16 (default), bfloat16 or float32.
    src_dtype : torch.dtype, optional
        What `x` holds: torch.quint4x2 or torch_npu.int4 for int32, else the dtype of `x`.

    Returns
    -------
    Tensor
        Shape of `x`, of int4 with the last dim times 8; `dst_dtype`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit.

    Examples
    --------
    >>> x = torch.tensor([1, 2, 3, 4], dtype=torch.int8)
    >>> torch.ops.npu.npu_anti_quant(x, torch.tensor([2.0]), offset=torch.tensor([2.0]))
    tensor([ 6.,  8., 10., 12.], dtype=torch.float16)
    """
    op = "npu_anti_quant"
    sources = {
        torch.int8: (1, 12),
        torch.int32: _INT4,
        torch.float8_e4m3fn: (24, 292),
        torch.float8_e5m2: (23, 291),
    }
    results = {None: torch.float16, 5: torch.float16, 6: torch.float32, 15: torch.bfloat16}
    if x.dtype not in sources:
        raise RuntimeError(
            f"{op}: argument x: Input x must be int8, int32, float8_e4m3fn or float8_e5m2, got {x.dtype}"
        )
    if src_dtype is not None and src_dtype not in sources[x.dtype]:
        if x.dtype == torch.int32:
            raise RuntimeError(
                f"{op}: argument src_dtype: src_dtype must be int4 when x is int32, got number {src_dtype}"
            )
        raise RuntimeError(f"{op}: argument x: the dtype of x must match src_dtype; got {x.dtype}, number {src_dtype}")
    if dst_dtype not in results:
        raise RuntimeError(
            f"{op}: argument dst_dtype: Input dst_type must be valid, but got UNKNOWN_SCALAR: expected float16, "
            f"bfloat16 or float32, got number {dst_dtype}"
        )
    check_dtype(op, "scale", scale, _FACTORS)
    shape = list(x.shape)
    if x.dtype == torch.int32:
        check(len(shape) > 0, op, "x", "expected at least one dim of packed int4 values, got a scalar")
        shape[-1] = shape[-1] * 8
    columns = shape[-1] if shape else 1
    check(scale.dim() == 1, op, "scale", lambda: f"expected one dim, got shape {list(scale.shape)}")
    check(
        scale.shape[0] == columns or scale.shape[0] == 1,
        op,
        "scale",
        lambda: f"expected shape [{columns}] (values in the last dim of x) or [1], got {list(scale.shape)}",
    )
    if offset is not None:
        check(
            offset.dtype == scale.dtype,
            op,
            "offset",
            lambda: f"expected dtype {dtype_name(scale.dtype)} (as scale), got {dtype_name(offset.dtype)}",
        )
        check(
            offset.dim() == 1 and offset.shape[0] == scale.shape[0],
            op,
            "offset",
            lambda: f"expected shape {list(scale.shape)} (as scale), got {list(offset.shape)}",
        )
    return x.new_empty(shape, dtype=results[dst_dtype])


def _is_int4(dst_dtype: torch.dtype | None) -> bool:
    """Whether npu_group_quant shall return int4, not int8."""
    if dst_dtype not in (None, torch.int8, torch.qint8, torch.quint4x2):
        message = f"dst_dtype must be Int8 or Int4, got {dtype_name(dst_dtype)}{int4_hint(dst_dtype)}"
        check(False, "npu_group_quant", "dst_dtype", message)
    return dst_dtype == torch.quint4x2


@kernel("npu_group_quant")
def _group_quant(
    x: Tensor,
    scale: Tensor,
    group_index: Tensor,
    *,
    offset: Tensor | None = None,
    dst_dtype: torch.dtype | None = None,
) -> Tensor:
    _is_int4(dst_dtype)
    return torch.ops.npu._npu_group_quant(x, scale, group_index, offset, dst_dtype)


@fake
def npu_group_quant(
    x: Tensor,
    scale: Tensor,
    group_index: Tensor,
    *,
    offset: Tensor | None = None,
    dst_dtype: torch.dtype | None = None,
) -> Tensor:
    """Quantise rows with the scales of their group.

    ``y[r] = saturate(rint(x[r] * scale[i] + offset))`` in float32, halves rounded to even, for every row r of group i,
    ``group_index[i - 1] <= r < group_index[i]``.

    Parameters
    ----------
    x : Tensor
        (S, H); float32, float16 or bfloat16.
    scale : Tensor
        (E, H); float32, float16 or bfloat16.
    group_index : Tensor
        (E,), int32 or int64: the rows' cumulative ends, which must not decrease.  Rows behind the last become 0.
    offset : Tensor, optional
        One value, shape (1,) or (); float32, float16 or bfloat16.
    dst_dtype : torch.dtype, optional
        torch.int8 or qint8 (default), or torch.quint4x2.

    Returns
    -------
    Tensor
        int8 (S, H); int4 as int32 (S, H / 8) with eight values each, the first in the lowest bits.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit or H is no multiple of 8 for int4.
    ValueError
        If `group_index` decreases or goes beyond the rows (on npu at the next synchronisation).

    Examples
    --------
    >>> x, scale = torch.ones(3, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> torch.ops.npu.npu_group_quant(x, scale, torch.tensor([1, 3]))
    tensor([[1, 2],
            [3, 4],
            [3, 4]], dtype=torch.int8)
    """
    op = "npu_group_quant"
    check_dtype(op, "x", x, _GROUP_FACTORS)
    check_dtype(op, "scale", scale, _GROUP_FACTORS)
    check_dtype(op, "group_index", group_index, INDICES)
    check_dtype(op, "offset", offset, _GROUP_FACTORS)
    packed = _is_int4(dst_dtype)
    check(x.dim() == 2, op, "x", lambda: f"expected shape [rows, columns], got shape {list(x.shape)}")
    check(group_index.dim() == 1, op, "group_index", lambda: f"expected one dim, got shape {list(group_index.shape)}")
    rows, columns = x.shape
    check(
        scale.dim() == 2 and scale.shape[0] == group_index.shape[0] and scale.shape[1] == columns,
        op,
        "scale",
        lambda: f"expected shape [{group_index.shape[0]}, {columns}] (groups, columns of x), got {list(scale.shape)}",
    )
    if not packed:
        return x.new_empty([rows, columns], dtype=torch.int8)
    check(
        columns % 8 == 0,
        op,
        "x",
        lambda: f"input shape last dim must be divded by 8 for int4, got shape {list(x.shape)}",
    )
    return x.new_empty([rows, columns // 8], dtype=torch.int32)
