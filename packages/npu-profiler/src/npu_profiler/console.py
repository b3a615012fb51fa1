"""Lines for people: the profiler reports on stdout and never raises into a training run."""

from __future__ import annotations

import os
import time


def _quiet() -> bool:
    return os.environ.get("TORCH_NPU_WARNING_DISABLE") == "1" or os.environ.get("RANK", "0") not in ("", "0")


def _line(level: str, text: str) -> None:
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    print(f"[{now}] [{level}] [{os.getpid()}] profiler.py: {text}", flush=True)


def warnings_enabled() -> bool:
    """Tell whether warnings are wanted: on rank 0, unless ``TORCH_NPU_WARNING_DISABLE=1``."""
    return not _quiet()


def info(text: str) -> None:
    """Print an INFO line."""
    _line("INFO", text)


def warning(text: str) -> None:
    """Print a WARNING line, on rank 0 and unless ``TORCH_NPU_WARNING_DISABLE=1``."""
    if warnings_enabled():
        _line("WARNING", text)


def error(text: str) -> None:
    """Print an ERROR line."""
    _line("ERROR", text)
