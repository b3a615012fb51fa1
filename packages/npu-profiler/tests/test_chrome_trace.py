"""The Chrome trace of a window put together by hand: every event is known in advance."""

from __future__ import annotations

import json
import os

import pytest

from npu_profiler import collector
from npu_profiler.chrome_trace import ChromeTrace, write_chrome_trace
from npu_profiler.clocks import ClockPair, UnixTimeline, read_pair
from npu_profiler.recording import RecordingOptions, Trace
from npu_profiler.task_types import task_type

NAMES = ("aten::mm.out", "alloc", "free", "wait")
START, STOP = ClockPair(1_000_000, 5_000_001_000_000), ClockPair(2_000_000, 5_000_002_000_000)
SHIFT = 5_000_000_000_000
HOST_THREAD, ENGINE_THREAD = 77, 99


def record(kind, name, begin, end, *, correlation=0, stream=-1, value=0, thread=HOST_THREAD, submit=0, task_kind=0):
    return collector._RECORD.pack(
        begin, end, submit, correlation, stream, value, kind, 0, thread, task_kind, NAMES.index(name), 0
    )


def task(name, begin, end, **more):
    return record(collector.KIND_TASK, name, begin, end, thread=ENGINE_THREAD, stream=5, **more)


def trace_of(*records, **options):
    allocated = {0: 1000} if options.get("profile_memory") else {}
    collected = collector.Collected(b"".join(records), NAMES, {}, 0)
    return Trace(RecordingOptions(**options), START, STOP, collected, (), [], allocated)


def events(trace):
    return list(ChromeTrace(trace).events())


def test_a_kernel_and_its_launch():
    found = events(
        trace_of(
            record(collector.KIND_API, "aten::mm.out", 1_100_000, 1_100_500, correlation=9, stream=5),
            task("aten::mm.out", 1_200_001, 1_300_002, correlation=9, submit=1_100_001),
        )
    )
    (kernel,) = (e for e in found if e.get("cat") == "kernel")
    device = os.getpid() * 256 + 1
    assert (kernel["ph"], kernel["name"], kernel["pid"]) == ("X", "aten::mm.out", device)
    assert (kernel["ts"], kernel["dur"]) == ("5000001200.001", 100.001)
    assert kernel["args"] == {
        "Model Id": 0xFFFFFFFF,
        "Task Type": "AI_CORE",
        "Stream Id": 5,
        "Task Id": 0,
        "Connection Id": 9,
        "Device Id": 0,
        "Queued(us)": 100.0,
    }
    (launch,) = (e for e in found if e.get("cat") == "enqueue")
    assert (launch["name"], launch["pid"], launch["tid"]) == ("Enqueue@aten::mm.out", os.getpid(), HOST_THREAD)
    assert (launch["ts"], launch["dur"]) == ("5000001100.000", 0.5)
    start, finish = (e for e in found if e.get("cat") == "async_npu")
    assert (start["ph"], start["tid"], start["ts"], start["id"]) == ("s", HOST_THREAD, launch["ts"], 9)
    assert (finish["ph"], finish["bp"], finish["pid"], finish["tid"]) == ("f", "e", device, kernel["tid"])
    assert (finish["ts"], finish["id"], finish["name"]) == (kernel["ts"], 9, start["name"])
    names = {(e["pid"], e["tid"], e["name"]): e["args"] for e in found if e["ph"] == "M"}
    assert names[device, 0, "process_name"] == {"name": "Ascend Hardware"}
    assert names[device, 0, "process_labels"] == {"labels": "NPU 0"}
    assert names[device, kernel["tid"], "thread_name"] == {"name": "Stream 5"}
    assert names[os.getpid(), HOST_THREAD, "thread_name"] == {"name": f"Thread {HOST_THREAD}"}


def test_a_launch_whose_task_did_not_run_has_no_arrow():
    found = events(trace_of(record(collector.KIND_API, "aten::mm.out", 1_100_000, 1_100_500, correlation=9, stream=5)))
    assert [e["name"] for e in found if e["ph"] != "M"] == ["Enqueue@aten::mm.out"]


def test_other_calls_keep_their_name():
    found = events(trace_of(record(collector.KIND_API, "wait", 1_100_000, 1_100_500)))
    assert [(e["name"], e["cat"]) for e in found if e["ph"] != "M"] == [("wait", "runtime")]


def test_activities_choose_the_rows():
    records = (
        record(collector.KIND_API, "aten::mm.out", 1_100_000, 1_100_500, correlation=9, stream=5),
        task("aten::mm.out", 1_200_001, 1_300_002, correlation=9),
    )
    assert [e["cat"] for e in events(trace_of(*records, cpu=False)) if e["ph"] != "M"] == ["kernel"]
    assert [e for e in events(trace_of(*records, npu=False)) if e["ph"] != "M"] == []


def test_memory_counters_add_up_in_order_of_time():
    records = (
        record(collector.KIND_MEMORY, "free", 1_300_000, 1_300_000, value=1500),
        record(collector.KIND_MEMORY, "alloc", 1_200_000, 1_200_000, value=2048),
    )
    found = [e for e in events(trace_of(*records, profile_memory=True)) if e["ph"] == "C"]
    assert [e["args"]["Allocated(bytes)"] for e in found] == [3048, 1548]
    assert [e["ts"] for e in found] == ["5000001200.000", "5000001300.000"]
    assert [e for e in events(trace_of(*records)) if e["ph"] == "C"] == []


def test_written_file_is_json_and_replaces_an_older_one(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text("x" * 100_000)
    trace = trace_of(task("aten::mm.out", 1_200_001, 1_300_002, correlation=9))
    write_chrome_trace(trace, path)
    assert json.loads(path.read_text()) == events(trace)


def test_timeline_is_the_line_through_both_moments():
    straight = UnixTimeline(START, STOP)
    assert straight.from_monotonic(1_500_000) == SHIFT + 1_500_000
    slewed = UnixTimeline(START, ClockPair(2_000_000, 5_000_002_000_100))
    assert [slewed.from_monotonic(t) - t - SHIFT for t in (1_000_000, 1_500_000, 2_000_000)] == [0, 50, 100]
    assert UnixTimeline(START, START).from_monotonic(1_000_500) == SHIFT + 1_000_500


def test_clock_pairs_agree():
    first, second = read_pair(), read_pair()
    drift = (second.unix_ns - first.unix_ns) - (second.monotonic_ns - first.monotonic_ns)
    assert abs(drift) < 20_000


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("aten::mm.out", 0, "AI_CORE"),
        ("aten::bmm", 0, "AI_CORE"),
        ("aten::convolution_overrideable", 0, "AI_CORE"),
        ("aten::add.out", 0, "AI_VECTOR_CORE"),
        ("aten::dummy", 0, "AI_VECTOR_CORE"),
        ("aten::copy_", 1, "MEMCPY_ASYNC"),
        ("hccl::all_reduce", 2, "HCCL"),
    ],
)
def test_task_types(name, kind, expected):
    assert task_type(name, kind) == expected
