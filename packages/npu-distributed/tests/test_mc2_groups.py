"""Fused operators of eight ranks, and of ranks on two hosts: processes of this machine that are told to be on two."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
from mc2_reference import comm_name
from test_mc2_gmm import nothing_to_send, to_the_experts_and_back
from test_mc2_mm import (
    all_gather,
    all_gather_of_the_weight,
    all_reduce_float,
    all_reduce_int8,
    all_reduce_int8_transport,
    all_reduce_weight_quant,
    int8_sums_are_exact,
    reduce_scatter,
    terms_beyond_float16,
)
from test_moe_distribute import FEATURES, SHARED, featured, run_cases

torch_npu = pytest.importorskip("torch_npu")

# Functions of other files that run on the ranks: every family, against its reference.
PRODUCTS = (
    (all_reduce_float, "float16"),
    (all_reduce_float, "bfloat16"),
    (all_reduce_weight_quant, "float16"),
    (all_reduce_weight_quant, "bfloat16"),
    (all_reduce_int8,),
    (int8_sums_are_exact,),
    (all_reduce_int8_transport,),
    (reduce_scatter,),
    (all_gather,),
    (all_gather_of_the_weight,),
    (terms_beyond_float16,),
    (to_the_experts_and_back,),
    (nothing_to_send,),
)
# Those whose inputs are small: each rank computes from the inputs of all what it should get.
SMALL_PRODUCTS = (
    (all_reduce_weight_quant, "float16"),
    (int8_sums_are_exact,),
    (reduce_scatter,),
    (all_gather_of_the_weight,),
    (to_the_experts_and_back,),
    (nothing_to_send,),
)


def be_on(rank: int, size: int, hosts: list[int]) -> None:
    os.environ["NPU_HCCL_HOST_ID"] = f"h{hosts[rank]}"


def barriers(rank: int, size: int) -> None:
    """Nobody passes a barrier before all have come: what was written to the store before it is there after it."""
    store, name = dist.distributed_c10d._get_default_store(), comm_name(rank)
    x = torch.arange(6.0, device="npu")
    for step in range(10):
        store.set(f"barrier {step}, rank {rank}", "here")
        result = torch_npu._npu_distribute_barrier(x, name, size)
        assert torch.equal(result.cpu(), torch.arange(6.0))
        assert store.check([f"barrier {step}, rank {peer}" for peer in range(size)])


def order_of_the_sum(rank: int, size: int) -> float:
    """The sum of 2 ** 24, 1, 1, -2 ** 24 and so on, which depends on the order, and so on where the hosts are."""
    factors = [(4096.0, 4096.0), (1.0, 1.0), (1.0, 1.0), (4096.0, -4096.0)][rank % 4]
    x, weight = (torch.full((1, 1), factor, device="npu").half() for factor in factors)
    return torch_npu.npu_mm_all_reduce_base(x, weight, comm_name(rank)).item()


def different_rows(rank: int, size: int) -> str:
    x = torch.ones(4 + rank, 3, device="npu").half()
    torch_npu.npu_mm_all_reduce_base(x, torch.ones(3, 5, device="npu").half(), comm_name(rank))
    try:
        torch.npu.synchronize()
    except RuntimeError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    ("hosts", "total"), (([0, 0, 1, 1], 1.0), ([0, 1, 1, 1], 2.0)), ids=("two and two", "one and three")
)
def test_every_family(fresh_ranks, hosts: list[int], total: float) -> None:
    group = fresh_ranks(4)
    group.run(be_on, hosts)
    assert group.run(order_of_the_sum) == [total] * 4  # not 0, as in rank order
    for function, *arguments in PRODUCTS:
        group.run(function, *arguments)
    group.run(run_cases, [featured(4, changes) for changes in (*FEATURES.values(), *SHARED.values())])
    group.run(barriers)
    assert group.close() == [0] * 4, group.logs()


def test_eight_ranks(fresh_ranks) -> None:
    group = fresh_ranks(8)
    for function, *arguments in SMALL_PRODUCTS:
        group.run(function, *arguments, timeout=180)  # eight interpreters on a machine that may have two cores
    assert group.run(order_of_the_sum) == [0.0] * 8
    assert group.close() == [0] * 8, group.logs()


def test_a_mismatch_is_an_error_everywhere(fresh_ranks) -> None:
    group = fresh_ranks(2)
    group.run(be_on, [0, 1])
    for text in group.run(different_rows):
        assert "npu_mm_all_reduce_base" in text and "Half[4, 5]" in text and "Half[5, 5]" in text, text
