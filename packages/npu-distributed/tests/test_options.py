"""ProcessGroupHCCL.Options, names of communicators, and what is set when a group is made."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

GOOD = {
    "hccl_buffer_size": 100,
    "group_name": "a group",
    "hccl_buffer_name": "buffer",
    "qos_traffic_class": 1,
    "qos_service_level": 2,
    "hccl_sdma_qos": 3,
    "hccl_op_expansion_mode": 3,
    "hccl_world_rank_id": 0,
    "hccl_job_id": 2**64 - 1,
    "hccl_exec_timeout": 500,
    "hccl_algo": "level0:ring",
    "hccl_retry_enable": "L0:0",
    "hccl_retry_params": "MaxCnt:3",
    "of_another_version": 5,
}


def backend_of(group: dist.ProcessGroup) -> dist.ProcessGroupHCCL:
    return group._get_backend(torch.device("npu"))


def options_with(**config: object) -> dist.ProcessGroupHCCL.Options:
    options = dist.ProcessGroupHCCL.Options()
    options.hccl_config = config
    return options


# ---- on every rank --------------------------------------------------------------------------------------------------


def check_good_values(rank: int, size: int) -> None:
    options = options_with(**GOOD)
    assert options.hccl_config == GOOD
    groups = [dist.new_group(pg_options=options) for _ in range(2)]  # one object for two groups
    options.hccl_config = {"hccl_algo": 7}  # too late to matter
    for group in groups:
        tensor = torch.ones(3, device="npu")
        dist.all_reduce(tensor, group=group)
        assert tensor.tolist() == [size] * 3
        assert backend_of(group).options.hccl_config == GOOD
    # One buffer name, one stream.
    ids = {backend_of(group)._get_stream_id() for group in groups}
    assert len(ids) == 1 and ids != {backend_of(dist.group.WORLD)._get_stream_id()}
    names = [backend_of(group).get_hccl_comm_name(rank) for group in groups]
    assert len(set(names)) == 2
    dist.barrier()
    for group in groups:
        dist.destroy_process_group(group)


def check_bad_values(rank: int, size: int) -> None:
    cases = [
        (key, 1 if isinstance(value, str) else "1", f"Value type of {key} should be {kind}")
        for key, value in GOOD.items()
        if key != "of_another_version"
        for kind in ("string." if isinstance(value, str) else "int.",)
    ]
    cases.append(("hccl_buffer_size", 1.5, "Value type of hccl_buffer_size should be int."))
    cases.append(("hccl_algo", None, "Value type of hccl_algo should be string."))
    cases.append(("hccl_exec_timeout", 2**31, r"Value type of hccl_exec_timeout exceeds INT32_MAX\(2147483647\)."))
    for key, value, text in cases:
        group = dist.new_group(pg_options=options_with(**{key: value}))
        with pytest.raises(RuntimeError, match=text):
            dist.all_reduce(torch.ones(1, device="npu"), group=group)
        dist.destroy_process_group(group)
    group = dist.new_group(pg_options=options_with(hccl_exec_timeout=-5))  # warns
    tensor = torch.ones(1, device="npu")
    dist.all_reduce(tensor, group=group)
    assert tensor.item() == size


def check_long_texts(rank: int, size: int) -> None:
    group = dist.new_group(pg_options=options_with(hccl_algo="a" * 1700, group_name="n" * 40))  # warns
    config = backend_of(group).options.hccl_config
    assert len(config["hccl_algo"]) == 1599 and len(config["group_name"]) == 32
    tensor = torch.ones(1, device="npu")
    dist.all_reduce(tensor, group=group)
    assert tensor.item() == size


def check_what_the_creator_sets(rank: int, size: int) -> None:
    options = dist.ProcessGroupHCCL.Options()
    assert options.backend == "hccl" and options._timeout == timedelta(minutes=30)
    assert options.op_timeout == timedelta(seconds=10) and options.is_high_priority_stream is False
    assert options.global_ranks_in_group == [] and options.group_id == "" and options.hccl_config == {}
    with pytest.raises(TypeError):
        dist.ProcessGroupHCCL.Options("hccl")
    options.is_high_priority_stream = True
    group = dist.new_group([0, 2], timeout=timedelta(seconds=77), pg_options=options)
    if rank != 1:
        made = backend_of(group).options
        assert made.global_ranks_in_group == [0, 2] and made._timeout == timedelta(seconds=77)
        assert made.group_id == group.group_name and made.is_high_priority_stream is False
        backend_of(group)._set_default_timeout(timedelta(seconds=33))
        tensor = torch.ones(1, device="npu")
        work = dist.all_reduce(tensor, group=group, async_op=True)
        assert "Timeout(ms)=33000" in repr(work) and "OpType=ALLREDUCE" in repr(work) and "SeqNum=1" in repr(work)
        work.wait()
        for forgotten in (False, True):
            backend_of(group)._add_ephemeral_timeout(timedelta(seconds=10))
            first = dist.all_reduce(tensor, group=group, async_op=True)
            assert "Timeout(ms)=43000" in repr(first) and f"SeqNum={4 if forgotten else 2}" in repr(first)
            first.wait()
            torch.npu.synchronize()
            if forgotten:  # its record goes with the Work, as soon as the watchdog has looked at it
                del first
                backend_of(group).clear_workmeta_list()
            after = dist.all_reduce(tensor, group=group, async_op=True)
            assert "Timeout(ms)=33000" in repr(after)
            after.wait()
        assert tensor.item() == 32.0


def check_names(rank: int, size: int) -> None:
    assert backend_of(dist.group.WORLD).get_hccl_comm_name(rank) == "group_name_0"
    first, second = dist.new_group(), dist.new_group()
    a, b = backend_of(first), backend_of(second)
    assert a.get_hccl_comm_name(rank, init_comm=False) == ""
    for bad in ("", "x" * 128):
        with pytest.raises(RuntimeError, match="characters"):
            a._set_hccl_comm_name(bad)
    a._set_hccl_comm_name("chosen")
    a._set_hccl_comm_name("chosen")
    with pytest.raises(RuntimeError, match="already set.*cannot be duplicated"):
        a._set_hccl_comm_name("other")
    assert a.get_hccl_comm_name(rank) == "chosen" == a.get_hccl_comm_name(rankid=rank, init_comm=False)
    assert b.get_hccl_comm_name(rank) == f"group_name_{second.group_name}"
    with pytest.raises(RuntimeError, match="already set.*cannot be duplicated"):
        b._set_hccl_comm_name("late")
    with pytest.raises(RuntimeError, match="negative"):
        a.get_hccl_comm_name(-1)
    with pytest.raises(TypeError):
        a.get_hccl_comm_name(rank, False)
    assert a.get_hccl_comm(rank) not in (0, b.get_hccl_comm(rank))
    dist.barrier()
    dist.destroy_process_group(first)
    dist.destroy_process_group(second)


def check_standalone(rank: int, size: int) -> None:
    """The class on its own, as its constructors take it."""
    store = dist.distributed_c10d._get_default_store()
    kind = dist.ProcessGroupHCCL
    one = kind(dist.PrefixStore("one", store), rank, size)
    two = kind(store=dist.PrefixStore("two", store), rank=rank, size=size, timeout=timedelta(seconds=99))
    three = kind(dist.PrefixStore("three", store), rank, size, kind.Options())
    assert one.options._timeout == timedelta(minutes=30) and two.options._timeout == timedelta(seconds=99)
    for group in (one, two, three):
        assert group.name() == "hccl" and group._get_backend_name() == "hccl" and group._get_stream_id() == -1
        tensor = torch.full((4,), float(rank), device="npu")
        group.allreduce(tensor).wait()
        assert tensor.tolist() == [sum(range(size))] * 4
    assert len({group.get_hccl_comm_name(rank) for group in (one, two, three)}) == 3
    dist.barrier()
    for group in (one, two, three):
        group.shutdown()
        group.shutdown()


def check_lccl(rank: int, size: int) -> None:
    from torch_npu._C._distributed_c10d import ProcessGroupLCCL

    group = dist.new_group(backend="lccl")
    assert isinstance(backend_of(group), ProcessGroupLCCL) and backend_of(group).name() == "lccl"
    tensor = torch.full((4,), float(rank), device="npu")
    dist.all_reduce(tensor, group=group)
    assert tensor.tolist() == [sum(range(size))] * 4
    dist.barrier(group=group)
    native = ProcessGroupLCCL(dist.PrefixStore("lccl", dist.distributed_c10d._get_default_store()), rank, size)
    native.broadcast(tensor.fill_(rank), 1).wait()
    assert tensor.tolist() == [1.0] * 4
    assert dist.Backend.default_device_backend_map["npu"] == "hccl"


# ---- tests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "check",
    [
        check_good_values,
        check_what_the_creator_sets,
        check_names,
        check_standalone,
        check_lccl,
    ],
)
def test_options(ranks, check) -> None:
    ranks(3).run(check)


def test_warnings(ranks) -> None:
    ranks(3).run(check_bad_values)
    ranks(3).run(check_long_texts)
    for text in (
        "hccl_exec_timeout should not be negative, but is -5",
        "hccl_algo has 1700 characters and is cut to 1599",
        "group_name has 40 characters and is cut to 32",
    ):
        assert text in ranks(3).log(0)
