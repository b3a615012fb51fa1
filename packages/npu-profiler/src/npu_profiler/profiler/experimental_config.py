"""``_ExperimentalConfig``: what to collect beyond ops and kernels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from npu_profiler import console


class ProfilerLevel:
    """How deep a profile looks; this release records the same at Level0, Level1 and Level2."""

    Level0 = "Level0"
    Level1 = "Level1"
    Level2 = "Level2"
    Level_none = "Level_none"


class AiCMetrics:
    """Names of hardware counter groups.  Accepted; the host driver has none of these counters."""

    PipeUtilization = "ACL_AICORE_PIPE_UTILIZATION"
    ArithmeticUtilization = "ACL_AICORE_ARITHMETIC_UTILIZATION"
    Memory = "ACL_AICORE_MEMORY_BANDWIDTH"
    MemoryL0 = "ACL_AICORE_L0B_AND_WIDTH"
    MemoryUB = "ACL_AICORE_MEMORY_UB"
    ResourceConflictRatio = "ACL_AICORE_RESOURCE_CONFLICT_RATIO"
    L2Cache = "ACL_AICORE_L2_CACHE"
    MemoryAccess = "ACL_AICORE_MEMORY_ACCESS"
    AiCoreNone = "ACL_AICORE_NONE"


class ExportType:
    """Formats of the result; this release writes ``Text``."""

    Text = "text"
    Db = "db"


class HostSystem:
    """Names of host metrics.  Accepted; nothing is collected for them yet."""

    CPU = "cpu"
    MEM = "mem"
    DISK = "disk"
    NETWORK = "network"
    OSRT = "osrt"
    NUMA = "numa"


def _constants(owner: type) -> set[str]:
    return {value for name, value in vars(owner).items() if not name.startswith("_") and isinstance(value, str)}


def supported_profiler_level() -> set[str]:
    """Return the values of ProfilerLevel."""
    return _constants(ProfilerLevel)


def supported_ai_core_metrics() -> set[str]:
    """Return the values of AiCMetrics."""
    return _constants(AiCMetrics)


def supported_export_type() -> set[str]:
    """Return the values of ExportType."""
    return _constants(ExportType)


class _ExperimentalConfig:
    """Options of a profile; a value that makes no sense is replaced, with a warning.

    Parameters
    ----------
    profiler_level : str
        One of ProfilerLevel.  ``Level_none`` records markers only.
    mstx : bool
        Keep mstx markers.  ``msprof_tx`` is its deprecated name.
    mstx_domain_include, mstx_domain_exclude : list of str
        Domains of markers to keep, or to drop.  With both, include decides.
    aic_metrics, l2_cache, host_sys, sys_io, sys_interconnection
        Hardware and host counters: accepted, no data on the host driver.
    data_simplification : bool
        Accepted: this profiler keeps no intermediate files.
    record_op_args, op_attr, gc_detect_threshold, export_type
        Not part of this release beyond their defaults; another value is reported and ignored.
    """

    def __init__(
        self,
        profiler_level: str = ProfilerLevel.Level0,
        aic_metrics: str = AiCMetrics.PipeUtilization,
        l2_cache: bool = False,
        msprof_tx: bool = False,
        mstx: bool = False,
        data_simplification: bool = True,
        record_op_args: bool = False,
        op_attr: bool = False,
        gc_detect_threshold: float | None = None,
        export_type: str | list[str] = ExportType.Text,
        host_sys: list[str] | None = None,
        mstx_domain_include: list[str] | None = None,
        mstx_domain_exclude: list[str] | None = None,
        sys_io: bool = False,
        sys_interconnection: bool = False,
    ) -> None:
        self._profiler_level = _one_of("profiler_level", profiler_level, supported_profiler_level(), "Level0")
        self._aic_metrics = self._counters(aic_metrics)
        self._l2_cache = flag("l2_cache", l2_cache, False)
        self._data_simplification = flag("data_simplification", data_simplification, True)
        self._sys_io = flag("sys_io", sys_io, False)
        self._sys_interconnection = flag("sys_interconnection", sys_interconnection, False)
        self._host_sys = _host_metrics(host_sys)
        self._msprof_tx = flag("msprof_tx", msprof_tx, False)
        self._mstx = flag("mstx", mstx, False)
        self._domains(mstx_domain_include, mstx_domain_exclude)
        self._later("record_op_args", flag("record_op_args", record_op_args, False))
        self._later("op_attr", flag("op_attr", op_attr, False))
        self._later("gc_detect_threshold", gc_detect_threshold is not None)
        self._export_type = self._exports(export_type)

    @property
    def export_type(self) -> list[str]:
        """Formats written."""
        return self._export_type

    @property
    def with_gc(self) -> bool:
        """Whether garbage collections are recorded: not in this release."""
        return False

    @property
    def gc_detect_threshold(self) -> float | None:
        """Shortest garbage collection recorded, in ms: None, because none is in this release."""
        return None

    @property
    def tx_enabled(self) -> bool:
        """Whether mstx markers are kept."""
        return self._mstx

    @property
    def markers_only(self) -> bool:
        """Whether neither ops nor kernels are recorded."""
        return self._profiler_level == ProfilerLevel.Level_none

    @property
    def mstx_domains(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Domains to include and to exclude."""
        return tuple(self._mstx_domain_include), tuple(self._mstx_domain_exclude)

    def as_dict(self) -> dict[str, Any]:
        """Return the options in force, by the names under which they are saved."""
        return dict(vars(self))

    def _counters(self, value: Any) -> str:
        if self._profiler_level in (ProfilerLevel.Level0, ProfilerLevel.Level_none):
            if value not in (AiCMetrics.AiCoreNone, AiCMetrics.PipeUtilization):
                console.warning(f"aic_metrics needs Level1 or Level2; {value!r} is ignored at {self._profiler_level}")
            return AiCMetrics.AiCoreNone
        console.warning(f"profiler_level {self._profiler_level} records what Level0 does in this release")
        return _one_of("aic_metrics", value, supported_ai_core_metrics(), AiCMetrics.PipeUtilization)

    def _domains(self, include: Any, exclude: Any) -> None:
        if self._msprof_tx:
            console.warning("msprof_tx is deprecated; use mstx")
            self._mstx = True
        if self.markers_only and not self._mstx:
            console.warning("Level_none records markers only: mstx is switched on")
            self._mstx = True
        self._mstx_domain_include = _names("mstx_domain_include", include)
        self._mstx_domain_exclude = _names("mstx_domain_exclude", exclude)
        if (self._mstx_domain_include or self._mstx_domain_exclude) and not self._mstx:
            console.warning("mstx_domain_include and mstx_domain_exclude need mstx=True; they are ignored")
            self._mstx_domain_include, self._mstx_domain_exclude = [], []
        if self._mstx_domain_include and self._mstx_domain_exclude:
            console.warning("both mstx_domain_include and mstx_domain_exclude are given: include decides")
            self._mstx_domain_exclude = []

    def _exports(self, value: Any) -> list[str]:
        wanted = [value] if isinstance(value, str) else value
        valid = isinstance(wanted, list) and bool(wanted) and all(name in supported_export_type() for name in wanted)
        if not valid:
            console.warning(f"export_type must be 'text', 'db' or a list of them, got {value!r}; 'text' is used")
        self._later("export_type='db'", valid and ExportType.Db in wanted)
        return [ExportType.Text]

    @staticmethod
    def _later(name: str, wanted: bool) -> None:
        if wanted:
            console.warning(f"_ExperimentalConfig: {name} is not part of this release of npu-profiler; it is ignored")


def flag(name: str, value: Any, default: bool) -> bool:
    """Return a boolean option; another type is reported and replaced by the default."""
    if isinstance(value, bool):
        return value
    console.warning(f"{name} must be a bool, got {value!r}; {default} is used")
    return default


def _one_of(name: str, value: Any, supported: set[str], default: str) -> str:
    if isinstance(value, str) and value in supported:
        return value
    console.warning(f"{name} must be one of {sorted(supported)}, got {value!r}; {default!r} is used")
    return default


def _names(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, Iterable) and not isinstance(value, str):
        names = list(value)
        if all(isinstance(item, str) and item for item in names):
            return names
    console.warning(f"{name} must be a list of non-empty str, got {value!r}; it is ignored")
    return []


def _host_metrics(value: Any) -> list[str]:
    names = [] if value is None else value
    if isinstance(names, list) and all(name in _constants(HostSystem) for name in names):
        return names
    console.warning(f"host_sys must be a list of {sorted(_constants(HostSystem))}, got {value!r}; it is ignored")
    return []
