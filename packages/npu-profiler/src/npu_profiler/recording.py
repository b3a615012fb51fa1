"""One recorded window: everything between a start and a stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from npu_profiler import builtin_markers, collector, console, marker_log
from npu_profiler.clocks import ClockPair, UnixTimeline, read_pair
from npu_profiler.host_events import HostEvent, HostRecorder
from npu_profiler.marker_log import Marker, MarkerLog


@dataclass(frozen=True)
class RecordingOptions:
    """What a window records."""

    cpu: bool = True
    npu: bool = True
    markers: bool = False
    include_domains: tuple[str, ...] = ()
    exclude_domains: tuple[str, ...] = ()
    record_shapes: bool = False
    profile_memory: bool = False
    with_stack: bool = False
    with_flops: bool = False


@dataclass(frozen=True)
class Trace:
    """What a window recorded.  Times are CLOCK_MONOTONIC nanoseconds unless they say otherwise."""

    options: RecordingOptions
    started: ClockPair
    stopped: ClockPair
    device: collector.Collected = collector.NOTHING
    host: Iterable[HostEvent] = ()
    markers: list[Marker] = field(default_factory=list)
    allocated_at_start: dict[int, int] = field(default_factory=dict)

    def timeline(self) -> UnixTimeline:
        """Return the converter to Unix time."""
        return UnixTimeline(self.started, self.stopped)


class RecorderBusyError(RuntimeError):
    """Another recording of this process is running."""


# The sink, the marker log and torch's profiler exist once per process.
_one_at_a_time = threading.Lock()


class Recording:
    """Collects one window.  Use: ``prepare`` (optional), ``start``, ``stop``; or ``prepare``, ``cancel``."""

    def __init__(self, options: RecordingOptions) -> None:
        self._options = options
        self._host: HostRecorder | None = None
        self._log: MarkerLog | None = None
        self._attached = False
        self._prepared = False
        self._allocated: dict[int, int] = {}
        self._started = ClockPair(0, 0)
        self.trace: Trace | None = None

    def prepare(self) -> None:
        """Do ahead of time what takes time, so that the first recorded step does not pay for it."""
        if self._prepared:
            return
        if not _one_at_a_time.acquire(blocking=False):
            raise RecorderBusyError("another profile of this process is recording; stop it first")
        self._prepared = True
        if self._options.cpu:
            self._host = self._prepare_host()
        if self._options.npu:
            collector.load()
        if self._options.markers:
            builtin_markers.install_dataloader()

    def start(self) -> None:
        """Begin to record."""
        self.prepare()
        try:
            self._start()
        except BaseException:
            self._finish()  # nobody will call stop
            raise

    def stop(self) -> None:
        """Wait for the device and end the recording; what it holds is then in :attr:`trace`.

        An error that the device reports at this synchronisation is raised after the recording has ended.
        """
        try:
            if self._attached or self._has_device_markers():
                _synchronize()
        finally:
            self.trace = self._finish()

    def cancel(self) -> None:
        """End a recording that was prepared but not started."""
        if self._host is not None:
            self._host.start()  # torch's profiler has no way back from prepared but through a recording
            self._host.stop()
            self._host = None
        self._release()

    def _start(self) -> None:
        options = self._options
        self._started = read_pair()
        if options.npu:
            if options.profile_memory:
                self._allocated = _allocated_bytes()
            try:
                collector.start()
                self._attached = True
            except collector.CollectorError as exc:
                console.error(f"NPU activity is not recorded: {exc}")
        if options.markers:
            self._log = MarkerLog(options.include_domains, options.exclude_domains)
            marker_log.activate(self._log)
        if self._host is not None:
            try:
                self._host.start()
            except RuntimeError as exc:
                self._host = None
                console.error(f"CPU activity is not recorded: {exc}")

    def _finish(self) -> Trace:
        try:
            host = self._stop_host()
            log, markers = self._log, []
            if log is not None:
                marker_log.deactivate()
                log.finish(time.monotonic_ns())
                markers = log.markers
            if self._attached:
                try:
                    collector.stop()
                except collector.CollectorError as exc:
                    console.error(f"the device records may be incomplete: {exc}")
            device = collector.NOTHING
            if self._attached or self._has_device_markers():
                device = collector.take()
                if device.lost:
                    console.warning(f"{device.lost} device records were lost: out of memory")
            return Trace(self._options, self._started, read_pair(), device, host, markers, self._allocated)
        finally:
            self._release()

    def _stop_host(self) -> Iterable[HostEvent]:
        if self._host is None:
            return ()
        try:
            return self._host.stop()
        except RuntimeError as exc:
            console.error(f"the CPU events are lost: {exc}")
            return ()

    def _has_device_markers(self) -> bool:
        return self._log is not None and self._log.has_device_side

    def _release(self) -> None:
        if self._prepared:
            self._prepared = False
            _one_at_a_time.release()

    def _prepare_host(self) -> HostRecorder | None:
        options = self._options
        try:
            return HostRecorder(
                record_shapes=options.record_shapes,
                with_stack=options.with_stack,
                with_flops=options.with_flops,
            )
        except RuntimeError as exc:
            console.error(f"CPU activity is not recorded: {exc}")
            return None


def _synchronize() -> None:
    import torch

    npu = getattr(torch, "npu", None)
    if npu is None or not npu.is_initialized():
        return
    for device in range(npu.device_count()):
        npu.synchronize(device)


def _allocated_bytes() -> dict[int, int]:
    import torch

    npu = getattr(torch, "npu", None)
    if npu is None or not npu.is_initialized():
        return {}
    return {device: npu.memory_allocated(device) for device in range(npu.device_count())}
