"""Messages between ranks and the forms with uneven splits: every type and size arrives bit for bit, in order."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
import torch.distributed as dist
from hccl_testing.reference import TRANSPORT, as_bytes, assert_same, assert_same_copy, contribution, reduced

INLINE_BYTES = 8192
PIECE_BYTES = 512 * 1024


def counts_of(dtype: torch.dtype, large: bool) -> list[int]:
    """Numbers of elements around the limits of the transport."""
    inline = INLINE_BYTES // dtype.itemsize
    counts = [0, 1, inline - 1, inline, inline + 1]
    return counts + ([PIECE_BYTES // dtype.itemsize + 1, (3 << 20) // dtype.itemsize + 5] if large else [])


def empty(count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(count, dtype=dtype, device="npu")


def check_send_and_receive(rank: int, size: int) -> None:
    """Even ranks send to the next one, which sends back; a call returns before the message has gone."""
    if size % 2 == 1 and rank == size - 1:
        dist.barrier()
        return
    peer = rank ^ 1
    for dtype_name in TRANSPORT:
        dtype = getattr(torch, dtype_name)
        for count in counts_of(dtype, large=dtype_name == "bfloat16"):
            mine, expected = contribution(rank, count, dtype).npu(), contribution(peer, count, dtype)
            received = empty(count, dtype)
            if rank % 2 == 0:
                dist.send(mine, peer)
                dist.recv(received, peer)
            else:
                dist.recv(received, peer)
                dist.send(mine, peer)
            assert_same_copy(received, expected, f"message of {count} {dtype_name}")
    dist.barrier()


def check_order(rank: int, size: int) -> None:
    """Many messages of one pair arrive in the order of the calls, whatever is waited for first."""
    chooser = random.Random(rank)
    counts = [1 + (i * 997) % 5000 for i in range(30)]
    peer, source = (rank + 1) % size, (rank - 1) % size
    received = [empty(count, torch.int32) for count in counts]
    operations = []
    for step, count in enumerate(counts):
        operations.append(dist.P2POp(dist.isend, contribution(rank, count, torch.int32, salt=step).npu(), peer))
        operations.append(dist.P2POp(dist.irecv, received[step], source))
    # Batches of several messages each way; inside a batch the order among messages of one pair stays.
    for begin in range(0, len(operations), 12):
        for work in dist.batch_isend_irecv(operations[begin : begin + 12]):
            work.wait()
    for step, count in enumerate(counts):
        assert_same_copy(received[step], contribution(source, count, torch.int32, salt=step), f"message {step}")
    if size == 2:
        received = [empty(count, torch.int32) for count in counts]
        works = []
        for step, count in enumerate(counts):
            if rank == 0:
                works.append(dist.isend(contribution(0, count, torch.int32, salt=step).npu(), 1))
            else:
                works.append(dist.irecv(received[step], 0))
        chooser.shuffle(works)
        for work in works:
            work.wait()
        if rank == 1:
            for step, count in enumerate(counts):
                assert_same_copy(received[step], contribution(0, count, torch.int32, salt=step), f"message {step}")
    dist.barrier()


def check_batches(rank: int, size: int) -> None:
    """Everybody sends to everybody, the list in another order on every rank, also to itself where allowed."""
    chooser = random.Random(rank)
    for dtype_name, base in itertools.product(("float32", "bool", "float8_e4m3fn"), (1, 3000, 150_000)):
        dtype = getattr(torch, dtype_name)
        others = [r for r in range(size) if r != rank]
        received = {r: empty(base + r, dtype) for r in others}
        operations = [dist.P2POp(dist.irecv, received[r], r) for r in others]
        operations += [dist.P2POp(dist.isend, contribution(rank, base + rank, dtype).npu(), r) for r in others]
        chooser.shuffle(operations)
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        for r in others:
            assert_same_copy(received[r], contribution(r, base + r, dtype), f"batch of {base} {dtype_name} from {r}")


def check_messages_in_groups(rank: int, size: int) -> None:
    """Ranks of messages are those of the world; messages of different groups do not mix."""
    groups = [dist.new_group() for _ in range(2)]
    pair = dist.new_group([0, size - 1])
    peer, source = (rank + 1) % size, (rank - 1) % size
    received = [empty(500, torch.int64) for _ in groups]
    for index in (0, 1):
        operations = [
            dist.P2POp(dist.isend, contribution(rank, 500, torch.int64, salt=index).npu(), peer, groups[index]),
            dist.P2POp(dist.irecv, received[index], source, groups[index]),
        ]
        dist.batch_isend_irecv(operations)
    tensor = contribution(rank, 9001, torch.float32).npu()
    dist.all_reduce(tensor)
    parts = [contribution(r, 9001, torch.float32) for r in range(size)]
    assert_same(tensor, reduced(parts, "SUM"), "all_reduce beside messages")
    torch.npu.synchronize()
    for index in (0, 1):
        assert_same_copy(received[index], contribution(source, 500, torch.int64, salt=index), f"group {index}")
    if rank in (0, size - 1):
        got = empty(70_001, torch.float16)
        if rank == 0:
            dist.send(contribution(0, 70_001, torch.float16).npu(), size - 1, group=pair)
            dist.recv(got, size - 1, group=pair)
        else:
            dist.recv(got, 0, group=pair)
            dist.send(contribution(rank, 70_001, torch.float16).npu(), 0, group=pair)
        assert_same_copy(got, contribution(size - 1 - rank, 70_001, torch.float16), "message in a group of two")
        things = [{"from": rank}, "text" * 1000]
        if rank == 0:
            dist.send_object_list(things, size - 1, group=pair)
        else:
            got_things: list = [None, None]
            dist.recv_object_list(got_things, 0, group=pair)
            assert got_things == [{"from": 0}, "text" * 1000]
    dist.barrier()
    if rank in (0, size - 1):
        dist.destroy_process_group(pair)
    for group in groups:
        dist.destroy_process_group(group)


def check_uneven(rank: int, size: int) -> None:
    from torch_npu.distributed import all_gather_into_tensor_uneven, reduce_scatter_tensor_uneven

    for dtype_name, base in itertools.product(("float32", "int8", "bfloat16"), (1, 3000)):
        dtype = getattr(torch, dtype_name)
        for rows in ([base * (r + 1) for r in range(size)], [base * (r % 2) for r in range(size)]):
            total = sum(rows)
            parts = [contribution(r, 3 * rows[r], dtype) for r in range(size)]
            output = empty(3 * total, dtype).view(total, 3)
            all_gather_into_tensor_uneven(output, parts[rank].view(-1, 3).npu(), rows)
            expected = torch.cat([as_bytes(part) for part in parts]).view(dtype).view(total, 3)
            assert_same_copy(output, expected, f"uneven all_gather of {rows} {dtype_name}")
            wholes = [contribution(r, 3 * total, dtype, salt=1).view(total, 3) for r in range(size)]
            begin = sum(rows[:rank])
            mine = [whole[begin : begin + rows[rank]] for whole in wholes]
            for op in ("SUM", "AVG", "MAX"):
                output = empty(3 * rows[rank], dtype).view(rows[rank], 3)
                reduce_scatter_tensor_uneven(output, wholes[rank].npu(), rows, getattr(dist.ReduceOp, op))
                assert_same(
                    output,
                    reduced(mine, op),
                    f"uneven reduce_scatter {op} of {rows} {dtype_name}",
                    signed_zero=op != "MAX",
                )


@pytest.mark.parametrize("size", (2, 3, 4))
@pytest.mark.parametrize(
    "check",
    (check_send_and_receive, check_order, check_batches, check_messages_in_groups, check_uneven),
    ids=lambda check: check.__name__.removeprefix("check_"),
)
def test_point_to_point(ranks, size: int, check) -> None:
    ranks(size).run(check)
