"""A process with groups may fork: the child leaves them alone, however it ends, and the job goes on."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from hccl_testing.stores import use_tcp_store
from torch.distributed import distributed_c10d

REFUSED = 3


def backend() -> dist.ProcessGroupHCCL:
    return dist.group.WORLD._get_backend(torch.device("npu"))


# ---- what children do -----------------------------------------------------------------------------------------------


def leave(tensor: torch.Tensor | None) -> None:
    """Only the handlers of the interpreter's exit run."""


def destroy(tensor: torch.Tensor | None) -> None:
    dist.destroy_process_group()


def abort(tensor: torch.Tensor | None) -> None:
    backend().abort()


def drop(tensor: torch.Tensor | None) -> None:
    for group in list(distributed_c10d._world.pg_map):
        with contextlib.suppress(RuntimeError):
            torch._C._distributed_c10d._unregister_process_group(group.group_name)
    for table in ("pg_map", "pg_names", "pg_group_ranks", "pg_backend_config", "pg_to_tag", "tags_to_pg"):
        getattr(distributed_c10d._world, table).clear()
    distributed_c10d._update_default_pg(None)
    gc.collect()
    os._exit(0)


def use(tensor: torch.Tensor | None) -> None:
    """Every use is refused."""
    from torch_npu.distributed import reinit_process_group

    group = backend()
    uses = (
        lambda: group.allreduce([tensor]),
        lambda: group._set_hccl_comm_name("child"),
        lambda: reinit_process_group(),
    )
    for call in uses:
        try:
            call()
        except RuntimeError as error:
            if "belongs to the process that this one was forked from" in str(error):
                continue
        sys.exit(1)
    sys.exit(REFUSED)


def make_own(tensor: torch.Tensor | None) -> None:
    """A group of the child's own has threads of its own, which end."""
    group = dist.ProcessGroupHCCL(dist.HashStore(), 0, 1)
    group.shutdown()
    del group
    gc.collect()


CHILDREN = {function.__name__: function for function in (leave, destroy, abort, drop, use, make_own)}


# ---- on every rank --------------------------------------------------------------------------------------------------


def end_of(pid: int) -> int | str:
    """The exit status of a child, which has a minute."""
    handle = os.pidfd_open(pid)
    try:
        if not select.select([handle], [], [], 60.0)[0]:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "hangs"
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(handle)


def fork(rank: int, size: int, name: str, begun: bool, parent: int) -> dict:
    """Rank `parent` forks a child that does so, and waits for it; then all ranks use the group.

    `begun`: the group has a communicator before.
    """
    tensor = None
    if begun:
        tensor = torch.ones(5000, device="npu")
        dist.all_reduce(tensor)
        torch.npu.synchronize()
    status: int | str = 0
    if rank == parent:
        pid = os.fork()
        if pid == 0:
            CHILDREN[name](tensor)
            sys.exit(0)
        status = end_of(pid)
    tensor = torch.ones(5000, device="npu")
    dist.all_reduce(tensor)
    return {"status": status, "value": tensor[4999].item()}


# ---- tests ----------------------------------------------------------------------------------------------------------


def check(group, name: str, begun: bool, parent: int) -> None:
    answers = group.run(fork, name, begun, parent)
    expected = REFUSED if name == "use" else 0
    assert answers[parent]["status"] == expected, (name, answers, group.logs())
    assert [answer["value"] for answer in answers] == [2.0, 2.0], (name, answers)


def test_children_of_a_process_whose_group_has_no_communicator_yet(fresh_ranks, tmp_path: Path) -> None:
    group = fresh_ranks(2)
    check(group, "leave", begun=False, parent=1)
    group.run(use_tcp_store, str(tmp_path))
    check(group, "leave", begun=False, parent=0)
    assert group.close() == [0, 0], group.logs()


def test_children_of_a_process_in_the_middle_of_a_job(fresh_ranks, tmp_path: Path) -> None:
    group = fresh_ranks(2)
    group.run(use_tcp_store, str(tmp_path))
    for name in CHILDREN:
        check(group, name, begun=True, parent=0)
    check(group, "leave", begun=True, parent=1)
    assert group.close() == [0, 0], group.logs()
