"""Every collective, type, reduction and size between real processes, bit for bit against a single-process reference."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist
from hccl_testing.reference import (
    FLOATS,
    REDUCED,
    TRANSPORT,
    assert_same,
    assert_same_copy,
    contribution,
    digest,
    reduced,
)

WORLDS = (1, 2, 3, 4, 8)
OPS = ("SUM", "AVG", "PRODUCT", "MIN", "MAX")
INLINE_BYTES = 8192  # tensors up to here travel inside the announcement
PIECE_BYTES = 512 * 1024  # larger ones are cut into pieces of each rank's share


def counts_of(dtype: torch.dtype, size: int, every: bool) -> list[int]:
    """Numbers of elements around every limit of the algorithms."""
    inline, piece = INLINE_BYTES // dtype.itemsize, PIECE_BYTES // dtype.itemsize
    counts = [0, 1, 7, inline - 1, inline, inline + 1, 9 * inline + 5]
    if every:
        counts += [piece - 1, piece + 1, size * piece, size * piece + 1]
    return counts


def same_on_all_ranks(rank: int, size: int, tensors: list[torch.Tensor]) -> None:
    """Results are the same bits everywhere, NaN and zeros included."""
    own = torch.tensor([digest(tensor) for tensor in tensors])
    everyone = [torch.empty_like(own, device="npu") for _ in range(size)]
    dist.all_gather(everyone, own.npu())
    for other in everyone:
        assert torch.equal(other.cpu(), own), f"{other.tolist()} is not {own.tolist()}"


# ---- on every rank --------------------------------------------------------------------------------------------------


def check_all_reduce(rank: int, size: int, dtype_name: str) -> None:
    dtype = getattr(torch, dtype_name)
    results = []
    for op in OPS:
        for count in counts_of(dtype, size, every=op == "SUM"):
            parts = [contribution(r, count, dtype, salt=count) for r in range(size)]
            tensor = parts[rank].npu()
            dist.all_reduce(tensor, getattr(dist.ReduceOp, op))
            what = f"all_reduce {op} of {count} {dtype_name}"
            assert_same(tensor, reduced(parts, op), what, signed_zero=op not in ("MIN", "MAX"))
            if count in (7, 9 * INLINE_BYTES // dtype.itemsize + 5):
                results.append(tensor)
                again = parts[rank].npu()
                dist.all_reduce(again, getattr(dist.ReduceOp, op))
                assert_same_copy(again, tensor.cpu(), f"{what} again")
    same_on_all_ranks(rank, size, results)


def check_large_all_reduce(rank: int, size: int) -> None:
    """Several MiB, odd numbers of elements: shares of many pieces, some of which other ranks take over."""
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        count = (5 << 20) // dtype.itemsize + 13
        parts = [contribution(r, count, dtype, salt=1) for r in range(size)]
        expected = reduced(parts, "SUM")
        results = []
        for _ in range(3):
            tensor = parts[rank].npu()
            dist.all_reduce(tensor)
            assert_same(tensor, expected, f"all_reduce of {count} {dtype}")
            results.append(tensor)
        assert len({digest(tensor) for tensor in results}) == 1
        same_on_all_ranks(rank, size, results[:1])


def check_premul_sum(rank: int, size: int) -> None:
    from torch_npu.distributed import _make_hccl_premul_sum

    for dtype_name, count in itertools.product(FLOATS, (1, 3000, 40001)):
        dtype = getattr(torch, dtype_name)
        # Number and tensor of the data's type give the same: these factors are exact in all of them.
        factors = [0.5 * (r + 1) * (-1) ** r for r in range(size)]
        parts = [contribution(r, count, dtype) for r in range(size)]
        expected = reduced(parts, "PREMUL_SUM", factors)
        factor_types = (dtype, torch.float32)
        for factor in (factors[rank], *(torch.tensor([factors[rank]], dtype=t, device="npu") for t in factor_types)):
            what = f"PREMUL_SUM of {count} {dtype_name} with {factor}"
            op = _make_hccl_premul_sum(factor)
            tensor = parts[rank].npu()
            dist.all_reduce(tensor, op)
            assert_same(tensor, expected, what)
            output = torch.empty(count, dtype=dtype, device="npu")
            dist.reduce_scatter_tensor(output, torch.cat([parts[rank]] * size).npu(), op)
            assert_same(output, expected, f"reduce_scatter {what}")
            tensor = parts[rank].npu()
            dist.reduce(tensor, size - 1, op)
            assert_same(tensor, expected if rank == size - 1 else parts[rank], f"reduce {what}")
    # A factor that no float type holds exactly is rounded to the accumulator's type, once.
    parts = [contribution(r, 5000, torch.bfloat16) for r in range(size)]
    tensor = parts[rank].npu()
    dist.all_reduce(tensor, _make_hccl_premul_sum(1 / 3))
    assert_same(tensor, reduced(parts, "PREMUL_SUM", [1 / 3] * size), "PREMUL_SUM with 1/3")
    # The factor is read in stream order: its value may still be on the way.
    factor = torch.zeros(1, device="npu")
    tensor = torch.ones(9000, device="npu")
    for _ in range(20):
        factor += 0.25
    work = dist.all_reduce(tensor, _make_hccl_premul_sum(factor), async_op=True)
    work.wait()
    assert tensor.unique().tolist() == [5.0 * size]


def check_broadcast(rank: int, size: int) -> None:
    for dtype_name, root in itertools.product(TRANSPORT, {0, size - 1}):
        dtype = getattr(torch, dtype_name)
        for count in counts_of(dtype, size, every=dtype_name in ("bfloat16", "bool")):
            tensor = contribution(rank, count, dtype).npu()
            dist.broadcast(tensor, root)
            assert_same_copy(tensor, contribution(root, count, dtype), f"broadcast of {count} {dtype_name} from {root}")


def check_all_gather(rank: int, size: int) -> None:
    for dtype_name in TRANSPORT:
        dtype = getattr(torch, dtype_name)
        for count in counts_of(dtype, size, every=dtype_name == "float16" and size < 8):
            parts = [contribution(r, count, dtype) for r in range(size)]
            what = f"all_gather of {count} {dtype_name}"
            gathered = [torch.empty(count, dtype=dtype, device="npu") for _ in range(size)]
            dist.all_gather(gathered, parts[rank].npu())
            for got, expected in zip(gathered, parts, strict=True):
                assert_same_copy(got, expected, what)
            for shape in ((size * count,), (size, count)):
                output = torch.empty(shape, dtype=dtype, device="npu")
                dist.all_gather_into_tensor(output, parts[rank].npu())
                for got, expected in zip(output.view(size, count), parts, strict=True):
                    assert_same_copy(got, expected, f"{what} into {shape}")


def check_all_gather_of_different_shapes(rank: int, size: int) -> None:
    for base, dtype in itertools.product((1, 513, 9000), (torch.float32, torch.bool, torch.float8_e5m2)):
        # Some of them travel inside the announcement, some do not; rank 1 brings nothing.
        shapes = [(0 if r == 1 else base * (r + 1), 2) for r in range(size)]
        parts = [contribution(r, 2 * shapes[r][0], dtype).view(shapes[r]) for r in range(size)]
        outputs = [torch.empty(shape, dtype=dtype, device="npu") for shape in shapes]
        dist.all_gather(outputs, parts[rank].npu())
        for got, expected in zip(outputs, parts, strict=True):
            assert_same_copy(got, expected, f"all_gather of {shapes} {dtype}")


def check_reduce(rank: int, size: int) -> None:
    for dtype_name, root in itertools.product(REDUCED, {0, size // 2, size - 1}):
        dtype = getattr(torch, dtype_name)
        for op, count in itertools.product(OPS, (0, 1, INLINE_BYTES // dtype.itemsize + 1)):
            parts = [contribution(r, count, dtype, salt=root) for r in range(size)]
            tensor = parts[rank].npu()
            dist.reduce(tensor, root, getattr(dist.ReduceOp, op))
            expected = reduced(parts, op) if rank == root else parts[rank]
            what = f"reduce {op} of {count} {dtype_name} to {root}"
            assert_same(tensor, expected, what, signed_zero=op not in ("MIN", "MAX"))
    for root in {0, size - 1}:
        parts = [contribution(r, (2 << 20) + 1, torch.float16) for r in range(size)]
        tensor = parts[rank].npu()
        dist.reduce(tensor, root)
        assert_same(tensor, reduced(parts, "SUM") if rank == root else parts[rank], "large reduce")


def check_reduce_scatter(rank: int, size: int) -> None:
    for dtype_name in REDUCED:
        if dtype_name in ("uint8", "bool"):
            continue
        dtype = getattr(torch, dtype_name)
        inline = INLINE_BYTES // dtype.itemsize
        for op, count in itertools.product(OPS, (0, 1, 4, inline // size + 1, inline + 1)):
            inputs = [contribution(r, count * size, dtype, salt=count) for r in range(size)]
            expected = reduced([whole[rank * count : (rank + 1) * count] for whole in inputs], op)
            whole = inputs[rank].npu()
            what = f"reduce_scatter {op} of {count} {dtype_name}"
            output = torch.empty(count, dtype=dtype, device="npu")
            dist.reduce_scatter_tensor(output, whole, getattr(dist.ReduceOp, op))
            assert_same(output, expected, f"{what}, tensor", signed_zero=op not in ("MIN", "MAX"))
            output = torch.empty(count, dtype=dtype, device="npu")
            dist.reduce_scatter(output, list(whole.view(size, count)), getattr(dist.ReduceOp, op))
            assert_same(output, expected, f"{what}, list", signed_zero=op not in ("MIN", "MAX"))
            assert_same_copy(whole, inputs[rank], f"{what} changes its input")


def check_large_reduce_scatter(rank: int, size: int) -> None:
    count = (1 << 20) + 7
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [contribution(r, count * size, dtype) for r in range(size)] if size < 4 else None
        whole = inputs[rank] if inputs else contribution(rank, count, dtype).repeat(size)
        mine = [w[rank * count :][:count] for w in inputs] if inputs else None
        mine = mine or [contribution(r, count, dtype) for r in range(size)]
        output = torch.empty(count, dtype=dtype, device="npu")
        dist.reduce_scatter_tensor(output, whole.npu())
        assert_same(output, reduced(mine, "SUM"), f"large reduce_scatter of {dtype}")


def check_lists_of_reduce_scatter(rank: int, size: int) -> None:
    """Lists that are not one tensor of the output's size per rank."""
    for dtype, base in itertools.product((torch.float32, torch.int32), (3, 3000)):
        # Entries of different sizes: entry r is what rank r takes.
        lengths = [base * (r + 1) for r in range(size)]
        inputs = [[contribution(r, n, dtype, salt=q) for q, n in enumerate(lengths)] for r in range(size)]
        output = torch.empty(lengths[rank], dtype=dtype, device="npu")
        dist.reduce_scatter(output, [tensor.npu() for tensor in inputs[rank]])
        assert_same(output, reduced([inputs[r][rank] for r in range(size)], "SUM"), "uneven list")
        # Any other list is one long vector: too short, too long, cut elsewhere.
        for pieces in ((base * size,), (base * size - 2,), (base, base * size), (1,) * (size + 1), (base // 3,)):
            if len(pieces) == size and size > 1 and base in pieces:
                continue  # that is the case above
            flat = [contribution(r, sum(pieces), dtype, salt=7) for r in range(size)]
            padded = [torch.cat([f, torch.zeros(base * size, dtype=dtype)]) for f in flat]
            output = torch.empty(base, dtype=dtype, device="npu")
            dist.reduce_scatter(output, [part.npu() for part in flat[rank].split(pieces)])
            expected = reduced([whole[rank * base : (rank + 1) * base] for whole in padded], "SUM")
            assert_same(output, expected, f"list of {pieces} for an output of {base}")


def check_all_to_all(rank: int, size: int) -> None:
    for dtype_name in TRANSPORT:
        dtype = getattr(torch, dtype_name)
        for base in (0, 1, 2500):
            length = [
                [0 if (q + r) % 3 == 1 else base * (1 + (q + 2 * r) % 4) for r in range(size)] for q in range(size)
            ]
            parts = [[contribution(q, length[q][r], dtype, salt=r) for r in range(size)] for q in range(size)]
            received = [torch.empty(length[q][rank], dtype=dtype, device="npu") for q in range(size)]
            dist.all_to_all(received, [part.npu() for part in parts[rank]])
            for q in range(size):
                assert_same_copy(received[q], parts[q][rank], f"all_to_all of {base} {dtype_name} from {q}")
            output = torch.empty(sum(length[q][rank] for q in range(size)), dtype=dtype, device="npu")
            source = torch.cat([part.view(torch.uint8) if dtype.itemsize == 1 else part for part in parts[rank]])
            splits = [length[q][rank] for q in range(size)], length[rank]
            dist.all_to_all_single(output, source.view(dtype).npu(), *splits)
            for q, got in enumerate(output.split(splits[0])):
                assert_same_copy(got, parts[q][rank], f"all_to_all_single of {base} {dtype_name} from {q}")


def check_all_to_all_single(rank: int, size: int) -> None:
    for rows, width in ((size, 1), (3 * size, 5), (0, 4), (size, 9001)):
        parts = [contribution(q, rows * width, torch.float32).view(rows, width) for q in range(size)]
        output = torch.empty(rows, width, device="npu")
        dist.all_to_all_single(output, parts[rank].npu())
        each = rows // size
        expected = torch.cat([part[rank * each : (rank + 1) * each] for part in parts])
        assert_same_copy(output, expected, f"all_to_all_single of {rows} x {width}")
    # Rows of several elements; everything goes to rank 0, nothing to the others.
    parts = [contribution(q, 8, torch.int16).view(4, 2) for q in range(size)]
    output = torch.empty(4 * size if rank == 0 else 0, 2, dtype=torch.int16, device="npu")
    mine = [4 if rank == 0 else 0] * size
    dist.all_to_all_single(output, parts[rank].npu(), mine, [4] + [0] * (size - 1))
    assert_same_copy(output, torch.cat(parts) if rank == 0 else parts[0][:0], "everything to rank 0")


def check_scatter_and_gather(rank: int, size: int) -> None:
    for dtype_name, root in itertools.product(TRANSPORT, {0, size - 1}):
        dtype = getattr(torch, dtype_name)
        for count in (0, 1, INLINE_BYTES // dtype.itemsize, 30011):
            parts = [contribution(r, count, dtype, salt=root) for r in range(size)]
            output = torch.empty(count, dtype=dtype, device="npu")
            dist.scatter(output, [part.npu() for part in parts] if rank == root else None, root)
            assert_same_copy(output, parts[rank], f"scatter of {count} {dtype_name} from {root}")
            collected = [torch.empty(count, dtype=dtype, device="npu") for _ in range(size)] if rank == root else None
            dist.gather(output, collected, root)
            for got, expected in zip(collected or [], parts, strict=False):
                assert_same_copy(got, expected, f"gather of {count} {dtype_name} to {root}")


# ---- tests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", WORLDS)
@pytest.mark.parametrize("dtype", REDUCED)
def test_all_reduce(ranks, size: int, dtype: str) -> None:
    ranks(size).run(check_all_reduce, dtype)


@pytest.mark.parametrize("size", WORLDS)
@pytest.mark.parametrize(
    "check",
    (
        check_large_all_reduce,
        check_premul_sum,
        check_broadcast,
        check_all_gather,
        check_all_gather_of_different_shapes,
        check_reduce,
        check_reduce_scatter,
        check_large_reduce_scatter,
        check_lists_of_reduce_scatter,
        check_all_to_all,
        check_all_to_all_single,
        check_scatter_and_gather,
    ),
    ids=lambda check: check.__name__.removeprefix("check_"),
)
def test_collective(ranks, size: int, check) -> None:
    ranks(size).run(check)
