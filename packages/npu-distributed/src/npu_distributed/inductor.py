"""What Inductor must know of operators that communicate: their order, among each other and with torch's collectives."""

from __future__ import annotations

import functools
from typing import Any

import torch

from npu_core.late_import import after_import
from npu_distributed.fused_operators import OPERATORS


def register() -> None:
    """Extend Inductor when a program imports it."""
    after_import("torch._inductor.comms", _extend)


def _extend() -> None:
    """Let Inductor's scheduler keep the order of fused operators as it keeps that of torch's collectives.

    Effect tokens say that calls must not be dropped, and order the traced graph; but in torch 2.13 the dependencies
    that Inductor derives from them are stored under names its scheduler does not look up.
    """
    from torch._inductor import comms
    from torch._inductor.dependencies import WeakDep

    original = comms.decide_global_ordering_of_comms
    fused = {getattr(torch.ops.npu, name).default for name in OPERATORS}

    def is_fused(node: Any) -> bool:
        return getattr(node.node, "op_overload", None) in fused

    @functools.wraps(original)
    def decide_global_ordering_of_comms(nodes: list[Any], *arguments: Any) -> list[Any]:
        nodes = original(nodes, *arguments)
        communicating = [node for node in nodes if is_fused(node) or comms.contains_collective(node)]
        for before, after in zip(communicating, communicating[1:], strict=False):
            if not (is_fused(before) or is_fused(after)):
                continue  # ordered by the original function
            written = next(iter(after.get_buffer_names()))
            for buffer in before.get_buffer_names():
                after.add_fake_dep(WeakDep(buffer, mutating_buf=written, is_fake=True))
        return nodes

    comms.decide_global_ordering_of_comms = decide_global_ordering_of_comms
