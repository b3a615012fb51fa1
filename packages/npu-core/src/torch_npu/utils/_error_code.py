"""The error-code line that ends every message of the plugin, for the tools that parse it."""

from __future__ import annotations

import os
import sys
from enum import Enum

from npu_core import _C

__all__ = ["ErrCode", "dist_error", "graph_error", "ops_error", "prof_error", "pta_error"]


class ErrCode(Enum):
    """Kind of failure: the last three digits of the code."""

    PARAM = 1
    TYPE = 2
    VALUE = 3
    PTR = 4
    INTERNAL = 5
    MEMORY = 6
    NOT_SUPPORT = 7
    NOT_FOUND = 8
    UNAVAIL = 9
    SYSCALL = 10
    TIMEOUT = 11
    PERMISSION = 12
    ACL = 100
    HCCL = 200


_PTA, _OPS, _DIST, _GRAPH, _PROF = range(5)


def _suffix(submodule: int, code: ErrCode) -> str:
    if os.environ.get("TORCH_NPU_COMPACT_ERROR_OUTPUT") == "1" or hasattr(sys, "ps1"):
        return ""
    return _C._error_suffix(submodule, code.value)


def pta_error(code: ErrCode) -> str:
    """Return the line for a failure of the framework, to append to a message. Empty in interactive sessions."""
    return _suffix(_PTA, code)


def ops_error(code: ErrCode) -> str:
    """Return the line for a failure of an operator."""
    return _suffix(_OPS, code)


def dist_error(code: ErrCode) -> str:
    """Return the line for a failure of distributed communication."""
    return _suffix(_DIST, code)


def graph_error(code: ErrCode) -> str:
    """Return the line for a failure of graph capture."""
    return _suffix(_GRAPH, code)


def prof_error(code: ErrCode) -> str:
    """Return the line for a failure of the profiler."""
    return _suffix(_PROF, code)
