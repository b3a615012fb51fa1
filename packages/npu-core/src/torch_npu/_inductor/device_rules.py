"""Extends rules that Inductor keeps for its own devices to npu.

Inductor asks in several places whether a device is "cpu" to know that C++ is generated for it, or takes every other
device for one of Triton's. Each function here answers for npu and hands every other device to the original.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch
from torch._inductor import ir, lowering, scheduler, utils
from torch._inductor.codegen import common
from torch._inductor.kernel import mm_common


def operators() -> list[torch._ops.OpOverload]:
    """Return the operators of the graph at hand and of its subgraphs."""
    modules = common.V.graph.orig_gm.modules()
    graphs = [module.graph for module in modules if isinstance(module, torch.fx.GraphModule)]
    targets = [node.target for graph in graphs for node in graph.nodes]
    return [target for target in targets if isinstance(target, torch._ops.OpOverload)]


def uses_streams() -> bool:
    """Return True when the graph at hand names streams, events or synchronisation."""
    return any(operator.namespace == "streams" for operator in operators())


def register() -> None:
    """Replace the rules."""
    _generate_cpp((utils, common, scheduler, mm_common))
    _count_as_cpu_in_ir()
    _count_as_cpu_in_scheduler()
    _prefer_npu_to_cpu_scalars()
    _enter_device_and_streams()


def _generate_cpp(users: tuple[ModuleType, ...]) -> None:
    original = utils.get_current_backend

    @functools.wraps(original)
    def get_current_backend(device_type: str | None = None) -> str:
        device_type = device_type or common.V.graph.get_current_device_or_throw().type
        return "cpp" if device_type == "npu" else original(device_type)

    for module in users:
        module.get_current_backend = get_current_backend  # type: ignore[attr-defined]


def _count_as_cpu_in_ir() -> None:
    # Decides how argmax counts, when a value is computed twice rather than stored, and so on.
    original = ir.get_device_type

    @functools.wraps(original)
    def get_device_type(x: Any) -> str | None:
        device_type = original(x)
        return "cpu" if device_type == "npu" else device_type

    ir.get_device_type = get_device_type


def _count_as_cpu_in_scheduler() -> None:
    # Loop orders that the C++ generator does not know are tried for other devices only.
    original = scheduler.BaseSchedulerNode.is_cpu

    @functools.wraps(original)
    def is_cpu(self: Any) -> bool:
        device = self.get_device()
        return original(self) or (device is not None and device.type == "npu")

    scheduler.BaseSchedulerNode.is_cpu = is_cpu


def _prefer_npu_to_cpu_scalars() -> None:
    # A pointwise operator of a CPU scalar and an npu tensor runs on npu, whatever their order.
    original = lowering.is_gpu

    @functools.wraps(original)
    def is_gpu(device: str | None) -> bool:
        return device == "npu" or original(device)

    lowering.is_gpu = is_gpu


def _enter_device_and_streams() -> None:
    # The code of a graph with streams enters its device and its streams. Without streams the tensors say enough.
    original = scheduler.device_need_guard

    @functools.wraps(original)
    def device_need_guard(device: str) -> bool:
        return (device == "npu" and uses_streams()) or original(device)

    scheduler.device_need_guard = device_need_guard
