"""Deterministic algorithms for a part of a model, in its forward and in its backward."""

from __future__ import annotations

from typing import Any

import torch

from torch_npu import notices
from torch_npu.utils._error_code import ErrCode, pta_error

__all__ = [
    "disable_deterministic_with_backward",
    "enable_deterministic_with_backward",
    "set_deterministic_level",
]

_HIGHEST_LEVEL = 3


class _Switch(torch.autograd.Function):
    """Identity that sets the global flag when it runs, and the opposite when its gradient passes."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, enable: bool) -> torch.Tensor:
        ctx.enable = enable
        torch.use_deterministic_algorithms(enable)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        torch.use_deterministic_algorithms(not ctx.enable)
        return gradient, None


def enable_deterministic_with_backward(tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor` and turn deterministic algorithms on; its backward turns them off.

    Between this and `disable_deterministic_with_backward` a region is deterministic in both directions. The tensor
    must lie on the path to the loss.
    """
    return _Switch.apply(tensor, True)


def disable_deterministic_with_backward(tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor` and turn deterministic algorithms off; its backward turns them on."""
    return _Switch.apply(tensor, False)


def set_deterministic_level(level: int) -> None:
    """Choose how reproducible results are.

    Parameters
    ----------
    level : {0, 1, 2, 3}
        0 off, 1 deterministic, 2 and 3 also consistent across layouts and batches, which host kernels are anyway.
    """
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= _HIGHEST_LEVEL:
        raise ValueError(f"level should be 0, 1, 2 or 3, but got {level!r}{pta_error(ErrCode.VALUE)}")
    notices.warn("do not mix set_deterministic_level with torch.use_deterministic_algorithms", stacklevel=2)
    torch.use_deterministic_algorithms(level > 0)
