"""Devices: how many, which is current, what they are."""

from __future__ import annotations

import operator
import os
import re
from types import TracebackType
from typing import Any, TypeAlias

import torch

from npu_core import _C
from torch_npu import notices
from torch_npu.npu.initialization import _lazy_init, is_initialized
from torch_npu.utils._error_code import ErrCode, pta_error

__all__ = [
    "can_device_access_peer",
    "current_blas_handle",
    "current_device",
    "device",
    "device_count",
    "device_of",
    "get_device_capability",
    "get_device_name",
    "get_device_properties",
    "get_soc_version",
    "get_sync_debug_mode",
    "is_bf16_supported",
    "mem_get_info",
    "set_device",
    "set_sync_debug_mode",
    "synchronize",
    "utilization",
]

#: What the functions of `torch.npu` take as a device.
Device: TypeAlias = torch.device | str | int | None

# Device types that mean an npu device; transfer_to_npu adds "cuda".
_DEVICE_TYPES = {"npu"}

# The first SoC generation with bfloat16 and IEEE infinities.
_FIRST_BF16_SOC = 220

_SYNC_DEBUG_MODES = {"default": 0, "warn": 1, "error": 2}


def _get_device_index(device: Any = None, optional: bool = True, allow_cpu: bool = False) -> int:
    """Return the index `device` names; the current device's when it names none (-1 for cpu, if allowed)."""
    if isinstance(device, bool):
        raise TypeError(f"Expected a npu device, but got: {device!r}{pta_error(ErrCode.TYPE)}")
    if isinstance(device, int):
        return device
    if isinstance(device, str):
        device = torch.device(device)
    if isinstance(device, torch.device):
        if allow_cpu and device.type == "cpu":
            return -1
        if device.type not in _DEVICE_TYPES:
            raise ValueError(f"Expected a npu device, but got: {device}{pta_error(ErrCode.VALUE)}")
        if device.index is not None:
            return device.index
    elif hasattr(device, "__index__"):
        return operator.index(device)
    elif device is not None:
        raise TypeError(f"Expected a device, an index or None, but got: {device!r}{pta_error(ErrCode.TYPE)}")
    if not optional:
        raise ValueError(f"Expected a device with an index, but got: {device}{pta_error(ErrCode.VALUE)}")
    return current_device()


def _checked_index(device: Any, what: str = "device id") -> int:
    index = _get_device_index(device)
    if not 0 <= index < device_count():
        raise AssertionError(f"Invalid {what}{pta_error(ErrCode.VALUE)}")
    return index


def device_count() -> int:
    """Return the number of visible devices. Never initialises."""
    return _C._device_count()


def current_device() -> int:
    """Return the index of the calling thread's current device."""
    _lazy_init()
    return _C._current_device()


def set_device(device: Device) -> None:
    """Make `device` current for the calling thread; a negative index changes nothing."""
    index = _get_device_index(device)
    if index >= 0:
        _lazy_init()
        _C._set_device(index)


def synchronize(device: Device = None) -> None:
    """Wait until every stream of `device` is idle and raise the first error its tasks met."""
    _lazy_init()
    _C._synchronize_device(_get_device_index(device))


class device:
    """Context manager that makes a device current and restores the previous one.

    Parameters
    ----------
    device : torch.device, int, str or None
        Nothing happens for None or a negative index.
    """

    def __init__(self, device: Device) -> None:
        self.idx = -1 if device is None else _get_device_index(device)
        self.prev_idx = -1

    def __enter__(self) -> None:
        if self.idx >= 0:
            _lazy_init()
            self.prev_idx = _C._exchange_device(self.idx)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.prev_idx >= 0:
            _C._exchange_device(self.prev_idx)


class device_of(device):
    """Like `device`, with the device of a tensor or storage; nothing happens for one that is not on npu."""

    def __init__(self, obj: Any) -> None:
        super().__init__(obj.get_device() if obj.is_npu else None)


def _exchange_device(index: int) -> int:
    return _C._exchange_device(index) if index >= 0 else -1


def _maybe_exchange_device(index: int) -> int:
    return _exchange_device(index)


def get_device_properties(device_name: Device = None) -> Any:
    """Return the properties of a device: name, total_memory, core counts, uuid and so on.

    Raises
    ------
    AssertionError
        The index names no visible device.
    """
    index = _checked_index(device_name)
    _lazy_init()
    return _C._device_properties(index)


def get_device_name(device_name: Device = None) -> str:
    """Return the SoC name, for example ``"Ascend910B1"``."""
    return get_device_properties(device_name).name


def get_soc_version() -> int:
    """Return the integer id of the SoC (220 to 225: the Ascend910B generation), -1 when unknown."""
    return get_device_properties(0).soc_version if device_count() else -1


def get_device_capability(device: Device = None) -> tuple[int, int] | None:
    """Return (major, minor) from TORCH_NPU_DEVICE_CAPABILITY, else None with a warning.

    The device has no capability number; the variable exists for programs that insist on one.
    """
    value = os.environ.get("TORCH_NPU_DEVICE_CAPABILITY")
    if value is None:
        notices.warn("torch.npu.get_device_capability isn't implemented!", stacklevel=2)
        return None
    if not re.fullmatch(r"\d+\.\d+", value):
        notices.warn(f"can't parse TORCH_NPU_DEVICE_CAPABILITY {value!r}, expected major.minor", stacklevel=2)
        return None
    notices.warn(
        "TORCH_NPU_DEVICE_CAPABILITY is for compatibility only and says nothing about the device", stacklevel=2
    )
    major, minor = value.split(".")
    return int(major), int(minor)


def can_device_access_peer(device_id: Device, peer_device_id: Device) -> bool:
    """Return True when tasks of one device may address memory of the other directly."""
    index = _checked_index(device_id)
    return _C._can_access_peer(index, _checked_index(peer_device_id, "peer device id"))


def mem_get_info(device: Device = None) -> tuple[int, int]:
    """Return (free, total) bytes of a device as its driver sees them: cached memory counts as used."""
    return _C._memory_info(_checked_index(device))


def utilization(device: Device = None) -> int:
    """Return 100 when the device has unfinished work at this moment, else 0.

    The host driver has no utilisation counter over time; this is its instantaneous value.
    """
    index = _checked_index(device)
    if not is_initialized():
        return 0
    stream_id, device_index = _C._current_stream(index)
    return 0 if _C._stream_query(stream_id, device_index) else 100


def current_blas_handle() -> None:
    """Warn that npu has no BLAS handle and return None."""
    notices.warn("NPU does not use blas handle.", stacklevel=2)


def is_bf16_supported(including_emulation: bool = False) -> bool:
    """Return True when the SoC computes in bfloat16."""
    return get_soc_version() >= _FIRST_BF16_SOC


def set_sync_debug_mode(debug_mode: int | str) -> None:
    """Choose what an operation that makes the host wait does: nothing, warn or raise.

    Parameters
    ----------
    debug_mode : {0, 1, 2, "default", "warn", "error"}
    """
    if isinstance(debug_mode, str):
        if debug_mode not in _SYNC_DEBUG_MODES:
            raise RuntimeError(
                "invalid value of debug_mode, expected one of `default`, `warn`, `error`" + pta_error(ErrCode.PARAM)
            )
        debug_mode = _SYNC_DEBUG_MODES[debug_mode]
    if isinstance(debug_mode, bool) or not isinstance(debug_mode, int) or debug_mode not in (0, 1, 2):
        raise RuntimeError(
            f"invalid value of debug_mode, expected 0, 1 or 2, but got {debug_mode!r}" + pta_error(ErrCode.PARAM)
        )
    _C._set_sync_debug_mode(debug_mode)


def get_sync_debug_mode() -> int:
    """Return the mode chosen by `set_sync_debug_mode`: 0 default, 1 warn, 2 error."""
    return _C._get_sync_debug_mode()
