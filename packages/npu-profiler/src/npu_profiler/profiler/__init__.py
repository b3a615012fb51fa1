"""``torch_npu.profiler``: traces of what the host launches and the npu device runs.

The names below are imported when they are first used: every ``import torch`` imports this module.

Not part of this release, and therefore absent: ``profiler.analyse`` and ``dynamic_profile``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npu_profiler.profiler.experimental_config import (
        AiCMetrics,
        ExportType,
        HostSystem,
        ProfilerLevel,
        _ExperimentalConfig,
        supported_ai_core_metrics,
        supported_export_type,
        supported_profiler_level,
    )
    from npu_profiler.profiler.session import ProfilerActivity, _KinetoProfile, profile, supported_activities
    from npu_profiler.profiler.step_schedule import ProfilerAction, schedule
    from npu_profiler.profiler.trace_handler import tensorboard_trace_handler

__all__ = [
    "AiCMetrics",
    "ExportType",
    "HostSystem",
    "ProfilerAction",
    "ProfilerActivity",
    "ProfilerLevel",
    "_ExperimentalConfig",
    "_KinetoProfile",
    "profile",
    "schedule",
    "supported_activities",
    "supported_ai_core_metrics",
    "supported_export_type",
    "supported_profiler_level",
    "tensorboard_trace_handler",
]

# Defining file of each name that experimental_config.py does not define.
_HOMES = {
    "ProfilerAction": "step_schedule",
    "ProfilerActivity": "session",
    "_KinetoProfile": "session",
    "profile": "session",
    "schedule": "step_schedule",
    "supported_activities": "session",
    "tensorboard_trace_handler": "trace_handler",
}
_LATER = ("analyse", "dynamic_profile")


def __getattr__(name: str) -> Any:
    if name in __all__:
        home = importlib.import_module(f"npu_profiler.profiler.{_HOMES.get(name, 'experimental_config')}")
        value = globals()[name] = getattr(home, name)
        return value
    if name in _LATER:
        raise AttributeError(f"torch_npu.profiler.{name} is not part of this release of npu-profiler")
    raise AttributeError(f"module 'torch_npu.profiler' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
