"""Dynamic quantisation.  Schemas and kernels: ``csrc/ops/dynamic_quant.cpp``, ``csrc/kernels/dynamic_quant.inc``."""

import torch
from torch import Tensor

from npu_ops_llm.dtypes import INDICES, check_dtype
from npu_ops_llm.registration import check, fake

#: Numbers of the dtypes that dst_type accepts, and the dtype of the result; int4 is carried in int32.
_INT4 = (16, 285)
_RESULTS: dict[int | None, torch.dtype] = {None: torch.int8, 1: torch.int8, 12: torch.int8} | dict.fromkeys(
    _INT4, torch.int32
)
_FLOAT8: dict[int | None, torch.dtype] = {
    23: torch.float8_e5m2,
    291: torch.float8_e5m2,
    24: torch.float8_e4m3fn,
    292: torch.float8_e4m3fn,
}


def _quantized(
    op: str,
    x: Tensor,
    smooth_scales: Tensor | None,
    group_index: Tensor | None,
    dst_type: int | None,
    quant_mode: str,
    results: dict[int | None, torch.dtype],
) -> tuple[Tensor, list[int | torch.SymInt]]:
    """Check dtypes and shapes; return y and the shape of the scale."""
    check_dtype(op, "input", x)
    if x.dim() < 2:
        raise RuntimeError(f"{op}: argument input: Input shape dim should be greater than 1, got shape {list(x.shape)}")
    if dst_type not in results:
        raise RuntimeError(f"{op}: argument dst_type: expected one of int8, quint4x2 ..., got number {dst_type}")
    if quant_mode not in ("pertoken", "perchannel", "pertensor"):
        raise RuntimeError(
            f'{op}: argument quant_mode: expected "pertoken", "perchannel" or "pertensor", got "{quant_mode}"'
        )
    per_channel = quant_mode == "perchannel"
    if smooth_scales is not None:
        check_dtype(op, "smooth_scales", smooth_scales)
        expected = [x.shape[-2 if per_channel else -1]]
        if group_index is not None:
            check(not per_channel, op, "group_index", 'expected None with quant_mode "perchannel"')
            check_dtype(op, "group_index", group_index, INDICES)
            expected = [group_index.shape[0], *expected]
        check(
            smooth_scales.dim() == len(expected)
            and all(ours == theirs for ours, theirs in zip(smooth_scales.shape, expected, strict=True)),
            op,
            "smooth_scales",
            lambda: f"expected shape {expected}, got {list(smooth_scales.shape)}",
        )
    shape = list(x.shape)
    if dst_type in _INT4:
        check(
            shape[-1] % 8 == 0,
            op,
            "input",
            lambda: f"Input shape last dim must be divded by 8 when int4 quantization, got shape {list(x.shape)}",
        )
        shape[-1] = shape[-1] // 8
    scale_shape = {"pertoken": x.shape[:-1], "perchannel": (*x.shape[:-2], x.shape[-1]), "pertensor": (1,)}[quant_mode]
    return x.new_empty(shape, dtype=results[dst_type]), list(scale_shape)


@fake
def npu_dynamic_quant(
    input: Tensor,
    *,
    smooth_scales: Tensor | None = None,
    group_index: Tensor | None = None,
    dst_type: int | None = None,
    quant_mode: str = "pertoken",
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Quantise by the largest magnitude.

    With ``v = input * smooth_scales`` and ``m = max |v|`` over each row, column or the whole tensor:
    ``y = saturate(rint(v * (q / m)))`` and ``scale = m / q``, in float32, halves rounded to even.  ``q`` is 127 for
    int8, 7 for int4, 448 for float8_e4m3fn and 57344 for float8_e5m2, which is rounded as floats are.  Where ``m`` is 0
    both results are 0; where ``q / m`` overflows, the largest float32 stands for it.  NaN becomes 0 and does not count
    for ``m``.

    Parameters
    ----------
    input : Tensor
        (..., S, H), at least two dims; float16, bfloat16 or float32.
    smooth_scales : Tensor, optional
        (H,), or (E, H) with `group_index`, or (S,) with ``quant_mode="perchannel"``; float16, bfloat16 or float32.
    group_index : Tensor, optional
        (E,), int32 or int64: group i has the rows from ``group_index[i - 1]`` to ``group_index[i]`` of the flattened
        input and the smoothing factors ``smooth_scales[i]``.  Ends must not decrease; rows behind the last
        one become 0.  Has no meaning without `smooth_scales`.
    dst_type : torch.dtype, optional
        torch.int8 (default), torch.quint4x2 or torch_npu.int4, torch.float8_e4m3fn, torch.float8_e5m2.
    quant_mode : str
        What is reduced: ``"pertoken"`` the last dim, ``"perchannel"`` the second last, ``"pertensor"`` all.
    dst_type_max : float
        Of torch_npu.hifloat8, which this device does not have; ignored.

    Returns
    -------
    y : Tensor
        Shape of `input`; int4 as int32 with eight values each, the first in the lowest bits, last dim H / 8.
    scale : Tensor
        float32; ``input.shape[:-1]``, ``(..., H)`` per channel, ``(1,)`` per tensor.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, H is no multiple of 8 for int4, or `quant_mode` is unknown.
    ValueError
        If `group_index` decreases or goes beyond the rows (on npu at the next synchronisation).

    Examples
    --------
    >>> torch.ops.npu.npu_dynamic_quant(torch.tensor([[0.5, -1.0, 2.0, 0.25]]))
    (tensor([[ 32, -64, 127,  16]], dtype=torch.int8), tensor([0.0157]))
    """
    y, scale_shape = _quantized(
        "npu_dynamic_quant", input, smooth_scales, group_index, dst_type, quant_mode, _RESULTS | _FLOAT8
    )
    return y, input.new_empty(scale_shape, dtype=torch.float32)


@fake
def npu_dynamic_quant_asymmetric(
    input: Tensor,
    *,
    smooth_scales: Tensor | None = None,
    group_index: Tensor | None = None,
    dst_type: int | None = None,
    quant_mode: str = "pertoken",
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise by the range of the values.

    With ``v = input * smooth_scales`` over each row, column or the whole tensor:
    ``scale = max((max v - min v) / 255, 1e-12)``, ``offset = 127 - max v / scale`` and
    ``y = saturate(rint(v * (1 / scale) + offset))`` in float32, halves rounded to even; 15 and 7 instead of 255 and 127
    for int4.  The offset is not rounded.  Back: ``(y - offset) * scale``.

    Parameters
    ----------
    input, smooth_scales, group_index, quant_mode, dst_type_max
        As :func:`npu_dynamic_quant`.
    dst_type : torch.dtype, optional
        torch.int8 (default), torch.quint4x2 or torch_npu.int4.

    Returns
    -------
    y : Tensor
        As :func:`npu_dynamic_quant`.
    scale, offset : Tensor
        float32; ``input.shape[:-1]``, ``(..., H)`` per channel, ``(1,)`` per tensor.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, H is no multiple of 8 for int4, or `quant_mode` is unknown.
    ValueError
        If `group_index` decreases or goes beyond the rows (on npu at the next synchronisation).

    Examples
    --------
    >>> torch.ops.npu.npu_dynamic_quant_asymmetric(torch.tensor([[0.5, -1.0, 2.0, 0.25]]))
    (tensor([[   0, -128,  127,  -22]], dtype=torch.int8), tensor([0.0118]), tensor([-43.]))
    """
    y, scale_shape = _quantized(
        "npu_dynamic_quant_asymmetric", input, smooth_scales, group_index, dst_type, quant_mode, _RESULTS
    )
    scale = input.new_empty(scale_shape, dtype=torch.float32)
    return y, scale, torch.empty_like(scale)
