"""Sum of two tensors and its RMS norm.  Schemas and kernels: ``csrc/ops/add_rms_norm.cpp``,
``csrc/kernels/add_rms_norm.inc``."""

import torch
from torch import Tensor

from npu_ops_llm.registration import check, fake, writes_arguments

#: What numbers of a dtype argument mean: the storage of the quantised result.  4 bits are packed, eight to an int32.
_STORAGE = {
    1: torch.int8,
    12: torch.int8,
    16: torch.int32,
    285: torch.int32,
    23: torch.float8_e5m2,
    291: torch.float8_e5m2,
    24: torch.float8_e4m3fn,
    292: torch.float8_e4m3fn,
}


def _rstd_shape(op: str, x1: Tensor, x2: Tensor, gamma: Tensor) -> list[int | torch.SymInt]:
    """Check the shapes; return x1's leading sizes followed by a 1 for each dim of gamma."""
    check(
        x1.dim() == x2.dim() and all(ours == theirs for ours, theirs in zip(x1.shape, x2.shape, strict=True)),
        op,
        "x2",
        lambda: (
            f"The shape of x1 and x2 must be the same. x1 has shape {list(x1.shape)}, x2 has shape {list(x2.shape)}"
        ),
    )
    shapes = f"x1 has shape {list(x1.shape)}, gamma has shape {list(gamma.shape)}"
    check(gamma.dim() <= x1.dim(), op, "gamma", f"The gamma shape should not be bigger than self shape. {shapes}")
    leading = x1.dim() - gamma.dim()
    check(
        all(ours == theirs for ours, theirs in zip(gamma.shape, x1.shape[leading:], strict=True)),
        op,
        "gamma",
        f"expected the shape of x1's last dims; {shapes}",
    )
    return [*x1.shape[:leading], *([1] * gamma.dim())]


def _storage(op: str, argument: str, number: int | None, accepted: tuple[torch.dtype, ...]) -> torch.dtype:
    """The dtype of the quantised result."""
    storage = torch.int8 if number is None else _STORAGE.get(number)
    if storage is None or storage not in accepted:
        raise RuntimeError(f"{op}: argument {argument}: expected one of {accepted}, got the dtype number {number}")
    return storage


@fake
def npu_add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of two tensors and its root-mean-square norm over the last dims.

    ``x = x1 + x2``, rounded to their dtype; ``rstd = 1 / sqrt(mean(x^2) + epsilon)`` over the dims of `gamma`,
    ``y = x * rstd * gamma`` in float32 with one rounding.

    Parameters
    ----------
    x1, x2 : Tensor
        One shape, one dtype of float16, bfloat16 and float32.
    gamma : Tensor
        Shape of the last ``gamma.dim()`` dims of `x1`; dtype of `x1` or float32.
    epsilon : float
        Added to the mean of squares.

    Returns
    -------
    y : Tensor
        Shape and dtype of `x1`.
    rstd : Tensor
        float32, shape of `x1` with 1 for each dim of `gamma`.
    x : Tensor
        The rounded sum, shape and dtype of `x1`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, or the tensors are on different devices.

    Examples
    --------
    >>> ones = torch.ones(4)
    >>> y, rstd, x = torch.ops.npu.npu_add_rms_norm(ones, torch.tensor([0.0, 1.0, 2.0, 3.0]), ones)
    >>> y, rstd, x
    (tensor([0.3651, 0.7303, 1.0954, 1.4606]), tensor([0.3651]), tensor([1., 2., 3., 4.]))
    """
    shape = _rstd_shape("npu_add_rms_norm", x1, x2, gamma)
    return x1.new_empty(x1.shape), x1.new_empty(shape, dtype=torch.float32), x1.new_empty(x1.shape)


@fake
def npu_add_rms_norm_v2(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> Tensor:
    """:func:`npu_add_rms_norm` in place: writes ``y`` into `x1` and the sum into `x2`.

    Parameters
    ----------
    x1, x2 : Tensor
        As for :func:`npu_add_rms_norm`; both are written, through views of any strides.  They must not share memory.
    gamma : Tensor
        As for :func:`npu_add_rms_norm`.
    epsilon : float
        Added to the mean of squares.

    Returns
    -------
    Tensor
        ``rstd``: float32, shape of `x1` with 1 for each dim of `gamma`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, the tensors are on different devices, `x1` and `x2` share memory, or one of
        them is an expanded view.

    Examples
    --------
    >>> x, residual = torch.ones(4), torch.tensor([0.0, 1.0, 2.0, 3.0])
    >>> rstd = torch.ops.npu.npu_add_rms_norm_v2(x, residual, torch.ones(4))
    >>> x, residual
    (tensor([0.3651, 0.7303, 1.0954, 1.4606]), tensor([1., 2., 3., 4.]))
    """
    return x1.new_empty(_rstd_shape("npu_add_rms_norm_v2", x1, x2, gamma), dtype=torch.float32)


@fake
def npu_add_rms_norm_v2_functional(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`npu_add_rms_norm` with the results in the order of :func:`npu_add_rms_norm_v2`.

    Parameters
    ----------
    x1, x2, gamma, epsilon
        As for :func:`npu_add_rms_norm`.

    Returns
    -------
    rstd, y, x : Tensor
        As of :func:`npu_add_rms_norm`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, or the tensors are on different devices.

    Examples
    --------
    >>> ones = torch.ones(4)
    >>> torch.ops.npu.npu_add_rms_norm_v2_functional(ones, torch.tensor([0.0, 1.0, 2.0, 3.0]), ones)
    (tensor([0.3651]), tensor([0.3651, 0.7303, 1.0954, 1.4606]), tensor([1., 2., 3., 4.]))
    """
    shape = _rstd_shape("npu_add_rms_norm_v2_functional", x1, x2, gamma)
    return x1.new_empty(shape, dtype=torch.float32), x1.new_empty(x1.shape), x1.new_empty(x1.shape)


@fake
def npu_add_rms_norm_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    scales1: Tensor,
    zero_points1: Tensor | None,
    beta: Tensor | None = None,
    scales2: Tensor | None = None,
    zero_points2: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-6,
    div_mode: bool = True,
    dst_type: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum, root-mean-square norm and quantisation with given scales.

    ``x = x1 + x2`` rounded to their dtype, ``y = x * rstd * gamma + beta`` in float32 and not rounded, and with each of
    the two sets of scales ``q = clip(rint(y / scales + zero_points), -128, 127)``, or ``y * scales`` without
    `div_mode`.  Results in 8-bit floats are rounded and saturated without ``rint``.

    Parameters
    ----------
    x1, x2 : Tensor
        One shape, one dtype of float16, bfloat16 and float32.
    gamma : Tensor
        Shape of the last ``gamma.dim()`` dims of `x1`; dtype of `x1` or float32.
    scales1 : Tensor
        Shape of `gamma` or one element; float32, bfloat16 or float16.
    zero_points1 : Tensor, optional
        Shape of `gamma` or one element; int32, bfloat16, float16 or float32.  None is 0.
    beta : Tensor, optional
        Shape and dtype of `gamma`.
    scales2, zero_points2 : Tensor, optional
        The second set.  Without `scales2` there is none, and `zero_points2` is not looked at.
    axis : int
        Must be -1.
    epsilon : float
        Added to the mean of squares.
    div_mode : bool
        Whether to divide by the scales.
    dst_type : int, optional
        ``torch.int8`` (the default), ``torch.float8_e4m3fn`` or ``torch.float8_e5m2``.

    Returns
    -------
    y1, y2 : Tensor
        Shape of `x1`, dtype `dst_type`.  `y2` is zero without `scales2`.
    x : Tensor
        The rounded sum, shape and dtype of `x1`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, `axis` is not -1, or the tensors are on different devices.

    Examples
    --------
    >>> one = torch.ones(1)
    >>> torch.ops.npu.npu_add_rms_norm_quant(torch.ones(2), torch.tensor([0.0, 6.0]), torch.ones(2), one / 10, None)[0]
    tensor([ 2, 14], dtype=torch.int8)
    """
    op = "npu_add_rms_norm_quant"
    check(axis == -1, op, "axis", f"axis only support -1. Got {axis}")
    _rstd_shape(op, x1, x2, gamma)
    for argument, tensor in (
        ("scales1", scales1),
        ("zero_points1", zero_points1),
        ("scales2", scales2),
        ("zero_points2", zero_points2),
    ):
        if tensor is None or (tensor.dim() <= 1 and tensor.numel() == 1):
            continue
        check(
            tensor.numel() == 1 or tensor.shape == gamma.shape,
            op,
            argument,
            f"expected one element or the shape of gamma, {list(gamma.shape)}, got shape {list(tensor.shape)}",
        )
    storage = _storage(op, "dst_type", dst_type, (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2))
    return x1.new_empty(x1.shape, dtype=storage), x1.new_empty(x1.shape, dtype=storage), x1.new_empty(x1.shape)


@fake
def npu_add_rms_norm_dynamic_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    *,
    smooth_scale1: Tensor | None = None,
    smooth_scale2: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-6,
    output_mask: list[bool] | None = None,
    y_dtype: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sum, root-mean-square norm and quantisation with a scale found for every row.

    ``x = x1 + x2`` rounded to their dtype, ``y = x * rstd * gamma + beta`` in float32 and not rounded.  Each of two
    branches takes ``v = y * smooth_scale`` and gives ``scale = max|v| / largest`` and
    ``q = clip(rint(v * largest / max|v|))``, where `largest` is 127 for int8, 7 for int4 and 448 and 57344 for
    float8_e4m3fn and float8_e5m2 (which are rounded without ``rint``).  A row of zeros has scale 0.

    Parameters
    ----------
    x1, x2 : Tensor
        One shape of 2 to 8 dims, one dtype of float16, bfloat16 and float32.
    gamma : Tensor
        Shape of the last dim of `x1`; dtype of `x1` or float32.
    smooth_scale1, smooth_scale2 : Tensor, optional
        Shape of `gamma`; dtype of `x1` or float32.  None is 1.
    beta : Tensor, optional
        Shape and dtype of `gamma`.
    epsilon : float
        Added to the mean of squares.
    output_mask : list of two bool, optional
        Which branches are wanted.  By default the first, and the second if both smooth scales are given.
    y_dtype : int, optional
        ``torch.int8`` (the default), ``torch.quint4x2`` or ``torch_npu.int4``, ``torch.float8_e4m3fn`` or
        ``torch.float8_e5m2``.

    Returns
    -------
    y1, y2 : Tensor
        Shape of `x1`; int4 is packed, eight values to an int32, and needs a last dim divisible by 8.
    x_out : Tensor
        The rounded sum, shape and dtype of `x1`.
    scale1, scale2 : Tensor
        float32, shape of `x1` without its last dim.

    What belongs to a branch that is not wanted is a tensor without dims that holds 0.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, no branch is wanted, or the tensors are on different devices.

    Examples
    --------
    >>> x = torch.tensor([[1.0, -2.0, 4.0, 0.5]])
    >>> y, _, _, scale, _ = torch.ops.npu.npu_add_rms_norm_dynamic_quant(x, x, torch.ones(4))
    >>> y
    tensor([[ 32, -64, 127,  16]], dtype=torch.int8)
    """
    op = "npu_add_rms_norm_dynamic_quant"
    wanted = [True, smooth_scale1 is not None and smooth_scale2 is not None]
    if output_mask is not None:
        check(any(output_mask), op, "output_mask", "at least one of y1 and y2 must be output")
        wanted = list(output_mask)
    accepted = (torch.int8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2)
    storage = _storage(op, "y_dtype", y_dtype, accepted)
    check(2 <= x1.dim() <= 8, op, "x1", f"The x1 should be in 2~8D, got shape {list(x1.shape)}")
    _rstd_shape(op, x1, x2, gamma)
    for argument, tensor in (("gamma", gamma), ("smooth_scale1", smooth_scale1), ("smooth_scale2", smooth_scale2)):
        if tensor is not None:
            shapes = f"expected shape [{x1.shape[-1]}] (the last dim of x1), got {list(tensor.shape)}"
            check(tensor.dim() == 1 and tensor.shape[0] == x1.shape[-1], op, argument, shapes)
    shape = list(x1.shape)
    if storage == torch.int32:
        message = f"expected a last dim divisible by 8 for an int4 result, got shape {shape}"
        check(x1.shape[-1] % 8 == 0, op, "x1", message)
        shape[-1] = x1.shape[-1] // 8
    y1, y2 = (x1.new_empty(shape if branch else [], dtype=storage) for branch in wanted)
    scale1, scale2 = (x1.new_empty(shape[:-1] if branch else [], dtype=torch.float32) for branch in wanted)
    return y1, y2, x1.new_empty(x1.shape), scale1, scale2


writes_arguments("npu_add_rms_norm_v2", advice=", or use torch operators, which have gradients")
