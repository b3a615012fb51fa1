"""Registration of backend "hccl" with torch.distributed."""

from __future__ import annotations

import atexit
import functools
import sys
import warnings
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

# What pending collectives get at interpreter exit before they are aborted: a peer that is a little late still finds us,
# a peer that never comes does not keep this process.
_EXIT_LIMIT = timedelta(seconds=30)
# The same when the program ends by an exception: the job has failed, so peers better learn of it soon.
_FAILED_EXIT_LIMIT = timedelta(seconds=2)


def register() -> None:
    """Make "hccl" a backend of torch.distributed, the default one for npu tensors.  Idempotent."""
    from npu_distributed import device_stop, distributed, split_group
    from npu_distributed._C import ProcessGroupHCCL

    if "hccl" not in dist.Backend.backend_list:
        dist.Backend.register_backend("hccl", create, extended_api=True, devices=["npu"])
    if "lccl" not in dist.Backend.backend_list:  # after hccl: the first one is the default of npu
        dist.Backend.register_backend("lccl", create_lccl, extended_api=True, devices=["npu"])
    for module in (dist, distributed_c10d):
        module.is_hccl_available = distributed.is_hccl_available
        module.reinit_process_group = distributed.reinit_process_group
        module.ProcessGroupHCCL = ProcessGroupHCCL
        module.batch_isend_irecv = distributed.batch_isend_irecv
    _connect_eagerly()
    _allow_bfloat16_hooks()
    _allow_gather_gradient()
    _allow_sequence_numbers()
    _shut_down_at_exit()
    device_stop.install()
    split_group.install()


def _connect_eagerly() -> None:
    """Let ``device_id`` of init_process_group make the communicator at once; torch does so for split-able backends."""
    original = distributed_c10d._new_process_group_helper
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def new_process_group_helper(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        device = kwargs.get("device_id")
        group = result[0]
        if isinstance(device, torch.device) and device.type == "npu" and isinstance(group, dist.ProcessGroup):
            backend = backend_of(group)
            if hasattr(backend, "get_hccl_comm_name"):
                backend.eager_connect_single_device(device)
        return result

    distributed_c10d._new_process_group_helper = new_process_group_helper


def _allow_gather_gradient() -> None:
    """Give ``_all_gather_base`` of torch.distributed.nn.functional a backward on npu; torch has one for NCCL."""
    from torch.distributed.nn import functional

    original = functional._AllGatherBase.backward
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
        if grad_output.device.type != "npu":
            return original(ctx, grad_output)
        size = dist.get_world_size(group=ctx.group)
        if grad_output.size(0) % size != 0:
            raise RuntimeError(
                f"Tensor with dimensions: {list(grad_output.size())} does not have first dimension divisible by "
                f"world_size: {size}"
            )
        gradient = grad_output.new_empty((grad_output.size(0) // size, *grad_output.shape[1:]))
        dist.reduce_scatter_tensor(gradient, grad_output.contiguous(), dist.ReduceOp.SUM, ctx.group)
        return None, gradient, None

    functional._AllGatherBase.backward = staticmethod(backward)


@functools.cache
def _allow_sequence_numbers() -> None:
    """Let a ProcessGroup report the sequence number of its hccl backend; torch asks only backends it knows."""

    def allow(name: str) -> None:
        original = getattr(dist.ProcessGroup, name)

        @functools.wraps(original)
        def method(self: dist.ProcessGroup) -> Any:
            backend = backend_of(self)
            is_hccl = hasattr(backend, "get_hccl_comm_name")
            return getattr(backend, name)() if is_hccl else original(self)

        setattr(dist.ProcessGroup, name, method)

    allow("_get_sequence_number_for_group")
    allow("_set_sequence_number_for_group")


def _allow_bfloat16_hooks() -> None:
    """Let DistributedDataParallel on npu use bf16_compress_hook, which torch allows for cuda and xpu only."""
    from torch.nn.parallel import DistributedDataParallel

    original = DistributedDataParallel._check_comm_hook
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def check(self: DistributedDataParallel, hook: Any) -> None:
        is_bfloat16 = getattr(hook, "__name__", "") in ("bf16_compress_hook", "bf16_compress_wrapper_hook")
        if not (is_bfloat16 and self.device_type == "npu"):
            original(self, hook)

    DistributedDataParallel._check_comm_hook = check


def create(settings: Any, pg_options: Any) -> Any:
    """Make the backend object of a new group; torch calls this.

    Parameters
    ----------
    settings : torch._C._distributed_c10d._DistributedBackendOptions
        Store, rank, size, timeout and name of the group.
    pg_options : ProcessGroupHCCL.Options or None
        Options of the caller; anything else is replaced by default ones.
    """
    from npu_distributed._C import ProcessGroupHCCL

    return _create(ProcessGroupHCCL, settings, pg_options)


def create_lccl(settings: Any, pg_options: Any) -> Any:
    """Make the backend object of a new group with backend "lccl"; as create."""
    from npu_distributed._C import ProcessGroupLCCL

    return _create(ProcessGroupLCCL, settings, pg_options)


def _create(kind: Any, settings: Any, pg_options: Any) -> Any:
    from npu_distributed._C import ProcessGroupHCCL

    options = pg_options if isinstance(pg_options, ProcessGroupHCCL.Options) else ProcessGroupHCCL.Options()
    options.is_high_priority_stream = False
    options._timeout = settings.timeout
    options.global_ranks_in_group = settings.global_ranks_in_group
    options.group_id = settings.group_id
    return kind(settings.store, settings.group_rank, settings.group_size, options)


@functools.cache
def _shut_down_at_exit() -> None:
    # npu-core registered its own handler before it loaded this plugin, so ours runs first: that one waits for all
    # streams, and a stream with a collective that nobody joins would never drain.
    atexit.register(_shut_down)


def _shut_down() -> None:
    from npu_distributed._C import shutdown_all_groups

    limit = _FAILED_EXIT_LIMIT if hasattr(sys, "last_value") else _EXIT_LIMIT
    try:
        shutdown_all_groups(limit, _flush)
    except Exception as error:
        warnings.warn(f"shutting down the hccl process groups failed: {error}", stacklevel=1)


def _flush() -> None:
    # The process is about to end by a signal: what it has printed must not be lost.
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def backend_of(group: Any) -> Any:
    """Return the ProcessGroupHCCL behind a process group, or None."""
    try:
        backend = group._get_backend(torch.device("npu"))
    except RuntimeError:
        return None
    return getattr(backend, "wrapped_pg", backend)
