"""Limits of devices, streams and operators: kept and returned; the emulated device has no cores to share out."""

from __future__ import annotations

from typing import Any

import torch

from npu_core import _C
from torch_npu.npu.devices import _checked_index, get_device_properties
from torch_npu.npu.streams import SyncLaunchStream
from torch_npu.utils._error_code import ErrCode, pta_error

__all__ = [
    "get_device_limit",
    "get_stream_limit",
    "reset_stream_limit",
    "set_device_limit",
    "set_op_timeout_ms",
    "set_stream_limit",
]

_device_limits: dict[int, dict[str, int]] = {}
_stream_limits: dict[tuple[int, int], dict[str, int]] = {}


def _limit_device(device: Any) -> int:
    if isinstance(device, bool) or not isinstance(device, int):
        raise TypeError(f"device should be an int, but got: {device!r}{pta_error(ErrCode.TYPE)}")
    return _checked_index(device)


def _cores(device: int, cube_num: int, vector_num: int, base: dict[str, int]) -> dict[str, int]:
    """Return `base` with the numbers that are not -1, after checking them against what the device has."""
    properties = get_device_properties(device)
    limits = dict(base)
    for key, name, number, most in (
        ("cube_core_num", "cube_num", cube_num, properties.cube_core_num),
        ("vector_core_num", "vector_num", vector_num, properties.vector_core_num),
    ):
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name} should be an int, but got: {number!r}{pta_error(ErrCode.TYPE)}")
        if number == -1:
            continue
        if not 0 < number <= most:
            raise ValueError(f"{name} should be -1 or in [1, {most}], but got {number}{pta_error(ErrCode.VALUE)}")
        limits[key] = number
    return limits


def set_device_limit(device: int, cube_num: int = -1, vector_num: int = -1) -> None:
    """Limit the cores of a device for this process. Kept and returned only. Callable once per process.

    Parameters
    ----------
    device : int
        Index of the device.
    cube_num, vector_num : int
        Number of cores; -1 keeps what the device has.

    Raises
    ------
    RuntimeError
        Called before in this process.
    """
    index = _limit_device(device)
    if _device_limits:
        raise RuntimeError(
            "Function 'set_device_limit' has already been called, and works once per process"
            f"{pta_error(ErrCode.UNAVAIL)}"
        )
    _device_limits[index] = _cores(index, cube_num, vector_num, get_device_limit(index))


def get_device_limit(device: int) -> dict[str, int]:
    """Return the limits of a device: ``{"cube_core_num": int, "vector_core_num": int}``."""
    index = _limit_device(device)
    if index in _device_limits:
        return dict(_device_limits[index])
    properties = get_device_properties(index)
    return {"cube_core_num": properties.cube_core_num, "vector_core_num": properties.vector_core_num}


def _stream_key(stream: Any) -> tuple[int, int]:
    if not isinstance(stream, torch.Stream) or stream.device.type != "npu":
        raise AssertionError(f"stream should be a torch.npu.Stream, but got: {stream!r}{pta_error(ErrCode.TYPE)}")
    return stream.device_index, stream.stream_id


def set_stream_limit(stream: torch.Stream | SyncLaunchStream, cube_num: int = -1, vector_num: int = -1) -> None:
    """Limit the cores of a stream. Kept and returned only; -1 keeps the number in force."""
    key = _stream_key(stream)
    _stream_limits[key] = _cores(key[0], cube_num, vector_num, get_stream_limit(stream))


def get_stream_limit(stream: torch.Stream | SyncLaunchStream) -> dict[str, int]:
    """Return the limits of a stream, by default those of its device."""
    key = _stream_key(stream)
    return dict(_stream_limits[key]) if key in _stream_limits else get_device_limit(key[0])


def reset_stream_limit(stream: torch.Stream | SyncLaunchStream) -> None:
    """Give a stream the limits of its device again."""
    _stream_limits.pop(_stream_key(stream), None)


def set_op_timeout_ms(timeout: int) -> None:
    """Keep the time an operator may take, in milliseconds; operators of the emulated device are never cut off.

    Also the operator ``npu::set_op_timeout_ms``.
    """
    torch.ops.npu.set_op_timeout_ms(timeout)


def _keep_op_timeout(timeout: int) -> None:
    if timeout < 0:
        raise ValueError(f"timeout should not be negative, but got {timeout}{pta_error(ErrCode.VALUE)}")
    _C._set_option("op_timeout_ms", str(timeout))


_library = torch.library.Library("npu", "FRAGMENT")
_library.define("set_op_timeout_ms(int timeout) -> ()")
_library.impl("set_op_timeout_ms", _keep_op_timeout, "CompositeExplicitAutograd")
torch.fx.node.has_side_effect(torch.ops.npu.set_op_timeout_ms.default)
