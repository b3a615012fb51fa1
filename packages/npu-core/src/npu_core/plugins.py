"""Plugins: wheels that add operators or services to the npu device.

A plugin wheel declares an entry point in the group ``npu.plugins`` whose value names a :class:`Plugin`. At the end of
``import torch_npu`` every compatible plugin is loaded. One that cannot be loaded is reported and skipped; the others
keep working. npu-core knows no plugin by name.
"""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from npu_core.version import __version__

__all__ = ["CORE_API_VERSION", "GROUP", "Plugin", "PluginStatus", "load_all", "statuses"]

#: Version of the interface between npu-core and plugins: this module's `Plugin` and the public C headers. It changes
#: when something a plugin relies on is taken away.
CORE_API_VERSION = 1

#: Entry point group of plugins.
GROUP = "npu.plugins"


@dataclass(frozen=True)
class Plugin:
    """What a plugin publishes about itself.

    Parameters
    ----------
    name : str
        Name of the wheel, as given to pip.
    version : str
        Version of the wheel.
    core_api : tuple of int
        Lowest and highest :data:`CORE_API_VERSION` the plugin works with, both included.
    attributes : tuple of str
        Names it provides on ``torch_npu``, dots allowed (``"npu.mstx"``).
    load : callable
        Imports the compiled library and registers its operators. Returns a mapping from attribute name to object, or
        None. Operators of ``torch.ops.npu`` need no entry: the facade finds them by itself.
    """

    name: str
    version: str
    core_api: tuple[int, int]
    attributes: tuple[str, ...]
    load: Callable[[], Mapping[str, Any] | None]


@dataclass
class PluginStatus:
    """What became of one installed plugin.

    Attributes
    ----------
    state : str
        ``"loaded"``, ``"incompatible"`` (made for another plugin API) or ``"failed"`` (raised while loading).
    problem, remedy : str
        What is wrong and what to do about it; empty when loaded.
    """

    name: str
    version: str
    state: str
    problem: str = ""
    remedy: str = ""
    attributes: tuple[str, ...] = ()
    objects: Mapping[str, Any] = field(default_factory=dict, repr=False)


_lock = threading.Lock()
_statuses: list[PluginStatus] | None = None


def statuses() -> list[PluginStatus]:
    """Return the outcome for each installed plugin, in load order; empty before ``import torch_npu``."""
    return list(_statuses or ())


def load_all(entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> list[PluginStatus]:
    """Load every installed plugin once and return what became of each.

    Parameters
    ----------
    entry_points : iterable of EntryPoint, optional
        Load these instead of the installed ones, without remembering the outcome.
    """
    global _statuses
    if entry_points is not None:
        return [_load(point) for point in entry_points]
    with _lock:
        if _statuses is None:
            installed = importlib.metadata.entry_points(group=GROUP)
            _statuses = [_load(point) for point in sorted(installed, key=lambda point: point.name)]
        return list(_statuses)


def _load(point: importlib.metadata.EntryPoint) -> PluginStatus:
    distribution = getattr(point, "dist", None)
    version = distribution.version if distribution is not None else "unknown"
    try:
        plugin = point.load()
    except Exception as error:
        return _failed(point.name, version, f"importing {point.value} raised {type(error).__name__}: {error}")
    missing = [name for name in Plugin.__dataclass_fields__ if not hasattr(plugin, name)]
    if missing:
        return _failed(
            point.name,
            version,
            f"entry point {point.value} gives a {type(plugin).__name__} without {', '.join(missing)}; "
            "expected an npu_core.plugins.Plugin",
        )
    lowest, highest = plugin.core_api
    if not lowest <= CORE_API_VERSION <= highest:
        accepted = str(lowest) if lowest == highest else f"{lowest} to {highest}"
        change = "a newer" if lowest > CORE_API_VERSION else "an older"
        return PluginStatus(
            plugin.name,
            plugin.version,
            "incompatible",
            f"{plugin.name} {plugin.version} is made for plugin API {accepted}, "
            f"npu-core {__version__} provides {CORE_API_VERSION}",
            f"install {change} npu-core, or a release of {plugin.name} made for plugin API {CORE_API_VERSION} "
            f"(pip install --upgrade {plugin.name} npu-core)",
            tuple(plugin.attributes),
        )
    try:
        objects = plugin.load() or {}
    except Exception as error:
        return _failed(
            plugin.name, plugin.version, f"loading raised {type(error).__name__}: {error}", tuple(plugin.attributes)
        )
    return PluginStatus(
        plugin.name, plugin.version, "loaded", attributes=tuple(plugin.attributes), objects=dict(objects)
    )


def _failed(name: str, version: str, problem: str, attributes: tuple[str, ...] = ()) -> PluginStatus:
    remedy = f"reinstall it (pip install --force-reinstall {name}); the rest of npu keeps working without it"
    return PluginStatus(name, version, "failed", f"{name} {version}: {problem}", remedy, attributes)
