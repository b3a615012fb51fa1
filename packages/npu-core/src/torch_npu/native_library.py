"""Loads the compiled part, after making sure that it was built for the torch at hand."""

from __future__ import annotations

import torch


def load() -> None:
    """Load ``npu_core._C`` and the driver's library, which registers the kernels.

    Raises
    ------
    ImportError
        npu-core was built for another torch release, or a library is missing. A mismatch must not surface as an
        undefined symbol.
    """
    try:
        from npu_core._build import TORCH_VERSION
    except ModuleNotFoundError as error:
        raise ImportError("npu-core is not built: install it with pip, its sources alone are not enough") from error
    built, found = _release(TORCH_VERSION), _release(torch.__version__)
    if built != found:
        raise ImportError(
            f"npu-core was built for torch {built}, but torch {torch.__version__} is installed: "
            f"install torch {built} (pip install 'torch=={built}.*'), or a npu-core built for torch {found}"
        )
    from npu_core import _C

    try:
        _C._load_driver()
    except RuntimeError as error:
        raise ImportError(str(error)) from error


def _release(version: str) -> str:
    """Return major.minor: the granularity at which torch's C++ interface is stable."""
    return ".".join(version.split("+")[0].split(".")[:2])
