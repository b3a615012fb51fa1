"""Markers on a stream: when the device reached them."""

from __future__ import annotations

import pytest
import torch

from npu_profiler.mstx import mstx
from npu_profiler.profiler import ProfilerLevel, _ExperimentalConfig, profile, schedule

HOUR_NS = 3600 * 10**9


@pytest.fixture
def record(npu, events_of):
    def run(work, **options):
        with profile(experimental_config=_ExperimentalConfig(mstx=True), **options) as prof:
            work()
        return events_of(prof)

    return run


def sides(events, name):
    """Return the host event and the device event of a marker."""
    found = [event for event in events if event.get("cat") == "mstx" and event["name"] == name]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    host = [e for e in found if names[e["pid"], e["tid"]].startswith("mstx ")]
    device = [e for e in found if names[e["pid"], e["tid"]].startswith("Stream ")]
    assert len(host) == 1 and len(device) <= 1 and len(host) + len(device) == len(found)
    return host[0], device[0] if device else None


def hold(match):
    """The next task of that name does not run before `release`."""
    from npu_core import _C

    _C._inject_fault(0, _C._FAULT_DELAY_TASK, match=match, count=1, delay_ns=HOUR_NS)


def release():
    from npu_core import _C

    _C._inject_fault(0, _C._FAULT_NONE)


def test_a_range_on_a_stream_spans_the_work_between(npu, record):
    x = torch.ones(64, device="npu")

    def work():
        stream = npu.current_stream()
        hold("mul")
        range_id = mstx.range_start("range", stream)
        x.mul(2)
        mstx.range_end(range_id)
        mstx.mark("host only")
        release()

    events = record(work)
    host, device = sides(events, "range")
    (kernel,) = (e for e in events if e.get("cat") == "kernel" and "mul" in e["name"])
    assert device["begin"] <= kernel["begin"] <= kernel["end"] <= device["end"]
    assert host["end"] < kernel["begin"]  # the host did not wait, and the range on the device ended later than its own
    assert sides(events, "host only")[1] is None


def test_marks_along_a_stream_are_in_order(npu, record):
    x = torch.ones(64, device="npu")

    def work():
        stream = npu.current_stream()
        hold("add")
        for index in range(50):
            x.add(1)
            mstx.mark(f"mark {index}", stream)
        release()

    events = record(work)
    both = [sides(events, f"mark {index}") for index in range(50)]
    times = [device["begin"] for _, device in both]
    assert times == sorted(times) and len(set(times)) > 1
    assert all(device["dur"] == 0 and host["begin"] <= device["begin"] for host, device in both)
    assert times[0] > both[-1][0]["begin"]  # the first mark is passed on the device after the last was set on the host
    adds = sorted(e["begin"] for e in events if e.get("cat") == "kernel" and "add" in e["name"])
    assert all(add <= time for add, time in zip(adds, times, strict=True))


def test_markers_are_no_kernels_and_have_no_launch(npu, record):
    events = record(lambda: [mstx.mark("m", npu.current_stream()) for _ in range(10)])
    assert [e["name"] for e in events if e.get("cat") in ("kernel", "enqueue")] == []
    assert sum(e.get("cat") == "mstx" for e in events) == 20


def test_marker_of_a_side_stream_is_beside_that_stream(npu, record):
    side = npu.Stream()
    events = record(lambda: mstx.mark("m", side, "mine"))
    _, device = sides(events, "m")
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names[device["pid"], device["tid"]] == f"Stream {side.stream_id} mstx"
    assert device["args"]["domain"] == "mine"


def test_a_range_left_open_ends_with_the_recording(npu, record):
    events = record(lambda: mstx.range_start("open", npu.current_stream()))
    host, device = sides(events, "open")
    assert host["args"]["Unfinished"] and device["args"]["Unfinished"]


def test_filtered_markers_put_nothing_on_the_stream(npu, events_of):
    config = _ExperimentalConfig(mstx=True, mstx_domain_exclude=["quiet"])
    with profile(experimental_config=config) as prof:
        mstx.mark("m", npu.current_stream(), "quiet")
    assert prof._trace.device.marker_times == {}


def test_markers_only_profile_has_device_times(npu, events_of):
    config = _ExperimentalConfig(profiler_level=ProfilerLevel.Level_none, mstx=True)
    with profile(experimental_config=config) as prof:
        mstx.mark("m", npu.current_stream())
    assert sides(events_of(prof), "m")[1] is not None


def test_steps_are_ranges_on_the_current_stream(npu, events_of):
    x = torch.ones(8, device="npu")
    config = _ExperimentalConfig(mstx=True)
    with profile(schedule=schedule(wait=0, active=2, repeat=1), experimental_config=config) as prof:
        for _ in range(2):
            x.add(1)
            prof.step()
    events = events_of(prof)
    for step in range(2):
        spans = [e for e in events if e["name"] == f"ProfilerStep#{step}"]
        assert sorted(e["cat"] for e in spans) == ["mstx", "mstx", "user_annotation"]


def test_a_sync_launch_stream_is_refused(npu):
    with pytest.warns(UserWarning, match=r"Invalid stream for mstx\.mark"):
        mstx.mark("m", npu.SyncLaunchStream())
