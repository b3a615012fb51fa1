"""Streams and events: order of work on a device, and order between streams."""

from __future__ import annotations

import ctypes
from types import TracebackType
from typing import Any

import torch

from npu_core import _C
from torch_npu.npu.devices import _get_device_index
from torch_npu.npu.initialization import _lazy_init
from torch_npu.utils._error_code import ErrCode, pta_error

__all__ = [
    "Event",
    "Stream",
    "StreamContext",
    "SyncLaunchStream",
    "current_stream",
    "default_stream",
    "set_stream",
    "stream",
]

_DEVICE_TYPE = 20  # c10::DeviceType::PrivateUse1
_HIGHEST_CLASS = -1


def _existing(stream_id: int, device_index: int, device_type: int = _DEVICE_TYPE) -> dict[str, int]:
    """Return the arguments of torch.Stream for an existing stream, after checking that there is one."""
    if device_type != _DEVICE_TYPE:
        raise RuntimeError(
            f"Expected device_type {_DEVICE_TYPE} (npu), but got {device_type}{pta_error(ErrCode.PARAM)}"
        )
    if not 0 <= device_index < _C._device_count():
        raise RuntimeError(
            f"device_index should be in [0, {_C._device_count()}), but got {device_index}{pta_error(ErrCode.PARAM)}"
        )
    _C._stream_handle(stream_id, device_index)
    return {"stream_id": stream_id, "device_index": device_index, "device_type": device_type}


class _StreamMethods:
    """What Stream and SyncLaunchStream share; both are also a torch.Stream."""

    stream_id: int
    device_index: int
    device: torch.device

    @property
    def npu_stream(self) -> int:
        """Handle of the stream for native code: an ``npu_stream*`` of ``npu/runtime.h``."""
        return _C._stream_handle(self.stream_id, self.device_index)

    @property
    def _as_parameter_(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.npu_stream)

    @property
    def priority(self) -> int:
        """Not supported: a stream keeps its priority class, not the number it was made with."""
        raise RuntimeError(f"Stream.priority is not support on npu{pta_error(ErrCode.NOT_SUPPORT)}")

    @classmethod
    def priority_range(cls) -> tuple[int, int]:
        """Not supported: there are two classes, negative is high and the rest is normal."""
        raise RuntimeError(f"Stream.priority_range is not support on npu{pta_error(ErrCode.NOT_SUPPORT)}")

    def query(self) -> bool:
        """Return True when all work submitted so far has finished."""
        return _C._stream_query(self.stream_id, self.device_index)

    def synchronize(self) -> None:
        """Wait for all work submitted so far and raise its first error."""
        _C._stream_synchronize(self.stream_id, self.device_index)

    def record_event(self, event: torch.Event | None = None) -> torch.Event:
        """Record `event`, by default a new one, and return it."""
        if event is None:
            event = Event()
        event.record(self)
        return event

    def wait_event(self, event: torch.Event) -> None:
        """Make later work of this stream wait for `event`."""
        event.wait(self)

    def wait_stream(self, stream: torch.Stream) -> None:
        """Make later work of this stream wait for what `stream` has been given so far."""
        self.wait_event(stream.record_event())

    def set_data_preprocess_stream(self, is_data_preprocess_stream: bool = False) -> None:
        """Accept the hint that the stream preprocesses data; it changes nothing on this device."""

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _StreamMethods)
            and _family(self) is _family(other)
            and self.stream_id == other.stream_id
            and self.device_index == other.device_index
        )

    def __ne__(self, other: object) -> bool:
        # torch.Stream brings its own, which compares across families.
        return not self == other

    def __hash__(self) -> int:
        return hash((self.npu_stream, self.device))

    def __repr__(self) -> str:
        return f"<torch_npu.npu.{type(self).__name__} device={self.device} npu_stream={self.npu_stream:#x}>"


class Stream(_StreamMethods, torch.Stream):
    """A queue of work on one device; its work runs in submission order.

    Parameters
    ----------
    device : torch.device, int, str, optional
        Device of the stream, by default the current one.
    priority : int
        Negative for the high class, otherwise normal. A preference of the scheduler, nothing more.
    stream_id, device_index, device_type : int, optional
        Wrap an existing stream instead of taking one from the pool.
    is_sync_launch : bool, optional
        Take the stream from the sync-launch pool, see `SyncLaunchStream`.

    Notes
    -----
    Streams come from a pool of 32 per device and class: the 33rd equals the first.
    """

    def __new__(cls, device: Any = None, priority: int = 0, **kwargs: Any) -> Stream:
        _lazy_init()
        if kwargs.pop("is_sync_launch", False):
            return _new_sync_launch(cls, device)
        if "stream_ptr" in kwargs:
            raise RuntimeError(
                "Stream does not wrap foreign stream handles on this device; create a torch.npu.Stream and pass its "
                f"npu_stream to native code{pta_error(ErrCode.NOT_SUPPORT)}"
            )
        if "stream_id" in kwargs:
            return super().__new__(cls, **_existing(**kwargs))
        if kwargs:
            raise TypeError(f"Stream got an unexpected keyword argument {next(iter(kwargs))!r}")
        index = _checked_device(device)
        return _wrap(cls, *_C._stream_from_pool(index, max(priority, _HIGHEST_CLASS)))


class SyncLaunchStream(_StreamMethods, torch.Stream):
    """A stream whose work is launched inside the call, from a pool of its own (4 per device).

    Execution is still asynchronous: call `synchronize` to see results.
    """

    def __new__(cls, device: Any = None, priority: int = 0, **kwargs: Any) -> SyncLaunchStream:
        _lazy_init()
        if "stream_id" in kwargs:
            return super().__new__(cls, **_existing(**kwargs))
        if kwargs:
            raise TypeError(f"SyncLaunchStream got an unexpected keyword argument {next(iter(kwargs))!r}")
        return _new_sync_launch(cls, device)


def _family(instance: _StreamMethods) -> type:
    return Stream if isinstance(instance, Stream) else SyncLaunchStream


def _checked_device(device: Any) -> int:
    index = _get_device_index(device)
    if not 0 <= index < _C._device_count():
        raise RuntimeError(
            f"device index should be in [0, {_C._device_count()}), but got {index}{pta_error(ErrCode.PARAM)}"
        )
    return index


def _wrap(cls: type, stream_id: int, device_index: int) -> Any:
    return torch.Stream.__new__(cls, stream_id=stream_id, device_index=device_index, device_type=_DEVICE_TYPE)


def _new_sync_launch(cls: type, device: Any) -> Any:
    return _wrap(cls, *_C._sync_launch_stream_from_pool(_checked_device(device)))


class Event(torch.Event):
    """A mark in the work of a stream, to wait for, to order streams by and to take times with.

    Parameters
    ----------
    enable_timing : bool
        Keep the device time of the record.
    blocking : bool
        Accepted; waiting never spins for long.
    interprocess : bool
        Other processes may open the event with `from_ipc_handle`, wait for it and record it. Excludes `enable_timing`.
    """

    def __new__(cls, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> Event:
        if interprocess and enable_timing:
            raise RuntimeError(
                "Event(interprocess=True) cannot take times: use enable_timing=False, or an event without interprocess"
                f"{pta_error(ErrCode.PARAM)}"
            )
        return super().__new__(cls, "npu", enable_timing=enable_timing, blocking=blocking)

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self._timing = enable_timing
        self._interprocess = interprocess
        self._shared = False

    @classmethod
    def from_ipc_handle(cls, device: Any, handle: bytes) -> Event:
        """Return the event another process got `handle` for.

        Parameters
        ----------
        device : torch.device, int or str
            Device of the event; it must be the handle's, as this process counts its devices.
        handle : bytes
            What `ipc_handle` returned. The process that made the event must still have it.
        """
        _lazy_init()
        index = _checked_device(device)
        event = cls(interprocess=True)
        torch.Event.record(event, current_stream(index))
        event._shared = True
        actual = _C._open_event(event.npu_event, handle)
        if actual != index:
            raise RuntimeError(
                f"Event.from_ipc_handle: the event belongs to npu:{actual}, but the device given is npu:{index}"
                f"{pta_error(ErrCode.PARAM)}"
            )
        return event

    def ipc_handle(self) -> bytes:
        """Return bytes that name the event for `from_ipc_handle` in another process of this user and machine.

        An event that was never recorded gets the current device.
        """
        if not self._interprocess:
            raise RuntimeError(f"Event.ipc_handle needs an Event with interprocess=True{pta_error(ErrCode.PARAM)}")
        if not self._shared:
            torch.Event.record(self, current_stream())
            self._share()
        return _C._event_handle(self.npu_event)

    def _share(self) -> None:
        _C._share_event(self.npu_event)
        self._shared = True

    @property
    def npu_event(self) -> int:
        """Handle of the event for native code, 0 before the first record."""
        return self.event_id or 0

    @property
    def _as_parameter_(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.npu_event)

    @property
    def device(self) -> torch.device | None:  # type: ignore[override]
        """Device of the first record, None before."""
        return torch.Event.device.__get__(self) if self.npu_event else None

    def record(self, stream: torch.Stream | None = None) -> None:
        """Mark the end of the work `stream`, by default the current one, has been given so far."""
        stream = current_stream() if stream is None else stream
        super().record(stream)
        if self._interprocess and not self._shared:
            # Only the first record makes the event, which is then shared and recorded where others see it.
            self._share()
            super().record(stream)

    def wait(self, stream: torch.Stream | None = None) -> None:
        """Make later work of `stream` wait for the event; no-op when it was never recorded."""
        super().wait(current_stream() if stream is None else stream)

    def synchronize(self) -> None:
        """Wait on the host until the event has happened; no-op when it was never recorded."""
        if self.npu_event:
            _C._event_synchronize(self.npu_event)

    def elapsed_time(self, end_event: Event) -> float:  # type: ignore[override]
        """Return the milliseconds from this event to `end_event`; waits for both."""
        if not self.npu_event or not end_event.npu_event:
            raise RuntimeError(
                f"Both events must be recorded before calculating elapsed time.{pta_error(ErrCode.INTERNAL)}"
            )
        for event in (self, end_event):
            event._require_timing("elapsed_time")
            event.synchronize()
        return _C._event_elapsed_ms(self.npu_event, end_event.npu_event)

    def recorded_time(self) -> int:
        """Return the device time of the event in microseconds; waits for it."""
        if not self.npu_event:
            raise RuntimeError(
                f"Event must be recorded before getting recorded timestamp.{pta_error(ErrCode.INTERNAL)}"
            )
        self._require_timing("recorded_time")
        self.synchronize()
        return _C._event_time_ns(self.npu_event) // 1000

    def _require_timing(self, what: str) -> None:
        if not self._timing:
            raise RuntimeError(f"{what} needs an Event with enable_timing=True{pta_error(ErrCode.PARAM)}")

    def __repr__(self) -> str:
        if not self.npu_event:
            return "<torch_npu.npu.Event uninitialized>"
        return f"<torch_npu.npu.Event {self.npu_event:#x}>"


class StreamContext:
    """Makes a stream current, together with its device, and restores both. None changes nothing."""

    def __init__(self, stream: torch.Stream | None) -> None:
        self.stream = stream
        self.idx = -1 if stream is None else stream.device_index

    def __enter__(self) -> StreamContext:
        if self.stream is None:
            return self
        self._previous_device = _C._exchange_device(self.idx)
        self._previous_stream = _C._current_stream(self.idx)
        _C._set_current_stream(self.stream.stream_id, self.idx)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.stream is None:
            return
        _C._set_current_stream(*self._previous_stream)
        _C._exchange_device(self._previous_device)


def stream(stream: torch.Stream | None) -> StreamContext:
    """Return a context in which `stream` is current."""
    return StreamContext(stream)


def set_stream(stream: torch.Stream | None) -> None:
    """Make `stream` current for the calling thread, and its device too. None changes nothing."""
    if stream is None:
        return
    _lazy_init()
    _C._set_device(stream.device_index)
    _C._set_current_stream(stream.stream_id, stream.device_index)


def _set_stream_by_id(stream_id: int, device_index: int, device_type: int) -> None:
    set_stream(Stream(stream_id=stream_id, device_index=device_index, device_type=device_type))


def current_stream(device: Any = None) -> Stream:
    """Return the calling thread's current stream of `device`."""
    _lazy_init()
    return _wrap(Stream, *_C._current_stream(_checked_device(device)))


def default_stream(device: Any = None) -> Stream:
    """Return the default stream of `device`."""
    _lazy_init()
    return _wrap(Stream, *_C._default_stream(_checked_device(device)))
