"""Code generation: Inductor's C++ kernels, and a Python wrapper that queues them on a stream."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch._inductor.codegen.common import DeviceOpOverrides, register_device_op_overrides
from torch._inductor.codegen.cpp import CppScheduling
from torch._inductor.codegen.wrapper import PythonWrapperCodegen
from torch._inductor.virtualized import V

from torch_npu._inductor import device_rules
from torch_npu._inductor.kernels import require_compiler

# First line of every kernel for npu: tells it from a kernel for the CPU in the same graph, which may read the same.
_MARK = "// Runs as a task of an npu stream."
_HOST_FACTORY = "async_compile.cpp_pybinding("


class NpuOpOverrides(DeviceOpOverrides):
    """Device statements of generated Python code."""

    def import_get_raw_stream_as(self, name: str) -> str:
        return f"from torch_npu._dynamo.device_interface import NpuInterface\n{name} = NpuInterface.get_raw_stream"

    def set_device(self, device_idx: int) -> str:
        return f"torch.npu.set_device({device_idx})"

    def current_stream(self) -> str:
        return "torch.npu.current_stream()"

    def synchronize(self) -> str:
        return "torch.npu.synchronize()"

    def device_guard(self, device_idx: int) -> str:
        return f"torch.npu.device({device_idx})"


class NpuScheduling(CppScheduling):
    """Fuses and writes kernels as for the CPU: the memory is the same."""

    def __init__(self, scheduler: Any) -> None:
        require_compiler()
        super().__init__(scheduler)
        # Kernels are collected and written together. Operators without results, such as those of streams, have no
        # device, so that Inductor would write them before the kernels collected so far.
        self._collects = scheduler is None or all(operator._schema.returns for operator in device_rules.operators())

    def ready_to_flush(self) -> bool:
        return not self._collects or super().ready_to_flush()

    def define_kernel(self, src_code: str, nodes: Any, kernel_args: Any = None) -> str:
        return super().define_kernel(f"{_MARK}\n{src_code}", nodes, kernel_args)


class NpuPythonWrapper(PythonWrapperCodegen):
    """The Python function that allocates, calls operators and queues kernels."""

    @staticmethod
    def create(
        is_subgraph: bool, subgraph_name: str | None, parent_wrapper: Any, partition_signatures: Any = None
    ) -> PythonWrapperCodegen:
        if is_subgraph:
            return PythonWrapperCodegen.create(is_subgraph, subgraph_name, parent_wrapper, partition_signatures)
        return NpuPythonWrapper()

    def write_header(self) -> None:
        super().write_header()
        self.imports.writeline("from torch_npu._inductor.kernels import compile_kernel as compile_npu_kernel")

    def define_kernel(self, kernel_name: str, kernel_body: str, *arguments: Any, **keywords: Any) -> None:
        if _MARK in kernel_body:
            kernel_body = kernel_body.replace(_HOST_FACTORY, f"compile_npu_kernel(async_compile, {kernel_name!r}, ", 1)
        super().define_kernel(kernel_name, kernel_body, *arguments, **keywords)

    def _generate_kernel_call_helper(
        self, kernel_name: str, call_args: Any, *, device: Any = None, triton: bool = True, **keywords: Any
    ) -> None:
        device = device or V.graph.get_current_device_or_throw()
        if device.type == "npu" and not triton:
            self.writeline(self.wrap_kernel_call(kernel_name, call_args))
            return
        super()._generate_kernel_call_helper(kernel_name, call_args, device=device, triton=triton, **keywords)

    def make_allocation(
        self,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        shape: Any,
        stride: Any,
        allocation_shape: Any = None,
        is_pinned: bool = False,
    ) -> str:
        line = super().make_allocation(name, device, dtype, shape, stride, allocation_shape, is_pinned)
        if device.type == "npu":
            # The stock line means the current device.
            line = line.replace("device='npu'", f"device='{device}'")
        return line


class NpuCppWrapper:
    """Stands where a wrapper in C++ would be; there is none for npu."""

    supports_caching = False
    _option = "cpp_wrapper and AOTInductor are"

    @classmethod
    def create(cls, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(
            f"torch.compile on npu: {cls._option} not supported. Compile without the option, or save the program "
            "with torch.export.save and compile it after loading."
        )


class NpuFxWrapper(NpuCppWrapper):
    """Stands where a wrapper as an FX graph would be; there is none for C++ kernels."""

    _option = "fx_wrapper is"


register_device_op_overrides("npu", NpuOpOverrides())
device_rules.register()
