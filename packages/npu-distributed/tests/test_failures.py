"""What happens when something goes wrong: clear errors, in time, on every rank; nothing left behind."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist


def warm_up(rank: int, size: int) -> int:
    dist.all_reduce(torch.ones(5000, device="npu"))
    dist.barrier()
    return os.getpid()


def pending(rank: int, size: int) -> bool:
    """Whether the communication stream has unfinished work."""
    identifier = dist.group.WORLD._get_backend(torch.device("npu")).get_coll_stream_id(rank)
    return not torch.npu.Stream(stream_id=identifier, device_type=20, device_index=rank).query()


def die(rank: int, size: int) -> None:
    os._exit(7)


def limit(rank: int, size: int, seconds: float) -> None:
    """From now on collectives of the group may take so long; before, a busy machine may take its time."""
    dist.group.WORLD._get_backend(torch.device("npu"))._set_default_timeout(timedelta(seconds=seconds))


def reduce_and_read(rank: int, size: int) -> dict:
    tensor = torch.ones(5000, device="npu")
    dist.all_reduce(tensor)
    try:
        value = tensor[0].item()
    except RuntimeError as error:
        return {"error": str(error)}
    return {"value": value}


def different_calls(rank: int, size: int) -> str:
    tensor = torch.ones(64, device="npu")
    try:
        if rank == 0:
            dist.all_reduce(tensor)
        else:
            dist.broadcast(tensor, 0)
        tensor.sum().item()
    except RuntimeError as error:
        return str(error)
    return "no error"


def different_sizes(rank: int, size: int) -> str:
    tensor = torch.ones(9000 + rank, device="npu")
    try:
        dist.all_reduce(tensor)
        tensor.sum().item()
    except RuntimeError as error:
        return str(error)
    return "no error"


def rebuild(rank: int, size: int) -> list[str | float]:
    """A failed group says so, and works again after reinit_process_group."""
    from torch_npu.distributed import reinit_process_group

    said = []
    try:
        dist.all_reduce(torch.ones(1, device="npu"))
    except RuntimeError as error:
        said.append(str(error))
    reinit_process_group()
    tensor = torch.full((5000,), 1.0 + rank, device="npu")
    dist.all_reduce(tensor)
    said.append(tensor[0].item())
    return said


def reduce_async(rank: int, size: int) -> None:
    dist.all_reduce(torch.ones(5000, device="npu"), async_op=True)


def reduce_and_wait(rank: int, size: int) -> dict:
    work = dist.all_reduce(torch.ones(5000, device="npu"), async_op=True)
    try:
        work.wait()
    except dist.DistBackendError as error:
        return {"error": str(error)}
    return {"done": work.is_completed()}


def descriptors(rank: int, size: int) -> list[int]:
    """Open descriptors before and after many groups have come and gone."""
    counts = []
    for _ in range(6):
        group = dist.new_group()
        dist.all_reduce(torch.ones(5000, device="npu"), group=group)
        dist.barrier(group=group)
        dist.destroy_process_group(group)
        counts.append(len(os.listdir("/proc/self/fd")))
    return counts


def initialise_again(rank: int, size: int, store: str) -> float:
    dist.destroy_process_group()
    dist.init_process_group("npu:hccl", store=dist.FileStore(store, size), rank=rank, world_size=size)
    tensor = torch.ones(3, device="npu")
    dist.all_reduce(tensor)
    return tensor[0].item()


def test_a_dead_peer_is_noticed(fresh_ranks) -> None:
    group = fresh_ranks(2)
    pids = group.run(warm_up)
    group.start(die, only=(1,))
    assert group.answer(1) is None
    group.start(reduce_and_read, only=(0,))
    answer = group.answer(0)
    assert answer is not None
    value = answer["value"]
    assert "EI0002" in value["error"] and f"rank 1 (process {pids[1]})" in value["error"]
    assert "EI0002" in group.log(0)


def test_a_peer_that_dies_while_waited_for(fresh_ranks) -> None:
    group = fresh_ranks(3)
    group.run(warm_up)
    group.start(reduce_and_read, only=(0, 1))
    group.processes[2].kill()
    for rank in (0, 1):
        answer = group.answer(rank)
        assert answer is not None and "EI0002" in answer["value"]["error"] and "rank 2" in answer["value"]["error"]


@pytest.mark.parametrize("calls", (different_calls, different_sizes), ids=("operations", "sizes"))
def test_mismatch(fresh_ranks, calls) -> None:
    for text in fresh_ranks(2).run(calls):
        assert "EI0005" in text and "rank 0 all_reduce(" in text, text


def test_a_failed_group_can_be_rebuilt(fresh_ranks) -> None:
    group = fresh_ranks(2)
    group.run(different_calls)
    for error, value in group.run(rebuild):
        assert "an earlier collective of this group failed" in error and value == 3.0


def test_timeout_ends_the_process(fresh_ranks) -> None:
    group = fresh_ranks(2)
    group.run(warm_up)
    group.run(limit, 2.0)
    group.start(reduce_async, only=(0,))
    assert group.processes[0].wait(120) == -6
    log = group.log(0)
    assert "[Rank 0] Watchdog caught collective operation timeout: WorkHCCL(SeqNum=3, OpType=ALLREDUCE" in log
    assert "Timeout(ms)=2000" in log and "before timing out" in log
    assert group.processes[1].poll() is None  # it has nothing pending


def test_execution_timeout_is_an_error_of_the_stream(fresh_ranks) -> None:
    group = fresh_ranks(2, HCCL_EXEC_TIMEOUT="6")  # the warm-up must fit, on a busy machine too
    group.run(warm_up)
    group.start(reduce_and_read, only=(0,))
    answer = group.answer(0)
    assert answer is not None and "EI0002" in answer["value"]["error"]
    assert "HCCL_EXEC_TIMEOUT" in answer["value"]["error"]


def test_blocking_wait_raises(fresh_ranks) -> None:
    group = fresh_ranks(2, TORCH_HCCL_BLOCKING_WAIT="1")
    group.run(warm_up)
    assert group.run(reduce_and_wait) == [{"done": True}] * 2  # wait() has waited on the host
    group.run(limit, 1.0)
    group.start(reduce_and_wait, only=(0,))
    answer = group.answer(0)
    assert answer is not None and "error" in answer["value"], answer
    error = answer["value"]["error"]
    assert "OpType=ALLREDUCE" in error and "Timeout(ms)=1000" in error, error
    assert group.alive  # an error of the caller, not the end of the process


def test_exit_with_a_pending_collective(fresh_ranks) -> None:
    """A rank ends by itself, and in order, although a collective that nobody will join is still queued."""
    group = fresh_ranks(2)
    group.run(warm_up)
    group.start(reduce_async, only=(0,))
    assert group.answer(0) == {"value": None}
    assert group.run_only(0, pending)
    group.processes[1].kill()
    group.processes[1].wait()
    group.end_input(0)
    assert group.processes[0].wait(120) == 0, group.log(0)


def test_nothing_is_left_behind(fresh_ranks, tmp_path: Path) -> None:
    shared_before = set(os.listdir("/dev/shm"))
    group = fresh_ranks(2)
    pids = group.run(warm_up)
    for counts in group.run(descriptors):
        assert max(counts[1:]) <= counts[1], counts
    assert group.run(initialise_again, str(tmp_path / "store")) == [2.0, 2.0]
    assert group.close() == [0, 0]
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert set(os.listdir("/dev/shm")) <= shared_before
