"""The collector library (``csrc/collector.h``) through ctypes, loaded at the first recording."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_LIBRARY = "libnpu_profiler.so"
_COPY_BLOCK = 65536

KIND_TASK = 0
KIND_API = 1
KIND_MEMORY = 2


class Record(NamedTuple):
    """One record of ``npu_profiler_record``; times are nanoseconds of CLOCK_MONOTONIC."""

    begin_ns: int
    end_ns: int
    submit_ns: int
    correlation: int
    stream_id: int
    value: int
    kind: int
    device: int
    thread_id: int
    task_kind: int
    name: int
    reserved: int


_RECORD = struct.Struct("=QQQQqqiiIIII")
_MARKER = struct.Struct("=QQ")


class CollectorError(RuntimeError):
    """The library refused a call; the text says why."""


@dataclass(frozen=True)
class Collected:
    """What one recording has brought in."""

    packed_records: bytes
    names: tuple[str, ...]
    marker_times: dict[int, int]
    lost: int

    def records(self) -> Iterator[Record]:
        """Yield the records in the order in which they reached the sink."""
        return map(Record._make, _RECORD.iter_unpack(self.packed_records))


NOTHING = Collected(b"", (), {}, 0)


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(Path(__file__).with_name(_LIBRARY)))
    size, index = ctypes.c_size_t, ctypes.c_uint32
    for name in ("start", "stop"):
        _declare(library, name, ctypes.c_int32)
    _declare(library, "clear", None)
    _declare(library, "launch_marker", ctypes.c_int32, ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64)
    _declare(library, "record_count", size)
    _declare(library, "copy_records", size, size, size, ctypes.c_void_p)
    _declare(library, "marker_count", size)
    _declare(library, "copy_markers", size, size, size, ctypes.c_void_p)
    _declare(library, "name_count", index)
    _declare(library, "name", ctypes.c_char_p, index)
    _declare(library, "lost_count", ctypes.c_uint64)
    _declare(library, "clock_ns", ctypes.c_uint64)
    _declare(library, "last_error", ctypes.c_char_p)
    return library


def _declare(library: ctypes.CDLL, name: str, result: type | None, *arguments: type) -> None:
    function = getattr(library, f"npu_profiler_{name}")
    function.restype = result
    function.argtypes = arguments


def _check(library: ctypes.CDLL, status: int) -> None:
    if status != 0:
        text = library.npu_profiler_last_error().decode(errors="replace")
        raise CollectorError(text or f"status {status}")


def load() -> None:
    """Load the library now, so that the start of a recording does not pay for it."""
    _library()


def start() -> None:
    """Attach the sink to the runtime; raises CollectorError when there is none or another sink is attached."""
    library = _library()
    _check(library, library.npu_profiler_start())


def stop() -> None:
    """Flush every ring of the runtime and detach the sink."""
    library = _library()
    _check(library, library.npu_profiler_stop())


def launch_marker(device: int, stream_id: int, token: int) -> None:
    """Put a marker on a stream; the time at which it is reached comes back in ``Collected.marker_times[token]``."""
    library = _library()
    _check(library, library.npu_profiler_launch_marker(device, stream_id, token))


def clock_ns() -> int:
    """Return the device clock, 0 without a runtime."""
    return int(_library().npu_profiler_clock_ns())


def take() -> Collected:
    """Return everything collected and clear the library.  Call it after :func:`stop`."""
    library = _library()
    packed = _copy(library.npu_profiler_record_count(), library.npu_profiler_copy_records, _RECORD.size)
    markers = _copy(library.npu_profiler_marker_count(), library.npu_profiler_copy_markers, _MARKER.size)
    names = tuple(
        library.npu_profiler_name(index).decode(errors="replace") for index in range(library.npu_profiler_name_count())
    )
    lost = library.npu_profiler_lost_count()
    library.npu_profiler_clear()
    return Collected(packed, names, dict(_MARKER.iter_unpack(markers)), lost)


def _copy(count: int, copy: Callable[[int, int, ctypes.Array[ctypes.c_char]], int], size: int) -> bytes:
    # In blocks: the one large buffer is the result, not a second copy of it.
    blocks = []
    buffer = ctypes.create_string_buffer(min(count, _COPY_BLOCK) * size)
    for first in range(0, count, _COPY_BLOCK):
        copied = copy(first, _COPY_BLOCK, buffer)
        blocks.append(ctypes.string_at(buffer, copied * size))
    return b"".join(blocks)
