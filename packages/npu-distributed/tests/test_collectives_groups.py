"""Groups, objects, coalesced calls, functional collectives, and many calls at once over streams, threads and groups."""

from __future__ import annotations

import gc
import itertools
import random
import threading
import warnings

import pytest
import torch
import torch.distributed as dist
from hccl_testing.reference import assert_same, assert_same_copy, contribution, reduced


def backend(group: dist.ProcessGroup | None = None):
    return (group or dist.group.WORLD)._get_backend(torch.device("npu"))


def close(*groups: dist.ProcessGroup) -> None:
    """Destroy groups once everybody is done with them."""
    dist.barrier()
    for group in groups:
        if group is not dist.GroupMember.NON_GROUP_MEMBER:
            dist.destroy_process_group(group)


# ---- on every rank --------------------------------------------------------------------------------------------------


def check_coalesced(rank: int, size: int) -> None:
    device = torch.device("npu", rank)
    counts = (1, 4000, 0, 17, 70_001)
    parts = [[contribution(r, n, torch.float32) for n in counts] for r in range(size)]
    totals = [reduced([part[i] for part in parts], "SUM") for i in range(len(counts))]
    for async_ops in (False, True):
        tensors = [part.npu() for part in parts[rank]]
        with dist._coalescing_manager(device=device, async_ops=async_ops) as pending:
            for tensor in tensors:
                dist.all_reduce(tensor)
        if async_ops:
            pending.wait()
        for got, expected in zip(tensors, totals, strict=True):
            assert_same(got, expected, "all_reduce in a coalescing manager")
        outputs = [torch.empty(size * n, device="npu") for n in counts]
        with dist._coalescing_manager(device=device, async_ops=async_ops) as pending:
            for output, part in zip(outputs, parts[rank], strict=True):
                dist.all_gather_into_tensor(output, part.npu())
        if async_ops:
            pending.wait()
        for i, output in enumerate(outputs):
            assert_same_copy(output, torch.cat([part[i] for part in parts]), "all_gather in a coalescing manager")
        outputs = [torch.empty(n, device="npu") for n in counts]
        with dist._coalescing_manager(device=device, async_ops=async_ops) as pending:
            for output, part in zip(outputs, parts[rank], strict=True):
                dist.reduce_scatter_tensor(output, part.repeat(size).npu())
        if async_ops:
            pending.wait()
        for got, expected in zip(outputs, totals, strict=True):
            assert_same(got, expected, "reduce_scatter in a coalescing manager")
    with dist._coalescing_manager(device=device, async_ops=True):
        pass  # nothing queued
    # The native calls with lists, also of different types.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = [part.npu() for part in parts[rank]]
        dist.all_reduce_coalesced(tensors)
    for got, expected in zip(tensors, totals, strict=True):
        assert_same(got, expected, "all_reduce_coalesced")
    types = (torch.float32, torch.int8, torch.bfloat16)
    inputs = [[contribution(r, 5001, dtype) for dtype in types] for r in range(size)]
    outputs = [torch.empty(size * 5001, dtype=dtype, device="npu") for dtype in types]
    dist.group.WORLD.allgather_into_tensor_coalesced(outputs, [part.npu() for part in inputs[rank]]).wait()
    for i, output in enumerate(outputs):
        assert_same_copy(output, torch.cat([part[i] for part in inputs]), "allgather_into_tensor_coalesced")
    outputs = [torch.empty(5001, dtype=dtype, device="npu") for dtype in types]
    dist.group.WORLD.reduce_scatter_tensor_coalesced(outputs, [part.repeat(size).npu() for part in inputs[rank]]).wait()
    for i, output in enumerate(outputs):
        assert_same(output, reduced([part[i] for part in inputs], "SUM"), "reduce_scatter_tensor_coalesced")


def check_objects(rank: int, size: int) -> None:
    members = [r for r in range(size) if r != 1] if size > 2 else list(range(size))
    part = dist.new_group(members)
    for group, ranks in ((None, list(range(size))), (part, members)):
        if rank not in ranks:
            continue
        things = [{"rank": r, "text": "x" * (r * 5000), "list": [None, r]} for r in ranks]
        mine = things[ranks.index(rank)]
        gathered: list = [None] * len(ranks)
        dist.all_gather_object(gathered, mine, group=group)
        assert gathered == things
        root = ranks[-1]
        collected = [None] * len(ranks) if rank == root else None
        dist.gather_object(mine, collected, dst=root, group=group)
        assert collected == (things if rank == root else None)
        shared = [mine, rank]
        dist.broadcast_object_list(shared, src=root, group=group)
        assert shared == [things[-1], root]
        received: list = [None]
        dist.scatter_object_list(received, things if rank == root else None, src=root, group=group)
        assert received == [mine]
    close(part)


def check_groups(rank: int, size: int) -> None:
    """Groups over all pairs of ranks, each used by its members only, in the members' own order."""
    pairs = list(itertools.combinations(range(size), 2))[:6]
    groups = {pair: dist.new_group(list(pair)) for pair in pairs}
    alone = [dist.new_group([r]) for r in range(size)][rank]
    everyone = dist.new_group(list(reversed(range(size))))
    for pair, group in groups.items():
        if rank in pair:
            for count in (9, 20_000):
                parts = [contribution(r, count, torch.float32) for r in pair]
                tensor = contribution(rank, count, torch.float32).npu()
                dist.all_reduce(tensor, group=group)
                assert_same(tensor, reduced(parts, "SUM"), f"all_reduce of {pair}")
                dist.broadcast(tensor, src=pair[1], group=group)
                tensor = contribution(rank, count, torch.float32).npu()
                dist.broadcast(tensor, group_src=1, group=group)
                assert_same_copy(tensor, parts[1], f"broadcast from rank 1 of {pair}")
        else:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                tensor = torch.full((3,), 7.0, device="npu")
                assert dist.all_reduce(tensor, group=group) is None
            assert f"Running all_reduce on global rank {rank} which does not belong to the given group." in str(
                said[0].message
            )
            assert tensor.tolist() == [7.0] * 3
    tensor = contribution(rank, 9000, torch.float16).npu()
    dist.all_reduce(tensor, dist.ReduceOp.AVG, group=alone)
    assert_same(tensor, contribution(rank, 9000, torch.float16), "all_reduce alone")
    # Ranks of a group are sorted whatever the order of the list, unless the caller says otherwise.
    parts = [contribution(r, 77, torch.int64) for r in range(size)]
    output = torch.empty(size * 77, dtype=torch.int64, device="npu")
    dist.all_gather_into_tensor(output, parts[rank].npu(), group=everyone)
    assert_same_copy(output, torch.cat(parts), "all_gather in a group of a reversed list")
    names = [backend(group).get_hccl_comm_name(rank) for pair, group in groups.items() if rank in pair]
    assert all(names) and len(set(names)) == len(names)
    close(*groups.values(), alone, everyone)


def check_functional(rank: int, size: int) -> None:
    import torch.distributed._functional_collectives as functional

    native = torch.ops._c10d_functional
    world = dist.group.WORLD
    name = world.group_name
    count = 6000
    parts = [contribution(r, count, torch.float32) for r in range(size)]
    total, mean = reduced(parts, "SUM"), reduced(parts, "AVG")
    mine = parts[rank].npu()

    assert_same(functional.all_reduce(mine, "sum", world).cpu(), total, "functional all_reduce")
    assert_same(functional.all_reduce(mine, "avg", world).cpu(), mean, "functional all_reduce avg")
    assert_same_copy(mine, parts[rank], "functional all_reduce changes its input")
    in_place = mine.clone()
    got = native.wait_tensor(native.all_reduce_(in_place, "sum", name))
    assert got.data_ptr() == in_place.data_ptr()
    assert_same(in_place, total, "all_reduce_")
    for got in functional.all_reduce_coalesced([mine, mine[:7].clone()], "sum", world):
        assert_same(got.cpu(), total[: got.numel()], "functional all_reduce_coalesced")
    pair = [mine.clone(), mine[:7].clone()]
    for got in native.all_reduce_coalesced_(pair, "sum", name):
        native.wait_tensor(got)
    for got in pair:
        assert_same(got, total[: got.numel()], "all_reduce_coalesced_")
    matrices = [part.view(count // 4, 4) for part in parts]
    for dim in (0, 1):
        got = functional.all_gather_tensor(mine.view(count // 4, 4), dim, world)
        assert_same_copy(got.contiguous().cpu(), torch.cat(matrices, dim), f"all_gather_tensor along {dim}")
        blocks = [torch.cat([matrix] * size, dim) for matrix in matrices]
        got = functional.reduce_scatter_tensor(blocks[rank].npu(), "sum", dim, world)
        assert_same(got.cpu(), total.view(count // 4, 4), f"reduce_scatter_tensor along {dim}")
    several = [mine, mine[:9].clone().half()]
    waited = [native.wait_tensor(t) for t in native.all_gather_into_tensor_coalesced(several, size, name)]
    for got, source in zip(waited, (list(parts), [p[:9].half() for p in parts]), strict=True):
        assert_same_copy(got, torch.cat(source), "all_gather_into_tensor_coalesced")
    several = [mine.repeat(size), mine[:9].repeat(size)]
    waited = [native.wait_tensor(t) for t in native.reduce_scatter_tensor_coalesced(several, "sum", size, name)]
    for got in waited:
        assert_same(got, total[: got.numel()], "reduce_scatter_tensor_coalesced")
    assert_same_copy(functional.broadcast(mine, size - 1, world).cpu(), parts[-1], "functional broadcast")
    in_place = mine.clone()
    native.wait_tensor(native.broadcast_(in_place, 0, name))
    assert_same_copy(in_place, parts[0], "broadcast_")
    splits = [r + 1 for r in range(size)]
    source = mine[: sum(splits)].clone()
    got = functional.all_to_all_single(source, [rank + 1] * size, splits, world)
    begin = sum(splits[:rank])
    expected = torch.cat([part[begin : begin + rank + 1] for part in parts])
    assert_same_copy(got.cpu(), expected, "functional all_to_all_single")
    # Nobody waits: the result and its memory must be safe all the same.
    for step in range(30):
        unwaited = native.all_reduce(torch.full((5000,), float(step), device="npu"), "sum", name)
        del unwaited
        torch.full((5000,), -1.0, device="npu")
    dist.barrier()


def check_differentiable(rank: int, size: int) -> None:
    """The collectives of torch.distributed.nn: gradients are the transposed collectives."""
    from torch.distributed.nn import functional

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights = [contribution(r, 4 * size, torch.float64).nan_to_num(0, 1, -1) for r in range(size)]
        x = weights[rank].npu().requires_grad_()
        (functional.all_reduce(x) * (rank + 1)).sum().backward()
        assert x.grad.unique().tolist() == [size * (size + 1) / 2]
        x.grad = None
        gathered = functional.all_gather(x)
        sum(((r + 1) * (rank + 1) * part).sum() for r, part in enumerate(gathered)).backward()
        assert x.grad.unique().tolist() == [(rank + 1) * size * (size + 1) / 2]
        x.grad = None
        output = torch.empty(4, dtype=torch.float64, device="npu")
        (functional.reduce_scatter(output, list(x.chunk(size))) * (rank + 1)).sum().backward()
        assert x.grad.view(size, 4)[:, 0].tolist() == [r + 1.0 for r in range(size)]
        x.grad = None
        output = torch.empty(4 * size, dtype=torch.float64, device="npu")
        (functional.all_to_all_single(output, x) * (rank + 1)).sum().backward()
        assert x.grad.view(size, 4)[:, 0].tolist() == [r + 1.0 for r in range(size)]


def check_interleaved_groups(rank: int, size: int) -> None:
    """Overlapping groups, several streams, another order on every rank, waits in another order than issues."""
    chooser = random.Random(rank)
    groups = [dist.new_group() for _ in range(3)]
    for group in groups:
        dist.barrier(group)  # making a communicator is a collective of the host: in one order on all ranks
    streams = [torch.npu.Stream(), torch.npu.Stream(priority=-1), torch.npu.current_stream()]
    for step in range(12):
        pending = []
        for index in chooser.sample(range(3), 3):  # each group sees its own calls in one order
            count = (1, 3000, 90_001)[(step + index) % 3]
            parts = [contribution(r, count, torch.float32, salt=step * 3 + index) for r in range(size)]
            stream = chooser.choice(streams)
            with torch.npu.stream(stream):
                tensor = parts[rank].npu()
                first = dist.all_reduce(tensor, group=groups[index], async_op=True)
                gathered = torch.empty(size * count, device="npu")
                source = parts[rank].npu()
                second = dist.all_gather_into_tensor(gathered, source, group=groups[index], async_op=True)
            pending.append((first, tensor, reduced(parts, "SUM")))
            pending.append((second, gathered, torch.cat(parts)))
        chooser.shuffle(pending)
        for work, tensor, expected in pending:
            reader = chooser.choice(streams)
            with torch.npu.stream(reader):
                work.wait()
                assert_same(tensor, expected, f"step {step}")
    close(*groups)


def check_threads(rank: int, size: int) -> None:
    """A thread per group issues as it likes; the groups know nothing of each other."""
    groups = [dist.new_group() for _ in range(4)]
    failures: list[BaseException] = []

    def issue(index: int) -> None:
        try:
            torch.npu.set_device(rank)
            with torch.npu.stream(torch.npu.Stream()):
                for step in range(25):
                    count = (7, 5000, 40_000)[(step + index) % 3]
                    parts = [contribution(r, count, torch.int32, salt=index * 100 + step) for r in range(size)]
                    tensor = parts[rank].npu()
                    dist.all_reduce(tensor, group=groups[index])
                    assert_same(tensor, reduced(parts, "SUM"), f"thread {index}, step {step}")
                    output = torch.empty(count * size, dtype=torch.int32, device="npu")
                    dist.all_gather_into_tensor(output, parts[rank].npu(), group=groups[index])
                    assert_same_copy(output, torch.cat(parts), f"thread {index}, step {step}")
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=issue, args=(index,)) for index in range(len(groups))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    close(*groups)


def check_dropped_works(rank: int, size: int) -> None:
    """Works nobody keeps, tensors nobody keeps: the collectives run all the same, and nobody else gets the memory."""
    kept = []
    for step in range(60):
        count = 1 + 997 * (step % 40)
        parts = [contribution(r, count, torch.float32, salt=step) for r in range(size)]
        output = torch.empty(size * count, device="npu")
        dist.all_gather_into_tensor(output, parts[rank].npu(), async_op=True)
        dist.all_reduce(torch.full((30_000,), float(step), device="npu"), async_op=True)
        torch.full((30_000,), -1.0, device="npu")  # would land in freed memory
        kept.append((output, torch.cat(parts)))
    dist.barrier()
    for output, expected in kept:
        assert_same_copy(output, expected, "a dropped work")
    gc.collect()


def little_memory(rank: int, size: int) -> float:
    """More goes through the device than fits: freed blocks come back only when the collectives are done with them."""
    total = 0.0
    for step in range(40):
        tensor = torch.full((1 << 20,), float(rank + step), device="npu")
        output = torch.empty(size << 20, device="npu")
        works = [dist.all_gather_into_tensor(output, tensor, async_op=True), dist.all_reduce(tensor, async_op=True)]
        del tensor
        for work in works:
            work.wait()
        heads = output[:: 1 << 20].clone()
        del output
        assert heads.tolist() == [float(r + step) for r in range(size)]
        total += heads.sum().item()
    return total


# ---- tests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", (1, 2, 4))
@pytest.mark.parametrize(
    "check",
    (
        check_coalesced,
        check_objects,
        check_groups,
        check_functional,
        check_differentiable,
        check_interleaved_groups,
        check_threads,
        check_dropped_works,
    ),
    ids=lambda check: check.__name__.removeprefix("check_"),
)
def test_groups(ranks, size: int, check) -> None:
    ranks(size).run(check)


@pytest.mark.parametrize("reuse", ("0", "1", "2", "3"))
def test_little_memory(fresh_ranks, reuse: str) -> None:
    group = fresh_ranks(2, NPU_HOST_MEMORY="64MiB", MULTI_STREAM_MEMORY_REUSE=reuse, TORCH_HCCL_HIGH_PRIORITY="1")
    assert group.run(little_memory) == [sum(2 * step + 1.0 for step in range(40))] * 2
    assert group.close() == [0, 0]
