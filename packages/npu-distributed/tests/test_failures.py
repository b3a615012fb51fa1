"""What happens when something goes wrong: clear errors, in time, on every rank; nothing left behind."""

from __future__ import annotations

import os
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hccl_testing.stores import tcp_store, use_tcp_store


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


def first_receive(rank: int, size: int) -> dict:
    """First transfer with a rank that has ended."""
    begin = time.monotonic()
    try:
        tensor = torch.ones(3, device="npu")
        dist.recv(tensor, 2)
        tensor.sum().item()
    except RuntimeError as error:
        return {"error": str(error), "seconds": time.monotonic() - begin}
    return {}


def first_in_subgroup(rank: int, size: int) -> dict:
    """First collective of a group of ranks 1 and 2, the latter of which has ended."""
    begin = time.monotonic()
    try:
        group = dist.new_group([1, 2], use_local_synchronization=True)
        dist.all_reduce(torch.ones(3, device="npu"), group=group)
    except RuntimeError as error:
        return {"error": str(error), "seconds": time.monotonic() - begin}
    return {}


def two_groups_from_two_threads(rank: int, size: int, folder: str) -> list[float]:
    """Two groups whose first collectives meet in opposite order on the two ranks."""
    # Clients of a TCPStore wait for one another while one of them waits for a key.
    backend = dist.group.WORLD._get_backend(torch.device("npu"))
    store = tcp_store(rank, size, folder)
    groups = [type(backend)(dist.PrefixStore(name, store), rank, size, timeout=timedelta(seconds=60)) for name in "ab"]
    results = [torch.ones(4, device="npu") for _ in groups]
    begun = dist.PrefixStore("begun", store.clone())

    def reduce(index: int) -> None:
        torch.npu.set_device(rank)
        groups[index].allreduce([results[index]]).wait()
        torch.npu.current_stream().synchronize()

    threads = [threading.Thread(target=reduce, args=(index,)) for index in (0, 1)]
    if rank == 0:  # both at once, the first of them surely in its meeting
        threads[0].start()
        while not store.clone().check(["a/hccl/0/rank/0"]):
            time.sleep(0.01)
        threads[1].start()
        begun.set("both", "1")
        for thread in threads:
            thread.join()
    else:
        begun.wait(["both"])
        for index in (1, 0):
            reduce(index)
    values = [result[0].item() for result in results]
    begun.set(str(rank), "1")
    begun.wait(["0", "1"])  # the keeper of the store ends last
    for group in groups:
        group.shutdown()
    return values


def abort_while_connecting(rank: int, size: int) -> dict:
    """Abort a group whose communicator is being made, with nobody else coming."""
    group = dist.new_group(use_local_synchronization=True)
    backend = group._get_backend(torch.device("npu"))
    said: list[str] = []

    def first() -> None:
        torch.npu.set_device(rank)
        try:
            dist.all_reduce(torch.ones(3, device="npu"), group=group)
        except RuntimeError as error:
            said.append(str(error))

    thread = threading.Thread(target=first)
    thread.start()
    begin = time.monotonic()
    while thread.is_alive():  # an abort before the meeting has begun has nothing to end
        backend.abort()
        thread.join(0.2)
    return {"error": said, "seconds": time.monotonic() - begin}


def warm_up_groups(rank: int, size: int) -> None:
    """Eight groups; rank 0 begins a collective in each that nobody joins."""
    groups = [dist.new_group() for _ in range(8)]
    for group in groups:
        dist.all_reduce(torch.ones(4, device="npu"), group=group)
    torch.npu.synchronize()
    for group in groups if rank == 0 else ():
        dist.all_reduce(torch.ones(4, device="npu"), group=group, async_op=True)


def shut_down_all(rank: int, size: int, seconds: float) -> float:
    """What the interpreter does at exit; how long it takes."""
    from npu_distributed._C import shutdown_all_groups

    begin = time.monotonic()
    shutdown_all_groups(timedelta(seconds=seconds), lambda: None)
    return time.monotonic() - begin


_kept: dict = {}


def backend() -> dist.ProcessGroupHCCL:
    return dist.group.WORLD._get_backend(torch.device("npu"))


def call_what_does_not_fit(rank: int, size: int) -> None:
    """In the synchronous form: the current stream waits, unless the call has failed already."""
    try:
        dist.all_reduce(torch.ones(3 + rank, device="npu"))
    except RuntimeError as error:
        assert "EI0005" in str(error), error


def wait_for_failure(rank: int, size: int) -> None:
    """Return when the failure is known; no stream is synchronised."""
    while not backend().has_failed():
        time.sleep(0.01)


def follow_advice(rank: int, size: int, advice: str, store: str) -> list[str | float]:
    """A failed group says what to do; what it gives after that was done."""
    said: list[str | float] = []
    tensor = torch.ones(3, device="npu")
    try:
        dist.all_reduce(tensor)
    except dist.DistBackendError as error:
        said.append(str(error))
    if advice == "reinit":
        dist.reinit_process_group()
    else:
        initialise_again(rank, size, store)
    for count in (3, 5000, 3):
        tensor = torch.full((count,), 1.0 + rank, device="npu")
        dist.all_reduce(tensor)
        said.append(tensor[count - 1].item())
    return said


def wait_and_abort(rank: int, size: int) -> None:
    """Wait for a collective that nobody joins, in the synchronous form, and abort it."""
    tensor = torch.ones(5000, device="npu")
    dist.all_reduce(tensor)
    backend().abort()


def abort(rank: int, size: int) -> None:
    backend().abort()


def reduce_three_times(rank: int, size: int) -> list[float]:
    values = []
    for _ in range(3):
        tensor = torch.full((5000,), 1.0 + rank, device="npu")
        dist.all_reduce(tensor)
        values.append(tensor[4999].item())
    return values


def make_second_group(rank: int, size: int) -> None:
    _kept["group"] = dist.new_group()
    for group in (None, _kept["group"]):
        dist.all_reduce(torch.ones(5000, device="npu"), group=group)
    torch.npu.synchronize()


def reduce_in_second_group(rank: int, size: int) -> None:
    _kept["work"] = dist.all_reduce(torch.ones(3 + rank, device="npu"), group=_kept["group"], async_op=True)
    if rank == 0:  # the first one: its stream waits before there is a failure
        _kept["work"].wait()


def finished(rank: int, size: int) -> bool:
    while not _kept["work"].is_completed():
        time.sleep(0.01)
    return _kept["work"].is_success()


def try_to_reduce(rank: int, size: int, fused: bool) -> str:
    try:
        if fused:
            name = dist.group.WORLD._get_backend(torch.device("npu")).get_hccl_comm_name(rank)
            torch.ops.npu.npu_mm_all_reduce_base(*[torch.ones(3, 3, device="npu").half()] * 2, name)
        else:
            dist.all_reduce(torch.ones(3, device="npu"))
    except dist.DistBackendError as error:
        return str(error)
    return "no error"


def first_calls(rank: int, size: int) -> list[str]:
    """First collective and first message after rank 0 has gone with the store."""
    said = []
    for call in (lambda t: dist.all_reduce(t), lambda t: dist.recv(t, 0)):
        tensor = torch.ones(3, device="npu")
        begin = time.monotonic()
        try:
            call(tensor)
            torch.npu.synchronize()
        except RuntimeError as error:
            said.append(str(error))
        assert time.monotonic() - begin < 60  # HCCL_CONNECT_TIMEOUT is 120 s, the store's time-out half an hour
    return said


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


def test_a_dead_peer_is_noticed_by_communicators_that_are_made_later(fresh_ranks) -> None:
    group = fresh_ranks(3)
    pids = group.run(warm_up)
    group.start(die, only=(2,))
    assert group.answer(2) is None
    for function, name in ((first_in_subgroup, "rank 1 (global rank 2)"), (first_receive, "rank 2")):
        group.start(function, only=(1,))
        answer = group.answer(1)
        assert answer is not None
        value = answer["value"]
        assert "EI0006" in value["error"] and f"{name} (process {pids[2]}) ended" in value["error"], value
        assert value["seconds"] < 60, value  # HCCL_CONNECT_TIMEOUT is 120 s


def test_first_calls_of_two_groups_in_opposite_order(fresh_ranks, tmp_path: Path) -> None:
    assert fresh_ranks(2).run(two_groups_from_two_threads, str(tmp_path)) == [[2.0, 2.0]] * 2


def test_abort_while_a_communicator_is_made(fresh_ranks) -> None:
    group = fresh_ranks(2)
    group.run(warm_up)
    answer = group.run_only(0, abort_while_connecting)
    assert "aborted the process group" in answer["error"][0] and answer["seconds"] < 60, answer


def test_groups_that_are_stuck_at_exit_share_the_time_they_get(fresh_ranks) -> None:
    group = fresh_ranks(2)
    group.run(warm_up_groups)
    seconds = group.run_only(0, shut_down_all, 6.0)
    assert 6.0 <= seconds < 36.0, seconds  # one after the other they would take 48


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


@pytest.mark.parametrize("advice", ("reinit", "initialise"))
def test_the_advice_of_a_failed_group_works(fresh_ranks, tmp_path: Path, advice: str) -> None:
    """Also when a stream waits for what has failed and nobody has synchronised it."""
    group = fresh_ranks(2)
    group.run(warm_up)
    for rank in (0, 1):
        group.run_only(rank, call_what_does_not_fit)
    group.run(wait_for_failure)
    for error, *values in group.run(follow_advice, advice, str(tmp_path / "store")):
        assert "an earlier collective of this group failed" in error and "reinit_process_group()" in error
        assert values == [3.0] * 3, values
    assert group.close() == [0, 0], group.logs()


def test_a_group_works_after_an_abort_of_a_collective_that_a_stream_waits_for(fresh_ranks) -> None:
    group = fresh_ranks(2)
    group.run(warm_up)
    for _ in range(2):
        group.run_only(0, wait_and_abort)
        group.run_only(1, abort)
        assert group.run(reduce_three_times) == [[3.0] * 3] * 2
    assert group.close() == [0, 0], group.logs()


@pytest.mark.parametrize("fused", (False, True))
def test_a_failed_stream_does_not_end_another_group(fresh_ranks, fused: bool) -> None:
    """The error is raised where the collective is called, before its peers hear of it."""
    group = fresh_ranks(2, TORCH_HCCL_ASYNC_ERROR_HANDLING="2")
    group.run(make_second_group)
    for rank in (0, 1):
        group.run_only(rank, reduce_in_second_group)
    assert group.run(finished) == [False, False]
    error = group.run_only(0, try_to_reduce, fused)
    assert "the current stream carries the error of an earlier collective" in error and "EI0005" in error, error
    assert group.run(reduce_three_times) == [[3.0] * 3] * 2


def test_a_store_that_ends_before_the_first_collective(fresh_ranks, tmp_path: Path) -> None:
    group = fresh_ranks(2, TORCH_HCCL_ASYNC_ERROR_HANDLING="2")
    group.run(use_tcp_store, str(tmp_path))
    group.start(die, only=(0,))
    assert group.answer(0) is None
    port = (tmp_path / "port").read_text()
    said = group.run_only(1, first_calls)
    assert len(said) == 2, said
    for text in said:
        assert "EI0006" in text and f"TCPStore at 127.0.0.1:{port}, kept by rank 0" in text, text


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
