"""``torch_npu.distributed``: what npu devices add to torch.distributed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import _verify_params_across_processes, distributed_c10d

from npu_distributed.parallel_store import ParallelStore

__all__ = [
    "ParallelStore",
    "_verify_params_across_processes",
    "is_available",
    "is_hccl_available",
    "reinit_process_group",
]


def is_available() -> bool:
    """Return whether npu tensors can be used with torch.distributed in this process."""
    return dist.is_available()


def is_hccl_available() -> bool:
    """Return whether backend "hccl" is registered."""
    return "hccl" in dist.Backend.backend_list


def reinit_process_group(group: Any = None, rebuild_link: bool = True) -> Any:
    """Make groups usable again after a device was restarted or a collective failed.

    Parameters
    ----------
    group : ProcessGroup, optional
        The group to rebuild, the default group if None.
    rebuild_link : bool, default True
        True: abort the communicators of `group`; the next collective builds new ones, so every rank must call this.
        False: do the same only for those communicators of any group that have failed.

    Returns
    -------
    ProcessGroup or None
        `group` when `rebuild_link`, else None.
    """
    from npu_distributed.backend import backend_of

    if not rebuild_link:
        for known in list(distributed_c10d._world.pg_map):
            backend = backend_of(known)
            if backend is not None and backend.has_failed():
                backend.abort_hccl_comm("hccl: reinit_process_group(rebuild_link=False)")
        return None
    if group is None:
        group = distributed_c10d._get_default_group()
    backend = backend_of(group)
    if backend is None:
        raise RuntimeError(
            "reinit_process_group: expected a group with backend hccl, got one that has no backend for npu; "
            'initialise it with backend="hccl" or "cpu:gloo,npu:hccl"'
        )
    backend.abort_hccl_comm("hccl: reinit_process_group")
    return group


def _is_support_hccl_comm_name() -> bool:
    return True


def _make_hccl_premul_sum(factor: float | torch.Tensor) -> Any:
    """Return the reduction sum over ranks of ``factor * tensor``; each rank gives the factor of its own tensor."""
    return torch._C._distributed_c10d._make_nccl_premul_sum(factor)


# ---- stores and launching -------------------------------------------------------------------------------------------

# ``torch_npu.distributed.run`` is a module of its own, so that ``python -m`` finds it.
__path__ = [str(Path(__file__).with_name("launchers"))]
