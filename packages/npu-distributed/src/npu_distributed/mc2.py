"""Matrix products fused with communication.  Schemas and kernels: ``csrc/mc2``."""

from __future__ import annotations

from torch import Tensor

from npu_distributed.fused_operators import fake


@fake
def _npu_distribute_barrier(
    x_ref: Tensor, group: str, world_size: int, *, time_out: Tensor | None = None, elastic_info: Tensor | None = None
) -> Tensor:
    """Wait on the current stream until every rank of the group has come here.

    The host does not wait.

    Parameters
    ----------
    x_ref : Tensor
        Any shape and dtype.
    group : str
        Name of the communicator on this rank, as ``get_hccl_comm_name()`` of the group's backend returns it.
    world_size : int
        Number of its ranks.
    time_out, elastic_info : Tensor, optional
        Accepted without effect.

    Returns
    -------
    Tensor
        A contiguous copy of `x_ref`, made behind the barrier.

    Raises
    ------
    RuntimeError
        If there is no communicator `group` on the current device, or it has not `world_size` ranks.
    """
    return x_ref.new_empty(x_ref.shape)
