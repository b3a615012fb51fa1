"""``torch.distributed.split_group`` for backend "hccl".

An hccl communicator cannot be split (``supports_splitting`` is False), so the subgroups are made like those of
``new_group``.  DeviceMesh calls split_group as soon as the default group has been given its device.
"""

from __future__ import annotations

import functools
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import device_mesh, distributed_c10d

from npu_distributed.backend import backend_of


@functools.cache
def install() -> None:
    """Replace split_group of torch.distributed; groups of other backends get torch's own.  Idempotent."""
    original = distributed_c10d.split_group

    @functools.wraps(original)
    def split_group(
        parent_pg: dist.ProcessGroup | None = None,
        split_ranks: list[list[int]] | None = None,
        timeout: timedelta | None = None,
        pg_options: Any = None,
        group_desc: str | None = None,
        backend: str | None = None,
    ) -> dist.ProcessGroup | None:
        parent = parent_pg or dist.group.WORLD
        if parent is None or not hasattr(backend_of(parent), "get_hccl_comm_name"):
            return original(parent_pg, split_ranks, timeout, pg_options, group_desc, backend)
        return _split(parent, split_ranks, timeout, pg_options, group_desc, backend)

    for module in (dist, distributed_c10d, device_mesh):
        module.split_group = split_group


def _split(
    parent: dist.ProcessGroup,
    split_ranks: list[list[int]] | None,
    timeout: timedelta | None,
    pg_options: Any,
    group_desc: str | None,
    backend: str | None,
) -> dist.ProcessGroup | None:
    if not split_ranks:
        raise ValueError("split_group: split_ranks should be a list of lists of ranks, but is None or empty")
    global_ranks = dist.get_process_group_ranks(parent)
    if dist.get_rank() not in global_ranks:
        raise ValueError(f"split_group: global rank {dist.get_rank()} is not part of the parent group {global_ranks}")
    seen: set[int] = set()
    for ranks in split_ranks:
        if not ranks:
            raise ValueError("split_group: the split group cannot be empty")
        for rank in ranks:
            if not 0 <= rank < len(global_ranks):
                raise ValueError(
                    f"split_group: ranks are those of the parent group, 0 to {len(global_ranks) - 1}, but got {rank}"
                )
            if rank in seen:
                raise ValueError(f"split_group: rank {rank} appears twice in {split_ranks}")
            seen.add(rank)
    own = parent.rank()
    members = next((ranks for ranks in split_ranks if own in ranks), None)
    if members is None:
        return None
    configured, _ = distributed_c10d._world.pg_map[parent]
    # Only members make a subgroup: those of the other parts have no need to know of it.
    return dist.new_group(
        [global_ranks[rank] for rank in sorted(members)],
        timeout=timeout,
        backend=configured if backend is None else _selected(str(backend), configured),
        pg_options=_options_of(parent) if pg_options is None else pg_options,
        use_local_synchronization=True,
        group_desc=group_desc,
    )


def _selected(backend: str, configured: str) -> str:
    """Return `backend` after a check that the parent group has each of its device backends."""
    available = distributed_c10d._parse_backend_string(configured)
    for device, name in distributed_c10d._parse_backend_string(backend).items():
        if available.get(device) != name:
            raise ValueError(
                f"split_group: backend {name!r} for device {device!r} is not one of the parent group, which has "
                f"{available}"
            )
    return backend


def _options_of(parent: dist.ProcessGroup) -> Any:
    """Options for a subgroup: the communicators are configured like those of the parent."""
    from npu_distributed._C import ProcessGroupHCCL

    options = ProcessGroupHCCL.Options()
    given = backend_of(parent).options
    options.hccl_config = given.hccl_config
    options.op_timeout = given.op_timeout
    return options
