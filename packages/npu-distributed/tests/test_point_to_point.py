"""Point-to-point calls: single ones on the link of a pair, batches in any order, and what they do not accept."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

DTYPES = (
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "bool",
    "float8_e4m3fn",
    "float8_e5m2",
)
SIZES = (0, 1, 257, 5000, 300_001)


def message(sender: int, receiver: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    values = (torch.arange(count) * 3 + 7 * sender + 5 * receiver) % 5
    return (values % 2 == 0) if dtype == torch.bool else values.to(torch.float32).to(dtype)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().contiguous().view(torch.uint8)


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.dtype == expected.dtype and torch.equal(as_bytes(got), as_bytes(expected))


def backend_of(group: dist.ProcessGroup | None = None) -> dist.ProcessGroupHCCL:
    group = group or dist.distributed_c10d._get_default_group()
    return group._get_backend(torch.device("npu"))


# ---- on every rank --------------------------------------------------------------------------------------------------


def check_send_and_recv(rank: int, size: int) -> None:
    """Every type and size along the chain 0 -> 1 -> 2, blocking calls."""
    for dtype_name in DTYPES:
        dtype = getattr(torch, dtype_name)
        for count in SIZES if dtype_name in ("float32", "bool") else (3, 4099):
            if rank > 0:
                got = message(9, 9, count, dtype).npu()
                assert dist.recv(got, rank - 1, tag=count) == rank - 1
                assert_same(got, message(rank - 1, rank, count, dtype))
            if rank < size - 1:
                dist.send(message(rank, rank + 1, count, dtype).npu(), rank + 1)


def check_ring_that_sends_first(rank: int, size: int) -> None:
    """Nobody waits on the host for its link to the next rank, so that all ranks get to their receives."""
    group = dist.new_group()  # no link of it stands yet
    after, before = (rank + 1) % size, (rank - 1) % size
    for count in (5, 200_000):
        sent = message(rank, after, count, torch.float32).npu()
        got = torch.empty(count, device="npu")
        works = [dist.isend(sent, after, group=group), dist.irecv(got, before, group=group)]
        for work in works:
            work.wait()
        assert_same(got, message(before, rank, count, torch.float32))
    assert all(work.is_completed() for work in works)
    dist.barrier()
    dist.destroy_process_group(group)


def check_order_with_the_current_stream(rank: int, size: int) -> None:
    """Producer, transfer and consumer are queued without a host wait, and tensors die early."""
    if rank > 1:
        return
    total = torch.zeros(30_000, device="npu")
    for step in range(40):
        if rank == 0:
            tensor = torch.full((30_000,), float(step), device="npu").mul_(2).add_(1)
            dist.send(tensor, 1)
        else:
            tensor = torch.empty(30_000, device="npu")
            dist.recv(tensor, 0)
            total += tensor
        del tensor
        torch.full((30_000,), -100.0, device="npu")  # would land in memory that was freed too early
    if rank == 1:
        assert total.unique().tolist() == [sum(2.0 * step + 1 for step in range(40))]


def check_independence_of_collectives(rank: int, size: int) -> None:
    """A transfer passes a collective that still waits for a peer, and one to another peer."""
    data = torch.full((100_000,), 3.0, device="npu")
    reduced = torch.ones(1000, device="npu")
    if rank == 0:
        pending = dist.all_reduce(reduced, async_op=True)
        late = dist.isend(data, 2)
        dist.isend(data, 1).wait()
        torch.npu.current_stream().synchronize()
        late.wait()
    elif rank == 1:
        got = torch.empty_like(data)
        dist.recv(got, 0)
        assert got[-1].item() == 3.0  # the collective of rank 0 cannot have ended: rank 1 has not come
        dist.distributed_c10d._get_default_store().set("independence: rank 1 has its message", "")
        pending = dist.all_reduce(reduced, async_op=True)
    else:
        dist.distributed_c10d._get_default_store().wait(["independence: rank 1 has its message"])
        got = torch.empty_like(data)
        dist.recv(got, 0)
        pending = dist.all_reduce(reduced, async_op=True)
    pending.wait()
    assert reduced[7].item() == size


def check_stream_ids(rank: int, size: int) -> None:
    group = dist.new_group()
    backend = backend_of(group)
    peer = 1 if rank == 0 else 0
    assert backend._get_stream_id(p2p=True, peer=peer) == -1 == backend.get_p2p_stream_id(rank, peer, 0)
    with pytest.raises((RuntimeError, ValueError), match="peer"):
        backend._get_stream_id(p2p=True)
    if rank < 2:
        tensor = torch.ones(4, device="npu")
        (dist.send if rank == 0 else dist.recv)(tensor, peer, group=group)
        pair = backend._get_stream_id(p2p=True, peer=peer)
        assert pair & 32 == 32 and pair == backend.get_p2p_stream_id(rank, peer, 0)
        stream = torch.npu.Stream(stream_id=pair, device_type=20, device_index=rank)
        stream.synchronize()
        assert tensor.tolist() == [1.0] * 4
        collective = backend.get_coll_stream_id(rank)
        assert collective not in (-1, pair) and collective == backend.get_p2p_stream_id(rank, peer, 1)
    dist.barrier()
    dist.destroy_process_group(group)


def check_batches(rank: int, size: int) -> None:
    """All to all with unequal sizes, receives first on odd ranks; two messages of a pair keep their order."""
    for count in (3, 60_000):
        ops, expected = [], []
        for peer in range(size):
            if peer == rank:
                continue
            for extra in (0, 1):
                length = count + 10 * rank + 100 * peer + extra
                ops.append(dist.P2POp(dist.isend, message(rank, peer, length, torch.float32).npu(), peer))
                length = count + 10 * peer + 100 * rank + extra
                got = torch.empty(length, device="npu")
                ops.append(dist.P2POp(dist.irecv, got, peer))
                expected.append((got, message(peer, rank, length, torch.float32)))
        if rank % 2 == 1:
            ops = [op for op in ops if op.op is dist.irecv] + [op for op in ops if op.op is dist.isend]
        works = dist.batch_isend_irecv(ops)
        assert len(works) == 1
        works[0].wait()
        for got, want in expected:
            assert_same(got, want)


def check_batch_in_a_subgroup(rank: int, size: int) -> None:
    group = dist.new_group([2, 1])  # group ranks differ from the global ones
    if rank == 0:
        with pytest.warns(UserWarning, match="does not belong to the given group"):
            dist.all_reduce(torch.ones(1, device="npu"), group=group)
    else:
        peer = 3 - rank
        got = torch.empty(8, dtype=torch.bool, device="npu")
        sent = message(rank, peer, 8, torch.bool).npu()
        for keyword in ({"peer": peer}, {"group_peer": dist.get_group_rank(group, peer)}):
            ops = [
                dist.P2POp(dist.irecv, got, group=group, **keyword),
                dist.P2POp(dist.isend, sent, group=group, **keyword),
            ]
            for work in dist.distributed_c10d.batch_isend_irecv(ops):
                work.wait()
            assert_same(got, message(peer, rank, 8, torch.bool))
    dist.barrier()


def check_native_batch(rank: int, size: int) -> None:
    after, before = (rank + 1) % size, (rank - 1) % size
    got, own = torch.empty(6, device="npu"), torch.empty(6, device="npu")
    sent = message(rank, after, 6, torch.float32).npu()
    # A rank may also send to itself.
    ops = ["irecv", "isend", "isend", "irecv"]
    backend_of().batch_isend_irecv(ops, [got, sent, sent, own], [before, after, rank, rank]).wait()
    assert_same(got, message(before, rank, 6, torch.float32))
    assert_same(own, sent)
    for arguments, fragment in (
        ((["send"], [sent], [0]), "isend"),
        (([], [], []), "at least one"),
        ((["isend"], [sent], [size]), "rank of operation 0"),
        ((["isend", "irecv"], [sent], [0]), "as many operations"),
    ):
        with pytest.raises((RuntimeError, ValueError), match=fragment):
            backend_of().batch_isend_irecv(*arguments)


def check_objects(rank: int, size: int) -> None:
    sent = [{"rank": rank}, (1, "two"), torch.arange(3)]
    if rank == 0:
        dist.send_object_list(sent, 1)
    elif rank == 1:
        got = [None] * 3
        assert dist.recv_object_list(got, 0) == 0
        assert got[0] == {"rank": 0} and got[1] == (1, "two") and got[2].tolist() == [0, 1, 2]


def check_refusals(rank: int, size: int) -> None:
    tensor = torch.ones(4, device="npu")
    other = (rank + 1) % size
    for call, fragment in (
        (lambda: dist.recv(tensor), "ProcessGroupHCCL does not support recv"),
        (lambda: dist.irecv(tensor), "ProcessGroupHCCL does not support recv"),
        (lambda: dist.send(torch.ones(4), other), "No backend type associated with device type cpu"),
        (lambda: backend_of().send([torch.ones(4)], other, 0), "Tensors must be NPU and dense"),
        (lambda: backend_of().send([torch.ones(4, 4, device="npu").t()[1:]], other, 0), "Tensors must be contiguous"),
        (lambda: backend_of().send([tensor, tensor], other, 0), "expected one tensor"),
        (lambda: backend_of().send([tensor], size, 0), "peer should be a rank"),
        (lambda: backend_of().send([tensor], rank, 0), "its own peer"),
        (lambda: backend_of().send([torch.ones(2, dtype=torch.complex64, device="npu")], other, 0), "Unsupported data"),
        (lambda: dist.batch_isend_irecv([1, 2]), "Invalid ``p2p_op_list``"),
        (lambda: dist.batch_isend_irecv([]), "Invalid ``p2p_op_list``"),
        (
            lambda: dist.batch_isend_irecv([dist.P2POp(dist.isend, torch.ones(2), other)]),
            "No backend type associated with device type cpu",
        ),
    ):
        with pytest.raises((RuntimeError, ValueError, IndexError), match=fragment):
            call()
    group = dist.new_group()
    mixed = [dist.P2POp(dist.isend, tensor, other), dist.P2POp(dist.isend, tensor, other, group=group)]
    with pytest.raises(ValueError, match="same group"):
        dist.batch_isend_irecv(mixed)
    # Nothing of this has been queued: the group works.
    dist.all_reduce(tensor)
    assert tensor.tolist() == [float(size)] * 4


def group_stream_only(rank: int, size: int) -> list[int]:
    tensor = torch.full((50_000,), float(rank), device="npu")
    got = torch.empty_like(tensor)
    for work in (dist.isend(tensor, 1 - rank), dist.irecv(got, 1 - rank)):
        work.wait()
    dist.all_reduce(got)
    assert got[3].item() == 1.0
    return [backend_of()._get_stream_id(), backend_of()._get_stream_id(p2p=True, peer=1 - rank)]


def different_types(rank: int, size: int) -> str:
    if rank == 0:
        dist.send(torch.ones(5, device="npu"), 1)
    else:
        dist.recv(torch.ones(5, dtype=torch.int32, device="npu"), 0)
    try:
        torch.npu.synchronize()
    except RuntimeError as error:
        return str(error)
    return ""


# ---- tests ----------------------------------------------------------------------------------------------------------


def test_send_and_recv(ranks) -> None:
    ranks(3).run(check_send_and_recv)


def test_ring_that_sends_first(ranks) -> None:
    ranks(3).run(check_ring_that_sends_first)


def test_order_with_the_current_stream(ranks) -> None:
    ranks(3).run(check_order_with_the_current_stream)


def test_independence_of_collectives(ranks) -> None:
    ranks(3).run(check_independence_of_collectives)


def test_stream_ids(ranks) -> None:
    ranks(3).run(check_stream_ids)


def test_batches(ranks) -> None:
    ranks(3).run(check_batches)


def test_batch_in_a_subgroup(ranks) -> None:
    ranks(3).run(check_batch_in_a_subgroup)


def test_native_batch(ranks) -> None:
    ranks(3).run(check_native_batch)


def test_objects(ranks) -> None:
    ranks(3).run(check_objects)


def test_refusals(ranks) -> None:
    ranks(3).run(check_refusals)


def test_without_pair_links(fresh_ranks) -> None:
    for collective, pair in fresh_ranks(2, P2P_HCCL_BUFFSIZE="0").run(group_stream_only):
        assert collective == pair != -1


def test_different_types_are_an_error_on_the_receiver(fresh_ranks) -> None:
    answers = fresh_ranks(2, TORCH_HCCL_ASYNC_ERROR_HANDLING="0").run(different_types)
    assert "int32" in answers[1] and "float32" in answers[1]


def test_fake_backend_takes_the_stock_way() -> None:
    pytest.importorskip("torch_npu")
    import subprocess
    import sys

    code = (
        "import torch, torch.distributed as dist\n"
        "from torch.testing._internal.distributed.fake_pg import FakeStore\n"
        "dist.init_process_group('npu:fake', store=FakeStore(), rank=0, world_size=2)\n"
        "t = torch.ones(3, device='npu')\n"
        "ops = [dist.P2POp(dist.isend, t, 1), dist.P2POp(dist.irecv, t, 1)]\n"
        "for work in dist.batch_isend_irecv(ops): work.wait()\n"
        "print('done')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stdout.strip() == "done", result.stderr


def test_negative_buffer_is_an_error() -> None:
    pytest.importorskip("torch_npu")
    import os
    import subprocess
    import sys

    code = (
        "import torch, torch.distributed as dist\n"
        "dist.init_process_group('hccl', store=dist.HashStore(), rank=0, world_size=1)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"P2P_HCCL_BUFFSIZE": "-1"},
    )
    assert result.returncode != 0 and "P2P_HCCL_BUFFSIZE" in result.stderr
