"""Ranks that do not call the same thing: an error on every rank that says who called what; then life goes on."""

from __future__ import annotations

import re

import pytest
import torch
import torch.distributed as dist
from hccl_testing.reference import assert_same, contribution, reduced


def ones(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(count, dtype=dtype, device="npu")


def odd_one(rank: int, size: int) -> bool:
    """The last rank does something else than the others."""
    return rank == size - 1


def exchange(rank: int, size: int, sent: list[int], received: list[int]) -> None:
    dist.all_to_all_single(ones(sum(received)), ones(sum(sent)), received, sent)


def scatter(rank: int, size: int, count: int, offered: int) -> None:
    dist.scatter(ones(count), [ones(offered)] * size if rank == 0 else None, 0)


def gather(rank: int, size: int, count: int, room: int) -> None:
    dist.gather(ones(count), [ones(room)] * size if rank == 0 else None, 0)


# By name: what a rank calls, given whether it is the odd one, and the calls that the error must show.
CASES = {
    "sizes inline": (lambda r, w, odd: dist.all_reduce(ones(64 + odd)), ("all_reduce(64 x", "all_reduce(65 x")),
    "sizes": (lambda r, w, odd: dist.all_reduce(ones(9000 + odd)), ("all_reduce(9000 x", "all_reduce(9001 x")),
    "a size within the inline limit, one beyond": (
        lambda r, w, odd: dist.all_reduce(ones(9000 if odd else 64)),
        ("all_reduce(64 x", "all_reduce(9000 x"),
    ),
    "types": (
        lambda r, w, odd: dist.all_reduce(ones(64, torch.int32 if odd else torch.float32)),
        ("float32", "int32"),
    ),
    "types of like bytes": (
        lambda r, w, odd: dist.broadcast(ones(9000, torch.int16) if odd else ones(4500), 0),
        ("4500 x float32", "9000 x int16"),
    ),
    "operations": (
        lambda r, w, odd: dist.all_reduce(ones(9000), dist.ReduceOp.MAX if odd else dist.ReduceOp.SUM),
        ("op=SUM", "op=MAX"),
    ),
    "roots": (lambda r, w, odd: dist.broadcast(ones(64), int(odd)), ("root=0", "root=1")),
    "roots of reduce": (lambda r, w, odd: dist.reduce(ones(9000), int(odd)), ("root=0", "root=1")),
    "collectives": (
        lambda r, w, odd: dist.broadcast(ones(64), 0) if odd else dist.all_reduce(ones(64)),
        ("broadcast(", "all_reduce("),
    ),
    "a barrier and none": (
        lambda r, w, odd: dist.barrier() if odd else dist.all_reduce(ones(9000)),
        ("barrier", "all_reduce("),
    ),
    "gathering and scattering": (
        lambda r, w, odd: (
            dist.reduce_scatter_tensor(ones(8), ones(8 * w))
            if odd
            else dist.all_gather_into_tensor(ones(8 * w), ones(8))
        ),
        ("reduce_scatter(", "all_gather("),
    ),
    "sizes of all_gather": (
        lambda r, w, odd: dist.all_gather_into_tensor(ones((8 + odd) * w), ones(8 + odd)),
        ("all_gather(8 x", "all_gather(9 x"),
    ),
    "sizes of large all_gather": (
        lambda r, w, odd: dist.all_gather_into_tensor(ones((9000 + odd) * w), ones(9000 + odd)),
        ("all_gather(9000 x", "all_gather(9001 x"),
    ),
    "sizes of reduce_scatter": (
        lambda r, w, odd: dist.reduce_scatter_tensor(ones(8 + odd), ones((8 + odd) * w)),
        ("reduce_scatter(",),
    ),
    "splits": (
        lambda r, w, odd: exchange(r, w, [2] * w, [2 + odd] + [2] * (w - 1)),
        ("all_to_all(",),
    ),
    "sizes of scatter": (lambda r, w, odd: scatter(r, w, 5 + odd, 5), ("scatter(",)),
    "sizes of gather": (lambda r, w, odd: gather(r, w, 5 + odd, 5), ("gather(",)),
}


def mismatch(rank: int, size: int, name: str) -> str:
    """Every rank makes its call of the case; returns the error it gets."""
    dist.barrier()
    try:
        CASES[name][0](rank, size, odd_one(rank, size))
        torch.npu.synchronize()
    except RuntimeError as error:
        return str(error)
    return "no error"


def rebuild(rank: int, size: int) -> None:
    """The group refuses to go on until it is rebuilt; then it is as good as new."""
    from torch_npu.distributed import reinit_process_group

    try:
        dist.all_reduce(ones(1))
    except RuntimeError as error:
        assert "an earlier collective of this group failed" in str(error), error
    else:
        raise AssertionError("a failed group has taken a call")
    reinit_process_group()
    for count in (5, 9001):
        parts = [contribution(r, count, torch.float32) for r in range(size)]
        tensor = parts[rank].npu()
        dist.all_reduce(tensor)
        assert_same(tensor, reduced(parts, "SUM"), "all_reduce of a rebuilt group")


@pytest.mark.parametrize("size", (2, 4))
@pytest.mark.parametrize("name", CASES)
def test_mismatch(ranks, size: int, name: str) -> None:
    team = ranks(size)
    texts = team.run(mismatch, name)
    team.run(rebuild)
    for rank, text in enumerate(texts):
        assert "EI0005" in text, f"rank {rank}: {text}"
        named = set(map(int, re.findall(r"rank (\d+)", text)))
        assert len(named) >= 2 and named <= set(range(size)), f"rank {rank}: {text}"
        for call in CASES[name][1]:
            assert call in text, f"rank {rank} does not say {call!r}: {text}"


def messages(rank: int, size: int) -> str:
    """The last two ranks disagree on a message; returns the error of this rank."""
    dist.barrier()
    try:
        if rank == size - 2:
            dist.send(ones(70_000), size - 1)
        elif rank == size - 1:
            dist.recv(ones(90_000), size - 2)
        torch.npu.synchronize()
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_messages_name_the_ranks_of_the_group(ranks) -> None:
    """A pair talks over a link of its own, in which its ranks are 0 and 1."""
    team = ranks(4)
    texts = team.run(messages)
    team.run(rebuild_pairs)
    assert texts[:2] == ["no error"] * 2
    for text in texts[2:]:
        assert "EI0005" in text and "from rank 2 to rank 3" in text, text
        assert "rank 2 sends 70000 x float32, rank 3 receives 90000 x float32" in text, text
        assert set(re.findall(r"rank (\d+)", text)) == {"2", "3"}, text


def rebuild_pairs(rank: int, size: int) -> None:
    from torch_npu.distributed import reinit_process_group

    reinit_process_group()
    if rank == size - 2:
        dist.send(contribution(0, 90_000, torch.float32).npu(), size - 1)
    elif rank == size - 1:
        tensor = ones(90_000)
        dist.recv(tensor, size - 2)
        assert_same(tensor, contribution(0, 90_000, torch.float32), "a message after the rebuild")
