"""Operators that compute and communicate, ``torch.ops.npu.<name>``: their names, shapes and documentation.

Schemas and kernels are C++ (``csrc/mc2``) and exist once ``npu_distributed._C`` is imported; this package adds what
``torch.compile`` and ``help()`` need.  Importing this module imports nothing but torch.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, TypeVar

__all__ = ["FAMILIES", "OPERATORS", "fake"]

#: Module of this package -> operators in ``torch.ops.npu``.
FAMILIES: dict[str, tuple[str, ...]] = {
    "mc2": (
        "npu_all_gather_base_mm",
        "npu_mm_reduce_scatter_base",
        "npu_mm_all_reduce_base",
        "npu_alltoallv_gmm",
        "npu_gmm_alltoallv",
        "_npu_distribute_barrier",
    ),
    "moe": (
        "npu_moe_distribute_dispatch",
        "npu_moe_distribute_dispatch_v2",
        "npu_moe_distribute_combine",
        "npu_moe_distribute_combine_v2",
        "npu_moe_distribute_combine_add_rms_norm",
    ),
}
OPERATORS: tuple[str, ...] = tuple(chain.from_iterable(FAMILIES.values()))

Function = TypeVar("Function", bound=Callable[..., Any])


def fake(function: Function) -> Function:
    """Register the decorated function as the fake kernel and the documentation of the operator of its name.

    It gets what the operator gets and returns empty tensors (``x.new_empty(...)``) of the shapes and dtypes that the
    operator returns, symbolic sizes included.  It needs no process group, so it ignores the communicator's name.

    All ranks have to make the same calls in the same order, so compiled code must keep each call, also one whose
    results it does not use, and the order of calls: the operator gets an ordered effect.
    """
    import torch
    from torch._library.effects import EffectType

    torch.library.register_fake(f"npu::{function.__name__}", function)
    packet = getattr(torch.ops.npu, function.__name__)
    torch.library._register_effectful_op(packet.default, EffectType.ORDERED)
    packet.__doc__ = function.__doc__
    packet.__wrapped__ = function  # inspect.signature() follows it
    return function
