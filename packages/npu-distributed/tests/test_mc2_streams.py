"""Fused operators are work of the current stream: ordered, asynchronous, safe for memory, and errors do not hang."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from hccl_testing.trace import Trace
from mc2_reference import comm_name

torch_npu = pytest.importorskip("torch_npu")

PATIENCE = timedelta(seconds=80)


def every_operator(x: torch.Tensor, weight: torch.Tensor, name: str, size: int) -> list[torch.Tensor]:
    """Results of all operators for x [rows, k], rows a multiple of `size`, and weight [k, n]."""
    rows, k = x.shape
    share = [rows // size] * size
    return [
        torch_npu.npu_mm_all_reduce_base(x, weight, name),
        torch_npu.npu_mm_reduce_scatter_base(x, weight, name, size),
        *torch_npu.npu_all_gather_base_mm(x, weight, name, size),
        torch_npu.npu_alltoallv_gmm(x, weight[None], name, size, share, share)[0],
        torch_npu.npu_gmm_alltoallv(x, weight[None], name, size, share, share)[0],
        torch_npu._npu_distribute_barrier(x, name, size),
    ]


def constant_results(value: float, rank: int, size: int, rows: int, k: int, n: int) -> list[torch.Tensor]:
    """What every_operator gives when rank r's x is filled with value * (r + 1) and its weight with ones."""

    def full(factor: float, *shape: int) -> torch.Tensor:
        return torch.full(shape, value * factor)

    total = size * (size + 1) / 2
    by_rank = torch.arange(1.0, size + 1)[:, None]
    blocks = (by_rank * value).repeat_interleave(rows // size, 0)
    return [
        full(total * k, rows, n),
        full(total * k, rows // size, n),
        (by_rank * value * k).repeat_interleave(rows, 0).expand(-1, n),
        (by_rank * value).repeat_interleave(rows, 0).expand(-1, k),
        (blocks * k).expand(-1, n),
        (blocks * k).expand(-1, n),
        full(rank + 1, rows, k),
    ]


def assert_same(actual: list[torch.Tensor], expected: list[torch.Tensor], what: object) -> None:
    for place, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert torch.equal(one.cpu().float(), other), (what, place, one.flatten()[:4], other.flatten()[:4])


def late_producer(rank: int, size: int, rows: int, k: int, n: int) -> None:
    """Inputs are written by tasks that run long after the operators were called."""
    name = comm_name(rank)
    x = torch.full((rows, k), 99.0, device="npu").half()
    weight = torch.full((k, n), 77.0, device="npu").half()
    slow = torch.ones(700, 700, device="npu")
    torch.npu.synchronize()
    for value in (1.0, 2.0):
        for _ in range(4):
            slow = (slow @ slow).clamp_(max=1)
        x.fill_(value * (rank + 1))
        weight.fill_(1.0)
        results = every_operator(x, weight, name, size)
        x.fill_(55.0)  # later work of the stream: must not be seen by the operators
        weight.fill_(33.0)
        assert_same(results, constant_results(value, rank, size, rows, k, n), value)


def dropped_inputs(rank: int, size: int, rows: int, k: int, n: int) -> None:
    """Python forgets the inputs at once, and new tensors get their memory."""
    name = comm_name(rank)
    for step in range(4):
        value = 1.0 + step % 3
        x = torch.full((rows, k), value * (rank + 1), device="npu").half()
        weight = torch.ones(k, n, device="npu").half()
        results = every_operator(x, weight, name, size)
        del x, weight
        for shape in ((rows, k), (k, n), (size * rows, k), (rows, n)):
            torch.full(shape, -7.0, device="npu").half()
        assert_same(results, constant_results(value, rank, size, rows, k, n), step)


def several_groups_and_collectives(rank: int, size: int) -> None:
    """Two communicators in turns, torch.distributed collectives of the same groups between."""
    rows, k, n = 4 * size, 6, 8
    groups = [dist.new_group(), dist.new_group()]
    names = [comm_name(rank, group) for group in groups]
    assert names[0] != names[1]
    x = torch.full((rows, k), rank + 1.0, device="npu").half()
    weight = torch.ones(k, n, device="npu").half()
    total = torch.zeros(rows, n, device="npu")
    sums = torch.zeros(1, device="npu")
    for step in range(10):
        first = torch_npu.npu_mm_all_reduce_base(x, weight, names[step % 2])
        counter = torch.full((1,), float(step + rank), device="npu")
        work = dist.all_reduce(counter, group=groups[step % 2], async_op=True)
        second = torch_npu.npu_all_gather_base_mm(
            first, torch.ones(n, n, device="npu").half(), names[(step + 1) % 2], size
        )
        work.wait()
        dist.all_reduce(second[0], group=groups[(step + 1) % 2])
        total += first.float() + second[0][:rows].float() / (n * size)
        sums += counter
    product = k * size * (size + 1) / 2
    assert torch.equal(total.cpu(), torch.full((rows, n), 20 * product))
    assert sums.item() == sum(size * step + size * (size - 1) / 2 for step in range(10))
    dist.barrier()
    for group in groups:
        dist.destroy_process_group(group)


def streams_of_the_caller(rank: int, size: int) -> None:
    """The current stream is the one that counts."""
    name = comm_name(rank)
    producer, consumer = torch.npu.Stream(), torch.npu.Stream()
    for step in range(8):
        with torch.npu.stream(producer):
            x = torch.full((2 * size, 300), float(step), device="npu").half()
            weight = torch.ones(300, 4, device="npu").half()
            results = every_operator(x, weight, name, size)
        consumer.wait_stream(producer)
        with torch.npu.stream(consumer):
            total = results[0].float().sum()
        consumer.synchronize()
        assert total.item() == step * 300 * size * 2 * size * 4
        producer.synchronize()


def late_peer(rank: int, size: int) -> bool:
    """Rank 1 comes when rank 0 has called all operators: a call that waited for the peer would not return."""
    name = comm_name(rank)
    key = "fused operators: rank 0 has called them"
    store = dist.distributed_c10d._get_default_store()
    x = torch.full((2 * size, 3), rank + 1.0, device="npu").half()
    weight = torch.ones(3, 4, device="npu").half()
    dist.barrier()
    if rank == 1:
        store.wait([key], PATIENCE)
    results = every_operator(x, weight, name, size)
    waiting = not torch.npu.current_stream().query()
    if rank == 0:
        store.set(key, "now")
    assert_same(results, constant_results(1.0, rank, size, 2 * size, 3, 4), "late")
    return waiting


def tiled_calls(name: str, size: int) -> dict[str, Callable[[], object]]:
    """Calls whose data is large enough for several steps of communication."""

    def zeros(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        return torch.zeros(*shape, dtype=dtype, device="npu")

    x, weight, narrow = zeros(1600, 1024), zeros(1024, 2048), zeros(1024, 8)
    integers, wide = zeros(2400, 8, dtype=torch.int8), zeros(8, 2048, dtype=torch.int8)
    scale, steps = torch.ones(1, device="npu"), torch.ones(2048, device="npu").half()
    experts, share = zeros(2, 1024, 8), [1600 // (2 * size)] * (2 * size)
    local = {"mm_x": x, "mm_weight": narrow}
    npu = torch.ops.npu
    return {
        "npu_mm_all_reduce_base": lambda: npu.npu_mm_all_reduce_base(x, weight, name),
        "npu_mm_all_reduce_base of int8": lambda: npu.npu_mm_all_reduce_base(integers, wide, name, dequant_scale=scale),
        "npu_mm_all_reduce_base over int8": lambda: npu.npu_mm_all_reduce_base(
            integers, wide, name, dequant_scale=scale, comm_quant_scale_1=steps, comm_quant_scale_2=steps
        ),
        "npu_mm_reduce_scatter_base": lambda: npu.npu_mm_reduce_scatter_base(x, weight, name, size),
        "npu_all_gather_base_mm": lambda: npu.npu_all_gather_base_mm(x, narrow, name, size),
        "npu_alltoallv_gmm": lambda: npu.npu_alltoallv_gmm(x, experts, name, size, share, share, **local),
        "npu_gmm_alltoallv": lambda: npu.npu_gmm_alltoallv(x, experts, name, size, share, share, **local),
    }


def alone_with_tiles(rank: int, size: int, case: str, products: int) -> tuple[int, str] | None:
    """Rank 1 comes when rank 0 has ended `products` products, or has tried to for long.

    Returns, on rank 0, how many products had ended by then, and the order in which the call submitted its products (p)
    and its steps of communication (c).
    """
    call = tiled_calls(comm_name(rank), size)[case]
    call()
    torch.npu.synchronize()
    dist.barrier()
    store, key = dist.distributed_c10d._get_default_store(), f"{case}: rank 0 has computed what it can"
    if rank == 1:
        store.wait([key], PATIENCE)
        call()
        torch.npu.synchronize()
        return None
    current = torch.npu.current_stream().stream_id
    deadline = time.monotonic() + PATIENCE.total_seconds() / 4
    with Trace() as trace:

        def kinds() -> str:
            """Of the tasks that have ended."""
            return "".join("p" if one.stream_id == current else "c" for one in trace.ended() if b"mm" in one.name)

        call()
        while (alone := kinds().count("p")) < products and time.monotonic() < deadline:
            time.sleep(0.001)
        store.set(key, "now")
        torch.npu.synchronize()
        submitted = kinds()
    return alone, submitted


def results_are_detached(rank: int, size: int) -> None:
    name = comm_name(rank)
    x = torch.randn(2 * size, 3, device="npu").half().requires_grad_()
    weight = torch.randn(3, 4, device="npu").half().requires_grad_()
    for one in every_operator(x, weight, name, size):
        assert not one.requires_grad and one.grad_fn is None


def different_shapes(rank: int, size: int) -> str:
    """Each rank has another number of rows."""
    name = comm_name(rank)
    x = torch.ones(4 + rank, 3, device="npu").half()
    torch_npu.npu_mm_all_reduce_base(x, torch.ones(3, 5, device="npu").half(), name)
    try:
        torch.npu.synchronize()
    except RuntimeError as error:
        first = str(error)
    else:
        return "no error"
    try:
        torch_npu.npu_mm_all_reduce_base(x, torch.ones(3, 5, device="npu").half(), name)
    except RuntimeError as error:
        return first + " THEN " + str(error)
    return first


def warm_up(rank: int, size: int) -> None:
    x = torch.ones(4, 3, device="npu").half()
    torch_npu.npu_mm_all_reduce_base(x, x.t(), comm_name(rank))
    torch.npu.synchronize()


def limit(rank: int, size: int, seconds: float) -> None:
    dist.group.WORLD._get_backend(torch.device("npu"))._set_default_timeout(timedelta(seconds=seconds))


def alone(rank: int, size: int, operator: str) -> str:
    """The other ranks never come."""
    name = comm_name(rank)
    x = torch.ones(4, 8, device="npu").half()
    try:
        if operator == "npu_mm_all_reduce_base":
            torch_npu.npu_mm_all_reduce_base(x, x.t(), name)
        else:
            experts = torch.tensor([[0, 1]] * 4, dtype=torch.int32, device="npu")
            torch_npu.npu_moe_distribute_dispatch_v2(x, experts, name, size, rank, 2)
        torch.npu.synchronize()
    except RuntimeError as error:
        return str(error)
    return "no error"


SHAPES = pytest.mark.parametrize("shape", [(8, 12, 8), (1024, 1200, 2100)], ids=["one tile", "tiles"])


@SHAPES
def test_late_producer(ranks, shape: tuple[int, int, int]) -> None:
    ranks(2).run(late_producer, *shape)


@SHAPES
def test_dropped_inputs(ranks, shape: tuple[int, int, int]) -> None:
    ranks(2).run(dropped_inputs, *shape)


def test_groups_and_collectives_in_turns(ranks) -> None:
    ranks(2).run(several_groups_and_collectives)


def test_streams_of_the_caller(ranks) -> None:
    ranks(2).run(streams_of_the_caller)


def test_the_host_does_not_wait(ranks) -> None:
    assert ranks(2).run(late_peer)[0], "rank 0 had results before rank 1 came"


@pytest.mark.parametrize(
    ("case", "products", "order"),
    [
        ("npu_mm_all_reduce_base", 2, "c*pc+pc+"),
        ("npu_mm_all_reduce_base of int8", 2, "c*pc+pc+"),
        ("npu_mm_all_reduce_base over int8", 2, "c*pc+pc+"),
        ("npu_mm_reduce_scatter_base", 2, "c*pc+pc+"),
        ("npu_all_gather_base_mm", 1, "cc+pp"),
        ("npu_alltoallv_gmm", 1, "cc+ppp"),
        ("npu_gmm_alltoallv", 3, "c*pc+pc+p"),
    ],
)
def test_products_and_communication_overlap(ranks, case: str, products: int, order: str) -> None:
    """Neither waits for the other without need, whatever the speed of the machine.

    Products that need nothing of a peer end before there is one, though a step of communication is under way: they do
    not wait for it.  A step that was submitted before a product does not wait for that product: a stream waits only for
    what was submitted before.
    """
    alone, submitted = ranks(2).run(alone_with_tiles, case, products)[0]
    assert alone == products, f"{alone} products of {submitted} ended without the peer"
    assert re.fullmatch(order, submitted), submitted


def test_results_are_detached(ranks) -> None:
    ranks(2).run(results_are_detached)


def test_different_shapes_are_an_error_everywhere(fresh_ranks) -> None:
    for text in fresh_ranks(2).run(different_shapes):
        assert re.search(r"EI0005.*rank 0 npu::npu_mm_all.*Half\[4, 5\].*rank 1 npu::npu_mm_all.*Half\[5, 5\]", text), (
            text
        )
        assert "THEN npu_mm_all_reduce_base: an earlier collective of this group failed" in text


def mismatched(rank: int, size: int, case: str) -> str:
    """Each rank calls something else; afterwards the group is made anew."""
    from torch_npu.distributed import reinit_process_group

    name = comm_name(rank)
    x = torch.ones(4, 4, device="npu").half()
    experts = x[None]
    counts = [2, 2], [2, 2]
    calls = {
        "operators": (
            lambda: torch_npu.npu_alltoallv_gmm(x, experts, name, size, *counts),
            lambda: torch_npu.npu_gmm_alltoallv(x, experts, name, size, *counts),
        ),
        "same bytes": (
            lambda: torch_npu.npu_mm_all_reduce_base(torch.cat([x, x]), x, name),
            lambda: torch_npu.npu_mm_all_reduce_base(x, torch.cat([x, x], 1), name),
        ),
        "counts": (
            lambda: torch_npu.npu_alltoallv_gmm(x, experts, name, size, *counts),
            lambda: torch_npu.npu_alltoallv_gmm(x, experts, name, size, [2, 2], [1, 3]),
        ),
        "collective": (
            lambda: torch_npu.npu_mm_all_reduce_base(x, x, name),
            lambda: dist.all_reduce(x),
        ),
    }
    text = "no error"
    try:
        calls[case][rank]()
        torch.npu.synchronize()
    except RuntimeError as error:
        text = str(error).splitlines()[0]
    reinit_process_group()
    counter = torch.ones(1, device="npu")
    dist.all_reduce(counter)
    assert counter.item() == size
    return text


def test_different_operators_are_an_error_everywhere(fresh_ranks) -> None:
    group = fresh_ranks(2, TORCH_HCCL_ASYNC_ERROR_HANDLING="2")
    group.run(warm_up)
    both = r"ranks called different collectives: call number \d+: rank 0 npu::{}\(.*\), rank 1 npu::{}\(.*\)\."
    for text in group.run(mismatched, "operators"):
        assert re.search(both.format("npu_alltoallv_gmm", "npu_gmm_alltoallv"), text), text
    for text in group.run(mismatched, "same bytes"):
        assert re.search(both.format("npu_mm_all_reduce_base", "npu_mm_all_reduce_base"), text), text
        assert "Half[8, 4]" in text and "Half[4, 8]" in text, text
    for text in group.run(mismatched, "counts"):
        assert re.search(r"npu::npu_alltoallv_gmm: EI0005: hccl: call number \d+: rank 0 sends 2 rows", text), text
    for text in group.run(mismatched, "collective"):
        assert re.search(
            r"rank 0 npu::npu_mm_all_reduce_base\(Half\[4, 4\].*, rank 1 all_reduce\(16 x float16", text
        ), text


@pytest.mark.parametrize("operator", ["npu_mm_all_reduce_base", "npu_moe_distribute_dispatch_v2"])
def test_the_time_of_the_group_ends_a_call_without_peers(fresh_ranks, operator: str) -> None:
    """Its own limit, not the one of the environment, which is half an hour."""
    group = fresh_ranks(2, TORCH_HCCL_ASYNC_ERROR_HANDLING="2")
    group.run(warm_up)
    group.run_only(0, limit, 1.0)
    text = group.run_only(0, alone, operator)
    assert f"Watchdog caught collective operation timeout: npu::{operator} (Timeout(ms)=1000) ran for" in text, text
    assert text.count(operator) == 2, text  # the operator that failed and the one that was too late
    assert "(reported by rank 0)" in group.run_only(1, alone, operator)
    assert group.close() == [0, 0]
