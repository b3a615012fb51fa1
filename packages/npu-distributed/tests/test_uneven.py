"""Collectives in which every rank has its own share, and lists that do not fit the group."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist


def splits_for(size: int) -> list[list[int]]:
    return [
        [r + 1 for r in range(size)],
        [0] * (size - 1) + [5],
        [3000 * (r % 2) + 1 for r in range(size)],
    ]


def rows(rank: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    return ((torch.arange(count * 3).view(count, 3) + 5 * rank) % 11).to(dtype)


# ---- on every rank --------------------------------------------------------------------------------------------------


def check_reduce_scatter(rank: int, size: int) -> None:
    from torch_npu.distributed import _make_hccl_premul_sum, reduce_scatter_tensor_uneven

    for dtype in (torch.float32, torch.int8, torch.int32, torch.bfloat16):
        for splits in splits_for(size):
            count = sum(splits)
            parts = torch.stack([rows(r, count, dtype).double() for r in range(size)])
            for name, expected in (("SUM", parts.sum(0)), ("MAX", parts.amax(0)), ("PRODUCT", parts.prod(0))):
                if name == "PRODUCT" and not dtype.is_floating_point:
                    continue
                expected = expected.split(splits)[rank]
                output = torch.empty(splits[rank], 3, dtype=dtype, device="npu")
                given = rows(rank, count, dtype).npu()
                assert reduce_scatter_tensor_uneven(output, given, splits, getattr(dist.ReduceOp, name)) is None
                torch.testing.assert_close(output.cpu(), expected.to(dtype))
    output = torch.empty(2, device="npu")
    given = torch.full((2 * size,), 1.0 + rank, device="npu")
    work = reduce_scatter_tensor_uneven(output, given, op=_make_hccl_premul_sum(0.5), async_op=True)
    work.wait()
    assert output.tolist() == [0.25 * size * (size + 1)] * 2
    reduce_scatter_tensor_uneven(output, given, [], dist.ReduceOp.AVG)
    assert output.tolist() == [(size + 1) / 2] * 2


def check_all_gather(rank: int, size: int) -> None:
    from torch_npu.distributed import all_gather_into_tensor_uneven

    for dtype in (torch.float32, torch.int8, torch.bool, torch.float8_e5m2):
        for splits in splits_for(size):
            parts = [rows(r, splits[r], torch.float32).to(dtype) for r in range(size)]
            output = torch.empty(sum(splits), 3, dtype=dtype, device="npu")
            # The input counts as flat.
            work = all_gather_into_tensor_uneven(output, parts[rank].npu().flatten(), splits, async_op=rank == 0)
            if rank == 0:
                work.wait()
            expected = torch.cat([p.view(torch.uint8) for p in parts])
            assert torch.equal(output.cpu().view(torch.uint8), expected)
    output = torch.empty(size, device="npu")
    all_gather_into_tensor_uneven(output, torch.full((1,), float(rank), device="npu"))
    assert output.tolist() == [float(r) for r in range(size)]


def check_refusals(rank: int, size: int) -> None:
    from torch_npu.distributed import all_gather_into_tensor_uneven as gather
    from torch_npu.distributed import reduce_scatter_tensor_uneven as scatter

    ones = torch.ones(size + 1, device="npu")
    share = torch.ones(1, device="npu")
    wrong = [1] * size + [1]
    for call, fragment in (
        (lambda: scatter(share.int(), ones), "output tensor must have the same type as input tensor"),
        (lambda: gather(ones, share.int()), "output tensor must have the same type as input tensor"),
        (lambda: scatter(share, ones), "Tensor's dim 0 does not divide equally across group size"),
        (lambda: gather(ones, share), "Tensor's dim 0 does not divide equally across group size"),
        (lambda: scatter(share, ones, wrong), "Number of tensor splits not equal to group size"),
        (lambda: gather(ones, share, wrong), "Number of tensor splits not equal to group size"),
        (lambda: scatter(share, ones, [1] * size), "Split sizes doesn't match total dim 0 size"),
        (lambda: gather(ones, share, [1] * size), "Split sizes doesn't match total dim 0 size"),
        (lambda: scatter(ones, torch.ones(size, device="npu")), "as its split says"),
        (lambda: scatter(share.bool(), torch.ones(size, device="npu").bool()), "Unsupported data type"),
        (lambda: scatter([share], ones), "Expected parameter `output`"),
    ):
        with pytest.raises((RuntimeError, ValueError, TypeError), match=fragment):
            call()
    output = torch.zeros(size)
    with pytest.warns(UserWarning, match="Support for Tensors is limited to those of type npu"):
        assert gather(output, torch.ones(1)) is None
    with pytest.warns(UserWarning, match="Support for Tensors is limited to those of type npu"):
        assert scatter(share, torch.ones(size)) is None
    assert output.tolist() == [0.0] * size
    group = dist.new_group([0])
    if rank > 0:
        with pytest.warns(UserWarning, match="does not belong to the given group"):
            assert gather(ones, ones, group=group) is None
    else:
        result = torch.empty(2, device="npu")
        gather(result, torch.ones(2, device="npu"), [2], group=group)
        assert result.tolist() == [1.0, 1.0]


def check_lists(rank: int, size: int) -> None:
    """reduce_scatter takes any list: it counts as one vector, cut into stretches of the output's length."""
    for lengths, length in (
        ([4] * (size + 1), 4),  # too many: the tail is ignored
        ([3], 4),  # too few: zeros
        ([5] * size, 3),  # of other sizes than the output
        ([3 * size], 3),  # one tensor
        ([2000] * (size - 1), 2500),
    ):
        flat = torch.arange(sum(lengths), dtype=torch.float64) + 1
        needed = torch.cat([flat, torch.zeros(length * size)])[rank * length : (rank + 1) * length]
        expected = needed * sum(r + 1 for r in range(size))
        for _ in range(3):  # the joined copy is made on the communication stream and dies at once
            given = [t.npu() for t in (flat * (rank + 1)).split(lengths)]
            output = torch.full((length,), -1.0, dtype=torch.float64, device="npu")
            work = dist.reduce_scatter(output, given, async_op=True)
            del given
            torch.full((sum(lengths),), -7.0, dtype=torch.float64, device="npu")
            work.wait()
            assert torch.equal(output.cpu(), expected)
    # One entry per rank, each of its own shape.
    given = [torch.full((r + 1, 2), float(rank), device="npu") for r in range(size)]
    output = torch.empty(rank + 1, 2, device="npu")
    dist.reduce_scatter(output, given)
    assert output.unique().tolist() == [sum(range(size))]
    for dtype in (torch.uint8, torch.bool):
        with pytest.raises(RuntimeError, match="Unsupported data type"):
            dist.reduce_scatter(torch.ones(2, device="npu").to(dtype), [torch.ones(2, device="npu").to(dtype)] * size)


def check_reduce_out_of_place(rank: int, size: int) -> None:
    backend = dist.distributed_c10d._get_default_group()._get_backend(torch.device("npu"))
    options = dist.ReduceOptions()
    options.rootRank = size - 1
    given = torch.full((9000,), 1.0 + rank, device="npu")
    output = torch.full((90, 100), -1.0, device="npu")
    backend._reduce_oop(output, given, options).wait()
    expected = size * (size + 1) / 2 if rank == size - 1 else -1.0
    assert output.unique().tolist() == [expected] and given.unique().tolist() == [1.0 + rank]
    with pytest.raises(ValueError, match="same number of elements"):
        backend._reduce_oop(output, given[:5], options)


def check_window(rank: int, size: int) -> None:
    group = dist.new_group()
    backend = group._get_backend(torch.device("npu"))
    peers = [r for r in range(size) if r != rank]
    with pytest.raises(RuntimeError, match="_window_register_and_exchange"):
        backend._get_window_mem()
    with pytest.raises(ValueError, match="window_size"):
        backend._window_register_and_exchange(0, peers)
    with pytest.raises(ValueError, match="peer_ranks"):
        backend._window_register_and_exchange(64, [size])
    backend._window_register_and_exchange(4096, peers)
    window = backend._get_window_mem()
    assert window.dtype == torch.int8 and window.shape == (4096,) and window.device.index == rank
    with pytest.raises(RuntimeError, match="registered already"):
        backend._window_register_and_exchange(64, peers)
    # Tensors in the window take part in collectives as any others.
    from torch_npu.distributed import all_gather_into_tensor_uneven

    pool = window.view(torch.float32)
    given = pool[: rank + 1].fill_(rank)
    total = size * (size + 1) // 2
    output = pool[512 : 512 + total]
    all_gather_into_tensor_uneven(output, given, [r + 1 for r in range(size)], group=group)
    assert output.tolist() == [float(r) for r in range(size) for _ in range(r + 1)]
    dist.barrier()
    dist.destroy_process_group(group)


# ---- tests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "check",
    [check_reduce_scatter, check_all_gather, check_refusals, check_lists, check_reduce_out_of_place, check_window],
)
def test_uneven(ranks, check) -> None:
    ranks(3).run(check)
