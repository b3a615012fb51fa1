"""Every call with tensors on two devices or in two memory formats: refused where the bytes would be wrong ones."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _coalescing_manager

Call = Callable[[], object]
ONE_DEVICE = "ProcessGroupHCCL support one device per process only"
ONE_FORMAT = "Tensors must be contiguous"
LAST = torch.channels_last
PLAIN = torch.contiguous_format
SMALL, LARGE = (2, 3, 2, 5), (2, 3, 40, 50)  # inside the announcement, and from memory to memory


def backend(group: dist.ProcessGroup | None = None) -> dist.ProcessGroupHCCL:
    return (group or dist.group.WORLD)._get_backend(torch.device("npu"))


def raises(text: str, name: str, call: Callable[..., object], *arguments: object) -> None:
    try:
        call(*arguments)
    except RuntimeError as error:
        assert text in str(error), f"{name}: {error} does not say {text!r}"
    else:
        raise AssertionError(f"{name}: expected a RuntimeError with {text!r}")


def in_block(call: Call, device: torch.device) -> None:
    dist.group.WORLD._start_coalescing(device)
    try:
        call()
    finally:
        dist.group.WORLD._end_coalescing(device)


def in_unit(call: Call) -> None:
    backend()._group_start()
    try:
        call()
    finally:
        backend()._group_end()


# ---- two devices ----------------------------------------------------------------------------------------------------


def calls_on_two_devices(rank: int, size: int, first: torch.device, second: torch.device) -> dict[str, Call]:
    """What a call reads is on `first`, what it writes on `second`; of calls in place and lists, a part is there."""
    from torch_npu.distributed import (
        _make_hccl_premul_sum,
        all_gather_into_tensor_uneven,
        reduce_scatter_tensor_uneven,
    )

    def a(count: int = 3) -> torch.Tensor:
        return torch.ones(count, device=first)

    def b(count: int = 3) -> torch.Tensor:
        return torch.ones(count, device=second)

    raw = backend()
    lists = dist.distributed_c10d
    peer = (rank + 1) % size
    factor = _make_hccl_premul_sum(torch.tensor([2.0], device=first))
    return {
        "all_reduce with a factor": lambda: dist.all_reduce(b(), factor),
        "reduce with a factor": lambda: dist.reduce(b(), 0, factor),
        "all_reduce_coalesced": lambda: raw.allreduce_coalesced([a(), b()]),
        "reduce out of place": lambda: raw._reduce_oop(b(), a()),
        "all_gather": lambda: dist.all_gather([b() for _ in range(size)], a()),
        "all_gather, one output": lambda: dist.all_gather([a() for _ in range(size - 1)] + [b()], a()),
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(b(3 * size), a()),
        "all_gather_into_tensor, second pair": lambda: dist.group.WORLD.allgather_into_tensor_coalesced(
            [a(3 * size), b(3 * size)], [a(), a()]
        ),
        "all_gather_into_tensor, pair of the other device": lambda: dist.group.WORLD.allgather_into_tensor_coalesced(
            [a(3 * size), b(3 * size)], [a(), b()]
        ),
        "all_gather_coalesced": lambda: raw.allgather_coalesced([[b()] for _ in range(size)], [a()]),
        "all_gather_into_tensor_uneven": lambda: all_gather_into_tensor_uneven(b(3 * size), a(), [3] * size),
        "reduce_scatter, one input": lambda: raw.reduce_scatter(
            [a()], [[a() for _ in range(size - 1)] + [b()]], lists.ReduceScatterOptions()
        ),
        "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(b(), a(3 * size)),
        "reduce_scatter_tensor with a factor": lambda: dist.reduce_scatter_tensor(b(), b(3 * size), factor),
        "reduce_scatter_tensor, second pair": lambda: dist.group.WORLD.reduce_scatter_tensor_coalesced(
            [a(), b()], [a(3 * size), a(3 * size)]
        ),
        "reduce_scatter_tensor_uneven": lambda: reduce_scatter_tensor_uneven(b(), a(3 * size), [3] * size),
        "all_to_all": lambda: dist.all_to_all([b() for _ in range(size)], [a() for _ in range(size)]),
        "all_to_all, one output": lambda: dist.all_to_all([a() for _ in range(size - 1)] + [b()], [a()] * size),
        "all_to_all_single": lambda: dist.all_to_all_single(b(size), a(size)),
        "all_to_all_single, splits": lambda: dist.all_to_all_single(b(size), a(size), [1] * size, [1] * size),
        "scatter": lambda: raw.scatter([b()], [[a()] * size], root(lists.ScatterOptions(), rank)),
        "gather": lambda: raw.gather([[b() for _ in range(size)]], [a()], root(lists.GatherOptions(), rank)),
        "batch_isend_irecv": lambda: raw.batch_isend_irecv(["isend", "irecv"], [a(), b()], [peer, peer]),
    }


def root(options: object, rank: int) -> object:
    options.rootRank = rank
    return options


def other_device(rank: int) -> torch.device:
    return torch.device("npu", (rank + 1) % torch.npu.device_count())


def check_devices(rank: int, size: int) -> None:
    own, other = torch.device("npu", rank), other_device(rank)
    dist.all_reduce(torch.ones(3, device=own))
    refused = ("reduce_scatter, one input",)  # which has a text of its own
    before = dist.group.WORLD._get_sequence_number_for_group()
    for first, second in ((own, other), (other, own)):
        for name, call in calls_on_two_devices(rank, size, first, second).items():
            text = "must all reside on the same device" if name in refused else ONE_DEVICE
            raises(text, name, call)
            raises(text, f"{name} in a block", in_block, call, own)
            raises(text, f"{name} in a unit", in_unit, call)
    # Wholly on another device than the first used one.
    elsewhere = torch.ones(size, device=other)
    for name, call in {
        "all_reduce": lambda: dist.all_reduce(elsewhere),
        "broadcast": lambda: dist.broadcast(elsewhere, 0),
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(torch.ones(size * size, device=other), elsewhere),
        "send": lambda: dist.send(elsewhere, (rank + 1) % size),
        "recv": lambda: dist.recv(elsewhere, (rank + 1) % size),
        "barrier": lambda: dist.barrier(device_ids=[other.index]),
    }.items():
        raises(ONE_DEVICE, name, call)
        if name != "barrier":
            raises(ONE_DEVICE, f"{name} in a unit", in_unit, call)
    assert dist.group.WORLD._get_sequence_number_for_group() == before
    tensor = torch.full((3,), 1.0 + rank, device=own)
    dist.all_reduce(tensor)
    assert tensor.tolist() == [size * (size + 1) / 2] * 3


def check_refused_call_takes_no_device(rank: int, size: int) -> None:
    """A first call that is refused leaves the group free to use either device."""
    for kept in (torch.device("npu", rank), other_device(rank)):
        group = dist.new_group()
        given = torch.full((2,), 1.0 + rank, device=other_device(rank))
        output = torch.empty(2 * size, device=torch.device("npu", rank))
        raises(ONE_DEVICE, "first call", dist.all_gather_into_tensor, output, given, group)
        tensor = given.to(kept)
        dist.all_reduce(tensor, group=group)
        assert tensor.cpu().tolist() == [size * (size + 1) / 2] * 2
        dist.destroy_process_group(group)


# ---- two memory formats, seen by one rank ---------------------------------------------------------------------------


def numbers(shape: tuple[int, ...], salt: int = 0) -> torch.Tensor:
    return ((torch.arange(torch.Size(shape).numel()) * 7 + salt * 5) % 31 - 9).float().view(shape)


def tensor_of(shape: tuple[int, ...], salt: int, memory_format: torch.memory_format) -> torch.Tensor:
    return numbers(shape, salt).npu().contiguous(memory_format=memory_format)


def empty(shape: tuple[int, ...], memory_format: torch.memory_format) -> torch.Tensor:
    return torch.full(shape, -77.0, device="npu").contiguous(memory_format=memory_format)


def stacked(shape: tuple[int, ...], times: int) -> tuple[int, ...]:
    return (times * shape[0], *shape[1:])


def calls_of_two_formats(
    rank: int, size: int, shape: tuple[int, ...], given: torch.memory_format, wanted: torch.memory_format
) -> dict[str, tuple[Call, Callable[[], torch.Tensor], Callable[[int], torch.Tensor]]]:
    """By name: a call that reads `given` and writes `wanted`, its output, and what rank r finds in it."""
    from torch_npu.distributed import all_gather_into_tensor_uneven, reduce_scatter_tensor_uneven

    raw = backend()
    lists = dist.distributed_c10d
    whole = stacked(shape, size)
    one, all_of_them = tensor_of(shape, rank, given), tensor_of(whole, rank, given)
    parts = [tensor_of(shape, 10 * rank + r, given) for r in range(size)]
    out = empty(shape, wanted)
    big = empty(whole, wanted)
    many = [empty(shape, wanted) for _ in range(size)]
    rows = [shape[0]] * size

    def gathered(r: int) -> torch.Tensor:
        return torch.cat([numbers(shape, q) for q in range(size)])

    def scattered(r: int) -> torch.Tensor:
        return sum(numbers(whole, q).chunk(size)[r] for q in range(size))

    def scattered_parts(r: int) -> torch.Tensor:
        return sum(numbers(shape, 10 * q + r) for q in range(size))

    def exchanged(r: int) -> torch.Tensor:
        return torch.cat([numbers(shape, 10 * q + r) for q in range(size)])

    def rearranged(r: int) -> torch.Tensor:
        return torch.cat([numbers(whole, q).chunk(size)[r] for q in range(size)])

    def joined() -> torch.Tensor:
        return torch.cat([t.cpu() for t in many])

    return {
        "all_gather": (lambda: dist.all_gather(many, one), joined, gathered),
        "all_gather_coalesced": (lambda: raw.allgather_coalesced([[t] for t in many], [one]).wait(), joined, gathered),
        "all_gather_into_tensor": (lambda: dist.all_gather_into_tensor(big, one), big.cpu, gathered),
        "all_gather_into_tensor_coalesced": (
            lambda: dist.group.WORLD.allgather_into_tensor_coalesced(
                [torch.empty(size, device="npu"), big], [one.new_ones(1), one]
            ).wait(),
            big.cpu,
            gathered,
        ),
        "all_gather_into_tensor_uneven": (lambda: all_gather_into_tensor_uneven(big, one, rows), big.cpu, gathered),
        "reduce_scatter": (lambda: dist.reduce_scatter(out, parts), out.cpu, scattered_parts),
        "reduce_scatter of one": (lambda: dist.reduce_scatter(out, [all_of_them]), out.cpu, scattered),
        "reduce_scatter_tensor": (lambda: dist.reduce_scatter_tensor(out, all_of_them), out.cpu, scattered),
        "reduce_scatter_tensor_coalesced": (
            lambda: dist.group.WORLD.reduce_scatter_tensor_coalesced(
                [one.new_ones(1), out], [one.new_ones(size), all_of_them]
            ).wait(),
            out.cpu,
            scattered,
        ),
        "reduce_scatter_tensor_uneven": (
            lambda: reduce_scatter_tensor_uneven(out, all_of_them, rows),
            out.cpu,
            scattered,
        ),
        "reduce out of place": (
            lambda: [raw._reduce_oop(out, one, root(lists.ReduceOptions(), r)).wait() for r in range(size)],
            out.cpu,
            lambda r: sum(numbers(shape, q) for q in range(size)),
        ),
        "all_to_all": (lambda: dist.all_to_all(many, parts), joined, exchanged),
        "all_to_all_single": (lambda: dist.all_to_all_single(big, all_of_them), big.cpu, rearranged),
        "all_to_all_single, splits": (
            lambda: dist.all_to_all_single(big, all_of_them, rows, rows),
            big.cpu,
            rearranged,
        ),
        "scatter": (
            lambda: [dist.scatter(out, parts if r == rank else None, r) for r in range(size)],
            out.cpu,
            lambda r: numbers(shape, 10 * (size - 1) + r),
        ),
        "gather": (
            lambda: [dist.gather(one, many if r == rank else None, r) for r in range(size)],
            joined,
            gathered,
        ),
    }


def check_own_formats(rank: int, size: int) -> None:
    """One rank alone can tell that what it gives and what it takes differ."""
    before = dist.group.WORLD._get_sequence_number_for_group()
    for given, wanted in ((LAST, PLAIN), (PLAIN, LAST)):
        for name, (call, output, _) in calls_of_two_formats(rank, size, SMALL, given, wanted).items():
            # Only a root has both sides, and of several calls in a row it is the first one that every rank refuses.
            if name in ("scatter", "gather", "reduce out of place"):
                continue
            raises(ONE_FORMAT, f"{name} from {given} to {wanted}", call)
            raises(ONE_FORMAT, f"{name} in a block", in_block, call, torch.device("npu", rank))
            assert output().unique().tolist() == [-77], f"{name} has written"
        roots = calls_at_own_root(rank, size, given, wanted)
        for name, call in roots.items():
            raises(ONE_FORMAT, f"{name} from {given} to {wanted}", call)
        # The list is joined into one vector, which has no channels.
        one = tensor_of(SMALL, rank, given)
        raises(ONE_FORMAT, "list of another length", dist.reduce_scatter, empty(SMALL, LAST), [one] * (size + 2))
        flat = torch.empty(size * one.numel(), device="npu")
        if given == LAST:
            raises(ONE_FORMAT, "into a flat tensor", dist.all_gather_into_tensor, flat, one)
    assert dist.group.WORLD._get_sequence_number_for_group() == before


def calls_at_own_root(rank: int, size: int, given: torch.memory_format, wanted: torch.memory_format) -> dict[str, Call]:
    raw, lists = backend(), dist.distributed_c10d
    one, out = tensor_of(SMALL, rank, given), empty(SMALL, wanted)
    return {
        "scatter": lambda: raw.scatter([out], [[one] * size], root(lists.ScatterOptions(), rank)),
        "gather": lambda: raw.gather([[out] * size], [one], root(lists.GatherOptions(), rank)),
        "reduce out of place": lambda: raw._reduce_oop(out, one, root(lists.ReduceOptions(), rank)),
    }


def check_like_formats(rank: int, size: int) -> None:
    """In one memory format every call is as good as with plain tensors; so are shapes that have two at once."""
    one_channel = (2, 1, 4, 6)
    for shape, given, wanted in (
        (SMALL, LAST, LAST),
        (LARGE, LAST, LAST),
        (SMALL, PLAIN, PLAIN),
        (one_channel, LAST, PLAIN),
        (one_channel, PLAIN, LAST),
        ((2, 3, 2, 2, 3), torch.channels_last_3d, torch.channels_last_3d),
    ):
        for name, (call, output, expected) in calls_of_two_formats(rank, size, shape, given, wanted).items():
            call()
            assert torch.equal(output(), expected(rank)), f"{name} of {shape} from {given} to {wanted}"
    one = tensor_of(LARGE, rank, LAST)
    strides = one.stride()
    dist.all_reduce(one)
    assert torch.equal(one.cpu(), sum(numbers(LARGE, r) for r in range(size))) and one.stride() == strides
    dist.broadcast(one := tensor_of(LARGE, rank, LAST), size - 1)
    assert torch.equal(one.cpu(), numbers(LARGE, size - 1))
    dist.reduce(one := tensor_of(SMALL, rank, LAST), 0)
    assert torch.equal(one.cpu(), sum(numbers(SMALL, r) for r in range(size)) if rank == 0 else numbers(SMALL, rank))
    # Each tensor of these is a collective of its own.
    both = [tensor_of(SMALL, rank, LAST), tensor_of(SMALL, rank, PLAIN)]
    backend().allreduce_coalesced(both).wait()
    assert all(torch.equal(t.cpu(), sum(numbers(SMALL, r) for r in range(size))) for t in both)
    with _coalescing_manager():
        for tensor in (both := [tensor_of(LARGE, rank, LAST), tensor_of(LARGE, rank, PLAIN)]):
            dist.all_reduce(tensor)
    assert all(torch.equal(t.cpu(), sum(numbers(LARGE, r) for r in range(size))) for t in both)


def check_mixed_lists(rank: int, size: int) -> None:
    """Lists may hold several formats, shapes and nothing, as long as both ends of each part agree."""

    def part(sender: int, receiver: int) -> tuple[tuple[int, ...], torch.memory_format]:
        kinds = ((SMALL, LAST), (SMALL, PLAIN), ((7,), PLAIN), ((0, 3, 2, 2), LAST), (LARGE, LAST))
        return kinds[(sender + 2 * receiver) % len(kinds)]

    def fill(sender: int, receiver: int) -> torch.Tensor:
        shape, memory_format = part(sender, receiver)
        return tensor_of(shape, sender + 10 * receiver, memory_format)

    def room(sender: int, receiver: int) -> torch.Tensor:
        return empty(*part(sender, receiver))

    def assert_filled(tensors: list[torch.Tensor], expected: list[torch.Tensor], what: str) -> None:
        for got, wanted in zip(tensors, expected, strict=True):
            assert torch.equal(got.cpu(), wanted.cpu()), f"{what} of {tuple(wanted.shape)}"

    outputs = [room(r, rank) for r in range(size)]
    dist.all_to_all(outputs, [fill(rank, r) for r in range(size)])
    assert_filled(outputs, [fill(r, rank) for r in range(size)], "all_to_all")
    outputs = [room(r, 0) for r in range(size)]
    dist.all_gather(outputs, fill(rank, 0))
    assert_filled(outputs, [fill(r, 0) for r in range(size)], "all_gather")
    outputs = [room(r, 0) for r in range(size)]
    backend().gather(
        [outputs] if rank == 0 else [], [fill(rank, 0)], root(dist.distributed_c10d.GatherOptions(), 0)
    ).wait()
    if rank == 0:
        assert_filled(outputs, [fill(r, 0) for r in range(size)], "gather")
    output = room(0, rank)
    scattered = [[fill(0, r) for r in range(size)]] if rank == 0 else []
    backend().scatter([output], scattered, root(dist.distributed_c10d.ScatterOptions(), 0)).wait()
    assert_filled([output], [fill(0, rank)], "scatter")
    # A rank without rows has any format.
    rows = [0 if r == 0 else 2 for r in range(size)]
    mine = tensor_of((rows[rank], 3, 2, 2), rank, LAST)
    output = empty((sum(rows), 3, 2, 2), LAST)
    repeated = torch.cat([mine] * size).contiguous(memory_format=LAST)
    dist.all_to_all_single(output, repeated, rows, [rows[rank]] * size)
    assert torch.equal(output.cpu(), torch.cat([numbers((rows[r], 3, 2, 2), r) for r in range(size)]))


def check_messages(rank: int, size: int) -> None:
    """Messages keep their format one by one and in a batch; a pair of ranks may send several kinds in a row."""
    left, right = (rank - 1) % size, (rank + 1) % size
    kinds = ((SMALL, LAST), (SMALL, PLAIN), (LARGE, LAST), (LARGE, PLAIN), ((2, 1, 4, 6), LAST), ((5,), PLAIN))
    for batched in (False, True):
        received = [empty(*kind) for kind in kinds]
        sent = [tensor_of(shape, rank, memory_format) for shape, memory_format in kinds]
        if batched:
            operations = [dist.P2POp(dist.isend, tensor, right) for tensor in sent]
            operations += [dist.P2POp(dist.irecv, tensor, left) for tensor in received]
            works = dist.batch_isend_irecv(operations)
        else:
            works = []
            for own, place in zip(sent, received, strict=True):
                works += [dist.isend(own, right), dist.irecv(place, left)]
        for work in works:
            work.wait()
        for got, (shape, _) in zip(received, kinds, strict=True):
            assert torch.equal(got.cpu(), numbers(shape, left)), f"message of {shape}, batched: {batched}"


# ---- two memory formats on two ranks --------------------------------------------------------------------------------


def formats_of(rank: int, size: int, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.memory_format]:
    """The last rank has another format than the others."""
    memory_format = LAST if rank == size - 1 else PLAIN
    return tensor_of(shape, rank, memory_format), memory_format


def gather_as(rank: int, size: int, shape: tuple[int, ...]) -> None:
    one, memory_format = formats_of(rank, size, shape)
    dist.gather(one, [empty(shape, memory_format) for _ in range(size)] if rank == 0 else None, 0)


def scatter_as(rank: int, size: int, shape: tuple[int, ...]) -> None:
    one, memory_format = formats_of(rank, size, shape)
    dist.scatter(one, [empty(shape, memory_format) for _ in range(size)] if rank == 0 else None, 0)


def in_unit_as(rank: int, size: int, shape: tuple[int, ...]) -> None:
    in_unit(lambda: backend().allreduce([formats_of(rank, size, shape)[0]]))


def in_block_as(rank: int, size: int, shape: tuple[int, ...]) -> None:
    with _coalescing_manager():
        dist.all_reduce(torch.ones(4, device="npu"))
        dist.all_reduce(formats_of(rank, size, shape)[0])


def batch_as(rank: int, size: int, shape: tuple[int, ...]) -> None:
    one, memory_format = formats_of(rank, size, shape)
    operations = [
        dist.P2POp(dist.isend, one, (rank + 1) % size),
        dist.P2POp(dist.irecv, empty(shape, memory_format), (rank - 1) % size),
    ]
    for work in dist.batch_isend_irecv(operations):
        work.wait()


def with_own(call: Callable[..., object]) -> Callable[[int, int, tuple[int, ...]], None]:
    """A collective to which every rank gives its tensor and as many of the like as there are ranks."""

    def run(rank: int, size: int, shape: tuple[int, ...]) -> None:
        one, memory_format = formats_of(rank, size, shape)
        call(one, [empty(shape, memory_format) for _ in range(size)], empty(stacked(shape, size), memory_format))

    return run


COLLECTIVES = {
    "all_reduce": with_own(lambda one, many, big: dist.all_reduce(one)),
    "all_reduce in a block": in_block_as,
    "all_reduce in a unit": in_unit_as,
    "broadcast": with_own(lambda one, many, big: dist.broadcast(one, 0)),
    "reduce": with_own(lambda one, many, big: dist.reduce(one, 0)),
    "all_gather": with_own(lambda one, many, big: dist.all_gather(many, one)),
    "all_gather_into_tensor": with_own(lambda one, many, big: dist.all_gather_into_tensor(big, one)),
    "reduce_scatter": with_own(lambda one, many, big: dist.reduce_scatter(one, many)),
    "reduce_scatter_tensor": with_own(lambda one, many, big: dist.reduce_scatter_tensor(one, big)),
    "all_to_all": with_own(lambda one, many, big: dist.all_to_all(many, [one] * len(many))),
    "all_to_all_single": with_own(lambda one, many, big: dist.all_to_all_single(big, torch.empty_like(big))),
    "scatter": scatter_as,
    "gather": gather_as,
}


def failing_call(rank: int, size: int, name: str, shape: tuple[int, ...]) -> str:
    dist.barrier()
    texts = []
    for step in (lambda: (COLLECTIVES | MESSAGES)[name](rank, size, shape), torch.npu.synchronize):
        try:
            step()
        except RuntimeError as error:
            texts.append(str(error))
    return texts[0] if texts else "no error"


def rebuild(rank: int, size: int) -> None:
    """To be called when all ranks have seen what failed: who sends a small message does not wait for its receiver."""
    from torch_npu.distributed import reinit_process_group

    reinit_process_group()
    dist.all_reduce(tensor := torch.ones(3, device="npu"))
    assert tensor.tolist() == [size] * 3


def one_message(rank: int, size: int, shape: tuple[int, ...]) -> None:
    one, _ = formats_of(rank, size, shape)
    dist.send(one, 0) if rank == size - 1 else dist.recv(one, size - 1) if rank == 0 else None


MESSAGES = {"send and recv": one_message, "batch_isend_irecv": batch_as}


# ---- failures and futures -------------------------------------------------------------------------------------------


def check_future_of_a_failure(rank: int, size: int) -> None:
    from torch_npu.distributed import reinit_process_group

    for in_a_block in (False, True):
        tensor = torch.ones(3 + rank, device="npu")
        if in_a_block:
            with _coalescing_manager(async_ops=True) as manager:
                dist.all_reduce(tensor)
            work = manager.works[0]
        else:
            work = dist.all_reduce(tensor, async_op=True)
        early = work.get_future()  # the call may still be pending: then it is complete, and what waits for it fails
        raises("EI0005", "synchronize", torch.npu.synchronize)
        assert work.is_completed() and not work.is_success()
        future = work.get_future()
        assert future.done() and early.done()
        raises("EI0005", "the future", future.wait)
        raises("EI0005", "its value", future.value)
        seen: list[str] = []

        def read(done: torch.futures.Future, seen: list[str] = seen) -> list[torch.Tensor]:
            seen.append("called")
            return [done.value()[0] * 2]

        raises("EI0005", "what comes after it", future.then(read).wait)
        assert seen == ["called"]
        raises("EI0005", "once more", work.get_future().wait)
        raises("EI0005", "wait", work.wait)
        reinit_process_group()
        work = dist.all_reduce(tensor := torch.full((3,), 1.0 + rank, device="npu"), async_op=True)
        assert work.get_future().then(read).wait()[0].tolist() == [size * (size + 1)] * 3


# ---- tests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", (2, 3))
@pytest.mark.parametrize(
    "check",
    (
        check_devices,
        check_refused_call_takes_no_device,
        check_own_formats,
        check_like_formats,
        check_mixed_lists,
        check_messages,
        check_future_of_a_failure,
    ),
    ids=lambda check: check.__name__.removeprefix("check_"),
)
def test_tensors(ranks, size: int, check) -> None:
    ranks(size).run(check)


@pytest.mark.parametrize("shape", (SMALL, LARGE), ids=("inline", "in place"))
@pytest.mark.parametrize("name", COLLECTIVES)
def test_formats_that_differ_between_ranks(ranks, name: str, shape: tuple[int, ...]) -> None:
    texts = ranks(3).run(failing_call, name, shape)
    ranks(3).run(rebuild)
    for rank, text in enumerate(texts):
        assert "EI0005" in text and "channels_last" in text, f"rank {rank}: {text}"
        assert len(set(re.findall(r"rank (\d+)", text))) >= 2, f"rank {rank}: {text}"


@pytest.mark.parametrize("shape", (SMALL, LARGE), ids=("inline", "in place"))
@pytest.mark.parametrize("name", MESSAGES)
def test_messages_whose_formats_differ(ranks, name: str, shape: tuple[int, ...]) -> None:
    texts = ranks(3).run(failing_call, name, shape)
    ranks(3).run(rebuild)
    count = torch.Size(shape).numel()
    assert "EI0005" in texts[0], texts
    # In the batch rank 1 sends to rank 2 as well.
    pattern = f"rank 2 sends {count} x float32 .channels_last., rank 0 receives {count} x float32 .contiguous."
    other = f"rank 1 sends {count} x float32 .contiguous., rank 2 receives {count} x float32 .channels_last."
    assert re.search(pattern if name == "send and recv" else f"{pattern}|{other}", texts[0]), texts
