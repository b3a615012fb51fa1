"""What torch.compile's default backend, Inductor, needs to compile graphs on npu.

Inductor's C++ code generator writes the kernels. They are compiled at run time and run as tasks of the current stream,
so that compiled code is as asynchronous as eager code. Nothing here is imported before the first compilation: Inductor
asks ``torch.npu`` for the classes named in `CLASSES`.
"""

from __future__ import annotations

#: Attributes of ``torch.npu`` that Inductor asks for, and where they live.
CLASSES = {
    "Scheduling": "NpuScheduling",
    "PythonWrapperCodegen": "NpuPythonWrapper",
    "CppWrapperCodegen": "NpuCppWrapper",
    "WrapperFxCodegen": "NpuFxWrapper",
}
