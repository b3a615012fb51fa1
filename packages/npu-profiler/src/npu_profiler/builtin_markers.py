"""Ranges that appear without the user's doing: ``dataloader`` and ``save_checkpoint``.

Both wrappers are one comparison while no profile keeps markers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from npu_profiler import marker_log
from npu_profiler.mstx import mstx


def _marked(function: Callable[..., Any], message: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if marker_log.active() is None:
            return function(*args, **kwargs)
        range_id = mstx.range_start(message)
        try:
            return function(*args, **kwargs)
        finally:
            mstx.range_end(range_id)

    call._npu_profiler_marker = message  # type: ignore[attr-defined]
    return call


def _wrap(owner: Any, name: str, message: str) -> None:
    function = getattr(owner, name)
    if not hasattr(function, "_npu_profiler_marker"):
        setattr(owner, name, _marked(function, message))


def install_save() -> None:
    """Wrap ``torch.save``; done when the plugin loads so that ``from torch import save`` gets the wrapper too."""
    import torch
    import torch.serialization

    _wrap(torch.serialization, "save", "save_checkpoint")
    torch.save = torch.serialization.save


def install_dataloader() -> None:
    """Wrap ``DataLoader`` iteration; done at the first recording, since a method is looked up at each call."""
    from torch.utils.data import dataloader

    _wrap(dataloader._BaseDataLoaderIter, "__next__", "dataloader")
