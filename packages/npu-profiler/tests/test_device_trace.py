"""Kernels in the trace: every one, once, on its stream, joined to its launch."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from npu_profiler import collector
from npu_profiler.profiler import ProfilerActivity, ProfilerLevel, _ExperimentalConfig, profile, schedule

HOUR_NS = 3600 * 10**9


def kernels(events, name=""):
    return [event for event in events if event.get("cat") == "kernel" and name in event["name"]]


def launches(events, name=""):
    return [event for event in events if event.get("cat") == "enqueue" and name in event["name"]]


def rows(events):
    return {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}


def delay(match, nanoseconds):
    from npu_core import _C

    _C._inject_fault(0, _C._FAULT_DELAY_TASK, match=match, count=1, delay_ns=nanoseconds)


def hold(match):
    """The next task of that name does not run before `release`."""
    delay(match, HOUR_NS)


def release():
    from npu_core import _C

    _C._inject_fault(0, _C._FAULT_NONE)


def check_sound(events):
    """Hold for every trace: kernels follow each other on a stream, and every launch is joined to its kernel."""
    by_stream: dict[tuple, list] = {}
    for event in kernels(events):
        assert event["dur"] >= 0
        by_stream.setdefault((event["pid"], event["tid"]), []).append(event)
    for of_stream in by_stream.values():
        of_stream.sort(key=lambda event: event["begin"])
        for a, b in zip(of_stream, of_stream[1:], strict=False):
            assert a["end"] <= b["begin"]
        assert [event["args"]["Task Id"] for event in of_stream] == list(range(len(of_stream)))
    ids = [event["args"]["Connection Id"] for event in kernels(events)]
    assert len(set(ids)) == len(ids) and all(ids)
    starts = {event["id"]: event for event in events if event["ph"] == "s" and event["cat"] == "async_npu"}
    ends = {event["id"]: event for event in events if event["ph"] == "f" and event["cat"] == "async_npu"}
    by_launch = {event["args"]["Connection Id"]: event for event in launches(events)}
    assert set(starts) == set(ends) == set(by_launch) == set(ids)
    for kernel in kernels(events):
        number = kernel["args"]["Connection Id"]
        launch = by_launch[number]
        assert launch["name"] == f"Enqueue@{kernel['name']}"
        assert launch["begin"] <= kernel["begin"]
        assert (starts[number]["tid"], starts[number]["begin"]) == (launch["tid"], launch["begin"])
        assert (ends[number]["pid"], ends[number]["tid"]) == (kernel["pid"], kernel["tid"])
        assert ends[number]["begin"] == kernel["begin"]


def test_every_op_appears_once_and_nothing_from_outside(npu, events_of):
    x = torch.ones(64, device="npu")
    before = [x.sin() for _ in range(5)]
    with profile() as prof:
        for _ in range(7):
            x.add_(1)
        for _ in range(3):
            x.mul(2)
    after = [x.sin() for _ in range(5)]
    npu.synchronize()
    events = events_of(prof)
    check_sound(events)
    assert len(before + after) == 10
    assert (len(kernels(events, "add")), len(kernels(events, "mul"))) == (7, 3)
    assert (len(launches(events, "add")), len(launches(events, "mul"))) == (7, 3)
    assert kernels(events, "sin") == [] and launches(events, "sin") == []
    started, stopped = prof._trace.started.unix_ns, prof._trace.stopped.unix_ns
    assert all(started <= event["begin"] <= event["end"] <= stopped for event in events if "ts" in event)


def test_launch_lies_inside_its_framework_op(npu, events_of):
    x = torch.ones(64, device="npu")
    with profile() as prof:
        for _ in range(20):
            x.add_(1)
            time.sleep(0.002)
    events = events_of(prof)
    ops = sorted(
        (e for e in events if e.get("cat") == "cpu_op" and e["name"] == "aten::add_"), key=lambda e: e["begin"]
    )
    found = sorted(launches(events, "add"), key=lambda e: e["begin"])
    assert len(ops) == len(found) == 20
    for op, launch in zip(ops, found, strict=True):
        # The ops are 2 ms apart; two clocks joined by a line may disagree by a microsecond.
        assert op["tid"] == launch["tid"]
        assert op["begin"] - 1000 <= launch["begin"] <= launch["end"] <= op["end"] + 1000


def test_each_stream_has_its_row(npu, events_of):
    x = torch.ones(64, device="npu")
    side = npu.Stream()
    with profile() as prof:
        x.add(1)
        with npu.stream(side):
            x.mul(2)
            x.mul(3)
        npu.synchronize()
    events = events_of(prof)
    check_sound(events)
    names = rows(events)
    default = npu.default_stream().stream_id
    assert {names[e["pid"], e["tid"]] for e in kernels(events, "add")} == {f"Stream {default}"}
    assert {names[e["pid"], e["tid"]] for e in kernels(events, "mul")} == {f"Stream {side.stream_id}"}
    assert [e["args"]["Stream Id"] for e in kernels(events, "mul")] == [side.stream_id] * 2
    (device,) = {e["pid"] for e in kernels(events)}
    labels = [e["args"]["labels"] for e in events if e["name"] == "process_labels" and e["pid"] == device]
    assert labels == ["NPU 0"]


def test_a_long_task_shows_its_real_duration(npu, events_of):
    a = torch.ones(1500, 1500, device="npu")
    a @ a
    pairs = [(npu.Event(enable_timing=True), npu.Event(enable_timing=True)) for _ in range(7)]
    with profile() as prof:
        for begin, end in pairs:
            begin.record()
            a @ a
            end.record()
    found = sorted(kernels(events_of(prof), "mm"), key=lambda event: event["begin"])
    between = [begin.elapsed_time(end) * 1000 for begin, end in pairs]
    assert len(found) == len(between)
    assert all(kernel["args"]["Task Type"] == "AI_CORE" for kernel in found)
    # 6.75 GFLOP: no CPU does that in a millisecond.  The events stand right before and after the kernel.
    assert all(1000 < kernel["dur"] <= time * 1.001 for kernel, time in zip(found, between, strict=True))
    assert max(kernel["dur"] / time for kernel, time in zip(found, between, strict=True)) > 0.9


def test_a_delayed_task_starts_late_and_later_tasks_after_it(npu, events_of):
    x = torch.ones(64, device="npu")
    with profile() as prof:
        hold("mul")
        x.mul(2)
        x.add(1)
        release()
    events = events_of(prof)
    check_sound(events)
    (slow,), (next_one,) = kernels(events, "mul"), kernels(events, "add")
    (launch,), (next_launch,) = launches(events, "mul"), launches(events, "add")
    assert launch["end"] <= next_launch["begin"]
    assert next_one["begin"] >= slow["end"]
    assert next_launch["end"] < slow["begin"]  # the host did not wait
    queued = next_one["args"]["Queued(us)"] * 1000
    assert queued == pytest.approx(next_one["begin"] - next_launch["begin"], abs=1000)


def test_stop_waits_for_what_is_queued(npu, events_of):
    x = torch.ones(64, device="npu")
    with profile() as prof:
        delay("sin", 300_000_000)
        x.sin()
        for _ in range(50):
            x.add(1)
    events = events_of(prof)
    assert (len(kernels(events, "sin")), len(kernels(events, "add"))) == (1, 50)


def test_nothing_is_lost_among_many_tiny_ops(npu, events_of):
    count = 100_000
    x = torch.zeros(1, device="npu")
    with profile(activities=[ProfilerActivity.NPU]) as prof:
        for _ in range(count):
            x.add_(1)
    assert x.item() == count
    records = [r for r in prof._trace.device.records() if r.kind == collector.KIND_TASK]
    assert prof._trace.device.lost == 0
    assert len(records) == count
    found = kernels(events_of(prof), "add")
    assert len(found) == count
    assert len({event["args"]["Connection Id"] for event in found}) == count


def test_producers_on_many_threads(npu, events_of):
    count = 2000
    threads_seen: list[int] = []

    def work():
        x = torch.ones(8, device="npu")
        threads_seen.append(threading.get_native_id())
        with npu.stream(npu.Stream()):
            for _ in range(count):
                x.add_(1)

    with profile() as prof:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    events = events_of(prof)
    check_sound(events)
    adds = launches(events, "add")
    assert len(adds) == len(kernels(events, "add")) == 4 * count
    assert sorted(e["tid"] for e in adds) == sorted(threads_seen * count)


def test_two_profiles_in_sequence(npu, events_of):
    x = torch.ones(8, device="npu")
    with profile() as first:
        x.add(1)
    with profile() as second:
        x.mul(1)
    a, b = events_of(first), events_of(second)
    assert (len(kernels(a, "add")), len(kernels(a, "mul"))) == (1, 0)
    assert (len(kernels(b, "add")), len(kernels(b, "mul"))) == (0, 1)


def test_each_scheduled_window_has_its_kernels(npu, events_of):
    x = torch.ones(8, device="npu")
    counts = []
    plan = schedule(wait=1, active=2, warmup=1, repeat=2, skip_first=1)
    with profile(schedule=plan, on_trace_ready=lambda p: counts.append(len(kernels(events_of(p), "add")))) as prof:
        for step in range(11):
            for _ in range(step + 1):
                x.add(1)
            prof.step()
    assert counts == [4 + 5, 8 + 9]


def test_activities_and_levels(npu, events_of):
    x = torch.ones(8, device="npu")

    def categories(**options):
        with profile(**options) as prof:
            x.add(1)
        return {event["cat"] for event in events_of(prof) if event["ph"] == "X"}

    assert categories() >= {"cpu_op", "enqueue", "kernel"}
    assert categories(activities=[ProfilerActivity.NPU]) == {"kernel"}
    assert categories(activities=[ProfilerActivity.CPU]) == {"cpu_op"}
    config = _ExperimentalConfig(profiler_level=ProfilerLevel.Level_none, mstx=True)
    assert categories(experimental_config=config) == set()


def test_memory_counters_follow_the_allocator(npu, events_of):
    start = npu.memory_allocated()
    with profile(profile_memory=True) as prof:
        kept = torch.empty(1 << 20, device="npu")
        torch.empty(3 << 20, device="npu").add(1)
    values = [e["args"]["Allocated(bytes)"] for e in events_of(prof) if e["ph"] == "C"]
    assert max(values) >= start + (4 << 22)
    assert values[-1] == npu.memory_allocated() >= start + kept.nbytes


def test_an_error_of_the_device_ends_the_recording_and_is_raised(npu, events_of):
    from npu_core import _C

    x = torch.ones(8, device="npu")
    prof = profile()
    prof.start()
    x.add(1)
    npu.synchronize()
    _C._inject_fault(0, _C._FAULT_FAIL_TASK, match="mul", count=1)
    x.mul(1)
    with pytest.raises(RuntimeError, match="mul"):
        prof.stop()
    assert len(kernels(events_of(prof), "add")) == 1
    with profile() as again:
        x.add(1)
    assert len(kernels(events_of(again), "add")) == 1


def test_nothing_goes_on_after_stop(npu):
    def threads():
        return sorted(open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task"))

    x = torch.ones(8, device="npu")
    with profile():  # what torch and the runtime start once stays
        x.add(1)
    before = threads()
    with profile():
        x.add(1)
    for _ in range(100):
        x.add(1)
    npu.synchronize()
    assert threads() == before
    assert collector.take() == collector.NOTHING


def test_the_names_are_on_torch_npu():
    pytest.importorskip("torch_npu", reason="needs npu-core")
    program = """
import torch
import torch_npu.profiler
from torch_npu.profiler import profile, ProfilerActivity
assert torch_npu.profiler.profile is profile
assert torch_npu.npu.mstx is torch.npu.mstx
assert torch_npu.npu.mstx.mark("m") is None
import sys
assert "libnpu_profiler.so" not in open("/proc/self/maps").read()
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
