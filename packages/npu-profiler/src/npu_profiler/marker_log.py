"""Where markers go while a profile keeps them.

One log is active at most.  Recording a marker is a list append (atomic under the interpreter lock) plus, for a marker
with a stream, one task on that stream.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Collection

#: A stream as torch names it: device index and stream id.
StreamId = tuple[int, int]


class Marker:
    """A point (both ends are one) or a range in host time, with its device side if it has a stream.

    A plain class: creating a dataclass is the larger part of what importing this module costs.
    """

    __slots__ = (
        "message",
        "domain",
        "stream",
        "is_range",
        "finished",
        "begin_ns",
        "end_ns",
        "thread_id",
        "end_thread_id",
        "begin_token",
        "end_token",
    )

    def __init__(self, message: str, domain: str, stream: StreamId | None, *, is_range: bool) -> None:
        self.message = message
        self.domain = domain
        self.stream = stream
        self.is_range = is_range
        self.finished = not is_range
        self.begin_ns = self.end_ns = time.monotonic_ns()
        self.thread_id = self.end_thread_id = threading.get_native_id()
        self.begin_token = self.end_token = 0


_ids = itertools.count(1)


def new_id() -> int:
    """Return a number above zero that no other marker of this process has."""
    return next(_ids)


class MarkerLog:
    """The markers of one recording.

    Parameters
    ----------
    include, exclude
        Domain filters.  With both, ``include`` decides.
    """

    def __init__(self, include: Collection[str] = (), exclude: Collection[str] = ()) -> None:
        self._include = frozenset(include)
        self._exclude = frozenset() if include else frozenset(exclude)
        self._open: dict[int, Marker] = {}
        self.markers: list[Marker] = []
        self.has_device_side = False

    def wants(self, domain: str) -> bool:
        """Tell whether markers of ``domain`` are kept."""
        return domain in self._include if self._include else domain not in self._exclude

    def mark(self, message: str, domain: str, stream: StreamId | None) -> None:
        """Keep an instant event."""
        marker = Marker(message, domain, stream, is_range=False)
        marker.begin_token = marker.end_token = self._reach(stream)
        self.markers.append(marker)

    def open_range(self, range_id: int, message: str, domain: str, stream: StreamId | None) -> None:
        """Keep the begin of a range."""
        marker = Marker(message, domain, stream, is_range=True)
        marker.begin_token = self._reach(stream)
        self._open[range_id] = marker

    def close_range(self, range_id: int, domain: str) -> None:
        """Complete a range; an unknown id or another domain changes nothing."""
        found = self._open.get(range_id)
        if found is None or found.domain != domain:
            return
        # Of two threads that end the same range, the one that takes it out wins.
        marker = self._open.pop(range_id, None)
        if marker is None:
            return
        marker.end_token = self._reach(marker.stream)
        marker.end_thread_id = threading.get_native_id()
        marker.end_ns = time.monotonic_ns()
        marker.finished = True
        self.markers.append(marker)

    def finish(self, end_ns: int) -> None:
        """Cut the ranges that are still open at the end of the recording."""
        for range_id in list(self._open):
            marker = self._open.pop(range_id, None)
            if marker is not None:
                marker.end_ns = end_ns
                self.markers.append(marker)

    def _reach(self, stream: StreamId | None) -> int:
        if stream is None:
            return 0
        from npu_profiler import collector  # here: importing this module must stay cheap

        device, stream_id = stream
        token = new_id()
        collector.launch_marker(device, stream_id, token)
        self.has_device_side = True
        return token


_active: MarkerLog | None = None
_fork_guarded = False


def active() -> MarkerLog | None:
    """Return the log of the recording that keeps markers, or None."""
    return _active


def activate(log: MarkerLog) -> None:
    """Make ``log`` the one that receives markers."""
    global _active, _fork_guarded
    if not _fork_guarded:
        # A forked DataLoader worker inherits the log but nobody will ever read its copy.
        os.register_at_fork(after_in_child=deactivate)
        _fork_guarded = True
    _active = log


def deactivate() -> None:
    """Stop keeping markers."""
    global _active
    _active = None
