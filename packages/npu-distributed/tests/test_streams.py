"""Collectives are stream-ordered: nobody waits on the host, nothing is read early, memory is not reused too soon."""

from __future__ import annotations

import time
from datetime import timedelta

import torch
import torch.distributed as dist

PATIENCE = timedelta(seconds=80)


def store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()


def late_peer(rank: int, size: int) -> dict:
    """Rank 1 comes when rank 0 has done all it can do without it: a call that waited for the peer would not return."""
    other = torch.full((100,), 2.0, device="npu")
    dist.all_reduce(torch.ones(1, device="npu"))
    dist.barrier()
    tensor = torch.full((5000,), 1.0 + rank, device="npu")
    if rank == 1:
        store().wait(["late_peer: rank 0 waits"], PATIENCE)
    work = dist.all_reduce(tensor, async_op=True)
    early = work.is_completed()
    work.wait()
    # Work of another stream goes on while the collective waits.
    side = torch.npu.Stream()
    with torch.npu.stream(side):
        side_result = (other * 3).sum()
    side.synchronize()
    if rank == 0:
        early = early or work.is_completed()
        store().set("late_peer: rank 0 waits", "now")
    value = tensor[17].item()
    return {
        "early": early,
        "value": value,
        "done": work.is_completed(),
        "success": work.is_success(),
        "side_value": side_result.item(),
        "result": work.result()[0].data_ptr() == tensor.data_ptr(),
    }


def ordered_without_host(rank: int, size: int) -> None:
    """Producer, collective and consumer are queued back to back, many times, with no synchronisation between."""
    total = torch.zeros(20000, device="npu")
    for step in range(50):
        tensor = torch.full((20000,), float(step), device="npu")
        tensor.mul_(2).add_(rank)
        dist.all_reduce(tensor)
        total += tensor * 0.5
    expected = sum((2 * step * size + size * (size - 1) / 2) * 0.5 for step in range(50))
    assert torch.allclose(total.cpu(), torch.full((20000,), expected))


def on_another_stream(rank: int, size: int) -> None:
    """The current stream is the one that matters, before the call and at wait()."""
    producer, consumer = torch.npu.Stream(), torch.npu.Stream()
    for _ in range(20):
        with torch.npu.stream(producer):
            tensor = torch.ones(50000, device="npu")
            for _ in range(5):
                tensor.mul_(2)
            work = dist.all_reduce(tensor, async_op=True)
        with torch.npu.stream(consumer):
            work.wait()
            result = (tensor + 1).sum()
        consumer.synchronize()
        assert result.item() == 50000 * (32 * size + 1)


def dropped_tensors(rank: int, size: int) -> None:
    """Python forgets input and output at once; the memory must not be handed out while peers still use it."""
    keep = []
    for step in range(60):
        source = torch.full((30000,), float(rank + step), device="npu")
        gathered = torch.empty(size * 30000, device="npu")
        work = dist.all_gather_into_tensor(gathered, source, async_op=True)
        del source
        torch.full((30000,), -5.0, device="npu")  # would land in the freed block
        work.wait()
        keep.append(gathered[::30000].clone())
        del gathered, work
    for step, heads in enumerate(keep):
        assert heads.tolist() == [float(r + step) for r in range(size)]


def future_callbacks(rank: int, size: int) -> float:
    tensor = torch.full((40000,), 1.0 + rank, device="npu")
    future = dist.all_reduce(tensor, async_op=True).get_future()
    halved = future.then(lambda done: done.value()[0] / 2).wait()
    return halved[39999].item()


def barrier_waits_for_all(rank: int, size: int) -> bool:
    """Nobody is behind the barrier before the last rank has come to it."""
    dist.barrier()
    if rank == size - 1:
        time.sleep(0.2)  # gives a barrier that does not wait the time to show it
        store().set("barrier: the last rank comes", "now")
    dist.barrier()
    return store().check(["barrier: the last rank comes"])


def groups_do_not_block_each_other(rank: int, size: int) -> bool:
    first, second = dist.new_group(), dist.new_group()
    for group in (first, second):
        dist.all_reduce(torch.ones(1, device="npu"), group=group)
    dist.barrier()
    slow, fast = torch.ones(9000, device="npu"), torch.ones(9000, device="npu")
    # Rank 0 issues them in the other order: each group has its own stream, so this is no deadlock.
    order = [(slow, first), (fast, second)] if rank == 0 else [(fast, second), (slow, first)]
    works = [dist.all_reduce(tensor, group=group, async_op=True) for tensor, group in order]
    for work in works:
        work.wait()
    result = slow[0].item() == fast[0].item() == size
    dist.barrier()
    dist.destroy_process_group(second)
    dist.destroy_process_group(first)
    return result


def stream_ids(rank: int, size: int) -> None:
    group = dist.new_group()
    backend = group._get_backend(torch.device("npu"))
    assert backend._get_stream_id() == -1 and backend.get_hccl_comm_name(rank, init_comm=False) == ""
    identifier = backend.get_coll_stream_id(rank)
    assert identifier & 32 == 32 and identifier == backend.get_coll_stream_id(rank)
    dist.all_reduce(torch.ones(1, device="npu"), group=group)
    assert backend._get_stream_id() == identifier
    stream = torch.npu.Stream(stream_id=identifier, device_type=20, device_index=rank)
    stream.synchronize()
    assert backend.get_hccl_comm_name(rank, init_comm=False) != ""
    assert backend.get_hccl_comm(rank) != 0
    dist.barrier()
    dist.destroy_process_group(group)


def streams_of_many_groups(rank: int, size: int) -> None:
    """Living groups share no stream, however many have come and gone: it would couple them."""
    world = dist.group.WORLD._get_backend(torch.device("npu"))
    ids = {"world": world.get_coll_stream_id(rank)}
    for number in range(40):
        group = dist.new_group()
        identifier = group._get_backend(torch.device("npu")).get_coll_stream_id(rank)
        assert identifier not in ids.values(), (number, identifier, ids)
        if number % 4 == 0:
            ids[group.group_name] = identifier  # lives on
        else:
            dist.destroy_process_group(group)
            del group


def test_streams_of_many_groups(fresh_ranks) -> None:
    fresh_ranks(2).run(streams_of_many_groups)


def test_host_is_not_blocked(ranks) -> None:
    early, late = ranks(2).run(late_peer)
    assert early["early"] is False and early["side_value"] == 600
    for answer in (early, late):
        assert answer["value"] == 3.0 and answer["done"] and answer["success"] and answer["result"]


def test_order_without_host(ranks) -> None:
    ranks(2).run(ordered_without_host)


def test_streams_of_the_caller(ranks) -> None:
    ranks(2).run(on_another_stream)


def test_memory_of_dropped_tensors(ranks) -> None:
    ranks(2).run(dropped_tensors)


def test_memory_of_dropped_tensors_held_by_works(fresh_ranks) -> None:
    fresh_ranks(2, MULTI_STREAM_MEMORY_REUSE="2").run(dropped_tensors)


def test_future_callbacks(ranks) -> None:
    assert ranks(2).run(future_callbacks) == [1.5, 1.5]


def test_barrier(ranks) -> None:
    assert ranks(2).run(barrier_waits_for_all) == [True, True]


def test_groups_have_their_own_streams(ranks) -> None:
    assert all(ranks(2).run(groups_do_not_block_each_other))


def test_stream_ids(ranks) -> None:
    ranks(2).run(stream_ids)
