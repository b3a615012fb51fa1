"""Who notices a collective that cannot end, what is said, and how the process goes on or ends."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist


def backend(group: Any = None) -> Any:
    return (group or dist.group.WORLD)._get_backend(torch.device("npu"))


def warm_up(rank: int, size: int) -> int:
    dist.all_reduce(torch.ones(5000, device="npu"))
    dist.barrier()
    return os.getpid()


def limit(rank: int, size: int, seconds: float) -> None:
    backend()._set_default_timeout(timedelta(seconds=seconds))


def reduce_async(rank: int, size: int) -> None:
    dist.all_reduce(torch.ones(5000, device="npu"), async_op=True)


def reduce_and_read(rank: int, size: int) -> str:
    tensor = torch.ones(5000, device="npu")
    try:
        dist.all_reduce(tensor)
        return str(tensor[0].item())
    except RuntimeError as error:
        return str(error)


def until_failed(rank: int, size: int) -> str:
    """An all_reduce that nobody joins, until something ends it."""
    work = dist.all_reduce(torch.ones(5000, device="npu"), async_op=True)
    deadline = time.monotonic() + 60
    while not work.is_completed():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not work.is_success()
    try:
        work.wait()
    except RuntimeError as error:
        return str(error)
    return "no error"


def rebuild(rank: int, size: int) -> float:
    from torch_npu.distributed import reinit_process_group

    reinit_process_group()
    return float(reduce_and_read(rank, size))


# ---- modes ----------------------------------------------------------------------------------------------------------


def test_mode_2_aborts_and_goes_on(fresh_ranks) -> None:
    group = fresh_ranks(2, TORCH_HCCL_ASYNC_ERROR_HANDLING="2")
    group.run(warm_up)
    group.run_only(0, limit, 1.0)
    error = group.run_only(0, until_failed)
    assert "[Rank 0] Watchdog caught collective operation timeout: WorkHCCL(SeqNum=3, OpType=ALLREDUCE" in error
    assert "(reported by rank 0)" in group.run_only(1, reduce_and_read)
    group.run(limit, 60.0)
    assert group.run(rebuild) == [2.0, 2.0]
    assert group.close() == [0, 0]


def stopped_watchdog(rank: int, size: int) -> bool:
    """A work whose time is over while nobody looks; whether it still runs well after that."""
    backend().set_watchdog_status(2)
    work = dist.all_reduce(torch.ones(5000, device="npu"), async_op=True)
    time.sleep(2.5)
    alive = not work.is_completed()
    backend().clear_workmeta_list()
    backend().set_watchdog_status(1)
    time.sleep(1.5)
    return alive and not work.is_completed()


def wrong_status(rank: int, size: int) -> str:
    with pytest.raises((ValueError, RuntimeError)) as error:
        backend().set_watchdog_status(3)
    return str(error.value)


def test_a_stopped_watchdog_does_not_look(fresh_ranks) -> None:
    group = fresh_ranks(2, TORCH_HCCL_ASYNC_ERROR_HANDLING="3")
    group.run(warm_up)
    assert "expected 0 (init), 1 (run) or 2 (stop), but got 3" in group.run_only(0, wrong_status)
    group.run_only(0, limit, 1.0)
    assert group.run_only(0, stopped_watchdog)
    group.run_only(1, reduce_async)  # joins the work that was forgotten
    # Mode 3: the process ends without an abort of the communicator, so that its peer hears of it as of a lost process.
    group.start(reduce_async, only=(0,))
    assert group.processes[0].wait(120) == -6
    assert "before timing out" in group.log(0)
    group.start(reduce_and_read, only=(1,))
    answer = group.answer(1)
    assert answer is not None and "EI0002" in answer["value"] and "rank 0" in answer["value"]


def flood(rank: int, size: int) -> None:
    """More calls than a stream has room for: the caller waits for space while the stream waits for a peer."""
    tensor = torch.ones(1, device="npu")
    for _ in range(20_000):
        dist.all_reduce(tensor, async_op=True)


def test_a_caller_that_waits_for_space(fresh_ranks) -> None:
    group = fresh_ranks(2)
    group.run(warm_up)
    group.run(limit, 3.0)
    group.start(flood, only=(0,))
    assert group.processes[0].wait(120) == -6
    log = group.log(0)
    assert "WorkHCCL(SeqNum=3, OpType=ALLREDUCE, Timeout(ms)=3000)" in log
    # Who is missing, what this rank does, and what the other one did last.
    assert "all_reduce(" in log and "number 3" in log and "for rank(s) 1; rank 1 (process" in log, log


# ---- stop_device ----------------------------------------------------------------------------------------------------


def stop_and_restart(rank: int, size: int) -> list[str]:
    """Stops the device while a collective waits; what is said until the device runs again."""
    said = []
    work = dist.all_reduce(torch.ones(5000, device="npu"), async_op=True)
    assert torch.npu.stop_device(rank) == 0
    for call in (work.wait, lambda: dist.all_reduce(torch.ones(5000, device="npu"))):
        try:
            call()
        except RuntimeError as error:
            said.append(str(error))
    torch.npu.restart_device(rank)
    return said


def leave(rank: int, size: int) -> None:
    sys.exit(0)


def test_a_stopped_device(fresh_ranks) -> None:
    group = fresh_ranks(2)
    group.run(warm_up)
    said = group.run_only(0, stop_and_restart)
    assert len(said) == 2 and all("FORCE STOP" in text for text in said), said
    assert "FORCE STOP" in group.run_only(1, reduce_and_read)  # the peer learns of it
    assert group.run(rebuild) == [2.0, 2.0]
    assert len(group.run_only(0, stop_and_restart)) == 2
    group.start(leave)  # nobody has dealt with that failure, and it does not count as one
    assert [process.wait(120) for process in group.processes] == [0, 0], group.logs()


# ---- a rank is lost or late -----------------------------------------------------------------------------------------


def big_all_reduces(rank: int, size: int, victim: int, ready: str) -> dict:
    """Many large all_reduces in a row; one rank is killed while they run."""
    tensor = torch.ones(8 << 20, device="npu")
    dist.all_reduce(tensor)
    torch.npu.synchronize()
    Path(f"{ready}{rank}").touch()
    if rank == victim:
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    try:
        for _ in range(10_000):
            tensor.fill_(1.0)
            dist.all_reduce(tensor)
            torch.npu.synchronize()
    except RuntimeError as error:
        return {"error": str(error), "time": time.time()}
    return {}


@pytest.mark.parametrize("size", (2, 4))
def test_a_killed_rank_is_reported_by_all(fresh_ranks, tmp_path: Path, size: int) -> None:
    group = fresh_ranks(size)
    pids = group.run(warm_up)
    group.start(big_all_reduces, size - 1, str(tmp_path / "ready"))
    group.processes[-1].wait(120)
    killed = time.time()
    for rank in range(size - 1):
        answer = group.answer(rank)
        assert answer is not None and "value" in answer, answer
        error = answer["value"]["error"]
        assert "EI0002" in error and f"rank {size - 1} (process {pids[-1]})" in error, error
        assert answer["value"]["time"] - killed < 5.0
        print(f"{size} ranks: rank {rank} knew after {answer['value']['time'] - killed:.3f} s")


_order: dict[str, Any] = {}


def shared_stream(rank: int, size: int) -> None:
    """Two groups whose collectives run on one stream."""
    for name in ("first", "second"):
        options = dist.ProcessGroupHCCL.Options()
        options.hccl_config = {"hccl_buffer_name": "together"}
        _order[name] = dist.new_group(pg_options=options)
        dist.all_reduce(torch.ones(10, device="npu"), group=_order[name])
    torch.npu.synchronize()


def in_opposite_order(rank: int, size: int, seconds: float) -> str:
    names = ("first", "second") if rank == 0 else ("second", "first")
    for name in names:
        backend(_order[name])._set_default_timeout(timedelta(seconds=seconds))
    try:
        for name in names:
            dist.all_reduce(torch.ones(10, device="npu"), group=_order[name])
        torch.npu.synchronize()
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_groups_in_different_order_on_one_stream(fresh_ranks) -> None:
    group = fresh_ranks(2, TORCH_HCCL_ASYNC_ERROR_HANDLING="2")
    group.run(shared_stream)
    texts = group.run(in_opposite_order, 2.0)
    # Whoever is first says so and aborts; the other rank gets either that or its own time-out.
    report = "Watchdog caught collective operation timeout: WorkHCCL(SeqNum=2, OpType=ALLREDUCE"
    assert any(report in text for text in texts), texts
    for text in texts:
        assert "all_reduce(10 x float32, op=SUM) number 2" in text and "for rank(s)" in text, text


# ---- ends -----------------------------------------------------------------------------------------------------------


def abort_from_a_thread(rank: int, size: int) -> str:
    work = dist.all_reduce(torch.ones(5000, device="npu"), async_op=True)
    thread = threading.Thread(target=lambda: backend().abort())
    thread.start()
    try:
        work.wait()
        torch.npu.synchronize()
    except RuntimeError as error:
        return str(error)
    finally:
        thread.join()
    return "no error"


def leave_destroying(rank: int, size: int) -> None:
    atexit.register(dist.destroy_process_group)
    sys.exit(0)


def destroy_while_pending(rank: int, size: int) -> list[int]:
    """What is open in this process before and after groups that end with a collective in flight."""
    counts = []
    # Streams of communication come from a pool of 32, and a stream keeps its thread: after that nothing is new.
    for _ in range(36):
        group = dist.new_group()
        dist.all_reduce(torch.ones(5000, device="npu"), group=group)
        torch.npu.synchronize()
        dist.all_reduce(torch.ones(1 << 20, device="npu"), group=group, async_op=True)
        dist.destroy_process_group(group)
        torch.npu.synchronize()
        counts.append([len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task")])
    return counts


class UserError(BaseException):
    """An error that nobody catches."""


def raise_error(rank: int, size: int) -> None:
    reduce_async(rank, size)
    raise UserError("user code has failed")


def wait_for_signal(rank: int, size: int, ready: str) -> None:
    barrier = dist.barrier(async_op=True)
    try:
        Path(ready).touch()
        barrier.wait()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        raise


def test_abort_from_another_thread(fresh_ranks) -> None:
    group = fresh_ranks(2)
    group.run(warm_up)
    assert "rank 0 aborted the process group" in group.run_only(0, abort_from_a_thread)
    group.start(leave_destroying)
    assert [process.wait(120) for process in group.processes] == [0, 0], group.logs()


def test_destroying_groups_with_pending_works_leaves_nothing(fresh_ranks) -> None:
    group = fresh_ranks(2)
    for counts in group.run(destroy_while_pending):
        assert counts[-1] == counts[-3], counts
    assert group.close() == [0, 0], group.logs()


def test_user_code_fails_with_a_pending_collective(fresh_ranks) -> None:
    group = fresh_ranks(2)
    group.run(warm_up)
    begin = time.monotonic()
    group.start(raise_error, only=(0,))
    assert group.processes[0].wait(120) == 1
    assert time.monotonic() - begin < 60 and "user code has failed" in group.log(0)
    assert group.run_only(1, reduce_and_read).count("rank 0") >= 1


def test_interrupt_while_waiting(fresh_ranks, tmp_path: Path) -> None:
    group = fresh_ranks(2)
    group.run(warm_up)
    ready = tmp_path / "ready"
    group.start(wait_for_signal, str(ready), only=(0,))
    while not ready.exists():
        assert group.alive
        time.sleep(0.02)
    time.sleep(0.3)
    group.processes[0].send_signal(signal.SIGINT)
    status = group.processes[0].wait(120)
    assert "interrupted" in group.log(0), group.log(0)
    assert status != 0
