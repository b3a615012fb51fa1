"""The test harness itself: ranks that fail, hang, end or leave something behind are told apart, with what they said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hccl_testing import leaks
from hccl_testing.processes import SERVER_OF_SESSION, ForkedRank, RankError


def parent_and_device(rank: int, size: int) -> list[int]:
    return [os.getppid(), torch.npu.current_device(), torch.npu.device_count()]


def variable(rank: int, size: int, name: str) -> str | None:
    return os.environ.get(name)


def hang_in_a_named_function(rank: int, size: int) -> None:
    if rank == 1:
        dist.all_reduce(torch.ones(3, device="npu"))
        torch.npu.synchronize()
    else:
        os.read(os.pipe()[0], 1)


def raise_on_one(rank: int, size: int) -> None:
    if rank == 1:
        raise ValueError("this rank cannot")
    dist.all_reduce(torch.ones(3, device="npu"))
    torch.npu.synchronize()


def leave_a_process(rank: int, size: int) -> int:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid


def leave_a_file(rank: int, size: int) -> None:
    Path(tempfile.gettempdir(), f"left-by-{rank}").touch()


def sum_over_ranks(rank: int, size: int) -> float:
    tensor = torch.full((5000,), 1.0 + rank, device="npu")
    dist.all_reduce(tensor)
    return tensor[4999].item()


def test_ranks_are_forked_before_the_device_is_used(fresh_ranks) -> None:
    group = fresh_ranks(3, HCCL_BUFFSIZE="7")
    assert all(isinstance(process, ForkedRank) for process in group.processes)
    answers = group.run(parent_and_device)
    assert len({parent for parent, _, _ in answers}) == 1
    assert [device for _, device, _ in answers] == [0, 1, 2] and {count for *_, count in answers} == {3}
    assert group.run(variable, "HCCL_BUFFSIZE") == ["7"] * 3
    assert group.close() == [0] * 3


def test_a_variable_that_import_reads_gets_new_interpreters(fresh_ranks) -> None:
    group = fresh_ranks(2, NPU_CPU_ISA="base")
    assert all(isinstance(process, subprocess.Popen) for process in group.processes)
    assert group.run(variable, "NPU_CPU_ISA") == ["base"] * 2
    assert group.run(sum_over_ranks) == [3.0, 3.0]
    assert group.close() == [0, 0]


def test_eight_ranks_come_up_and_finish(fresh_ranks) -> None:
    group = fresh_ranks(8)
    assert group.run(sum_over_ranks) == [36.0] * 8
    assert group.close() == [0] * 8


def test_a_rank_that_hangs_shows_the_stacks_of_all(fresh_ranks) -> None:
    group = fresh_ranks(2)
    group.run(sum_over_ranks)
    with pytest.raises(TimeoutError) as failure:
        group.run(hang_in_a_named_function, timeout=1.0)
    text = str(failure.value)
    assert "ranks [0, 1] gave no answer in time" in text
    assert "rank 0, Python stacks" in text and "rank 1, Python stacks" in text
    assert text.count("in hang_in_a_named_function") >= 2 and "thread " in text
    assert not group.alive


def test_an_error_is_reported_although_the_others_hang(fresh_ranks, monkeypatch) -> None:
    monkeypatch.setattr("hccl_testing.processes.GRACE", 0.5)
    group = fresh_ranks(2)
    group.run(sum_over_ranks)
    begin = time.monotonic()
    with pytest.raises(RankError, match="this rank cannot") as failure:
        group.run(raise_on_one)
    assert time.monotonic() - begin < 60  # not the limit of an answer
    assert "rank 0, Python stacks" in str(failure.value)


def test_what_ranks_leave_is_found(fresh_ranks, tmp_path: Path) -> None:
    before = leaks.Before()
    group = fresh_ranks(2)
    pids = group.run(leave_a_process)
    group.run(leave_a_file)
    assert group.close() == [0, 0]
    try:
        found = before.look(SERVER_OF_SESSION.pids, SERVER_OF_SESSION.pids, tmp_path)
        for pid in pids:
            assert any(text.startswith(f"process {pid}: ") and "time.sleep(600)" in text for text in found), found
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    files = sorted(group.temporary.iterdir())
    assert [file.name for file in files] == ["left-by-0", "left-by-1"]
    for file in files:
        file.unlink()


def test_what_a_test_leaves_is_found(tmp_path: Path) -> None:
    before = leaks.Before()
    assert before.look((), set(), tmp_path) == []
    shared = Path("/dev/shm", f"npu-harness-{os.getpid()}")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    memory = os.memfd_create("npu-harness")
    shared.touch()
    (tmp_path / "forgotten").touch()
    child = subprocess.Popen(["sleep", "600"])
    while leaks.command_line(child.pid) != "sleep 600":
        assert child.poll() is None
    try:
        found = "\n".join(before.look((), set(), tmp_path))
        assert f"process {child.pid}: sleep 600" in found and f"descriptor {descriptor}: {tmp_path}" in found
        assert f"descriptor {memory}: /memfd:npu-harness" in found and f"shared memory {shared}" in found
        assert f"temporary file {tmp_path / 'forgotten'}" in found
    finally:
        child.kill()
        child.wait()
        os.close(descriptor)
        os.close(memory)
        shared.unlink()
