"""The environment variables the device knows, what they mean and whether a value is valid.

One registry for the report of ``python -m npu_core`` and for the documentation. Variables marked as accepted exist
so that launch scripts written for the hardware keep working; they change nothing on this device.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["VARIABLES", "Setting", "Variable", "in_force", "unknown"]


@dataclass(frozen=True)
class Variable:
    """One environment variable.

    Attributes
    ----------
    pattern : str
        Regular expression the whole value must match; empty accepts any value.
    accepted_only : bool
        True when the variable has no effect on this device.
    """

    name: str
    default: str
    meaning: str
    pattern: str = ""
    expected: str = ""
    accepted_only: bool = False

    def problem_with(self, value: str) -> str:
        """Return what is wrong with `value`, or an empty string."""
        if not self.pattern or re.fullmatch(self.pattern, value):
            return ""
        return f"{self.name} should be {self.expected}, but got {value!r}"


@dataclass(frozen=True)
class Setting:
    """A known variable that is set in the environment."""

    variable: Variable
    value: str
    problem: str


def _flag(name: str, default: str, meaning: str, *, accepted_only: bool = False) -> Variable:
    return Variable(name, default, meaning, "0|1", "0 or 1", accepted_only)


def _accepted(name: str, meaning: str, pattern: str = "", expected: str = "", default: str = "") -> Variable:
    return Variable(name, default, meaning, pattern, expected, accepted_only=True)


_KNOWN = (
    # device
    Variable("NPU_DRIVER", "host", "driver library to load: libnpu_<name>.so"),
    Variable(
        "NPU_HOST_DEVICE_COUNT",
        "LOCAL_WORLD_SIZE, else 1",
        "devices the host driver emulates",
        r"[0-9]+",
        "a number of devices",
    ),
    Variable(
        "NPU_HOST_MEMORY",
        "64GiB",
        "memory of each emulated device",
        r"[0-9]+ *(B|[KMGT]iB)?",
        "bytes or a whole number with KiB, MiB, GiB or TiB",
    ),
    Variable("NPU_HOST_SOC", "Ascend910B1", "SoC name the emulated device reports"),
    Variable("NPU_HOST_SPIN_US", "100", "how long an idle engine spins before it sleeps", r"[0-9]+", "microseconds"),
    Variable(
        "NPU_HOST_COPY_THRESHOLD",
        "1MiB",
        "copies of this size and larger run on the copy engine",
        r"[0-9]+ *(B|[KMGT]iB)?",
        "bytes or a whole number with KiB, MiB, GiB or TiB",
    ),
    Variable("NPU_CPU_ISA", "best supported", "instruction set of the host kernels"),
    Variable("ASCEND_RT_VISIBLE_DEVICES", "all", "comma list of devices this process may see"),
    Variable("TORCH_NPU_DEVICE_CAPABILITY", "", "what get_device_capability() returns", r"\d+\.\d+", "major.minor"),
    # import
    _flag("TORCH_DEVICE_BACKEND_AUTOLOAD", "1", "load torch_npu inside `import torch`"),
    _flag("TORCH_TRANSFER_TO_NPU", "0", "import torch_npu.contrib.transfer_to_npu at start"),
    # launch and errors
    _flag("ASCEND_LAUNCH_BLOCKING", "0", "wait for each operator before returning (for debugging)"),
    Variable("STREAMS_PER_DEVICE", "32", "size of each stream pool", "8|32", "8 or 32"),
    _flag("TORCH_NPU_COMPACT_ERROR_OUTPUT", "0", "leave the error-code line out of messages"),
    _flag("TORCH_NPU_FALLBACK_CPU_DISABLE", "0", "raise instead of waiting for an operator on the fallback"),
    _flag("NPU_COUNT_FALLBACKS", "0", "print at exit how often operators ran by the CPU fallback"),
    _flag("TORCH_NPU_WARNING_DISABLE", "0", "silence warnings of the plugin"),
    # memory
    Variable("PYTORCH_NPU_ALLOC_CONF", "", "caching allocator: key:value,key:value"),
    Variable("PYTORCH_ALLOC_CONF", "", "caching allocator, same as PYTORCH_NPU_ALLOC_CONF"),
    _flag("PYTORCH_NO_NPU_MEMORY_CACHING", "0", "return every freed block to the driver"),
    # processes
    Variable("LOCAL_WORLD_SIZE", "", "processes of this machine (set by torchrun): default number of devices"),
    Variable("MULTI_STREAM_MEMORY_REUSE", "1", "how collectives keep their tensors", "[0-3]", "0, 1, 2 or 3"),
    Variable("OMP_NUM_THREADS", "cores", "threads of the compute engine"),
    # accepted for launch scripts written for the hardware
    _accepted("TASK_QUEUE_ENABLE", "launch queue mode; order and results are the same", "0|1|2", "0, 1 or 2", "1"),
    _accepted("PER_STREAM_QUEUE", "one launch queue per stream", "0|1", "0 or 1", "0"),
    _accepted("COMBINED_ENABLE", "merge pairs of non-contiguous operators", "0|1", "0 or 1", "0"),
    _flag("INF_NAN_MODE_ENABLE", "1", "IEEE infinities (always on here; is_support_inf_nan() refuses 0)"),
    _accepted("CPU_AFFINITY_CONF", "thread pinning"),
    _accepted("NPU_ASD_ENABLE", "silent error detection", "[0-3]", "0, 1, 2 or 3", "0"),
    _accepted("NPU_ASD_CONFIG", "silent error detection"),
    _accepted("NPU_ASD_UPPER_THRESH", "silent error detection"),
    _accepted("NPU_ASD_SIGMA_THRESH", "silent error detection"),
    _accepted("ACL_OP_COMPILER_CACHE_DIR", "kernel compiler"),
    _accepted("ACL_OP_COMPILER_CACHE_MODE", "kernel compiler"),
    _accepted("ACL_OP_INIT_MODE", "kernel compiler", "0|1|2", "0, 1 or 2"),
    _accepted("ASCEND_HOME_PATH", "vendor toolkit; not needed"),
    _accepted("ASCEND_OPP_PATH", "vendor toolkit; not needed"),
    _accepted("ASCEND_TOOLKIT_HOME", "vendor toolkit; not needed"),
    _accepted("ASCEND_GLOBAL_LOG_LEVEL", "vendor log"),
    _accepted("ASCEND_SLOG_PRINT_TO_STDOUT", "vendor log"),
    _accepted("ASCEND_PROCESS_LOG_PATH", "vendor log"),
    _accepted("ASCEND_WORK_PATH", "vendor tools"),
)

#: Every known variable by name.
VARIABLES: Mapping[str, Variable] = {variable.name: variable for variable in _KNOWN}


def in_force(environ: Mapping[str, str] | None = None) -> list[Setting]:
    """Return the known variables that are set, in registry order.

    Parameters
    ----------
    environ : mapping, optional
        Environment to look at, by default that of the process.
    """
    environ = os.environ if environ is None else environ
    return [
        Setting(variable, environ[variable.name], variable.problem_with(environ[variable.name]))
        for variable in VARIABLES.values()
        if variable.name in environ
    ]


def unknown(environ: Mapping[str, str] | None = None) -> list[str]:
    """Return the set variables that look like ours (``NPU_...``) but mean nothing: most likely typing errors."""
    environ = os.environ if environ is None else environ
    return sorted(name for name in environ if name.startswith("NPU_") and name not in VARIABLES)
