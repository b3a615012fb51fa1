"""What kind of unit a task would run on, from its name: the "Task Type" of traces.

The host driver runs everything on CPU cores; the names follow what such a kernel occupies on an Ascend device.  There
is no AI_CPU: a task does not tell whether its kernel is a fallback.
"""

from __future__ import annotations

import functools
import re

_COPY = 1  # NPU_TASK_COPY
_CUBE = re.compile(r"(matmul|addmm|baddbmm|\bb?mm\b|linear|conv|attention|einsum)", re.IGNORECASE)
_COMMUNICATION = re.compile(r"^(hccl|hcom|c10d)", re.IGNORECASE)


@functools.lru_cache(maxsize=4096)
def task_type(name: str, kind: int) -> str:
    """Return the type of a task.

    Parameters
    ----------
    name
        Name of the task, such as ``aten::add.out``.
    kind
        ``npu_task_kind`` of the task.
    """
    if kind == _COPY:
        return "MEMCPY_ASYNC"
    if _COMMUNICATION.search(name):
        return "HCCL"
    return "AI_CORE" if _CUBE.search(name) else "AI_VECTOR_CORE"
