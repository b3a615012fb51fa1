"""Prefetch hint.  Schema and task: ``csrc/ops/prefetch.cpp``."""

import torch
from torch import Tensor
from torch._higher_order_ops import effects

from npu_ops_llm.registration import check, fake


@fake
def npu_prefetch(self: Tensor, dependency: Tensor | None, max_size: int, offset: int = 0) -> None:
    """Ask for bytes of a tensor ahead of their use; no result depends on it.

    The request is queued on the current stream.  It covers at most what the second-level cache of one core holds.
    Graph compilers keep the call and its place in the order of such calls.

    Parameters
    ----------
    self : Tensor
        The tensor that will be read, a weight for example.
    dependency : Tensor or None
        Result that has to exist before the request starts.
    max_size : int
        Number of bytes, more than 0; what goes beyond the tensor is ignored.
    offset : int
        First byte, counted from the first element.

    Returns
    -------
    None

    Raises
    ------
    RuntimeError
        If `max_size` is not positive, or `offset` is negative or beyond the tensor.

    Examples
    --------
    >>> weight = torch.ones(64, 64)
    >>> torch.ops.npu.npu_prefetch(weight, None, 4096)
    """
    op = "npu_prefetch"
    check(max_size > 0, op, "max_size", lambda: f"max_size should be greater than zero, but got {max_size}")
    check(offset >= 0, op, "offset", lambda: f"offset should not be smaller than zero, but got {offset}")
    size = self.numel() * self.element_size()
    check(
        offset < size,
        op,
        "offset",
        lambda: f"offset out of range of tensor size, tensor size: {size}, offset: {offset}",
    )


# Without a result it would be dead code to functional graphs; as an ordered effect it is tied to its place by a token.
effects._register_effectful_op(torch.ops.npu.npu_prefetch.default, effects._EffectType.ORDERED)
# Graphs that were traced without functionalisation (make_fx, torch.fx) look here before they drop unused calls.
torch.fx.node.has_side_effect(torch.ops.npu.npu_prefetch.default)
