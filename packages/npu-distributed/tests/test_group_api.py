"""Groups: subgroups, sizes of one, rebuilding, the debug wrapper, and calls that groups refuse."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh


def backend_of(group: dist.ProcessGroup | None = None) -> dist.ProcessGroupHCCL:
    group = group or dist.distributed_c10d._get_default_group()
    return group._get_backend(torch.device("npu"))


def ones(count: int = 4) -> torch.Tensor:
    return torch.ones(count, device="npu")


# ---- on every rank --------------------------------------------------------------------------------------------------


def check_subgroups(rank: int, size: int) -> None:
    """Overlapping groups, used in turn without a wait between."""
    groups = {members: dist.new_group(list(members)) for members in ((0, 1), (1, 2), (0, 2), (0, 1, 2), (2,))}
    mine = {members: group for members, group in groups.items() if rank in members}
    tensors = {members: torch.full((3000,), 2.0**rank, device="npu") for members in mine}
    for _ in range(3):
        for members, group in mine.items():
            dist.all_reduce(tensors[members], dist.ReduceOp.MAX, group=group)
    for members in mine:
        assert tensors[members].unique().tolist() == [2.0 ** max(members)]
    assert len({backend_of(group).get_hccl_comm_name(rank) for group in mine.values()}) == len(mine)
    dist.barrier()
    for group in mine.values():
        dist.destroy_process_group(group)
    own, _ = dist.new_subgroups(1)
    tensor = ones()
    dist.all_reduce(tensor, group=own)
    assert tensor.tolist() == [1.0] * 4


def check_group_of_one(rank: int, size: int) -> None:
    """Everything works, as a copy."""
    groups = [dist.new_group([r]) for r in range(size)]
    group = groups[rank]
    given = torch.arange(5.0, device="npu")
    output = torch.empty(5, device="npu")

    def check(operation: str) -> None:
        assert output.tolist() == [0, 1, 2, 3, 4], operation
        output.fill_(-1)

    for operation in (dist.ReduceOp.SUM, dist.ReduceOp.AVG, dist.ReduceOp.PRODUCT, dist.ReduceOp.MIN):
        output.copy_(given)
        dist.all_reduce(output, operation, group=group)
        check("all_reduce")
    for name in ("broadcast", "reduce"):
        output.copy_(given)
        getattr(dist, name)(output, rank, group=group)
        check(name)
    dist.all_gather([output], given, group=group)
    check("all_gather")
    dist.all_gather_into_tensor(output, given, group=group)
    check("all_gather_into_tensor")
    dist.reduce_scatter(output, [given], group=group)
    check("reduce_scatter")
    dist.reduce_scatter_tensor(output, given, group=group)
    check("reduce_scatter_tensor")
    dist.all_to_all([output], [given], group=group)
    check("all_to_all")
    dist.all_to_all_single(output, given, group=group)
    check("all_to_all_single")
    dist.scatter(output, [given], rank, group=group)
    check("scatter")
    dist.gather(given, [output], rank, group=group)
    check("gather")
    backend_of(group).batch_isend_irecv(["isend", "irecv"], [given, output], [0, 0]).wait()
    check("batch_isend_irecv")
    objects = [None]
    dist.all_gather_object(objects, {"a": 1}, group=group)
    assert objects == [{"a": 1}]
    dist.barrier(group=group)
    for known in groups:
        if known is group:
            dist.destroy_process_group(known)


def check_rebuilding(rank: int, size: int) -> None:
    from torch_npu.distributed import reinit_process_group

    group = dist.new_group()
    tensor = ones()
    dist.all_reduce(tensor, group=group)
    if rank < 2:
        (dist.send if rank == 0 else dist.recv)(tensor, 1 - rank, group=group)
    torch.npu.synchronize()
    dist.barrier()
    assert dist.reinit_process_group(group) is group
    assert backend_of(group).get_hccl_comm_name(rank, init_comm=False) == ""
    dist.all_reduce(tensor, group=group)
    if rank < 2:
        (dist.send if rank == 0 else dist.recv)(tensor, 1 - rank, group=group)
    assert tensor.tolist() == [float(size * size)] * 4
    torch.npu.synchronize()
    dist.barrier()
    handle = backend_of(group).get_hccl_comm(rank)
    assert reinit_process_group(group, rebuild_link=False) is None
    assert backend_of(group).get_hccl_comm(rank) == handle  # healthy links stay
    backend_of(group).resume_hccl_comm(rank)
    dist.all_reduce(tensor, group=group)
    assert tensor.tolist() == [float(size**3)] * 4
    dist.barrier()
    dist.destroy_process_group(group)


def check_names(rank: int, size: int) -> None:
    """A name belongs to one living group."""
    first, second = dist.new_group(), dist.new_group()
    world = backend_of().get_hccl_comm_name(rank)
    backend_of(first)._set_hccl_comm_name("training")
    own = f"group_name_{first.group_name}"
    for name, holder in (("training", first), (world, dist.group.WORLD)):
        with pytest.raises(RuntimeError, match=f'"{name}" belongs to process group "{holder.group_name}"'):
            backend_of(second)._set_hccl_comm_name(name)
    default = f"group_name_{second.group_name}"
    with pytest.raises(RuntimeError, match=f'"{default}" belongs to process group "{second.group_name}"'):
        backend_of(dist.new_group())._set_hccl_comm_name(default)
    tensor = ones()
    for group in (first, second):
        dist.all_reduce(tensor, group=group)
    assert backend_of(first).get_hccl_comm_name(rank) == "training"
    assert backend_of(second).get_hccl_comm_name(rank) == default
    backend_of(dist.new_group())._set_hccl_comm_name(own)  # nobody has it any more
    torch.npu.synchronize()
    dist.barrier()
    dist.destroy_process_group(first)
    third = dist.new_group()
    backend_of(third)._set_hccl_comm_name("training")
    dist.all_reduce(tensor, group=third)
    assert backend_of(third).get_hccl_comm_name(rank) == "training"
    assert tensor.tolist() == [float(size**3)] * 4
    dist.barrier()


def check_gather(rank: int, size: int) -> None:
    """As torch's: the receiver's list says what comes, others pass none; also in a subgroup."""
    given = torch.full((2, 3), rank, device="npu")
    collected = [torch.empty_like(given) for _ in range(size)] if rank == 1 else None
    work = dist.gather(given, collected, 1, async_op=True)
    work.wait()
    if rank == 1:
        assert [t.unique().tolist() for t in collected] == [[r] for r in range(size)]
    group = dist.new_group([2, 0])
    objects = [None, None] if rank == 0 else None
    if rank != 1:
        dist.gather_object({"rank": rank}, objects, 0, group=group)
    if rank == 0:
        assert sorted(entry["rank"] for entry in objects) == [0, 2]
    with pytest.raises(ValueError, match="gather_list"):
        dist.gather(given, [given] if rank != 1 else None, 1)


def check_works(rank: int, size: int) -> None:
    tensor = ones(1000)
    work = dist.all_reduce(tensor, async_op=True)
    assert repr(work).startswith("WorkHCCL(SeqNum=") and "OpType=ALLREDUCE" in repr(work)
    assert work.wait(timedelta(milliseconds=1)) is True  # the host does not wait, so there is nothing to time out
    torch.npu.synchronize()
    assert work.is_completed() and work.is_success() and work._get_duration() >= 0
    future = work.get_future()
    assert future.done() and future.wait()[0].data_ptr() == tensor.data_ptr()
    assert future.then(lambda f: f.value()[0] * 2).wait()[0].item() == 2.0 * size
    assert work.result()[0].data_ptr() == tensor.data_ptr()
    barrier = dist.barrier(async_op=True)
    assert barrier.wait() and barrier.is_completed()


def check_sequence_numbers(rank: int, size: int) -> None:
    group = dist.new_group()
    group._set_sequence_number_for_group()
    for count in range(3):
        assert group._get_sequence_number_for_group() == backend_of(group)._get_sequence_number_for_group() == count
        dist.all_reduce(ones(), group=group)
    plain = dist.new_group(backend="gloo")
    dist.all_reduce(torch.ones(1), group=plain)
    assert plain._get_sequence_number_for_group() == 1
    dist.destroy_process_group(plain)
    dist.destroy_process_group(group)


def check_refusals(rank: int, size: int) -> None:
    backend = backend_of()
    assert backend.supports_coalescing and not backend.supports_splitting and not backend.supports_time_estimate
    assert backend.supports_tensor_alloc(torch.device("npu", rank)) is False
    backend.eager_connect_single_device(torch.device("npu", rank))
    tensor = ones()
    for call, fragment in (
        (lambda: dist.monitored_barrier(), "monitored_barrier"),
        (lambda: backend.allreduce([tensor, tensor]), "one tensor per process"),
        (lambda: backend.allreduce([torch.ones(2)]), "Tensors must be NPU and dense"),
        (lambda: dist.all_reduce(tensor, dist.ReduceOp.BAND), "Cannot use ReduceOp.BAND with HCCL"),
        (lambda: dist.all_reduce(tensor, dist.ReduceOp.BOR), "Cannot use ReduceOp.BOR with HCCL"),
        (lambda: dist.all_reduce(tensor, dist.ReduceOp.BXOR), "Cannot use ReduceOp.BXOR with HCCL"),
        (lambda: dist.all_reduce(ones(16).view(4, 4)[:, :2]), "Tensors must be contiguous"),
        (lambda: dist.all_gather_into_tensor(ones(size * 4 + 1), tensor), "must be equal to world_size times"),
        (lambda: dist.reduce_scatter_tensor(tensor, ones(4)), "same size as output size times world size"),
        (lambda: backend._reduce_scatter_base(tensor.int(), ones(4 * size)), "same type as the output tensor."),
        (lambda: dist.all_to_all_single(ones(2 * size), ones(3 * size)), "not equal in size or data type"),
        (lambda: dist.all_to_all([tensor], [tensor]), "worldsize must equal"),
        (
            lambda: dist.reduce_scatter(tensor, [torch.ones(4, device=torch.device("npu", (rank + 1) % size))] * size),
            "reduce_scatter must all reside on the same device",
        ),
        (lambda: dist.init_process_group("hccl"), "trying to initialize the default process group twice!"),
        (lambda: backend._set_switch_nic_comm(0, 2, [0, 1], [True]), "nRanks=2"),
        (lambda: backend.set_watchdog_status(3), "set_watchdog_status"),
    ):
        with pytest.raises((RuntimeError, ValueError, TypeError), match=fragment):
            call()
    assert backend._set_switch_nic_comm(0, 2, [0, 1], [True, False]) is True
    assert backend._set_switch_nic_comm(0, 0) is True
    for status in (0, 2, 1):
        backend.set_watchdog_status(status)
    backend.clear_workmeta_list()
    dist.all_reduce(tensor)
    assert tensor.tolist() == [float(size)] * 4


def check_gather_gradient(rank: int, size: int) -> None:
    from torch.distributed.nn.functional import _all_gather_base

    given = torch.full((2, 3), 1.0 + rank, device="npu", requires_grad=True)
    output = torch.empty(2 * size, 3, device="npu")
    gathered = _all_gather_base(output, given)
    weight = torch.arange(6.0 * size, device="npu").view(2 * size, 3)
    (gathered * weight * (rank + 1)).sum().backward()
    expected = weight[2 * rank : 2 * rank + 2] * sum(r + 1 for r in range(size))
    assert torch.equal(given.grad, expected)


def wrapped(rank: int, size: int) -> list[bool | str]:
    wrapper = backend_of()
    inner = wrapper.wrapped_pg
    wrapper.eager_connect_single_device(torch.device("npu", rank))
    tensor = ones()
    dist.all_reduce(tensor)
    got, peer = torch.empty(4, device="npu"), 1 - rank
    ops = [dist.P2POp(dist.irecv, got, peer), dist.P2POp(dist.isend, tensor, peer)]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    same = [
        getattr(wrapper, name) == getattr(inner, name)
        for name in ("supports_splitting", "supports_coalescing", "supports_time_estimate")
    ]
    device = torch.device("npu", rank)
    same.append(wrapper.supports_tensor_alloc(device) == inner.supports_tensor_alloc(device))
    same.append(isinstance(inner, dist.ProcessGroupHCCL))
    same.append(wrapper.options.hccl_config == inner.options.hccl_config)
    same.append(tensor.tolist() == got.tolist() == [2.0] * 4)
    try:
        dist.all_reduce(torch.ones(3 + rank, device="npu"))
    except RuntimeError as error:
        return [*same, str(error)]
    return same


def eager(rank: int, size: int) -> str:
    dist.destroy_process_group()
    store = dist.FileStore(f"{dist_store_path()}-eager", size)
    dist.init_process_group("hccl", store=store, rank=rank, world_size=size, device_id=torch.device("npu", rank))
    name = backend_of().get_hccl_comm_name(rank, init_comm=False)
    tensor = ones()
    dist.all_reduce(tensor)
    assert tensor.tolist() == [float(size)] * 4
    dist.barrier()
    return name


def meshes_and_splits(rank: int, size: int) -> None:
    """DeviceMesh and split_group once the default group is bound to its device."""
    eager(rank, size)
    world = dist.group.WORLD
    assert not backend_of().supports_splitting

    for shape in ((size,), (1, size), (size, 1)):
        names = ("a", "b")[: len(shape)]
        mesh = init_device_mesh("npu", shape, mesh_dim_names=names)
        for name, count in zip(names, shape, strict=True):
            tensor = ones()
            dist.all_reduce(tensor, group=mesh[name].get_group())
            assert tensor.tolist() == [float(count)] * 4, (shape, name)

    def reduce(group: dist.ProcessGroup) -> float:
        tensor = torch.full((4,), rank + 1.0, device="npu")
        dist.all_reduce(tensor, group=group)
        return tensor[0].item()

    halves = dist.split_group(world, [[2, 0], [1]], group_desc="halves")
    assert reduce(halves) == (2.0 if rank == 1 else 4.0) and halves.group_desc == "halves"
    pair = dist.split_group(split_ranks=[[1, 2]])
    assert (pair is None) == (rank == 0)
    if pair is not None:  # ranks are those of the parent
        assert dist.get_process_group_ranks(pair) == [1, 2] and reduce(pair) == 5.0
        alone = dist.split_group(pair, [[0], [1]])
        assert dist.get_process_group_ranks(alone) == [rank] and reduce(alone) == rank + 1.0
    for wrong in ([], [[]], [[0, 0]], [[0], [0, 1]], [[size]]):
        with pytest.raises(ValueError, match="split_group|split_ranks"):
            dist.split_group(world, wrong)
    with pytest.raises(ValueError, match="not one of the parent group"):
        dist.split_group(world, [[0, 1, 2]], backend="cpu:gloo")


def dist_store_path() -> str:
    import sys

    return sys.argv[4]


# ---- tests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "check",
    [
        check_subgroups,
        check_group_of_one,
        check_rebuilding,
        check_names,
        check_gather,
        check_works,
        check_sequence_numbers,
        check_refusals,
        check_gather_gradient,
    ],
)
def test_groups(ranks, check) -> None:
    ranks(3).run(check)


def test_debug_wrapper(fresh_ranks) -> None:
    answers = fresh_ranks(2, TORCH_DISTRIBUTED_DEBUG="DETAIL").run(wrapped)
    for *same, text in answers:
        assert all(same) and len(same) == 7
        assert "mismatch" in text


def test_device_id_connects_at_once(fresh_ranks) -> None:
    assert fresh_ranks(2).run(eager) == ["group_name_0"] * 2


def test_meshes_and_splits_of_a_bound_group(fresh_ranks) -> None:
    fresh_ranks(3).run(meshes_and_splits)
