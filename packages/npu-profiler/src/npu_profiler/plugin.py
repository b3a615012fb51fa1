"""What npu-core's plugin loader finds under the entry point group ``npu.plugins``."""

from __future__ import annotations

from typing import Any

from npu_profiler import __version__

NAME = "npu-profiler"
CORE_API = (1, 1)
ATTRIBUTES = ("profiler", "npu.mstx")


def load() -> dict[str, Any]:
    """Return what this wheel adds to ``torch_npu``; the facade also makes modules importable under that name."""
    from npu_profiler import builtin_markers, profiler
    from npu_profiler.mstx import mstx

    builtin_markers.install_save()
    return {"profiler": profiler, "npu.mstx": mstx}


try:
    from npu_core.plugins import Plugin
except ImportError:  # read without npu-core, by a build or a documentation tool
    plugin = None
else:
    plugin = Plugin(name=NAME, version=__version__, core_api=CORE_API, attributes=ATTRIBUTES, load=load)
