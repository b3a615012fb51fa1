"""`torch.autocast` for npu under the names of the device module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from typing_extensions import deprecated

from torch_npu.npu.devices import is_bf16_supported
from torch_npu.utils._error_code import ErrCode, pta_error

__all__ = ["autocast", "custom_bwd", "custom_fwd"]


def get_amp_supported_dtype() -> list[torch.dtype]:
    """Return the dtypes autocast accepts; float32 casts nothing."""
    if is_bf16_supported():
        return [torch.float16, torch.bfloat16, torch.float32]
    return [torch.float16, torch.float32]


def is_autocast_enabled() -> bool:
    """Return True inside an enabled autocast region of npu."""
    return torch.is_autocast_enabled("npu")


def set_autocast_enabled(enable: bool) -> None:
    """Turn autocast of npu on or off for the calling thread."""
    if not isinstance(enable, bool):
        raise TypeError(f"enabled must be a bool (got {type(enable).__name__}){pta_error(ErrCode.TYPE)}")
    torch.set_autocast_enabled("npu", enable)


def get_autocast_dtype() -> torch.dtype:
    """Return the dtype autocast lowers to, float16 by default."""
    return torch.get_autocast_dtype("npu")


def set_autocast_dtype(dtype: torch.dtype) -> None:
    """Choose the dtype autocast lowers to."""
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype (got {type(dtype).__name__}){pta_error(ErrCode.TYPE)}")
    torch.set_autocast_dtype("npu", dtype)


class autocast(torch.amp.autocast_mode.autocast):
    """``torch.autocast("npu", ...)``.

    Parameters
    ----------
    enabled : bool
    dtype : torch.dtype
        float16 or bfloat16.
    cache_enabled : bool
        Keep casts of parameters within the region.
    """

    def __init__(self, enabled: bool = True, dtype: torch.dtype = torch.float16, cache_enabled: bool = True) -> None:
        super().__init__("npu", enabled=enabled, dtype=dtype, cache_enabled=cache_enabled)


@deprecated(
    "torch.npu.amp.custom_fwd(args...) is deprecated, use torch.amp.custom_fwd(args..., device_type='npu')",
    category=FutureWarning,
)
def custom_fwd(fwd: Callable[..., Any] | None = None, *, cast_inputs: torch.dtype | None = None) -> Any:
    """Deprecated: ``torch.amp.custom_fwd(..., device_type="npu")``."""
    return torch.amp.custom_fwd(fwd, device_type="npu", cast_inputs=cast_inputs)


@deprecated(
    "torch.npu.amp.custom_bwd(args...) is deprecated, use torch.amp.custom_bwd(args..., device_type='npu')",
    category=FutureWarning,
)
def custom_bwd(bwd: Callable[..., Any]) -> Any:
    """Deprecated: ``torch.amp.custom_bwd(..., device_type="npu")``."""
    return torch.amp.custom_bwd(bwd, device_type="npu")
