"""``torch_npu.distributed``: what npu devices add to torch.distributed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import _verify_params_across_processes, distributed_c10d

from npu_distributed.parallel_store import ParallelStore

__all__ = [
    "ParallelStore",
    "_verify_params_across_processes",
    "all_gather_into_tensor_uneven",
    "is_available",
    "is_hccl_available",
    "reduce_scatter_tensor_uneven",
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

    Streams that wait for collectives which have failed are usable again, too: their error is taken from them, and what
    was queued on them behind the wait has not run.

    Parameters
    ----------
    group : ProcessGroup, optional
        The group to rebuild, the default group if None.
    rebuild_link : bool, default True
        True: abort the communicators of `group`; the next collective builds new ones, so every rank must call this.
        False: clear the error state of every group on the current device; healthy communicators stay.

    Returns
    -------
    ProcessGroup or None
        `group` when `rebuild_link`, else None.
    """
    from npu_distributed.backend import backend_of

    if not rebuild_link:
        for known in list(distributed_c10d._world.pg_map):
            backend = backend_of(known)
            if backend is not None:
                backend.resume_hccl_comm(torch.npu.current_device())
        return None
    if group is None:
        group = distributed_c10d._get_default_group()
    backend = _require_backend("reinit_process_group", group)
    backend._delete_tcpstore_key()
    backend.abort_hccl_comm("hccl: reinit_process_group")
    backend.resume_hccl_comm(-1)  # what waits for failed works is usable again, too
    return group


def reduce_scatter_tensor_uneven(
    output: torch.Tensor,
    input: torch.Tensor,
    input_split_sizes: Sequence[int] | None = None,
    op: Any = dist.ReduceOp.SUM,
    group: Any = None,
    async_op: bool = False,
) -> Any:
    """Reduce a tensor over all ranks and give each rank its own number of rows of the result.

    Parameters
    ----------
    output : Tensor, npu, contiguous, ``input_split_sizes[rank] * input[0].numel()`` elements
        Receives this rank's rows.
    input : Tensor, npu, contiguous, the same shape on all ranks
        Split along dimension 0.
    input_split_sizes : sequence of int, optional
        Rows of each rank; their sum is ``input.size(0)``.  None or empty: equal parts.
    op : ReduceOp, default SUM
        SUM, AVG, MIN, MAX, PRODUCT or PREMUL_SUM.
    group : ProcessGroup, optional
        The default group if None.
    async_op : bool, default False
        Return the Work instead of making the current stream wait.

    Returns
    -------
    Work or None
        The Work when `async_op`; None otherwise, and with a warning when this process is not in `group` or a tensor is
        not on an npu device (nothing is done then).

    Raises
    ------
    RuntimeError
        The splits do not fit, types differ, or the type cannot be reduced (uint8, bool).
    """
    options = distributed_c10d.ReduceScatterOptions()
    options.reduceOp = op
    return _uneven("reduce_scatter_tensor_uneven", output, input, input_split_sizes, options, group, async_op)


def all_gather_into_tensor_uneven(
    output: torch.Tensor,
    input: torch.Tensor,
    output_split_sizes: Sequence[int] | None = None,
    group: Any = None,
    async_op: bool = False,
) -> Any:
    """Gather tensors of different lengths into one, on all ranks.

    Parameters
    ----------
    output : Tensor, npu, contiguous
        Rows of rank 0, then of rank 1, and so on.
    input : Tensor, npu, contiguous, ``output_split_sizes[rank] * output[0].numel()`` elements
        This rank's rows.
    output_split_sizes : sequence of int, optional
        Rows of each rank; their sum is ``output.size(0)``.  None or empty: equal parts.
    group : ProcessGroup, optional
        The default group if None.
    async_op : bool, default False
        Return the Work instead of making the current stream wait.

    Returns
    -------
    Work or None
        As reduce_scatter_tensor_uneven.

    Raises
    ------
    RuntimeError
        The splits do not fit or types differ.
    """
    options = distributed_c10d.AllgatherOptions()
    return _uneven("all_gather_into_tensor_uneven", output, input, output_split_sizes, options, group, async_op)


def _uneven(
    name: str,
    output: torch.Tensor,
    input: torch.Tensor,
    splits: Sequence[int] | None,
    options: Any,
    group: Any,
    async_op: bool,
) -> Any:
    distributed_c10d._check_single_tensor(output, "output")
    distributed_c10d._check_single_tensor(input, "input")
    if distributed_c10d._rank_not_in_group(group):
        distributed_c10d._warn_not_in_group(name)
        return None
    if output.device.type != "npu" or input.device.type != "npu":
        warnings.warn(
            f"{name}: Support for Tensors is limited to those of type npu, but got {output.device} and {input.device}",
            stacklevel=3,
        )
        return None
    options.asyncOp = async_op
    work = getattr(_require_backend(name, group), name)(output, input, list(splits or ()), options)
    if async_op:
        return work
    work.wait()
    return None


def _require_backend(name: str, group: Any) -> Any:
    from npu_distributed.backend import backend_of

    backend = backend_of(group if group is not None else distributed_c10d._get_default_group())
    if backend is None:
        raise RuntimeError(
            f"{name}: expected a group with backend hccl, got one that has no backend for npu; "
            'initialise it with backend="hccl" or "cpu:gloo,npu:hccl"'
        )
    return backend


_stock_batch_isend_irecv: Callable[..., Any] = distributed_c10d.batch_isend_irecv


def batch_isend_irecv(p2p_op_list: list[dist.P2POp]) -> list[Any]:
    """Send and receive many tensors at once; takes the place of ``torch.distributed.batch_isend_irecv``.

    On npu tensors of a group with backend hccl the whole list is one exchange on the group's communication stream, so
    the order of sends and receives does not matter.  Messages of one pair of ranks in one direction match in the order
    of the list.  Other tensors and backends take torch's own way.

    Parameters
    ----------
    p2p_op_list : list of P2POp
        All of one group; peers are global ranks, or group ranks given as ``group_peer``.

    Returns
    -------
    list of Work
        One for the whole batch.

    Raises
    ------
    ValueError
        The list holds something else than P2POp, or operations of different groups.
    IndexError
        The list is empty.
    RuntimeError
        The group has no backend for the device of a tensor.
    """
    if isinstance(p2p_op_list, list) and not p2p_op_list:
        raise IndexError("Invalid ``p2p_op_list``: it is empty; pass at least one ``torch.distributed.P2POp``.")
    distributed_c10d._check_p2p_op_list(p2p_op_list)
    group = p2p_op_list[0].group
    if distributed_c10d._rank_not_in_group(group):
        distributed_c10d._warn_not_in_group("batch_isend_irecv")
        return []
    devices = {op.tensor.device.type for op in p2p_op_list}
    if devices != {"npu"}:
        for device in sorted(devices):
            group._get_backend(torch.device(device))  # raises torch's error when there is none
        if "npu" in devices:
            raise RuntimeError(f"batch_isend_irecv: tensors must be on one kind of device, but got {sorted(devices)}")
        return _stock_batch_isend_irecv(p2p_op_list)
    from npu_distributed._C import ProcessGroupHCCL

    backend = group._get_backend(torch.device("npu"))
    backend = getattr(backend, "wrapped_pg", backend)
    if not isinstance(backend, ProcessGroupHCCL):  # the "fake" backend, for one
        return _stock_batch_isend_irecv(p2p_op_list)
    names = ["isend" if op.op is dist.isend else "irecv" for op in p2p_op_list]
    tensors = [op.tensor for op in p2p_op_list]
    return [backend.batch_isend_irecv(names, tensors, [op.group_peer for op in p2p_op_list])]


def _is_support_hccl_comm_name() -> bool:
    return True


def _make_hccl_premul_sum(factor: float | torch.Tensor) -> Any:
    """Return the reduction sum over ranks of ``factor * tensor``; each rank gives the factor of its own tensor."""
    return torch._C._distributed_c10d._make_nccl_premul_sum(factor)


# ---- stores and launching -------------------------------------------------------------------------------------------

# ``torch_npu.distributed.run`` is a module of its own, so that ``python -m`` finds it.
__path__ = [str(Path(__file__).with_name("launchers"))]
