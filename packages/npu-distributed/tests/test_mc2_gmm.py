"""Products of experts fused with all-to-all: layouts, values and counts that do not fit together."""

from __future__ import annotations

import re

import numpy
import pytest
import torch
from mc2_reference import ROUNDING, assert_close, comm_name, random_floats
from torch import Tensor

torch_npu = pytest.importorskip("torch_npu")

SIZES = (1, 2, 3, 4)


def counts_of(rank: int, size: int, experts: int, seed: int) -> tuple[list[int], list[int]]:
    """What `rank` sends and receives, [peer * experts + expert]; many blocks are empty."""
    generator = torch.Generator().manual_seed(seed)
    sent = torch.randint(0, 9, (size, size, experts), generator=generator)
    sent = sent * (torch.rand(sent.shape, generator=generator) < 0.7)
    return sent[rank].flatten().tolist(), sent[:, rank].flatten().tolist()


def blocks_of(rows: Tensor, counts: list[int]) -> list[Tensor]:
    return list(rows.split(counts))


def expected_rows(rank: int, sent: list[list[int]], matrices: list[Tensor], experts: int) -> list[Tensor]:
    """What arrives at `rank`, by expert: the block of every source rank in rank order."""
    blocks = [blocks_of(matrix, counts) for matrix, counts in zip(matrices, sent, strict=True)]
    return [torch.cat([of[rank * experts + expert] for of in blocks]) for expert in range(experts)]


def to_the_experts_and_back(rank: int, size: int) -> None:
    name = comm_name(rank)
    for case, (experts, h, n, dtype, transposed) in enumerate(
        [
            (1, 5, 3, torch.float16, False),
            (2, 16, 24, torch.bfloat16, True),
            (5, 33, 9, torch.bfloat16, False),
            (3, 1, 1, torch.float16, True),
        ]
    ):
        seed = 100 * case
        sent = [counts_of(of, size, experts, seed)[0] for of in range(size)]
        send, recv = counts_of(rank, size, experts, seed)
        matrices = [random_floats([sum(sent[of]), h], dtype, seed + of) for of in range(size)]
        weights = [random_floats([experts, h, n], dtype, seed + 10 + of) for of in range(size)]
        back = [random_floats([experts, n, h], dtype, seed + 20 + of) for of in range(size)]
        mm_x, mm_weight = random_floats([7, 6], dtype, seed + 30), random_floats([6, 4], dtype, seed + 31)

        def given(weight: Tensor, transposed: bool = transposed) -> Tensor:
            return weight.mT.contiguous().npu() if transposed else weight.npu()

        y, mm_y, arrived = torch_npu.npu_alltoallv_gmm(
            matrices[rank].npu(),
            given(weights[rank]),
            name,
            size,
            numpy.array(send),
            [numpy.int64(count) for count in recv],
            mm_x=mm_x.npu(),
            mm_weight=given(mm_weight),
            trans_gmm_weight=transposed,
            trans_mm_weight=transposed,
            permute_out_flag=True,
            comm_mode="ai_cpu",
        )
        by_expert = expected_rows(rank, sent, matrices, experts)
        assert torch.equal(arrived.cpu(), torch.cat(by_expert)) and arrived.dtype == dtype
        for actual, rows, weight in zip(
            [*y.split([len(rows) for rows in by_expert]), mm_y],
            [*by_expert, mm_x],
            [*weights[rank], mm_weight],
            strict=True,
        ):
            product = rows.double() @ weight.double()
            assert_close(actual, product, rows.double().abs() @ weight.double().abs())

        result, mm_y = torch_npu.npu_gmm_alltoallv(
            y, given(back[rank]), name, size, recv, send, trans_gmm_weight=transposed
        )
        assert mm_y is None and result.dtype == dtype and result.shape == (sum(send), h)
        # Row by row x @ W1[g] @ W2[g]: the way back ends in the order of the way there.
        expected, inner = torch.zeros(2, sum(send), h, dtype=torch.float64).unbind()
        begin = 0
        for g, count in enumerate(send):
            owner, expert = divmod(g, experts)
            rows = matrices[rank][begin : begin + count].double()
            there, home = weights[owner][expert].double(), back[owner][expert].double()
            expected[begin : begin + count] = rows @ there @ home
            inner[begin : begin + count] = rows.abs() @ there.abs() @ home.abs()
            begin += count
        # The product in the middle was rounded, too.
        limit = 2.1 * ROUNDING[dtype] * inner + ROUNDING[dtype] * expected.abs() + 2.0**-14
        assert ((result.cpu().double() - expected).abs() <= limit).all()


def example(rank: int, size: int) -> list[float]:
    """The worked example: rank 0 sends [1, 2, 0, 1], rank 1 sends [2, 0, 1, 1]."""
    send = [[1, 2, 0, 1], [2, 0, 1, 1]][rank]
    recv = [[1, 2, 2, 0], [0, 1, 1, 1]][rank]
    rows = torch.arange(4.0)[:, None].half() + 10 * rank
    weight = torch.ones(2, 1, 1).half()
    y, _, arrived = torch_npu.npu_alltoallv_gmm(
        rows.npu(), weight.npu(), comm_name(rank), size, send, recv, permute_out_flag=True
    )
    assert torch.equal(y, arrived)
    without = torch_npu.npu_alltoallv_gmm(rows.npu(), weight.npu(), comm_name(rank), size, send, recv)
    assert without[1] is None and without[2] is None
    return arrived.flatten().tolist()


def nothing_to_send(rank: int, size: int) -> None:
    """All rows go to rank 0; the others have none to compute."""
    name = comm_name(rank)
    send = [3, 2] + [0, 0] * (size - 1)
    recv = [3, 2] * size if rank == 0 else [0, 0] * size
    rows = torch.full((5, 4), 1.0 + rank).bfloat16()
    y, _, _ = torch_npu.npu_alltoallv_gmm(rows.npu(), torch.ones(2, 4, 3).bfloat16().npu(), name, size, send, recv)
    assert y.shape == (5 * size if rank == 0 else 0, 3)
    result, _ = torch_npu.npu_gmm_alltoallv(y, torch.ones(2, 3, 2).bfloat16().npu(), name, size, recv, send)
    assert torch.equal(result.cpu(), torch.full((5, 2), 12.0 * (1 + rank)).bfloat16())


def counts_that_do_not_fit(rank: int, size: int) -> str:
    """Rank 1 expects one row more than rank 0 sends."""
    send, recv = ([1, 2], [1, 0]) if rank == 0 else ([0, 1], [3, 1])
    rows = torch.ones(sum(send), 4).half().npu()
    weight = torch.ones(1, 4, 4).half().npu()
    torch_npu.npu_alltoallv_gmm(rows, weight, comm_name(rank), size, send, recv)
    try:
        torch.npu.synchronize()
    except RuntimeError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("size", SIZES)
def test_to_the_experts_and_back(ranks, size: int) -> None:
    ranks(size).run(to_the_experts_and_back)


def test_example(ranks) -> None:
    # By expert, then by source: expert 0 of rank 0 gets rank 0's row 0 and rank 1's rows 0 and 1, and so on.
    assert ranks(2).run(example) == [[0, 10, 11, 1, 2], [12, 3, 13]]


@pytest.mark.parametrize("size", SIZES)
def test_nothing_to_send(ranks, size: int) -> None:
    ranks(size).run(nothing_to_send)


def test_counts_that_do_not_fit(fresh_ranks) -> None:
    for text in fresh_ranks(2).run(counts_that_do_not_fit):
        assert re.search(r"npu_alltoallv_gmm: EI0005.* rank 0 sends 2 rows to rank 1 .*which expects 3", text), text
