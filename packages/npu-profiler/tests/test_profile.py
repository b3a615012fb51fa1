"""profile on the host side: windows, results, descriptions.  What the device does is in test_device_trace.py."""

from __future__ import annotations

import gc
import gzip
import json
import os
import threading
import time

import pytest
import torch

from npu_profiler.profiler import (
    ProfilerAction,
    ProfilerActivity,
    ProfilerLevel,
    _ExperimentalConfig,
    _KinetoProfile,
    profile,
    schedule,
    tensorboard_trace_handler,
)

CPU = [ProfilerActivity.CPU]
MARKERS = _ExperimentalConfig(profiler_level=ProfilerLevel.Level_none, mstx=True)


def ops(events, name):
    return [event for event in events if event.get("cat") == "cpu_op" and event["name"] == name]


def run_steps(plan, count, **options):
    ready = []

    def on_ready(prof):
        steps = sorted(e.name for e in prof._trace.host if e.name.startswith("ProfilerStep#"))
        ready.append((steps, sum(e.name == "aten::neg" for e in prof._trace.host)))

    x = torch.ones(2)
    with profile(activities=CPU, schedule=plan, on_trace_ready=on_ready, **options) as prof:
        for _ in range(count):
            x.neg()
            prof.step()
    return ready


def test_ops_between_start_and_stop_are_recorded(events_of):
    x = torch.ones(2, 3)
    x.neg()
    prof = _KinetoProfile(activities=CPU, record_shapes=True)
    prof.start()
    before = time.time_ns()
    for _ in range(3):
        x.neg()
    after = time.time_ns()
    prof.stop()
    x.neg()
    found = ops(events := events_of(prof), "aten::neg")
    assert len(found) == 3
    assert all(before - 20_000 <= e["begin"] <= e["end"] <= after + 20_000 for e in found)
    assert all(e["tid"] == threading.get_native_id() and e["pid"] == os.getpid() for e in found)
    assert found[0]["args"]["Input Dims"] == [[2, 3]]
    assert found[0]["args"]["Input type"] == ["float"]
    names = {e["name"]: e["args"] for e in events if e["ph"] == "M" and e["pid"] == os.getpid()}
    assert names["process_name"] == {"name": "Python"} and names["process_labels"] == {"labels": "CPU"}


def test_stacks_are_python_rows_inside_the_window(events_of):
    def a_function_of_the_test():
        return torch.ones(2).neg()

    with profile(activities=CPU, with_stack=True) as prof:
        a_function_of_the_test()
    events = events_of(prof)
    frames = [e for e in events if e.get("cat") == "python_function" and "a_function_of_the_test" in e["name"]]
    (op,) = ops(events, "aten::neg")
    assert len(frames) == 1
    assert frames[0]["begin"] <= op["begin"] <= op["end"] <= frames[0]["end"]


def test_arrows_lead_from_forward_to_backward(events_of):
    x = torch.ones(3, requires_grad=True)
    with profile(activities=CPU) as prof:
        (x * 2).sin().sum().backward()
    events = events_of(prof)
    by_start = {(e["tid"], e["ts"]): e["name"] for e in events if e.get("cat") == "cpu_op"}
    starts = {e["id"]: by_start[e["tid"], e["ts"]] for e in events if e.get("cat") == "fwdbwd" and e["ph"] == "s"}
    ends = {e["id"]: by_start[e["tid"], e["ts"]] for e in events if e.get("cat") == "fwdbwd" and e["ph"] == "f"}
    short = {(starts[key], ends[key].split(": ")[-1]) for key in starts}
    assert starts.keys() == ends.keys()
    assert {("aten::mul", "MulBackward0"), ("aten::sin", "SinBackward0"), ("aten::sum", "SumBackward0")} <= short


def test_without_schedule_there_are_no_step_spans():
    assert run_steps(None, 3) == [([], 3)]


def test_each_cycle_is_a_window_with_its_steps():
    plan = schedule(wait=1, active=2, warmup=1, repeat=2, skip_first=1)
    assert run_steps(plan, 11) == [
        (["ProfilerStep#3", "ProfilerStep#4"], 2),
        (["ProfilerStep#7", "ProfilerStep#8"], 2),
    ]


def test_windows_may_follow_each_other_at_once():
    ready = run_steps(schedule(wait=0, active=1), 3)
    # The step that the end of the profile cuts is a window of its own.
    assert ready == [(["ProfilerStep#0"], 1), (["ProfilerStep#1"], 1), (["ProfilerStep#2"], 1), (["ProfilerStep#3"], 0)]


def test_a_window_cut_by_the_end_is_kept_with_a_warning(capsys):
    ready = run_steps(schedule(wait=0, active=5, warmup=1), 3)
    assert ready == [(["ProfilerStep#1", "ProfilerStep#2", "ProfilerStep#3"], 2)]
    assert "Incorrect schedule" in capsys.readouterr().out


def test_end_during_warmup_is_silent_and_leaves_torch_usable(capsys):
    assert run_steps(schedule(wait=1, active=1, warmup=5), 3) == []
    assert "WARNING" not in capsys.readouterr().out
    assert len(run_steps(None, 1)) == 1


@pytest.mark.parametrize(
    ("actions", "recorded"),
    [
        ([ProfilerAction.WARMUP, ProfilerAction.NONE], 0),
        ([ProfilerAction.RECORD, ProfilerAction.NONE], 0),
        ([ProfilerAction.RECORD, ProfilerAction.WARMUP, ProfilerAction.RECORD_AND_SAVE, ProfilerAction.NONE], 1),
    ],
)
def test_illegal_transitions_drop_the_window(capsys, actions, recorded):
    ready = run_steps(lambda step: actions[min(step, len(actions) - 1)], len(actions) + 1)
    assert len(ready) == recorded
    assert "Incorrect schedule" in capsys.readouterr().out


def test_steps_are_markers_too(events_of):
    plan = schedule(wait=0, active=2, repeat=1)
    with profile(activities=CPU, schedule=plan, experimental_config=MARKERS) as prof:
        for _ in range(2):
            prof.step()
    names = {event["name"] for event in events_of(prof) if event.get("cat") == "mstx"}
    assert names == {"ProfilerStep#0", "ProfilerStep#1"}


def test_two_profiles_in_sequence_do_not_see_each_other(events_of):
    x = torch.ones(2)
    with profile(activities=CPU) as first:
        x.neg()
    with profile(activities=CPU) as second:
        x.sin()
    assert [len(ops(events_of(first), name)) for name in ("aten::neg", "aten::sin")] == [1, 0]
    assert [len(ops(events_of(second), name)) for name in ("aten::neg", "aten::sin")] == [0, 1]


def test_a_second_profile_at_the_same_time_is_refused(events_of, capsys):
    x = torch.ones(2)
    with profile(activities=CPU) as outer:
        with profile(activities=CPU) as inner:
            x.neg()
        assert "another profile" in capsys.readouterr().out
    assert len(ops(events_of(outer), "aten::neg")) == 1
    inner.export_chrome_trace("never-written.json")
    assert "nothing has been recorded" in capsys.readouterr().out
    assert not os.path.exists("never-written.json")


def test_inside_torchs_own_profiler_nothing_breaks(capsys):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as outer:
        with profile(activities=CPU):
            torch.ones(2).neg()
    assert "CPU activity is not recorded" in capsys.readouterr().out
    assert [event.count for event in outer.key_averages() if event.key == "aten::neg"] == [1]


def test_deleting_a_running_profile_ends_it():
    prof = profile(activities=CPU)
    prof.start()
    del prof
    gc.collect()
    with profile(activities=CPU) as prof:
        torch.ones(2).neg()
    assert prof._trace is not None


def test_a_start_that_fails_leaves_no_recording_behind(monkeypatch):
    from npu_profiler import recording

    def fail(self):
        raise KeyError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(recording.HostRecorder, "start", fail)
        with pytest.raises(KeyError, match="broken"):
            profile(activities=CPU).start()
    with profile(activities=CPU) as prof:
        torch.ones(2).neg()
    assert sum(e.name == "aten::neg" for e in prof._trace.host) == 1


def test_step_after_stop_only_warns(capsys):
    with profile(activities=CPU) as prof:
        pass
    prof.step()
    assert "not running" in capsys.readouterr().out


def test_a_block_that_raises_is_still_exported(tmp_path):
    with pytest.raises(KeyError):
        with profile(activities=CPU, on_trace_ready=tensorboard_trace_handler(str(tmp_path))):
            torch.ones(2).neg()
            raise KeyError
    (result,) = tmp_path.iterdir()
    assert len(ops(json.loads((result / "ASCEND_PROFILER_OUTPUT/trace_view.json").read_text()), "aten::neg")) == 1


def test_no_thread_is_left():
    before = {thread.ident for thread in threading.enumerate()}
    tasks = set(os.listdir("/proc/self/task"))
    with profile(activities=CPU):
        torch.ones(2).neg()
    assert {thread.ident for thread in threading.enumerate()} == before
    assert set(os.listdir("/proc/self/task")) <= tasks


def test_handler_writes_a_result_directory(tmp_path):
    config = _ExperimentalConfig(mstx=True)
    handler = tensorboard_trace_handler(str(tmp_path / "deep" / "er"), "worker7")
    prof = profile(activities=CPU, on_trace_ready=handler, experimental_config=config, with_flops=True)
    prof.add_metadata("k", "v")
    prof.add_metadata_json("j", "[1, 2, 3]")
    with prof:
        torch.ones(2).neg()
    (result,) = (tmp_path / "deep" / "er").iterdir()
    worker, pid, stamp, ascend, pt = result.name.split("_")
    assert (worker, pid, ascend, pt) == ("worker7", str(os.getpid()), "ascend", "pt")
    assert len(stamp) == 17 and stamp.startswith("20")
    trace = result / "ASCEND_PROFILER_OUTPUT" / "trace_view.json"
    assert len(ops(json.loads(trace.read_text()), "aten::neg")) == 1
    assert trace.stat().st_mode & 0o777 & ~0o640 == 0
    assert result.stat().st_mode & 0o777 & ~0o750 == 0
    info = json.loads((result / "profiler_info.json").read_text())
    assert info["config"]["common_config"]["activities"] == ["ProfilerActivity.CPU"]
    assert info["config"]["common_config"]["with_flops"] is True
    assert info["config"]["experimental_config"]["_mstx"] is True
    assert info["start_info"]["start_monotonic"] < info["end_info"]["MonotonicTimeEnd"]
    metadata = json.loads((result / "profiler_metadata.json").read_text())
    assert metadata == {"k": "v", "j": [1, 2, 3], "trace_id": prof.get_trace_id()}


def test_handler_writes_one_directory_per_window(tmp_path):
    handler = tensorboard_trace_handler(str(tmp_path))
    with profile(activities=CPU, schedule=schedule(wait=0, active=1, repeat=3), on_trace_ready=handler) as prof:
        for _ in range(4):
            torch.ones(2).neg()
            prof.step()
    assert len(list(tmp_path.iterdir())) == 3


def test_handler_in_the_background(tmp_path):
    handler = tensorboard_trace_handler(str(tmp_path), async_mode=True)
    with profile(activities=CPU, on_trace_ready=handler):
        torch.ones(2).neg()
    for thread in threading.enumerate():
        if thread.name == "npu-profiler-export":
            thread.join(30)
    (result,) = tmp_path.iterdir()
    assert json.loads((result / "ASCEND_PROFILER_OUTPUT/trace_view.json").read_text())


def test_handler_falls_back_to_the_work_path(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ASCEND_WORK_PATH", str(tmp_path))
    handler = tensorboard_trace_handler(worker_name="w" * 226, analyse_flag=False)
    out = capsys.readouterr().out
    assert "worker_name" in out and "analyse_flag" in out
    monkeypatch.delenv("ASCEND_WORK_PATH")  # the directory was chosen at construction
    with profile(activities=CPU, on_trace_ready=handler):
        pass
    assert len(list((tmp_path / "profiling_data").iterdir())) == 1


def test_rank_is_in_the_result(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    with profile(activities=CPU, on_trace_ready=tensorboard_trace_handler(str(tmp_path))):
        pass
    (result,) = tmp_path.iterdir()
    assert json.loads((result / "profiler_info_3.json").read_text())["rank_id"] == 3
    profile(activities="x")
    assert "WARNING" not in capsys.readouterr().out


def test_export_compressed_and_to_a_bad_path(tmp_path, capsys):
    with profile(activities=CPU) as prof:
        torch.ones(2).neg()
    prof.export_chrome_trace(str(tmp_path / "trace.json.gz"))
    with gzip.open(tmp_path / "trace.json.gz", "rt") as text:
        assert len(ops(json.load(text), "aten::neg")) == 1
    prof.export_chrome_trace(str(tmp_path / "missing" / "trace.json"))
    assert "[ERROR]" in capsys.readouterr().out


def test_metadata_that_does_not_fit_is_left_out(capsys):
    prof = profile(activities=CPU)
    prof.add_metadata(1, "v")
    prof.add_metadata("long", "x" * 4097)
    prof.add_metadata_json("bad", "{")
    for index in range(20):
        prof.add_metadata(f"k{index}", "x" * 4000)
    prof.add_metadata("k0", "again")
    assert capsys.readouterr().out.count("[WARNING]") == 3 + 8 + 1
    assert set(prof._metadata) == {f"k{index}" for index in range(12)}
    assert prof._metadata["k0"] == "again"


def test_trace_ids(capsys):
    with profile(activities=CPU) as prof:
        first = prof.get_trace_id()
    assert len(first) == 32 and set(first) <= set("0123456789ABCDEF")
    prof.set_custom_trace_id_callback(lambda: "mine")
    with prof:
        assert prof.get_trace_id() == "mine"
    prof.set_custom_trace_id_callback(lambda: 5)
    with prof:
        assert len(prof.get_trace_id()) == 32
    assert "custom_trace_id_callback" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        {"activities": ["CPU"]},
        {"activities": 3},
        {"activities": []},
        {"record_shapes": 1},
        {"with_modules": True},
        {"experimental_config": {}},
        {"schedule": 3},
        {"on_trace_ready": 3},
        {"use_cuda": True},
        {"execution_trace_observer": object()},
    ],
)
def test_bad_arguments_are_reported_and_ignored(capsys, arguments):
    prof = profile(**arguments)
    assert "[WARNING]" in capsys.readouterr().out
    with prof:
        torch.ones(2).neg()
    assert len([e for e in prof._trace.host if e.name == "aten::neg"]) == 1


def test_an_external_collection_switches_the_profile_off(monkeypatch):
    monkeypatch.setenv("PROFILING_MODE", "true")
    with profile(activities=CPU) as prof:
        torch.ones(2).neg()
    assert prof._trace is None


def test_names_of_a_later_release_raise():
    prof = profile(activities=CPU)
    with pytest.raises(NotImplementedError, match="export_stacks is not part of this release"):
        prof.export_stacks("stacks.log")
    with pytest.raises(NotImplementedError, match="export_memory_timeline is not part of this release"):
        prof.export_memory_timeline("memory.html")
