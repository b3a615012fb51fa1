"""Names that programs import from ``torch_npu.npu.utils``."""

from __future__ import annotations

from torch_npu.npu.devices import (
    _get_device_index,
    device_of,
    get_soc_version,
    get_sync_debug_mode,
    is_bf16_supported,
    set_sync_debug_mode,
    synchronize,
)
from torch_npu.npu.memory import _erase_stream
from torch_npu.npu.overflow import is_support_inf_nan, npu_check_overflow
from torch_npu.npu.streams import StreamContext, set_stream, stream

__all__ = [
    "StreamContext",
    "_erase_stream",
    "_get_device_index",
    "device_of",
    "get_soc_version",
    "get_sync_debug_mode",
    "is_bf16_supported",
    "is_support_inf_nan",
    "npu_check_overflow",
    "set_stream",
    "set_sync_debug_mode",
    "stream",
    "synchronize",
]
