"""Test base class and helpers; submodules are imported on demand."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("common_utils", "testcase"):
        return importlib.import_module(f"torch_npu.testing.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
