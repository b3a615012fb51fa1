"""What is installed and in force: the content of ``python -m npu_core``.

Collecting never raises: whatever fails becomes a problem of the report, together with what to do about it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from npu_core import environment, plugins
from npu_core.version import __version__

__all__ = ["DeviceInfo", "PluginInfo", "Problem", "Report", "collect", "render"]


@dataclass(frozen=True)
class Problem:
    """Something that does not work, and what to do about it."""

    what: str
    remedy: str


@dataclass(frozen=True)
class DeviceInfo:
    """One visible device; sizes in bytes."""

    index: int
    name: str
    is_emulated: bool
    total_memory: int
    free_memory: int
    cube_core_num: int
    vector_core_num: int


@dataclass(frozen=True)
class PluginInfo:
    """One installed plugin wheel."""

    name: str
    version: str
    state: str


@dataclass
class Report:
    """Everything ``python -m npu_core`` prints."""

    npu_core: str = __version__
    plugin_api: int = plugins.CORE_API_VERSION
    python: str = field(default_factory=platform.python_version)
    torch: str = ""
    torch_npu: str = ""
    driver: str = ""
    devices: list[DeviceInfo] = field(default_factory=list)
    plugins: list[PluginInfo] = field(default_factory=list)
    environment: list[dict[str, Any]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def to_json(self) -> str:
        """Return the report as indented JSON."""
        return json.dumps(asdict(self), indent=2)


def collect() -> Report:
    """Look at the installation and the environment and return what was found."""
    report = Report()
    _collect_environment(report)
    try:
        _collect_torch(report)
    except Exception as error:
        report.problems.append(
            Problem(
                f"torch_npu does not load: {type(error).__name__}: {error}",
                "reinstall npu-core together with the torch it was built for (pip install --force-reinstall npu-core)",
            )
        )
    return report


def _collect_environment(report: Report) -> None:
    for setting in environment.in_force():
        report.environment.append(
            {
                "name": setting.variable.name,
                "value": setting.value,
                "meaning": setting.variable.meaning,
                "effective": not setting.variable.accepted_only,
            }
        )
        if setting.problem:
            report.problems.append(
                Problem(setting.problem, f"unset {setting.variable.name} or give it {setting.variable.expected}")
            )
    for name in environment.unknown():
        report.problems.append(
            Problem(
                f"{name} is set, but npu-core knows no such variable",
                "check the spelling (docs/environment.md lists all); ignore this if a plugin reads it",
            )
        )
    if "PYTORCH_ALLOC_CONF" in os.environ and "PYTORCH_NPU_ALLOC_CONF" in os.environ:
        report.problems.append(
            Problem("PYTORCH_ALLOC_CONF and PYTORCH_NPU_ALLOC_CONF are both set", "unset one of them: they are aliases")
        )


def _collect_torch(report: Report) -> None:
    try:
        report.torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        report.problems.append(Problem("torch is not installed", "pip install torch"))
        return
    import torch_npu

    report.torch_npu = torch_npu.__version__
    module = torch_npu.npu
    for status in plugins.statuses():
        report.plugins.append(PluginInfo(status.name, status.version, status.state))
        if status.problem:
            report.problems.append(Problem(status.problem, status.remedy))

    count = module.device_count()
    if count == 0:
        visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
        if visible is None:
            remedy = "set NPU_HOST_DEVICE_COUNT to the number of devices to emulate"
        else:
            remedy = f"ASCEND_RT_VISIBLE_DEVICES is {visible!r}: unset it, or list ascending ids of existing devices"
        report.problems.append(Problem("no npu device is visible", remedy))
        return
    for index in range(count):
        properties = module.get_device_properties(index)
        free, total = module.mem_get_info(index)
        report.driver = properties.driver
        report.devices.append(
            DeviceInfo(
                index,
                properties.name,
                properties.is_emulated,
                total,
                free,
                properties.cube_core_num,
                properties.vector_core_num,
            )
        )


def render(report: Report) -> str:
    """Return the report as text for people."""
    lines = [
        f"npu-core   {report.npu_core} (plugin API {report.plugin_api})",
        f"torch      {report.torch or 'not installed'}, facade torch_npu {report.torch_npu or 'not loaded'}",
        f"python     {report.python} ({sys.executable})",
        f"driver     {report.driver or 'none active'}",
        "",
        "devices",
    ]
    for device in report.devices:
        kind = "emulated by this machine's CPU" if device.is_emulated else "hardware"
        memory = f"{_gib(device.free_memory)} free of {_gib(device.total_memory)}"
        lines.append(f"  npu:{device.index}  {device.name}  {memory}  ({kind})")
    if not report.devices:
        lines.append("  none")
    lines += ["", "plugins"]
    lines += [f"  {plugin.name} {plugin.version}  {plugin.state}" for plugin in report.plugins] or ["  none installed"]
    lines += ["", "environment"]
    for entry in report.environment:
        note = "" if entry["effective"] else "  [accepted, no effect on this device]"
        lines.append(f"  {entry['name']}={entry['value']}  {entry['meaning']}{note}")
    if not report.environment:
        lines.append("  nothing set, all defaults")
    lines += ["", "problems"]
    for problem in report.problems:
        lines += [f"  - {problem.what}", f"    do: {problem.remedy}"]
    if not report.problems:
        lines.append("  none")
    return "\n".join(lines)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
