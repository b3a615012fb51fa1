"""Warnings of the plugin, which launch scripts may silence as a whole."""

from __future__ import annotations

import os
import warnings


def wanted() -> bool:
    """Return False under TORCH_NPU_WARNING_DISABLE=1 and on all ranks of a job but the first."""
    return os.environ.get("TORCH_NPU_WARNING_DISABLE") != "1" and os.environ.get("RANK", "0") in ("", "0")


def warn(message: str, category: type[Warning] = UserWarning, stacklevel: int = 1) -> None:
    """Issue a warning as `warnings.warn` does, unless warnings of the plugin are silenced."""
    if wanted():
        warnings.warn(message, category, stacklevel=stacklevel + 1)
