"""Every collective, type and reduction between real processes, against a reference computed in double precision."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist

FLOATS = ("float32", "float64", "float16", "bfloat16")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8")
TRANSPORT = (*FLOATS, *INTEGERS, "uint16", "uint32", "uint64", "bool", "float8_e4m3fn", "float8_e5m2")
SIZES = (0, 1, 7, 1000, 5003, 70001)
OPS = {
    "SUM": torch.Tensor.sum,
    "PRODUCT": torch.Tensor.prod,
    "MIN": torch.Tensor.amin,
    "MAX": torch.Tensor.amax,
}


def contribution(rank: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """What a rank brings: small whole numbers, which every type holds exactly."""
    values = (torch.arange(count) * 5 + rank * 3) % 7 + 1
    if dtype == torch.bool:
        return values % 2 == 0
    if dtype.is_floating_point or dtype in (torch.int8, torch.int16, torch.int32, torch.int64):
        values = values - 4
    return values.to(dtype)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.dtype != torch.bool else tensor


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    got = got.cpu()
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert torch.equal(as_bytes(got), as_bytes(expected)), f"{got} is not {expected}"


def expected_reduction(size: int, count: int, dtype: torch.dtype, op: str) -> torch.Tensor:
    parts = torch.stack([contribution(rank, count, dtype) for rank in range(size)])
    if dtype == torch.bool:
        return parts.any(0) if op in ("SUM", "MAX") else parts.all(0)
    exact = parts.double()
    if op == "AVG":
        mean = exact.sum(0) / size
        return (mean if dtype.is_floating_point else mean.trunc()).to(dtype)
    return OPS[op](exact, 0).to(dtype)


# ---- on every rank --------------------------------------------------------------------------------------------------


def check_all_reduce(rank: int, size: int, dtype_name: str) -> None:
    dtype = getattr(torch, dtype_name)
    for op, count in itertools.product(("SUM", "AVG", "PRODUCT", "MIN", "MAX"), SIZES):
        tensor = contribution(rank, count, dtype).npu()
        dist.all_reduce(tensor, getattr(dist.ReduceOp, op))
        expected = expected_reduction(size, count, dtype, op)
        if dtype.is_floating_point:
            torch.testing.assert_close(tensor.cpu(), expected)
        else:
            assert_same(tensor, expected)


def check_premul_sum(rank: int, size: int) -> None:
    from torch_npu.distributed import _make_hccl_premul_sum

    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        expected = sum(0.5 * (r + 1) * contribution(r, 3000, dtype).double() for r in range(size))
        own = 0.5 * (rank + 1)
        for factor in (own, torch.tensor([own], dtype=dtype, device="npu")):
            tensor = contribution(rank, 3000, dtype).npu()
            dist.all_reduce(tensor, _make_hccl_premul_sum(factor))
            torch.testing.assert_close(tensor.cpu(), expected.to(dtype))


def check_broadcast(rank: int, size: int) -> None:
    for dtype_name, root, count in itertools.product(TRANSPORT, range(size), (0, 3, 40001)):
        dtype = getattr(torch, dtype_name)
        tensor = contribution(rank, count, torch.float32).to(dtype).npu()
        dist.broadcast(tensor, root)
        assert_same(tensor, contribution(root, count, torch.float32).to(dtype))


def check_all_gather(rank: int, size: int) -> None:
    for dtype_name, count in itertools.product(TRANSPORT, (0, 5, 30011)):
        dtype = getattr(torch, dtype_name)
        parts = [contribution(r, count, torch.float32).to(dtype) for r in range(size)]
        gathered = [torch.empty(count, dtype=dtype, device="npu") for _ in range(size)]
        dist.all_gather(gathered, parts[rank].npu())
        for got, expected in zip(gathered, parts, strict=True):
            assert_same(got, expected)
        for shape in ((size * count,), (size, count)):
            output = torch.empty(shape, dtype=dtype, device="npu")
            dist.all_gather_into_tensor(output, parts[rank].npu())
            assert_same(output, torch.cat([as_bytes(p) for p in parts]).view(dtype).reshape(shape))


def check_uneven_all_gather(rank: int, size: int) -> None:
    for base in (2, 9000):
        outputs = [torch.full((base * (r + 1), 2), -1, device="npu") for r in range(size)]
        dist.all_gather(outputs, torch.full((base * (rank + 1), 2), rank, device="npu"))
        assert [t.unique().tolist() for t in outputs] == [[r] for r in range(size)]


def check_reduce(rank: int, size: int) -> None:
    for root, dtype_name in itertools.product(range(size), ("float32", "bfloat16", "int32", "uint8", "bool")):
        dtype = getattr(torch, dtype_name)
        tensor = contribution(rank, 5003, dtype).npu()
        dist.reduce(tensor, root)
        expected = expected_reduction(size, 5003, dtype, "SUM") if rank == root else contribution(rank, 5003, dtype)
        torch.testing.assert_close(tensor.cpu(), expected)


def check_reduce_scatter(rank: int, size: int) -> None:
    for op, count in itertools.product(("SUM", "AVG", "MIN"), (0, 4, 20011)):
        expected = torch.stack([contribution(r, count * size, torch.float32).double() for r in range(size)])
        expected = {"SUM": expected.sum(0), "AVG": expected.mean(0), "MIN": expected.amin(0)}[op]
        expected = expected[rank * count : (rank + 1) * count].float()
        whole = contribution(rank, count * size, torch.float32).npu()
        output = torch.empty(count, device="npu")
        dist.reduce_scatter_tensor(output, whole, getattr(dist.ReduceOp, op))
        torch.testing.assert_close(output.cpu(), expected)
        output = torch.empty(count, device="npu")
        dist.reduce_scatter(output, list(whole.chunk(size)) if count else [output] * size, getattr(dist.ReduceOp, op))
        torch.testing.assert_close(output.cpu(), expected)


def check_all_to_all(rank: int, size: int) -> None:
    for count in (1, 7000):
        sent = [torch.full((count + r,), rank * 10 + r, device="npu") for r in range(size)]
        received = [torch.empty(count + rank, dtype=torch.int64, device="npu") for _ in range(size)]
        dist.all_to_all(received, sent)
        assert [t.unique().tolist() for t in received] == [[r * 10 + rank] for r in range(size)]
        output = torch.empty(size * (count + rank), dtype=torch.int64, device="npu")
        dist.all_to_all_single(output, torch.cat(sent), [count + rank] * size, [count + r for r in range(size)])
        assert output.tolist() == torch.cat(received).tolist()


def check_scatter_and_gather(rank: int, size: int) -> None:
    for root, count in itertools.product(range(size), (3, 9001)):
        parts = [torch.full((count,), 10.0 * root + r, device="npu") for r in range(size)]
        output = torch.empty(count, device="npu")
        dist.scatter(output, parts if rank == root else None, root)
        assert output.unique().tolist() == [10 * root + rank]
        collected = [torch.empty(count, device="npu") for _ in range(size)] if rank == root else None
        dist.gather(output, collected, root)
        if collected is not None:
            assert [t.unique().tolist() for t in collected] == [[10 * root + r] for r in range(size)]


def check_coalesced(rank: int, size: int) -> None:
    tensors = [torch.full((n,), float(rank + 1), device="npu") for n in (1, 4000, 0, 17)]
    with dist._coalescing_manager(device=torch.device("npu", rank), async_ops=True) as pending:
        for tensor in tensors:
            dist.all_reduce(tensor)
    pending.wait()
    total = size * (size + 1) / 2
    assert all(t.unique().tolist() == ([total] if t.numel() else []) for t in tensors)


def check_objects(rank: int, size: int) -> None:
    gathered: list = [None] * size
    dist.all_gather_object(gathered, {"rank": rank, "text": "x" * rank})
    assert gathered == [{"rank": r, "text": "x" * r} for r in range(size)]
    shared = [f"from {rank}"]
    dist.broadcast_object_list(shared, src=size - 1)
    assert shared == [f"from {size - 1}"]


def check_subgroups(rank: int, size: int) -> None:
    everyone = dist.new_group()
    pair = dist.new_group([0, size - 1])
    tensor = torch.full((3000,), 1.0 + rank, device="npu")
    dist.all_reduce(tensor, group=everyone)
    assert tensor[0].item() == size * (size + 1) / 2
    if rank in (0, size - 1):
        tensor.fill_(rank)
        dist.all_reduce(tensor, group=pair)
        assert tensor.unique().tolist() == [size - 1]
        names = [g._get_backend(torch.device("npu")).get_hccl_comm_name(rank) for g in (everyone, pair)]
        assert all(names) and names[0] != names[1]
    dist.barrier()
    if rank in (0, size - 1):
        dist.destroy_process_group(pair)
    dist.destroy_process_group(everyone)


def check_refusals(rank: int, size: int) -> None:
    cases = [
        (RuntimeError, "Tensors must be contiguous", lambda: dist.all_reduce(torch.ones(4, 6, device="npu")[:, ::2])),
        (RuntimeError, "Cannot use ReduceOp.BAND with HCCL", lambda: dist.all_reduce(one(), dist.ReduceOp.BAND)),
        (RuntimeError, "No backend type associated with device type cpu", lambda: dist.all_reduce(torch.ones(2))),
        (NotImplementedError, "no send", lambda: dist.send(one(), (rank + 1) % size)),
        (
            ValueError,
            "output tensor size must be equal to world_size",
            lambda: dist.all_gather_into_tensor(torch.empty(1, device="npu"), torch.ones(3, device="npu")),
        ),
        (
            RuntimeError,
            "Unsupported data type",
            lambda: dist.reduce_scatter_tensor(one().byte(), torch.ones(size, dtype=torch.uint8, device="npu")),
        ),
        (RuntimeError, "Unsupported data type", lambda: dist.all_reduce(one().to(torch.float8_e5m2))),
    ]
    for kind, text, call in cases:
        try:
            call()
        except kind as error:
            assert text in str(error), f"{error} does not say {text!r}"
        else:
            raise AssertionError(f"expected {kind.__name__} with {text!r}")
    tensor = one()
    dist.all_reduce(tensor)  # the group is as good as before
    assert tensor.item() == size


def one() -> torch.Tensor:
    return torch.ones(1, device="npu")


# ---- tests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", (2, 3))
@pytest.mark.parametrize("dtype", (*FLOATS, *INTEGERS, "bool"))
def test_all_reduce(ranks, size: int, dtype: str) -> None:
    ranks(size).run(check_all_reduce, dtype)


@pytest.mark.parametrize("size", (2, 3))
@pytest.mark.parametrize(
    "check",
    (
        check_premul_sum,
        check_broadcast,
        check_all_gather,
        check_uneven_all_gather,
        check_reduce,
        check_reduce_scatter,
        check_all_to_all,
        check_scatter_and_gather,
        check_coalesced,
        check_objects,
        check_subgroups,
        check_refusals,
    ),
    ids=lambda check: check.__name__.removeprefix("check_"),
)
def test_collective(ranks, size: int, check) -> None:
    ranks(size).run(check)
