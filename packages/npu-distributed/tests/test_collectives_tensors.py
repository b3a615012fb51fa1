"""Collectives and the tensors they are given: views, layouts, special values, complex numbers, refusals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.distributed as dist
from hccl_testing.reference import (
    FLOATS,
    INTEGERS,
    assert_same,
    assert_same_copy,
    contribution,
    reduced,
)

NUMBERS = (0.0, -0.0, 1.0, -1.5, math.inf, -math.inf, math.nan, 3e38, 1e-40)
LENGTHS = (5, 3001, 150_001)


def one() -> torch.Tensor:
    return torch.ones(1, device="npu")


# ---- on every rank --------------------------------------------------------------------------------------------------


def check_special_values(rank: int, size: int) -> None:
    """Every combination of zeros, infinities, NaN, huge and tiny numbers over the ranks."""
    values = NUMBERS if size < 4 else NUMBERS[:7]
    combinations = torch.tensor(list(itertools.product(values, repeat=size)), dtype=torch.float64).T
    for dtype_name, op in itertools.product(FLOATS, ("SUM", "AVG", "PRODUCT", "MIN", "MAX")):
        parts = [row.to(getattr(torch, dtype_name)).clone() for row in combinations]
        tensor = parts[rank].npu()
        dist.all_reduce(tensor, getattr(dist.ReduceOp, op))
        assert_same(tensor, reduced(parts, op), f"{op} of special {dtype_name}", signed_zero=op not in ("MIN", "MAX"))
        if op in ("MIN", "MAX"):
            assert torch.equal(tensor.cpu().isnan(), torch.stack(parts).isnan().any(0)), "a NaN of any rank wins"


def check_extreme_integers(rank: int, size: int) -> None:
    """Sums and products wrap, nothing passes through a float, AVG truncates towards zero."""
    for dtype_name in INTEGERS:
        dtype = getattr(torch, dtype_name)
        limits = torch.iinfo(dtype)
        values = [limits.min, limits.max, 0, 1, limits.max // 2 + 1, limits.max - 1]
        values += [-1, -7] if limits.min < 0 else [7]
        if limits.bits == 64:
            values += [2**53 + 1, 2**62 + 3]
        combinations = list(itertools.product(values, repeat=min(size, 2)))
        rows = [[row[r % len(row)] for row in combinations] for r in range(size)]
        parts = [torch.tensor(row, dtype=dtype) for row in rows]
        for op in ("SUM", "AVG", "PRODUCT", "MIN", "MAX"):
            tensor = parts[rank].npu()
            dist.all_reduce(tensor, getattr(dist.ReduceOp, op))
            assert_same(tensor, reduced(parts, op), f"{op} of extreme {dtype_name}")
    # Python's integers say the same about a few of them.
    for values, op, dtype, expected in (
        ([2**53 + 1] * size, "SUM", torch.int64, size * (2**53 + 1)),
        ([200] * size, "SUM", torch.uint8, 200 * size % 256),
        ([200] * size, "AVG", torch.uint8, 200),
        ([-3] + [-4] * (size - 1), "AVG", torch.int32, -((4 * size - 1) // size)),
        ([2**64 - 2 - r for r in range(size)], "MAX", torch.uint64, 2**64 - 2),
        ([2**64 - 2 - r for r in range(size)], "MIN", torch.uint64, 2**64 - 1 - size),
    ):
        tensor = torch.tensor(values[rank : rank + 1], dtype=dtype).npu()
        dist.all_reduce(tensor, getattr(dist.ReduceOp, op))
        assert tensor.cpu().item() == expected, (op, dtype)


def check_views(rank: int, size: int) -> None:
    """Tensors that begin somewhere in their storage, at any alignment; what lies beside them stays as it is."""
    for dtype, count, offset in itertools.product((torch.int8, torch.bfloat16, torch.float64), LENGTHS, (1, 7)):
        parts = [contribution(r, count, dtype) for r in range(size)]
        guard = contribution(rank, count + 2 * offset, dtype, salt=9)
        storage = guard.npu()
        view = storage[offset : offset + count]
        for op in ("SUM", "MAX"):
            view.copy_(parts[rank])
            dist.all_reduce(view, getattr(dist.ReduceOp, op))
            assert_same(view, reduced(parts, op), f"all_reduce of a view of {dtype}", signed_zero=op == "SUM")
        view.copy_(parts[rank])
        dist.broadcast(view, size - 1)
        assert_same_copy(view, parts[-1], f"broadcast of a view of {dtype}")
        assert_same_copy(storage[:offset], guard[:offset], "what lies before")
        assert_same_copy(storage[offset + count :], guard[offset + count :], "what lies behind")


def check_shared_storage(rank: int, size: int) -> None:
    """Input and output in one storage, as sharded training does it."""
    for dtype, count in itertools.product((torch.float32, torch.bfloat16), LENGTHS):
        own = slice(rank * count, (rank + 1) * count)
        parts = [contribution(r, count, dtype) for r in range(size)]
        whole = torch.zeros(size * count, dtype=dtype, device="npu")
        whole[own] = parts[rank].npu()
        dist.all_gather_into_tensor(whole, whole[own])
        assert_same_copy(whole, torch.cat(parts), "all_gather of a part of the output")

        parts = [contribution(r, size * count, dtype) for r in range(size)]
        whole = parts[rank].npu()
        dist.reduce_scatter_tensor(whole[own], whole)
        expected = parts[rank].clone()
        expected[own] = reduced([part[own] for part in parts], "SUM")
        assert_same(whole, expected, "reduce_scatter into a part of the input")

        # Outputs of a list that are rows of one tensor, the own input among them.
        rows = torch.zeros(size, count, dtype=dtype, device="npu")
        rows[rank] = parts[rank][:count].npu()
        dist.all_gather(list(rows), rows[rank])
        assert_same_copy(rows, torch.stack([part[:count] for part in parts]), "all_gather into rows")
        source = torch.stack([part[:count] for part in parts]).npu()
        dist.scatter(source[rank], list(source) if rank == 0 else None, 0)
        assert_same_copy(source[rank], parts[rank][:count], "scatter of own rows")


def check_layouts(rank: int, size: int) -> None:
    """Dense tensors of any shape; channels_last counts as contiguous."""
    for shape in ((), (1,), (3, 0, 2), (2, 3, 5, 7), (4, 3, 33, 17)):
        count = math.prod(shape)
        parts = [contribution(r, count, torch.float32).view(shape) for r in range(size)]
        formats = [torch.contiguous_format] + ([torch.channels_last] if len(shape) == 4 else [])
        for memory_format in formats:
            tensor = parts[rank].npu().contiguous(memory_format=memory_format)
            strides = tensor.stride()
            dist.all_reduce(tensor)
            assert tensor.stride() == strides
            assert_same(tensor, reduced(parts, "SUM"), f"all_reduce of {shape}")
            tensor = parts[rank].npu().contiguous(memory_format=memory_format)
            dist.broadcast(tensor, 0)
            assert_same_copy(tensor, parts[0], f"broadcast of {shape}")
    # A transposed view of one row or column is contiguous as it is.
    thin = torch.full((1, 6), float(rank), device="npu").t()
    dist.all_reduce(thin, dist.ReduceOp.MAX)
    assert thin.unique().tolist() == [size - 1]


def check_complex(rank: int, size: int) -> None:
    """torch views complex tensors as pairs of real ones before it calls the backend."""
    for dtype, count in itertools.product((torch.complex64, torch.complex128), (3, 5000)):
        parts = [torch.complex(*contribution(r, 2 * count, dtype.to_real()).split(count)) for r in range(size)]
        pairs = [torch.view_as_real(part) for part in parts]
        expected = torch.view_as_complex(reduced(pairs, "SUM"))
        tensor = parts[rank].npu()
        dist.all_reduce(tensor)
        assert_same(torch.view_as_real(tensor).cpu(), torch.view_as_real(expected), "all_reduce of complex numbers")
        gathered = [torch.empty(count, dtype=dtype, device="npu") for _ in range(size)]
        dist.all_gather(gathered, parts[rank].npu())
        for got, pair in zip(gathered, pairs, strict=True):
            assert_same_copy(torch.view_as_real(got.cpu()), pair, "all_gather of complex numbers")
        output = torch.empty(count, dtype=dtype, device="npu")
        dist.scatter(output, [part.npu() for part in parts] if rank == 0 else None, 0)
        assert_same_copy(torch.view_as_real(output.cpu()), pairs[rank], "scatter of complex numbers")
        whole = torch.cat([parts[rank]] * size).npu()
        received = torch.empty_like(whole)
        dist.all_to_all_single(received, whole)
        assert_same_copy(torch.view_as_real(received.cpu()), torch.cat(pairs), "all_to_all of complex numbers")
    for call in (
        lambda: dist.all_reduce(torch.ones(2, dtype=torch.complex64, device="npu"), dist.ReduceOp.MAX),
        lambda: dist.all_reduce(torch.ones(2, dtype=torch.complex64, device="npu"), dist.ReduceOp.PRODUCT),
    ):
        raises(ValueError, "all_reduce does not support", call)
    raises(
        RuntimeError,
        "Unsupported data type for HCCL process group",
        lambda: backend().broadcast([torch.ones(2, dtype=torch.complex64, device="npu")]),
    )


def backend():
    return dist.group.WORLD._get_backend(torch.device("npu"))


def raises(kind: type[Exception], text: str, call) -> None:
    try:
        call()
    except kind as error:
        assert text in str(error), f"{error} does not say {text!r}"
    else:
        raise AssertionError(f"expected {kind.__name__} with {text!r}")


def check_refusals(rank: int, size: int) -> None:
    """Wrong arguments are refused before anything is queued, so the group is as good as before."""
    ops = dist.ReduceOp
    byte, flag = one().byte(), one().bool()
    strided = torch.ones(4, 6, device="npu")[:, ::2]
    outputs = [torch.empty(1, device="npu") for _ in range(size)]
    for op in ("BAND", "BOR", "BXOR"):
        bitwise = getattr(ops, op)
        for call in (
            lambda by=bitwise: dist.all_reduce(one(), by),
            lambda by=bitwise: dist.all_reduce(one().int(), by),
            lambda by=bitwise: dist.reduce(one(), 0, by),
            lambda by=bitwise: dist.reduce_scatter_tensor(one(), torch.ones(size, device="npu"), by),
        ):
            raises(RuntimeError, f"Cannot use ReduceOp.{op} with HCCL", call)
    for call in (
        lambda: dist.all_reduce(strided),
        lambda: dist.broadcast(strided, 0),
        lambda: dist.reduce(strided, 0),
        lambda: dist.all_gather([torch.empty(4, 3, device="npu") for _ in range(size)], strided),
        lambda: dist.all_gather_into_tensor(torch.empty(4 * size, 3, device="npu"), strided),
        lambda: dist.all_gather([torch.empty(3, 4, device="npu").t()] * size, torch.ones(4, 3, device="npu")),
        lambda: dist.reduce_scatter(strided, [torch.ones(4, 3, device="npu")] * size),
        lambda: dist.reduce_scatter_tensor(strided, torch.ones(4 * size, 3, device="npu")),
        lambda: dist.all_to_all_single(torch.empty(4 * size, 3, device="npu"), strided.repeat(size, 2)[:, ::2]),
        lambda: dist.scatter(strided, [torch.ones(4, 3, device="npu")] * size if rank == 0 else None, 0),
    ):
        raises(RuntimeError, "Tensors must be contiguous", call)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        raises(RuntimeError, "Unsupported data type", lambda d=dtype: dist.all_reduce(one().to(d)))
    for tensor in (byte, flag):
        for call in (
            lambda t=tensor: dist.reduce_scatter_tensor(t, t.repeat(size)),
            lambda t=tensor: dist.reduce_scatter(t, [t] * size),
        ):
            raises(RuntimeError, "Unsupported data type", call)
    cases = [
        (
            RuntimeError,
            "PreMulSum Data type must be half, float, bfloat16 or double",
            lambda: dist.all_reduce(one().int(), premul(2.0)),
        ),
        (RuntimeError, "No backend type associated with device type cpu", lambda: dist.all_reduce(torch.ones(2))),
        (RuntimeError, "dense", lambda: backend().broadcast([torch.ones(2)])),
        (RuntimeError, "dense", lambda: backend().allreduce([torch.ones(2, 2, device="npu").to_sparse()])),
        (RuntimeError, "one tensor", lambda: backend().allreduce([one(), one()])),
        (RuntimeError, "Tensor list must be nonempty", lambda: backend().allreduce_coalesced([])),
        (
            ValueError,
            "output tensor size must be equal to world_size times input tensor size",
            lambda: dist.all_gather_into_tensor(torch.empty(size * 3 + 1, device="npu"), torch.ones(3, device="npu")),
        ),
        (
            TypeError,
            "output tensor must have the same type as input tensor",
            lambda: dist.all_gather_into_tensor(torch.empty(size, device="npu"), one().half()),
        ),
        (
            ValueError,
            "input tensor must be the same size as output size times world size",
            lambda: dist.reduce_scatter_tensor(one(), torch.ones(size + 1, device="npu")),
        ),
        (
            TypeError,
            "input tensor must be the same type as the output tensor.",
            lambda: dist.reduce_scatter_tensor(one(), torch.ones(size, device="npu").half()),
        ),
        (RuntimeError, "output tensors", lambda: backend().allgather([[*outputs, one()]], [one()])),
        (
            RuntimeError,
            "the size of output_tensors and worldsize must equal",
            lambda: dist.all_to_all([*outputs, one()], outputs),
        ),
        (
            RuntimeError,
            "Tensors are not equal in size or data type",
            lambda: dist.all_to_all_single(torch.empty(size, device="npu"), torch.ones(2 * size, device="npu")),
        ),
        (
            RuntimeError,
            "Number of tensor splits not equal to group size",
            lambda: dist.all_to_all_single(
                torch.empty(size, device="npu"), torch.ones(size, device="npu"), [1] * size, [1] * (size + 1)
            ),
        ),
        (
            RuntimeError,
            "Split sizes doesn't match total dim 0 size",
            lambda: dist.all_to_all_single(
                torch.empty(size, device="npu"), torch.ones(size, device="npu"), [1] * size, [2] * size
            ),
        ),
        (
            RuntimeError,
            "dimension",
            lambda: dist.all_to_all_single(
                torch.empty((), device="npu"), torch.ones((), device="npu"), [1] * size, [1] * size
            ),
        ),
    ]
    if size > 1:
        rank = dist.get_rank()
        longer = [2 if r == rank else 1 for r in range(size)]
        for call in (
            lambda: dist.all_to_all_single(
                torch.empty(size, device="npu"), torch.ones(size + 1, device="npu"), [1] * size, longer
            ),
            lambda: dist.all_to_all(outputs, [torch.ones(count, device="npu") for count in longer]),
        ):
            text = f"split {rank} of its input has 2 elements and split {rank} of its output has 1"
            cases.append((ValueError, text, call))
        negative = [size + 1, -1, *[0] * (size - 2)]
        cases.append(
            (
                RuntimeError,
                "Split sizes should not be negative",
                lambda: dist.all_to_all_single(
                    torch.empty(size, device="npu"), torch.ones(size, device="npu"), [1] * size, negative
                ),
            )
        )
        cases.append(
            (
                RuntimeError,
                "Tensor's dim 0 does not divide equally across group size",
                lambda: dist.all_to_all_single(torch.empty(size + 1, device="npu"), torch.ones(size + 1, device="npu")),
            )
        )
    for kind, text, call in cases:
        raises(kind, text, call)
    tensor = one()
    dist.all_reduce(tensor)
    assert tensor.item() == size


def premul(factor: float) -> object:
    from torch_npu.distributed import _make_hccl_premul_sum

    return _make_hccl_premul_sum(factor)


# ---- tests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", (1, 2, 4))
@pytest.mark.parametrize(
    "check",
    (
        check_special_values,
        check_extreme_integers,
        check_views,
        check_shared_storage,
        check_layouts,
        check_complex,
        check_refusals,
    ),
    ids=lambda check: check.__name__.removeprefix("check_"),
)
def test_tensors(ranks, size: int, check) -> None:
    ranks(size).run(check)
