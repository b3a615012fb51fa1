"""DLPack of npu tensors: the device is kDLExtDev, and a consumer may name the stream it will use the memory on."""

from __future__ import annotations

import enum
import functools
from typing import Any

import torch
from torch.utils.dlpack import DLDeviceType

from npu_core import _C
from torch_npu.npu.streams import Event, Stream, _wrap, current_stream, default_stream
from torch_npu.utils._error_code import ErrCode, pta_error

__all__ = ["register"]

_KEEP_ORDER = -1  # of the protocol: the consumer asks for no synchronisation

_device_of_others = torch.Tensor.__dlpack_device__
_capsule_of_others = torch.Tensor.__dlpack__


def _consumer(stream: int | None, device: int) -> Stream:
    """Return the stream a consumer names: None is the default stream, else a handle."""
    if stream is None:
        return default_stream(device)
    if isinstance(stream, bool) or not isinstance(stream, int):
        raise TypeError(
            f"__dlpack__: stream must be None, -1 or the npu_stream of a torch.npu.Stream, but got "
            f"{type(stream).__name__}{pta_error(ErrCode.TYPE)}"
        )
    return _wrap(Stream, *_C._stream_from_handle(device, stream))


@functools.wraps(_device_of_others)
def dlpack_device(self: torch.Tensor) -> tuple[enum.IntEnum, int]:
    """Return the device as DLPack numbers it: (kDLExtDev, index) for npu."""
    if self.device.type != "npu":
        return _device_of_others(self)
    return DLDeviceType.kDLExtDev, self.device.index


@functools.wraps(_capsule_of_others)
def dlpack(
    self: torch.Tensor,
    *,
    stream: Any = _KEEP_ORDER,
    max_version: tuple[int, int] | None = None,
    dl_device: tuple[enum.IntEnum, int] | None = None,
    copy: bool | None = None,
) -> Any:
    """Return a capsule that shares the tensor's memory.

    Parameters
    ----------
    stream : int or None
        Stream the consumer uses the memory on: later work of it waits for what the current stream has been given. -1
        asks for no such order.
    max_version : (int, int), optional
        Highest version of DLPack the consumer reads; without it the capsule is of the unversioned kind.
    dl_device : (DLDeviceType, int), optional
        Device of the capsule. (kDLCPU, 0) copies to the host and waits for it.
    copy : bool, optional
        True copies in any case, False refuses to.
    """
    if self.device.type == "npu" and stream != _KEEP_ORDER:
        consumer = _consumer(stream, self.device.index)
        producer = current_stream(self.device.index)
        if consumer != producer:
            event = Event()
            event.record(producer)
            event.wait(consumer)
        stream = _KEEP_ORDER
    return _capsule_of_others(self, stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)


def register() -> None:
    """Let tensors use these functions; those of other devices keep torch's behaviour."""
    torch.Tensor.__dlpack_device__ = dlpack_device
    torch.Tensor.__dlpack__ = dlpack
