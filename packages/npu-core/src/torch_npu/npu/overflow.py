"""Overflow detection. Results follow IEEE here, so it looks for infinities and NaN; there is no saturation mode."""

from __future__ import annotations

import math
import os
from typing import Any

import torch

from torch_npu import notices
from torch_npu.npu.initialization import _lazy_init
from torch_npu.utils._error_code import ErrCode, pta_error

__all__ = ["clear_npu_overflow_flag", "get_npu_overflow_flag"]


def is_support_inf_nan() -> bool:
    """Return True: results follow IEEE, infinities and NaN propagate.

    Raises
    ------
    RuntimeError
        INF_NAN_MODE_ENABLE=0 asks for the saturation mode of older SoCs, which this device has not.
    """
    _lazy_init()
    if os.environ.get("INF_NAN_MODE_ENABLE", "1") == "0":
        raise RuntimeError(
            "INF_NAN_MODE_ENABLE shouldn't be set to 0 on the current device. Unset it: results follow IEEE here."
            + pta_error(ErrCode.NOT_SUPPORT)
        )
    return True


def npu_check_overflow(grad: Any) -> bool:
    """Return True when the float32 sum of `grad` is infinite or NaN.

    Parameters
    ----------
    grad : torch.Tensor or float
    """
    if isinstance(grad, torch.Tensor):
        value = float(grad.float().sum())
    elif isinstance(grad, float):
        value = grad
    else:
        raise RuntimeError(
            f"Unsupported type. Expected a Tensor or a float, but got {type(grad).__name__}{pta_error(ErrCode.TYPE)}"
        )
    return not math.isfinite(value)


def get_npu_overflow_flag() -> bool:
    """Raise: the flag belongs to the saturation mode of older SoCs."""
    raise RuntimeError(
        "Unsupported api when soc_version >= Ascend910B1, please use npu_check_overflow"
        + pta_error(ErrCode.NOT_SUPPORT)
    )


def clear_npu_overflow_flag() -> None:
    """Warn that there is no flag to clear; see `get_npu_overflow_flag`."""
    notices.warn("When in inf_nan mode, clear_npu_overflow_flag is useless.", stacklevel=2)
