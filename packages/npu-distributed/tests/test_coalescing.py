"""Many calls as one: the coalescing manager, _group_start, and the lists of c10d."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _coalescing_manager


def backend_of(group: dist.ProcessGroup | None = None) -> dist.ProcessGroupHCCL:
    group = group or dist.distributed_c10d._get_default_group()
    return group._get_backend(torch.device("npu"))


def full(value: float, count: int = 5000) -> torch.Tensor:
    return torch.full((count,), float(value), device="npu")


# ---- on every rank --------------------------------------------------------------------------------------------------


def check_manager(rank: int, size: int) -> None:
    total = size * (size + 1) / 2
    for asynchronous in (False, True):
        reduced = [full(rank + 1, 10 * (i + 1)) for i in range(3)]
        with _coalescing_manager(async_ops=asynchronous) as manager:
            for tensor in reduced:
                dist.all_reduce(tensor)
        if asynchronous:
            manager.wait()
        assert [t.unique().tolist() for t in reduced] == [[total]] * 3
        gathered = [torch.empty(size * 4, device="npu") for _ in range(3)]
        with _coalescing_manager(async_ops=asynchronous) as manager:
            for i, output in enumerate(gathered):
                dist.all_gather_into_tensor(output, full(10 * i + rank, 4))
        if asynchronous:
            manager.wait()
        for i, output in enumerate(gathered):
            assert output.view(size, 4)[:, 0].tolist() == [10.0 * i + r for r in range(size)]
        scattered = [torch.empty(6, device="npu") for _ in range(3)]
        with _coalescing_manager(async_ops=asynchronous) as manager:
            for i, output in enumerate(scattered):
                dist.reduce_scatter_tensor(output, full(rank + i, 6 * size))
        if asynchronous:
            manager.wait()
        for i, output in enumerate(scattered):
            assert output.unique().tolist() == [sum(r + i for r in range(size))]


def check_block_is_one_task(rank: int, size: int) -> None:
    """With a device the calls go to the backend: nothing runs before the end of the block, and all is one Work."""
    backend = backend_of()
    before = backend._get_sequence_number_for_group()
    device = torch.device("npu", rank)
    reduced, received = full(rank), full(-1 if rank else 7)
    with _coalescing_manager(device=device, async_ops=True) as manager:
        first = backend.allreduce([reduced])
        second = backend.broadcast([received], dist.distributed_c10d.BroadcastOptions())
        torch.npu.synchronize()
        assert not first.is_completed() and not second.is_completed()
        with pytest.raises(RuntimeError, match="submitted"):
            first.get_future()
    assert len(manager.works) == 1
    manager.wait()
    assert reduced.unique().tolist() == [sum(range(size))] and received.unique().tolist() == [7.0]
    assert first.is_completed() and second.is_completed()
    assert backend._get_sequence_number_for_group() == before + 1


def check_blocking_calls_inside(rank: int, size: int) -> None:
    """Calls without async_op wait for the block, not for something that is not queued yet."""
    tensors = [full(rank + i) for i in range(4)]
    with _coalescing_manager(device=torch.device("npu", rank)):
        for tensor in tensors:
            dist.broadcast(tensor, 1)
    assert [t.unique().tolist() for t in tensors] == [[1.0 + i] for i in range(4)]


def check_empty_block(rank: int, size: int) -> None:
    with _coalescing_manager(async_ops=True, device=torch.device("npu", rank)) as manager:
        pass
    assert manager.works == []
    with _coalescing_manager():
        pass
    backend_of()._start_coalescing()
    assert backend_of()._end_coalescing() is None


def check_transfers_in_a_block(rank: int, size: int) -> None:
    """All ranks send first; transfers and a collective share the block."""
    after, before = (rank + 1) % size, (rank - 1) % size
    for count in (4, 100_000):
        got, reduced = torch.empty(count, device="npu"), full(1, count)
        with _coalescing_manager(device=torch.device("npu", rank), async_ops=True) as manager:
            dist.isend(full(rank, count), after)
            dist.irecv(got, before)
            backend_of().allreduce([reduced])
        manager.wait()
        assert got.unique().tolist() == [before] and reduced.unique().tolist() == [size]


def check_other_device(rank: int, size: int) -> None:
    other = torch.device("npu", (rank + 1) % size)
    with pytest.raises(RuntimeError, match="one device per process"):
        backend_of().allreduce([torch.ones(2, device=other)])
    tensor = full(1)
    dist.all_reduce(tensor)
    assert tensor[0].item() == size


def check_group_start(rank: int, size: int) -> None:
    """Nested; over two groups; wait() on one Work of a group finishes all of that group's."""
    second = dist.new_group()
    first = backend_of()
    reduced, received, gathered = full(rank), torch.empty(7, device="npu"), torch.empty(size, device="npu")
    elsewhere = full(2)
    after, before = (rank + 1) % size, (rank - 1) % size
    first._group_start()
    works = [first.allreduce([reduced]), first.send([full(rank, 7)], after, 0)]
    first._group_start()
    works.append(first.recv([received], before, 0))
    works.append(first._allgather_base(gathered, full(rank, 1), dist.distributed_c10d.AllgatherOptions()))
    other = backend_of(second).allreduce([elsewhere])
    first._group_end()
    torch.npu.synchronize()
    assert not any(work.is_completed() for work in works)
    with pytest.raises(RuntimeError, match="_group_end"):
        works[0].wait()
    first._group_end()
    works[2].wait()
    assert all(work.is_completed() for work in works)
    other.wait()
    assert reduced.unique().tolist() == [sum(range(size))] and received.unique().tolist() == [before]
    assert gathered.tolist() == list(range(size)) and elsewhere.unique().tolist() == [2.0 * size]
    with pytest.raises(RuntimeError, match="_group_start"):
        first._group_end()
    dist.barrier()
    dist.destroy_process_group(second)


def check_lists(rank: int, size: int) -> None:
    tensors = [full(rank, 3), full(2 * rank, 9000)]
    dist.distributed_c10d.all_reduce_coalesced(tensors)
    assert [t.unique().tolist() for t in tensors] == [[sum(range(size))], [2 * sum(range(size))]]
    inputs = [full(rank, 3), torch.full((2, 2), float(rank), device="npu")]
    outputs = [[torch.empty_like(t) for t in inputs] for _ in range(size)]
    dist.distributed_c10d.all_gather_coalesced(outputs, inputs)
    assert [[t.unique().tolist() for t in row] for row in outputs] == [[[r], [r]] for r in range(size)]


# ---- tests ----------------------------------------------------------------------------------------------------------


def check_memory_of_temporaries(rank: int, size: int) -> None:
    """A block keeps what its calls use, although Python forgets it before the block ends and the stream is idle."""
    count, backend, device = 100_000, backend_of(), torch.device("npu", rank)
    values = [1.0, 2.0, 3.0, 4.0]

    def outputs(length: int = count) -> list[torch.Tensor]:
        return [torch.zeros(length, device="npu") for _ in values]

    sent = outputs()
    with _coalescing_manager(device=device, async_ops=True) as manager:
        for value, output in zip(values, sent, strict=True):
            torch.npu.synchronize()
            if rank == 0:
                for peer in range(1, size):
                    dist.isend(full(value, count), peer)
            else:
                dist.irecv(output, 0)
        full(-9, count)
    manager.wait()
    if rank:
        assert [t.unique().tolist() for t in sent] == [[value] for value in values]

    gathered = outputs(size * count)
    backend._group_start()
    works = []
    for value, output in zip(values, gathered, strict=True):
        torch.npu.synchronize()
        works.append(backend._allgather_base(output, full(value, count)))
    backend._group_end()
    for work in works:
        work.wait()
    assert [t.unique().tolist() for t in gathered] == [[value] for value in values]

    scattered = outputs()
    with _coalescing_manager(device=device, async_ops=True) as manager:
        for value, output in zip(values, scattered, strict=True):
            torch.npu.synchronize()
            dist.reduce_scatter(output, [full(value, count) for _ in range(size + 1)])  # an odd list is joined first
    manager.wait()
    assert [t.unique().tolist() for t in scattered] == [[size * value] for value in values]


def check_order_in_a_unit(rank: int, size: int) -> None:
    """Calls of a unit see what the calls before them have done."""
    backend = backend_of()
    tensor, result = full(rank + 1), full(0)
    backend._group_start()
    works = [backend.allreduce([tensor]), backend._reduce_oop(result, tensor)]
    backend._group_end()
    for work in works:
        work.wait()
    total = size * (size + 1) / 2
    assert tensor.unique().tolist() == [total]
    assert result.unique().tolist() == [size * total if rank == 0 else 0.0]


@pytest.mark.parametrize(
    "check",
    [
        check_manager,
        check_block_is_one_task,
        check_blocking_calls_inside,
        check_memory_of_temporaries,
        check_order_in_a_unit,
        check_empty_block,
        check_transfers_in_a_block,
        check_other_device,
        check_group_start,
        check_lists,
    ],
)
def test_coalescing(ranks, check) -> None:
    ranks(3).run(check)
