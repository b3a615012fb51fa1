"""Tools around the device; submodules are imported on demand."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "get_cann_version":
        from torch_npu.utils.collect_env import get_cann_version

        return get_cann_version
    if name == "collect_env":
        return importlib.import_module("torch_npu.utils.collect_env")
    from torch_npu.attributes import missing

    raise missing(__name__, name)
