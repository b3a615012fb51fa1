"""The npu device for PyTorch: runtime, driver interface and plugin loader.

This package imports no torch, so that build tools can ask it for paths and versions. The device itself is used
through ``torch.npu`` / ``torch_npu``; ``python -m npu_core`` reports what is installed and in force.
"""

from __future__ import annotations

from pathlib import Path

from npu_core.version import __version__

__all__ = ["__version__", "cmake_dir", "include_dir"]


def include_dir() -> str:
    """Return the folder that holds ``npu/driver.h``, ``npu/runtime.h`` and ``npu/trace.h``."""
    return str(Path(__file__).parent / "include")


def cmake_dir() -> str:
    """Return the folder for ``npu_core_DIR`` of ``find_package(npu_core)``."""
    return str(Path(__file__).parent / "share" / "cmake" / "npu_core")
