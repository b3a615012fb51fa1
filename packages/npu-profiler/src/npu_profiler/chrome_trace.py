"""Writes a recorded window in the Chrome trace event format (a JSON list), for Perfetto and chrome://tracing.

Tracks: the process "Python" with one row per thread (framework ops, launches) and rows for host markers; one process
"Ascend Hardware" per device with one row per stream, rows for the markers of that stream, and memory counters.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from npu_profiler import collector
from npu_profiler.autograd_links import forward_backward_pairs
from npu_profiler.collector import Record
from npu_profiler.marker_log import Marker
from npu_profiler.recording import Trace
from npu_profiler.task_types import task_type

Event = dict[str, Any]

# Rows without an OS thread behind them get numbers no thread has (Linux: at most 2^22).
_FIRST_ROW = 1 << 23
# Room for the processes of 255 devices below the next framework process.
_DEVICES_PER_PROCESS = 256
_NO_MODEL = 0xFFFFFFFF


def write_chrome_trace(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write ``trace`` to ``path``, compressed when the name ends in ``.gz``.  The file is readable by owner and group.

    Parameters
    ----------
    trace
        A recorded window.
    path
        File to create or replace.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
    with os.fdopen(descriptor, "wb") as raw:
        if Path(path).suffix == ".gz":
            with gzip.open(raw, "wt", encoding="utf-8") as text:
                _write(ChromeTrace(trace).events(), text)
        else:
            with io.TextIOWrapper(raw, encoding="utf-8") as text:
                _write(ChromeTrace(trace).events(), text)


def _write(events: Iterator[Event], text: Any) -> None:
    encode = json.JSONEncoder(separators=(",", ":")).encode
    separator = "[\n"
    for event in events:
        text.write(separator)
        text.write(encode(event))
        separator = ",\n"
    text.write("[]\n" if separator == "[\n" else "\n]\n")


def _microseconds(nanoseconds: int) -> str:
    """Return a time as text: the microseconds of today do not fit a double with three decimals."""
    return f"{nanoseconds // 1000}.{nanoseconds % 1000:03d}"


class ChromeTrace:
    """The events of one window."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._to_unix = trace.timeline().from_monotonic
        self._process = os.getpid()
        self._rows: dict[tuple[Any, ...], int] = {}
        self._names: list[Event] = []
        self._first_unix = trace.started.unix_ns
        self._last_unix = trace.stopped.unix_ns

    def events(self) -> Iterator[Event]:
        """Yield every event; rows are named after the events that use them."""
        yield from self._process_names(self._process, "Python", "CPU", 0)
        yield from self._device_records()
        if self._trace.options.cpu:
            yield from self._host_events()
        yield from self._markers()
        yield from self._names

    # ---- rows -------------------------------------------------------------------------------------------------------

    def _process_names(self, process: int, name: str, label: str, order: int) -> Iterator[Event]:
        for kind, args in (
            ("process_name", {"name": name}),
            ("process_labels", {"labels": label}),
            ("process_sort_index", {"sort_index": order}),
        ):
            yield {"ph": "M", "name": kind, "pid": process, "tid": 0, "args": args}

    def _row(self, key: tuple[Any, ...], process: int, name: str, order: int, row: int | None = None) -> int:
        known = self._rows.get(key)
        if known is not None:
            return known
        if row is None:
            row = _FIRST_ROW + len(self._rows)
        self._rows[key] = row
        place: Event = {"ph": "M", "pid": process, "tid": row}
        self._names.append({**place, "name": "thread_name", "args": {"name": name}})
        self._names.append({**place, "name": "thread_sort_index", "args": {"sort_index": order}})
        return row

    def _device_process(self, device: int) -> int:
        process = self._process * _DEVICES_PER_PROCESS + 1 + device
        if ("device", device) not in self._rows:
            self._rows["device", device] = 0
            self._names += self._process_names(process, "Ascend Hardware", f"NPU {device}", 10 + device)
        return process

    def _stream_row(self, device: int, stream_id: int, lane: int = 0) -> tuple[int, int]:
        """Lane 0 is the row of the stream's kernels; the others, right below it, hold its markers."""
        process = self._device_process(device)
        name = f"Stream {stream_id}" if lane == 0 else f"Stream {stream_id} mstx" + _nth(lane)
        order = (stream_id % (1 << 24)) * 16 + min(lane, 15)
        return process, self._row(("stream", device, stream_id, lane), process, name, order)

    def _thread_row(self, thread_id: int) -> int:
        return self._row(("thread", thread_id), self._process, f"Thread {thread_id}", 0, thread_id)

    # ---- device records ---------------------------------------------------------------------------------------------

    def _device_records(self) -> Iterator[Event]:
        if not self._trace.options.npu:
            return
        records = list(self._trace.device.records())
        names = self._trace.device.names
        tasks = {r.correlation: r for r in records if r.kind == collector.KIND_TASK and r.correlation}
        allocated = dict(self._trace.allocated_at_start)
        task_ids: dict[tuple[int, int], int] = {}
        # In order of time: counters are read in file order, and task ids count along the stream.
        for record in sorted(records, key=lambda r: r.begin_ns):
            if record.kind == collector.KIND_TASK:
                yield self._kernel(record, names[record.name], task_ids)
            elif record.kind == collector.KIND_API and self._trace.options.cpu:
                yield from self._call(record, names, tasks.get(record.correlation))
            elif record.kind == collector.KIND_MEMORY and self._trace.options.profile_memory:
                yield self._memory(record, names[record.name], allocated)

    def _kernel(self, record: Record, name: str, task_ids: dict[tuple[int, int], int]) -> Event:
        process, row = self._stream_row(record.device, record.stream_id)
        stream = record.device, record.stream_id
        task_ids[stream] = task_id = task_ids.get(stream, -1) + 1
        return {
            **self._span(name, "kernel", process, row, record.begin_ns, record.end_ns),
            "args": {
                "Model Id": _NO_MODEL,
                "Task Type": task_type(name, record.task_kind),
                "Stream Id": record.stream_id,
                "Task Id": task_id,
                "Connection Id": record.correlation,
                "Device Id": record.device,
                "Queued(us)": (record.begin_ns - record.submit_ns) / 1000 if record.submit_ns else 0.0,
            },
        }

    def _call(self, record: Record, names: tuple[str, ...], task: Record | None) -> Iterator[Event]:
        row = self._thread_row(record.thread_id)
        name = names[record.name]
        if not record.correlation:
            yield self._span(name, "runtime", self._process, row, record.begin_ns, record.end_ns)
            return
        yield {
            **self._span(f"Enqueue@{name}", "enqueue", self._process, row, record.begin_ns, record.end_ns),
            "args": {"Connection Id": record.correlation},
        }
        if task is None:
            return  # refused, dropped after an error of the stream, or not finished at the end of the recording
        process, stream_row = self._stream_row(task.device, task.stream_id)
        arrow: Event = {"name": "torch_to_npu", "cat": "async_npu", "id": record.correlation}
        yield {**arrow, "ph": "s", "pid": self._process, "tid": row, "ts": self._time(record.begin_ns)}
        yield {**arrow, "ph": "f", "bp": "e", "pid": process, "tid": stream_row, "ts": self._time(task.begin_ns)}

    def _memory(self, record: Record, name: str, allocated: dict[int, int]) -> Event:
        size = abs(record.value)
        total = allocated.get(record.device, 0) + (-size if name == "free" else size)
        allocated[record.device] = total
        return {
            "ph": "C",
            "name": f"NPU {record.device} memory",
            "cat": "memory",
            "pid": self._device_process(record.device),
            "tid": 0,
            "ts": self._time(record.begin_ns),
            "args": {"Allocated(bytes)": total},
        }

    # ---- host -------------------------------------------------------------------------------------------------------

    def _host_events(self) -> Iterator[Event]:
        host = list(self._trace.host)
        for number, (forward, backward) in enumerate(forward_backward_pairs(host), start=1):
            arrow: Event = {"name": "fwdbwd", "cat": "fwdbwd", "id": number, "pid": self._process}
            yield {**arrow, "ph": "s", "tid": forward.thread_id, "ts": _microseconds(forward.begin_ns)}
            yield {**arrow, "ph": "f", "bp": "e", "tid": backward.thread_id, "ts": _microseconds(backward.begin_ns)}
        for event in host:
            begin, end = max(event.begin_ns, self._first_unix), min(event.end_ns, self._last_unix)
            if end < begin:
                continue
            args: dict[str, Any] = {}
            if event.category == "cpu_op":
                args["Sequence number"] = event.sequence_number
                args["Fwd thread id"] = event.forward_thread_id
                if self._trace.options.record_shapes:
                    args["Input Dims"] = event.shapes
                    args["Input type"] = event.dtypes
            yield {
                "ph": "X",
                "name": event.name,
                "cat": event.category,
                "pid": self._process,
                "tid": self._thread_row(event.thread_id),
                "ts": _microseconds(begin),
                "dur": (end - begin) / 1000,
                "args": args,
            }

    # ---- markers ----------------------------------------------------------------------------------------------------

    def _markers(self) -> Iterator[Event]:
        times = self._trace.device.marker_times
        host: dict[str, list[tuple[int, int, Marker]]] = {}
        device: dict[tuple[int, int], list[tuple[int, int, Marker]]] = {}
        for marker in self._trace.markers:
            host.setdefault(marker.domain, []).append((marker.begin_ns, marker.end_ns, marker))
            if marker.stream is None or marker.begin_token not in times:
                continue
            # A range cut by the end of the recording, or whose end the stream dropped after an error, ends with it.
            end = times.get(marker.end_token, self._trace.stopped.monotonic_ns)
            device.setdefault(marker.stream, []).append((times[marker.begin_token], end, marker))
        for domain, spans in sorted(host.items()):
            for lane, (begin, end, marker) in _lanes(spans):
                row = self._row(("mstx", domain, lane), self._process, f"mstx {domain}" + _nth(lane), 1)
                yield self._marker(marker, self._process, row, begin, end)
        for (device_index, stream_id), spans in sorted(device.items()):
            for lane, (begin, end, marker) in _lanes(spans):
                yield self._marker(marker, *self._stream_row(device_index, stream_id, lane), begin, end)

    def _marker(self, marker: Marker, process: int, row: int, begin_ns: int, end_ns: int) -> Event:
        args: dict[str, Any] = {"domain": marker.domain, "Begin thread": marker.thread_id}
        if marker.is_range:
            args["End thread"] = marker.end_thread_id
        if not marker.finished:
            args["Unfinished"] = True
        return {**self._span(marker.message, "mstx", process, row, begin_ns, end_ns), "args": args}

    # ---- parts ------------------------------------------------------------------------------------------------------

    def _time(self, monotonic_ns: int) -> str:
        return _microseconds(self._to_unix(monotonic_ns))

    def _span(self, name: str, category: str, process: int, row: int, begin_ns: int, end_ns: int) -> Event:
        begin, end = self._to_unix(begin_ns), self._to_unix(end_ns)
        return {
            "ph": "X",
            "name": name,
            "cat": category,
            "pid": process,
            "tid": row,
            "ts": _microseconds(begin),
            "dur": (end - begin) / 1000,
        }


def _nth(lane: int) -> str:
    return f" #{lane}" if lane > 1 else ""


def _lanes(spans: list[tuple[int, int, Marker]]) -> Iterator[tuple[int, tuple[int, int, Marker]]]:
    """Give each span a lane, from 1, in which all spans nest: viewers cannot draw partial overlap in one row."""
    open_ends: list[list[int]] = []
    for span in sorted(spans, key=lambda s: (s[0], -s[1])):
        begin, end, _ = span
        for lane, ends in enumerate(open_ends, start=1):
            while ends and ends[-1] <= begin:
                ends.pop()
            if not ends or end <= ends[-1]:
                ends.append(end)
                yield lane, span
                break
        else:
            open_ends.append([end])
            yield len(open_ends), span
