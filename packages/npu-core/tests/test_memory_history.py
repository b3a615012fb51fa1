"""The allocator's history: who allocated what, and whether torch's viewers read it."""

from __future__ import annotations

import gc
import pickle
import sys
import threading
import time

import pytest
import torch
from torch.cuda import _memory_viz

memory = torch.npu.memory


@pytest.fixture(autouse=True)
def no_history():
    gc.collect()
    torch.npu.synchronize()
    torch.npu.empty_cache()
    yield
    memory._record_memory_history(None)


def allocate_here(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device="npu")


def trace() -> list[dict]:
    return memory._snapshot()["device_traces"][0]


def entries_of(address: int) -> list[dict]:
    return [entry for entry in trace() if entry.get("addr") == address]


def block_at(address: int) -> dict:
    blocks = [block for segment in torch.npu.memory_snapshot() for block in segment["blocks"]]
    return next(block for block in blocks if block["address"] == address)


def functions(entry: dict) -> list[str]:
    return [frame["name"] for frame in entry["frames"]]


def test_nothing_is_kept_before_somebody_asks():
    tensor = allocate_here(100)
    assert block_at(tensor.data_ptr())["frames"] == []
    assert trace() == []


@pytest.mark.parametrize("stacks", ["python", "all"])
def test_the_life_of_a_tensor(stacks):
    memory._record_memory_history(stacks=stacks)
    before = time.time() * 1e6
    tensor = allocate_here(30 << 20)
    address = tensor.data_ptr()
    stream = torch.npu.current_stream().npu_stream

    frames = block_at(address)["frames"]
    mine = next(frame for frame in frames if frame["name"] == "allocate_here")
    assert mine["filename"] == __file__ and mine["line"] == allocate_here.__code__.co_firstlineno + 1
    outer = next(frame for frame in frames if frame["name"] == "test_the_life_of_a_tensor")
    assert frames.index(mine) < frames.index(outer)
    assert any("npu" in frame["name"] and ".py" not in frame["filename"] for frame in frames) == (stacks == "all")

    del tensor
    torch.npu.empty_cache()
    story = entries_of(address)
    assert [entry["action"] for entry in story] == [
        "segment_alloc",
        "alloc",
        "free_requested",
        "free_completed",
        "segment_free",
    ]
    assert [entry["size"] for entry in story] == [32 << 20, 30 << 20, 30 << 20, 30 << 20, 32 << 20]
    assert all(entry["stream"] == stream and entry["pool_id"] == (0, 0) for entry in story)
    assert [entry["time_us"] for entry in story] == sorted(entry["time_us"] for entry in story)
    assert story[0]["time_us"] >= int(before)
    assert "allocate_here" in functions(story[0]) and "allocate_here" in functions(story[1])
    assert "test_the_life_of_a_tensor" in functions(story[2]) and "allocate_here" not in functions(story[2])
    assert trace()[-1]["action"] == "snapshot"


@pytest.mark.parametrize(
    ("context", "block", "alloc", "free"),
    [
        (None, False, False, False),
        ("state", True, False, False),
        ("alloc", True, True, False),
        ("all", True, True, True),
    ],
)
def test_contexts_that_are_kept(context, block, alloc, free):
    memory._record_memory_history(context=context, stacks="python")
    tensor = allocate_here(1000)
    address = tensor.data_ptr()
    assert bool(block_at(address)["frames"]) == block
    del tensor
    story = {entry["action"]: entry for entry in entries_of(address)}
    assert bool(story["alloc"]["frames"]) == alloc
    assert bool(story["free_requested"]["frames"]) == free


def test_the_state_alone():
    memory._record_memory_history("state", stacks="python")
    tensor = allocate_here(1000)
    assert "allocate_here" in functions(block_at(tensor.data_ptr()))
    assert trace() == []


def test_only_the_newest_entries_are_kept():
    memory._record_memory_history(max_entries=5, stacks="python")
    for size in range(1000, 1020):
        allocate_here(size)
    kept = trace()
    assert [entry["action"] for entry in kept] == [
        "free_completed",
        "alloc",
        "free_requested",
        "free_completed",
        "snapshot",
    ]
    assert [entry["size"] for entry in kept[:-1]] == [1018, 1019, 1019, 1019]


def test_skipped_actions_and_clearing():
    memory._record_memory_history(stacks="python", skip_actions=["free_requested", "snapshot"])
    allocate_here(1000)
    actions = [entry["action"] for entry in trace()]
    assert "alloc" in actions and "free_requested" not in actions and "snapshot" not in actions
    memory._record_memory_history(stacks="python", clear_history=True)
    assert [entry["action"] for entry in trace()] == ["snapshot"]


def test_stopping_forgets():
    memory._record_memory_history(stacks="python")
    tensor = allocate_here(1000)
    memory._record_memory_history(None)
    assert trace() == [] and block_at(tensor.data_ptr())["frames"] == []
    assert all(segment["frames"] == [] for segment in torch.npu.memory_snapshot())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"enabled": "some"}, "expected enabled to be one of .*but got 'some'"),
        ({"enabled": True}, "expected enabled .* but got True"),
        ({"context": "stacks"}, "expected context .* but got 'stacks'"),
        ({"stacks": "c++"}, "expected stacks .* but got 'c\\+\\+'"),
        ({"stacks": None}, "expected stacks .* but got None"),
        ({"max_entries": 0}, "expected max_entries to be a positive int, but got 0"),
        ({"max_entries": 2.5}, "but got 2.5"),
        ({"skip_actions": ["malloc"]}, "expected each of skip_actions .* but got 'malloc'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        memory._record_memory_history(**arguments)


def test_torch_viewers_read_it(tmp_path):
    memory._record_memory_history(stacks="python", max_entries=sys.maxsize)
    kept = [allocate_here(size) for size in (10, 3 << 20, 30 << 20)]
    del kept[1]
    path = tmp_path / "dump.pickle"
    memory._dump_snapshot(str(path))
    with open(path, "rb") as file:
        snapshot = pickle.load(file)
    assert len(snapshot["device_traces"]) == torch.npu.device_count()
    assert "30.0MiB" in _memory_viz.trace(snapshot)
    assert "allocate_here" in _memory_viz.segments(snapshot, format_flamegraph=lambda lines: lines)
    assert "allocate_here" in _memory_viz.memory(snapshot, format_flamegraph=lambda lines: lines)
    assert "total_reserved" in _memory_viz.segsum(snapshot)
    for page in (_memory_viz.trace_plot(snapshot), _memory_viz.segment_plot(snapshot)):
        assert "snapshot.pickle" in page
    left = _memory_viz.filter_alloc_free_pairs(snapshot)["device_traces"][0]
    assert sorted(entry["size"] for entry in left if entry["action"] == "alloc") == [10, 30 << 20]


def test_one_device_of_several():
    torch.npu.synchronize(1)
    memory._record_memory_history(stacks="python")
    first, second = allocate_here(1000), torch.empty(1000, device="npu:1")
    snapshot = memory._snapshot(device=1)
    assert {segment["device"] for segment in snapshot["segments"]} == {1}
    assert snapshot["device_traces"][0] == []
    assert second.data_ptr() in [entry.get("addr") for entry in snapshot["device_traces"][1]]
    assert first.data_ptr() in [entry.get("addr") for entry in memory._snapshot()["device_traces"][0]]


def test_allocations_of_other_threads_have_their_own_frames():
    memory._record_memory_history(stacks="python")
    kept = []

    def in_a_thread() -> None:
        kept.append(allocate_here(1000))

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    names = functions(block_at(kept[0].data_ptr()))
    assert "in_a_thread" in names and "test_allocations_of_other_threads_have_their_own_frames" not in names


def test_a_backward_pass_under_history():
    memory._record_memory_history(stacks="python")
    weight = torch.ones(64, 64, device="npu", requires_grad=True)
    (weight @ weight).sum().backward()
    torch.npu.synchronize()
    assert weight.grad.cpu().eq(128).all()
    assert {"alloc", "free_requested", "free_completed"} <= {entry["action"] for entry in trace()}


def test_exit_with_history_on(run_python):
    done = run_python(
        """
        import torch
        torch.npu.memory._record_memory_history()
        kept = torch.ones(1000, device="npu")
        class Late:
            def __init__(self):
                self.tensor = torch.ones(1000, device="npu")
        cycle = Late()
        cycle.itself = cycle
        print("done")
        """
    )
    assert done.stdout.split() == ["done"] and "Traceback" not in done.stderr


def test_running_out_is_recorded_and_observed(run_python):
    done = run_python(
        """
        import torch
        calls = []
        torch.npu.memory._attach_out_of_memory_observer(lambda *args: calls.append(args))
        torch.npu.memory._attach_out_of_memory_observer(lambda *args: 1 / 0)
        torch.npu.memory._record_memory_history(stacks="python")
        held = torch.empty(100 << 20, dtype=torch.uint8, device="npu")

        def greedy():
            torch.empty(60 << 20, dtype=torch.uint8, device="npu")

        try:
            greedy()
        except torch.OutOfMemoryError as error:
            print(str(error).splitlines()[0][:44])
            print("NPU_HOST_MEMORY" in str(error))
        print(calls)
        entry = torch.npu.memory._snapshot()["device_traces"][0][-2]
        print(entry["action"], entry["size"] >> 20, entry["device_free"] >> 20, "addr" in entry)
        print("greedy" in [frame["name"] for frame in entry["frames"]])
        """,
        NPU_HOST_MEMORY="128MiB",
    )
    mib = 1 << 20
    assert done.stdout.splitlines() == [
        "NPU out of memory. Tried to allocate 62.00 M",
        "True",
        str([(0, 60 * mib, 128 * mib, 26 * mib)]),
        "oom 60 26 False",
        "True",
    ]
    assert "ZeroDivisionError" in done.stderr
    with pytest.raises(TypeError, match="expected a callable, but got int"):
        memory._attach_out_of_memory_observer(3)
