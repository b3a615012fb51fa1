"""The variables of the package: what they do, and what is said about values that mean nothing."""

from __future__ import annotations

import json
import os
import pickle
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist


def make_group(values: dict[str, str], **arguments: Any) -> tuple[Any, str]:
    """A ProcessGroupHCCL under these variables, or the error it raised."""
    group, error = None, ""
    os.environ.update(values)
    try:
        group = dist.ProcessGroupHCCL(dist.HashStore(), 0, 1, **arguments)
    except (RuntimeError, ValueError, UserWarning) as raised:
        error = str(raised)
    finally:
        for name in values:
            del os.environ[name]
    return group, error


def refused(rank: int, size: int, cases: list[dict[str, str]]) -> list[str]:
    return [make_group(values)[1] for values in cases]


def accepted(rank: int, size: int, cases: list[dict[str, str]]) -> list[list[str]]:
    """Returns the warnings of each case."""
    said = []
    for values in cases:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            group, error = make_group(values)
        assert not error, (values, error)
        said.append([str(warning.message) for warning in caught])
        tensor = torch.ones(3, device="npu")
        group.allreduce(tensor).wait()
        assert tensor.tolist() == [1.0] * 3
        group.shutdown()
    return said


def warning_as_error(rank: int, size: int) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return make_group({"HCCL_BLOCKING_WAIT": "1"})[1]


def default_timeouts(rank: int, size: int) -> list[int]:
    """The time-out of a work as its group derives it."""
    from torch_npu._C import _distributed_c10d

    said = []
    cases: list[tuple[dict[str, str], dict[str, Any]]] = [
        ({}, {}),
        ({"HCCL_EXEC_TIMEOUT": "200"}, {}),
        ({"HCCL_EXEC_TIMEOUT": "0"}, {}),
        ({"HCCL_EXEC_TIMEOUT": "-5"}, {}),
        ({"TORCH_HCCL_ASYNC_ERROR_HANDLING": "3"}, {}),
        ({}, {"timeout": timedelta(seconds=77)}),
    ]
    for values, arguments in cases:
        group, error = make_group(values | {"TORCH_HCCL_TRACE_BUFFER_SIZE": "1"}, **arguments)
        assert not error, error
        group.allreduce(torch.ones(1, device="npu")).wait()
        said.append(pickle.loads(_distributed_c10d._dump_hccl_trace())["entries"][-1]["timeout_ms"])
        group.shutdown()
    return said


def record_traffic(rank: int, size: int, folder: str) -> list[str]:
    os.environ.update({"NSLB_CP": folder, "NSLB_MAX_RECORD_NUM": "10", "HCCL_ALGO": "level0:ring"})
    group = dist.new_group()
    errors = []
    for missing in ("MASTER_ADDR", "RANK"):
        kept = os.environ.pop(missing, None)
        try:
            dist.all_reduce(torch.ones(4, device="npu"), group=group)
        except RuntimeError as error:
            errors.append(str(error))
        os.environ[missing] = kept or "127.0.0.1"
    for _ in range(11):
        dist.all_reduce(torch.ones(4, device="npu"), group=group)
    torch.npu.synchronize()
    for name in ("NSLB_CP", "NSLB_MAX_RECORD_NUM", "HCCL_ALGO"):
        del os.environ[name]
    return [group.group_name, *errors]


def status_content(rank: int, size: int, folder: str) -> list[dict]:
    """Two groups at work, until the files say so."""
    other = dist.new_group()
    for _ in range(2):
        dist.all_reduce(torch.ones(4, device="npu"))
    dist.broadcast(torch.ones(4, device="npu"), 0, group=other)
    torch.npu.synchronize()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        files = list(Path(folder).glob(f"torch_hccl_status-{rank}_*.log"))
        if files:
            content = json.loads(files[0].read_text())
            if len(content["last_comm_op"]) == 2:
                return [content, {"name": files[0].name, "pid": os.getpid(), "files": len(files)}]
        time.sleep(0.05)
    raise AssertionError(os.listdir(folder))


def reduce_with_limit(rank: int, size: int, seconds: float) -> None:
    dist.group.WORLD._get_backend(torch.device("npu"))._set_default_timeout(timedelta(seconds=seconds))
    dist.all_reduce(torch.ones(4, device="npu"), async_op=True)


REFUSED = [
    ("HCCL_CONNECT_TIMEOUT", "119", "[120, 7200]"),
    ("HCCL_CONNECT_TIMEOUT", "soon", "should be an integer"),
    ("TORCH_HCCL_ASYNC_ERROR_HANDLING", "4", "0, 1, 2 or 3"),
    ("MULTI_STREAM_MEMORY_REUSE", "7", "[0, 3]"),
    ("HCCL_BUFFSIZE", "0", "HCCL_BUFFSIZE"),
    ("P2P_HCCL_BUFFSIZE", "-1", "P2P_HCCL_BUFFSIZE"),
    ("HCCL_DETERMINISTIC", "maybe", "true, false or strict"),
    ("TORCH_HCCL_ZERO_COPY", "1", "expandable_segments:True"),
    ("TORCH_HCCL_TRACE_BUFFER_SIZE", "-1", "TORCH_HCCL_TRACE_BUFFER_SIZE"),
    ("TORCH_HCCL_STATUS_SAVE_INTERVAL", "0", "TORCH_HCCL_STATUS_SAVE_INTERVAL"),
    ("NSLB_MAX_RECORD_NUM", "none", "should be an integer"),
]

# What makes no difference, and what is answered with a warning.
ACCEPTED = [
    ({"HCCL_WHITELIST_DISABLE": "0", "HCCL_WHITELIST_FILE": "/nowhere", "HCCL_ALGO": "level0:ring"}, ""),
    ({"HCCL_DETERMINISTIC": "STRICT", "HCCL_BUFFSIZE": "1", "P2P_HCCL_BUFFSIZE": "0"}, ""),
    ({"HCCL_OP_EXPANSION_MODE": "AIV", "HCCL_INTRA_PCIE_ENABLE": "1", "HCCL_RDMA_TC": "132"}, ""),
    ({"HCCL_EXEC_TIMEOUT": "-1"}, "1836 seconds are used"),
    ({"HCCL_EXEC_TIMEOUT": "50", "HCCL_EVENT_TIMEOUT": "50"}, "should be longer than HCCL_EXEC_TIMEOUT=50"),
    ({"HCCL_EXEC_TIMEOUT": "50", "HCCL_EVENT_TIMEOUT": "60"}, ""),
    ({"RANK_TABLE_FILE": "/nowhere/table.json"}, "not a readable regular file"),
    ({"HCCL_ASYNC_ERROR_HANDLING": "1"}, "HCCL_ASYNC_ERROR_HANDLING is deprecated"),
    ({"HCCL_BLOCKING_WAIT": "1"}, "HCCL_BLOCKING_WAIT is deprecated"),
    ({"HCCL_DESYNC_DEBUG": "1"}, "HCCL_DESYNC_DEBUG is deprecated"),
    ({"TORCH_HCCL_DESYNC_DEBUG": "1", "TORCH_HCCL_ASYNC_ERROR_HANDLING": "0"}, "ASYNC_ERROR_HANDLING=3 is used"),
    ({"TORCH_HCCL_ZERO_COPY": "1", "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True"}, ""),
]


def test_values_that_mean_nothing(ranks) -> None:
    cases = [{name: value} for name, value, _ in REFUSED]
    for (name, value, text), error in zip(REFUSED, ranks(1).run(refused, cases)[0], strict=True):
        assert name in error and text in error and value in error, (name, error)


def test_values_that_are_taken(ranks) -> None:
    (said,) = ranks(1).run(accepted, [values for values, _ in ACCEPTED])
    for (values, text), texts in zip(ACCEPTED, said, strict=True):
        assert [text in one for one in texts] == [True] * bool(text), (values, texts)
    (error,) = ranks(1).run(warning_as_error)
    assert "HCCL_BLOCKING_WAIT is deprecated" in error


def test_timeouts_of_works(ranks) -> None:
    (said,) = ranks(1).run(default_timeouts)
    assert said == [3_636_000, 2_000_000, 0, 3_636_000, 1_800_000, 77_000]


def test_traffic_record(ranks, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "by the record"
    answers = ranks(2).run(record_traffic, str(folder))
    assert len(list(folder.iterdir())) == 4
    for rank, (name, no_address, no_rank) in enumerate(answers):
        assert "MASTER_ADDR" in no_address and "RANK" in no_rank
        lines = (folder / f"127.0.0.1_group_name_{name}_{rank}.log").read_text().splitlines()
        assert lines == ["HCCL_ALGO=level0:ring", *[f"allreduce 16 {rank}"] * 10]
    assert len(list(folder.glob("end_127.0.0.1_*.log"))) == 2


@pytest.mark.parametrize("writable", (True, False), ids=("writable", "read-only"))
def test_status_files(fresh_ranks, tmp_path: Path, writable: bool) -> None:
    # A path that can never become a folder stands for one that must not be written: root may write anywhere else.
    (tmp_path / "file").touch()
    folder = tmp_path / ("status" if writable else "file/status")
    group = fresh_ranks(
        2,
        TORCH_HCCL_STATUS_SAVE_ENABLE="1",
        TORCH_HCCL_STATUS_SAVE_PATH=str(folder),
        TORCH_HCCL_STATUS_SAVE_INTERVAL="1",
        MASTER_ADDR="127.0.0.1",
    )
    if not writable:
        group.run(reduce_twice)
        assert group.close() == [0, 0], group.logs()
        return
    for rank, (content, file) in enumerate(group.run(status_content, str(folder))):
        assert file["name"].startswith(f"torch_hccl_status-{rank}_127.0.0.1_{rank}_2_{file['pid']}_")
        assert file["files"] == 1 and content["is_master"] is (rank == 0) and content["exception_message"] == ""
        world, other = content["last_comm_op"]
        assert world == {"seq": 2, "op_type": "ALLREDUCE", "pg_id": "0", "comm_ids": "all", "status": "end"}
        assert other["op_type"] == "BROADCAST" and other["seq"] == 1 and other["pg_id"] != "0"
    group.start(reduce_with_limit, 1.0, only=(0,))
    assert group.processes[0].wait(120) == -6
    group.end_input(1)
    assert group.processes[1].wait(120) == 0, group.log(1)
    (failed,) = [json.loads(path.read_text()) for path in folder.glob("torch_hccl_status-0_*.log")]
    assert "Watchdog caught collective operation timeout" in failed["exception_message"]
    assert failed["last_comm_op"][0]["status"] == "start" and failed["last_comm_op"][0]["seq"] == 3
    (ended,) = [json.loads(path.read_text()) for path in folder.glob("torch_hccl_status-1_*.log")]
    start = int(next(folder.glob("torch_hccl_status-1_*.log")).stem.split("_")[-1])
    assert ended["exception_message"] == "" and ended["global_pg_end_time"] > start
    assert len(list(folder.iterdir())) == 2


def reduce_twice(rank: int, size: int) -> None:
    for _ in range(2):
        dist.all_reduce(torch.ones(4, device="npu"))
    torch.npu.synchronize()
