"""The flight recorder: what it writes down about calls, and how its dumps are made."""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SIZES = [[3, 4]]


def recorder() -> Any:
    from torch_npu._C import _distributed_c10d

    return _distributed_c10d


def recorded(**contents: bool) -> dict:
    return pickle.loads(recorder()._dump_hccl_trace(**contents))


def npu_backend(group: Any) -> Any:
    return group._get_backend(torch.device("npu"))


def recording_group(entries: int, **arguments: Any) -> Any:
    """A new group, with an empty recorder of so many entries."""
    for size in (0, entries):
        os.environ["TORCH_HCCL_TRACE_BUFFER_SIZE"] = str(size)
        group = dist.new_group(**arguments)
    return group


def wait_until(condition: Any, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


def number_of(group: Any) -> str:
    """The group's key in pg_status: groups are counted in the order of their creation."""
    return str(recorded()["entries"][-1]["pg_id"])


# ---- what ranks do --------------------------------------------------------------------------------------------------


def two_all_reduces(rank: int, size: int, timed: bool) -> dict:
    group = recording_group(10, group_desc="timed" if timed else None)
    before = time.time_ns()
    if timed:
        npu_backend(group)._enable_collectives_timing()
    tensor = torch.ones(3, 4, device="npu")
    for _ in range(2):
        dist.all_reduce(tensor, group=group)
    torch.npu.synchronize()
    assert wait_until(lambda: all(entry["retired"] for entry in recorded()["entries"]))
    from_pickle = recorded()
    assert all("test_flight_recorder.py" in str(entry.pop("frames")) for entry in from_pickle["entries"])
    frame = recorded()["entries"][0]["frames"][0]
    assert set(frame) == {"name", "filename", "line"} and isinstance(frame["line"], int)
    for contents in ({"includeStackTraces": False}, {"onlyActive": True}, {"includeCollectives": False}):
        reduced = recorded(**contents)
        assert all("frames" not in entry for entry in reduced.get("entries", ()))
        assert "entries" not in reduced if "includeCollectives" in contents else "entries" in reduced
    assert recorded(onlyActive=True)["entries"] == []
    as_json = json.loads(recorder()._dump_hccl_trace_json())
    assert "entries" not in json.loads(recorder()._dump_hccl_trace_json(includeCollectives=False))
    assert before <= from_pickle["entries"][0]["time_created_ns"] <= time.time_ns()
    return {"pickle": from_pickle, "json": as_json, "name": group.group_name}


def many_calls(rank: int, size: int) -> list[dict]:
    group = recording_group(10)
    tensor, parts = torch.ones(3, 4, device="npu"), [torch.empty(3, 4, device="npu") for _ in range(size)]
    for _ in range(2):
        dist.broadcast(tensor, 0, group=group)
        dist.all_reduce(tensor, group=group)
        dist.reduce(tensor, 0, group=group)
        dist.all_gather(parts, tensor, group=group)
        dist.reduce_scatter(tensor, parts, group=group)
        dist.all_reduce(tensor, group=group)
    torch.npu.synchronize()
    return recorded(includeStackTraces=False)["entries"]


def transfers(rank: int, size: int, timed: bool) -> list[dict]:
    group = recording_group(100)
    if timed:
        npu_backend(group)._enable_collectives_timing()
    shapes = [(2, 3), (5, 5)]
    operation = dist.isend if rank == 1 else dist.irecv
    for _ in range(2):
        tensors = [torch.zeros(shape, device="npu") for shape in shapes]
        ops = [dist.P2POp(operation, tensor, 1 - rank, group=group) for tensor in tensors]
        for work in dist.batch_isend_irecv(ops):
            work.wait()
    (dist.send if rank == 1 else dist.recv)(torch.zeros(4, device="npu"), 1 - rank, group=group)
    torch.npu.synchronize()
    return recorded(includeStackTraces=False)["entries"]


def coalesced(rank: int, size: int) -> list[dict]:
    group = recording_group(10)
    outputs = torch.zeros(2, 2, device="npu")
    inputs = [torch.ones(2, 2, device="npu") for _ in range(size)]
    with dist._coalescing_manager(group=group):
        for output, part in zip(outputs, inputs, strict=True):
            dist.reduce_scatter_tensor(output, part, group=group)
    torch.npu.synchronize()
    dist.barrier(group=group)
    return recorded(includeStackTraces=False)["entries"]


_stuck: dict[str, Any] = {}


def start_group(rank: int, size: int, timed: bool) -> None:
    _stuck["group"] = recording_group(10)
    if timed:
        npu_backend(_stuck["group"])._enable_collectives_timing()
    dist.all_reduce(torch.ones(3, 4, device="npu"), group=_stuck["group"])
    torch.npu.synchronize()


def enter(rank: int, size: int) -> dict:
    """Queue an all_reduce and tell what the recorder says about it once it runs."""
    _stuck["work"] = dist.all_reduce(torch.ones(3, 4, device="npu"), group=_stuck["group"], async_op=True)
    timed = "duration_ms" in recorded()["entries"][0]
    if timed:
        assert wait_until(lambda: recorded()["entries"][-1]["state"] != "scheduled")
    active = recorded(onlyActive=True, includeStackTraces=False)["entries"]
    return {"active": active, "status": recorded()["pg_status"][number_of(_stuck["group"])]}


def finish(rank: int, size: int) -> str:
    _stuck["work"].wait()
    torch.npu.synchronize()
    return recorded()["entries"][-1]["state"]


def nothing_recorded(rank: int, size: int) -> dict:
    group = recording_group(0)
    dist.all_reduce(torch.ones(3, device="npu"), group=group)
    torch.npu.synchronize()
    return recorded()


def reduce_with_limit(rank: int, size: int, seconds: float) -> None:
    npu_backend(dist.group.WORLD)._set_default_timeout(timedelta(seconds=seconds))
    dist.all_reduce(torch.ones(3, 4, device="npu"), async_op=True)


def reduce_once(rank: int, size: int) -> None:
    dist.all_reduce(torch.ones(3, 4, device="npu"))
    torch.npu.synchronize()


def reduce_and_leave(rank: int, size: int) -> None:
    """What a script does that does not expect a failure; the interpreter then ends with an exception or in order."""
    try:
        reduce_once(rank, size)
    finally:
        print("the last words", flush=False)
        sys.exit(3)


# ---- tests ----------------------------------------------------------------------------------------------------------


def test_entries_of_collectives(ranks) -> None:
    for timed in (False, True):
        for answer in ranks(2).run(two_all_reduces, timed):
            name = "group_name_" + answer["name"]
            for dump, is_json in ((answer["pickle"], False), (answer["json"], True)):
                assert dump["version"] == "2.4"
                config = dump["pg_config"][name]
                assert config["name"] == name and config["desc"] == ("timed" if timed else "")
                assert json.loads(config["ranks"]) == [0, 1]
                assert dump["hccl_comm_state"][name]["state"] == "healthy"
                first, last = dump["entries"]
                status = dump["pg_status"][str(last["pg_id"])]
                wanted = {"enqueued": 2, "started": 2 if timed else -1, "completed": 2}
                for event, sequence in wanted.items():
                    value = status[f"last_{event}_collective"]
                    assert value == (str(sequence) if is_json else sequence)
                assert last["record_id"] == first["record_id"] + 1
                assert (first["collective_seq_id"], last["collective_seq_id"]) == (1, 2)
                assert (last["p2p_seq_id"], last["is_p2p"], last["profiling_name"]) == (0, False, "")
                assert list(last["process_group"]) == [name, config["desc"]]
                assert last["state"] == "completed" and last["retired"] is True
                assert last["input_sizes"] == SIZES and last["output_sizes"] == SIZES
                assert last["input_dtypes"] == ["Float"] and last["output_dtypes"] == ["Float"]
                assert last["timeout_ms"] == 120_000
                assert last["time_discovered_completed_ns"] >= last["time_created_ns"]
                if timed:
                    assert last["time_discovered_started_ns"] <= last["time_discovered_completed_ns"]
                    assert 0 < last["duration_ms"] < 60_000
                else:
                    assert last["time_discovered_started_ns"] == (0 if is_json else None)
                    assert "duration_ms" not in last


def test_the_ring_keeps_the_last_entries(ranks) -> None:
    for entries in ranks(2).run(many_calls):
        assert [entry["collective_seq_id"] for entry in entries] == list(range(3, 13))
        assert [entry["op_id"] for entry in entries] == list(range(3, 13))
        assert all(entry["state"] == "completed" and entry["profiling_name"] == "" for entry in entries)
        gathered = entries[1 + 6]
        assert gathered["input_sizes"] == SIZES and gathered["output_sizes"] == SIZES * 2


def test_entries_of_transfers(ranks) -> None:
    for timed in (False, True):
        for rank, entries in enumerate(ranks(2).run(transfers, timed)):
            name = "hccl:send 1->0" if rank == 1 else "hccl:recv 0<-1"
            assert len(entries) == 7
            operation = 0
            for batch in (0, 1):
                *members, whole = entries[3 * batch : 3 * batch + 3]
                for member, shape in zip(members, ([2, 3], [5, 5]), strict=True):
                    operation += 1
                    assert (member["profiling_name"], member["op_id"]) == (name, operation)
                    assert (member["collective_seq_id"], member["p2p_seq_id"]) == (0, batch + 1)
                    assert member["input_sizes"] == [shape] == member["output_sizes"][0:1]
                    assert member["state"] == "scheduled" and "duration_ms" not in member and member["is_p2p"]
                assert whole["profiling_name"] == "hccl:coalesced" and whole["p2p_seq_id"] == batch + 1
                assert whole["input_sizes"] == whole["output_sizes"] == []
                assert whole["state"] == "completed" and ("duration_ms" in whole) == timed
            single = entries[-1]
            assert (single["profiling_name"], single["p2p_seq_id"], single["op_id"]) == (name, 3, 5)
            assert single["state"] == "completed" and single["input_sizes"] == [[4]] == single["output_sizes"]
            assert [entry["record_id"] for entry in entries] == list(range(7))


def test_a_coalesced_collective_is_one_entry(ranks) -> None:
    for entry, barrier in ranks(2).run(coalesced):
        assert entry["profiling_name"] == "hccl:reduce_scatter_tensor_coalesced"
        assert entry["collective_seq_id"] == 1 and entry["state"] == "completed"
        assert entry["input_sizes"] == [[2, 2], [2, 2]] and entry["output_sizes"] == [[2], [2]]
        assert barrier["profiling_name"] == "" and barrier["collective_seq_id"] == 2


def test_a_collective_that_waits_is_active(ranks) -> None:
    for timed in (False, True):
        group = ranks(2)
        group.run(start_group, timed)
        answer = group.run_only(1, enter)
        (entry,) = answer["active"]
        assert entry["collective_seq_id"] == 2 and entry["state"] == ("started" if timed else "scheduled")
        assert entry["time_discovered_completed_ns"] is None and not entry["retired"]
        assert answer["status"]["last_enqueued_collective"] == 2
        assert answer["status"]["last_completed_collective"] == 1
        group.run_only(0, enter_late)
        assert group.run(finish) == ["completed", "completed"]


def enter_late(rank: int, size: int) -> None:
    _stuck["work"] = dist.all_reduce(torch.ones(3, 4, device="npu"), group=_stuck["group"], async_op=True)


def test_nothing_is_recorded_when_off(ranks) -> None:
    for dump in ranks(2).run(nothing_recorded):
        assert dump["entries"] == []


def load_dump(path: Path) -> dict:
    return pickle.loads(path.read_bytes())


def test_dumps_on_a_timeout_and_by_request(fresh_ranks, tmp_path: Path) -> None:
    stem = str(tmp_path / "trace_")
    group = fresh_ranks(
        2,
        TORCH_HCCL_TRACE_BUFFER_SIZE="100",
        TORCH_HCCL_DUMP_ON_TIMEOUT="1",
        TORCH_HCCL_ENABLE_MONITORING="1",
        TORCH_HCCL_COORD_CHECK_MILSEC="100",
        TORCH_HCCL_DEBUG_INFO_TEMP_FILE=stem,
        TORCH_HCCL_DEBUG_INFO_PIPE_FILE=stem,
        TORCH_HCCL_DESYNC_DEBUG="1",
    )
    group.run(reduce_once)
    files = [Path(f"{stem}{rank}") for rank in (0, 1)]
    with open(f"{stem}1.pipe", "w") as pipe:
        pipe.write("1\n")
    assert wait_until(files[1].exists), group.logs()
    assert "reduce_once" in str(load_dump(files[1])) and not files[0].exists()
    files[1].unlink()

    group.start(reduce_with_limit, 1.0, only=(0,))
    assert group.processes[0].wait(120) == -6
    first, second = load_dump(files[0])["entries"]
    assert first["state"] == "completed" and second["state"] == "scheduled"
    assert second["collective_seq_id"] == 2 and "reduce_with_limit" in str(second["frames"])
    stacks = Path(f"{stem}0_py_traceback").read_text()
    assert "rank_worker.py" in stacks and "main" in stacks
    (only,) = load_dump(files[1])["entries"]
    assert only["collective_seq_id"] == 1 and only["state"] == "completed"
    log = group.log(0)
    assert "rank(s) 1 have not called collective 2 (ALLREDUCE) of group group_name_0" in log, log
    assert "rank 1 (global rank 1): has called 1, finished 1  <- lags" in log

    group.end_input(1)
    assert group.processes[1].wait(120) == 0, group.log(1)
    assert not Path(f"{stem}1.pipe").exists()


def test_dump_when_a_peer_has_gone(fresh_ranks, tmp_path: Path) -> None:
    """The error reaches the program, and the process that does not deal with it ends by SIGABRT."""
    stem = str(tmp_path / "trace_")
    group = fresh_ranks(
        2,
        TORCH_HCCL_TRACE_BUFFER_SIZE="10",
        TORCH_HCCL_DUMP_ON_TIMEOUT="1",
        TORCH_HCCL_DEBUG_INFO_TEMP_FILE=stem,
    )
    group.run(reduce_once)
    group.end_input(1)
    assert group.processes[1].wait(120) == 0, group.log(1)
    group.start(reduce_and_leave, only=(0,))
    assert group.processes[0].wait(120) == -6
    assert "EI0002" in group.log(0) and "the last words" in group.log(0)
    assert [entry["state"] for entry in load_dump(Path(f"{stem}0"))["entries"]] == ["completed", "scheduled"]
    assert not Path(f"{stem}1").exists()
