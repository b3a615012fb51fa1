"""Extras; operators and modules of this package come with the wheels npu-ops-vision and npu-ops-llm."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    from torch_npu.attributes import missing

    if name == "transfer_to_npu":
        return importlib.import_module("torch_npu.contrib.transfer_to_npu")
    raise missing(__name__, name)
