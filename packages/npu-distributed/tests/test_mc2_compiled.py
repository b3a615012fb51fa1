"""Compiled code makes the calls of fused operators that the program makes, in the program's order."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from mc2_reference import comm_name
from torch import Tensor

pytest.importorskip("torch_npu")

BACKENDS = ("aot_eager", "inductor")
WIDTH = 8


def barrier_only(rank: int, size: int, backend: str) -> list[float]:
    """Nobody uses what the barrier returns; one rank runs compiled code, the other one does not."""
    name = comm_name(rank)
    x = torch.ones(2, 2, dtype=torch.float16, device="npu")

    def step(x: Tensor) -> Tensor:
        torch.ops.npu._npu_distribute_barrier(x, name, size)
        return x + 1

    torch._dynamo.reset()
    compiled = torch.compile(step, backend=backend, fullgraph=True)
    compiled(x)
    sums = []
    for compiling in range(size):
        result = (compiled if rank == compiling else step)(x)
        sums.append(torch.ops.npu.npu_mm_all_reduce_base(result, x, name).sum().item())  # meets no barrier
    return sums


@pytest.mark.parametrize("backend", BACKENDS)
def test_barrier_without_a_use_is_kept(ranks, backend: str) -> None:
    assert ranks(2).run(barrier_only, backend, timeout=180) == [[32.0, 32.0]] * 2


def one_rank_ignores(rank: int, size: int, backend: str, dynamic: bool) -> None:
    """Rank 0 uses all results, rank 1 none."""
    name, ops = comm_name(rank), torch.ops.npu
    where = (name, size, rank, 2 * size)

    def step(x: Tensor, weight: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        counts = [2] * size
        rows = ops.npu_moe_distribute_dispatch(x, ids, *where)
        rows2 = ops.npu_moe_distribute_dispatch_v2(x, ids, *where)
        combined = (rows2[0], ids, rows2[2], rows2[4], weights)
        results = [
            ops.npu_all_gather_base_mm(x, weight, name, size)[0],
            ops.npu_mm_reduce_scatter_base(x, weight, name, size),
            ops.npu_mm_all_reduce_base(x, weight, name),
            ops._npu_distribute_barrier(x, name, size),
            ops.npu_alltoallv_gmm(x, weight[None], name, size, counts, counts)[0],
            ops.npu_gmm_alltoallv(x, weight[None], name, size, counts, counts, mm_x=x, mm_weight=weight)[1],
            ops.npu_moe_distribute_combine(rows[0], ids, rows[2], rows[4], weights, *where),
            ops.npu_moe_distribute_combine_v2(*combined, *where),
            ops.npu_moe_distribute_combine_add_rms_norm(*combined, x, x[0], *where)[2],
        ]
        return sum((one.float().sum() for one in results), x.float()) if rank == 0 else x + 1

    torch._dynamo.reset()
    x = torch.arange(2 * size * WIDTH).reshape(2 * size, WIDTH).remainder(5).half().npu()
    ids = torch.arange(2 * size)[:, None].add(torch.arange(2)).remainder(2 * size).int().npu()
    inputs = (x, torch.eye(WIDTH).half().npu(), ids, torch.ones(2 * size, 2).npu())
    compiled = torch.compile(step, backend=backend, fullgraph=True, dynamic=dynamic)
    for _ in range(2):
        assert torch.equal(compiled(*inputs), step(*inputs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_calls_whose_results_a_rank_ignores_are_kept(ranks, backend: str) -> None:
    ranks(2).run(one_rank_ignores, backend, backend == "aot_eager", timeout=180)


def calls_of(name: str, size: int, weight: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Calls that take and return matrices of one shape, fused operators and torch's collectives."""
    ops, group = torch.ops.npu, dist.group.WORLD
    return {
        "barrier": lambda x: ops._npu_distribute_barrier(x, name, size),
        "gather": lambda x: ops.npu_all_gather_base_mm(x, weight, name, size)[0][: x.size(0)],
        "reduce": lambda x: ops.npu_mm_all_reduce_base(x, weight, name),
        "scatter": lambda x: ops.npu_mm_reduce_scatter_base(x, weight, name, size).repeat(size, 1),
        "all_reduce": lambda x: functional.all_reduce(x, "max", group),
        "all_gather": lambda x: functional.all_gather_tensor(x, 0, group)[: x.size(0)],
    }


def used_in_any_order(rank: int, size: int, backend: str, seeds: list[int]) -> None:
    """Every rank makes the same calls, and uses the results in an order of its own, or not at all."""
    calls = calls_of(comm_name(rank), size, torch.eye(WIDTH).half().npu())
    x = torch.arange(WIDTH * WIDTH).reshape(WIDTH, WIDTH).remainder(3).half().npu() + rank
    for seed in seeds:
        common, own = random.Random(seed), random.Random(100 * seed + rank)
        program = [(common.choice(sorted(calls)), common.random() < 0.25) for _ in range(7)]
        uses = own.sample(range(len(program)), 5)
        copied = [own.random() < 0.5 for _ in program]

        def step(x: Tensor, program=program, uses=uses, copied=copied) -> Tensor:
            results = [x]
            for (kind, is_chained), is_copied in zip(program, copied, strict=True):
                operand = results[-1] if is_chained else x
                results.append(calls[kind](operand + 0 if is_copied else operand))
            total = x * 1
            for use in uses:
                total = total + results[1 + use]
            return total

        torch._dynamo.reset()
        assert torch.equal(torch.compile(step, backend=backend, fullgraph=True)(x), step(x)), (seed, program)


@pytest.mark.parametrize("backend", BACKENDS)
def test_order_of_calls_is_kept(ranks, backend: str) -> None:
    # Without the dependencies that are added to Inductor's, these seeds reorder calls.
    ranks(2).run(used_in_any_order, backend, [2, 4], timeout=300)
