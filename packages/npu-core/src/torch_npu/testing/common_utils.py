"""Inputs and conditions for tests written for the vendor's plugin."""

from __future__ import annotations

import functools
import os
import unittest
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from packaging.version import Version

import torch_npu

__all__ = [
    "SkipIfNoLapack",
    "SkipIfNotGteCANNVersion",
    "SkipIfNotRegistered",
    "SupportedDevices",
    "create_common_tensor",
    "create_dtype_tensor",
    "get_npu_device",
    "set_npu_device",
]

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def get_npu_device() -> str:
    """Return the device tests use: that of SET_NPU_DEVICE, else npu:0."""
    return f"npu:{os.environ.get('SET_NPU_DEVICE', '0')}"


def set_npu_device() -> None:
    """Make the device tests use the current one."""
    torch.npu.set_device(get_npu_device())


def create_common_tensor(
    item: Sequence[Any], minimum: float, maximum: float, device: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a random CPU tensor and its copy on npu.

    Parameters
    ----------
    item : sequence
        numpy dtype, format (-1 or a base format; the host has no other), shape.
    minimum, maximum : float
        Range of the values.
    """
    dtype, _, shape = item
    values = np.random.uniform(minimum, maximum, tuple(shape) if isinstance(shape, (list, tuple)) else shape)
    cpu = torch.from_numpy(np.asarray(values).astype(dtype))
    return cpu, cpu.to(device or get_npu_device())


def create_dtype_tensor(
    shape: Sequence[int], dtype: torch.dtype, *, device: str | None = None, no_zero: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a random CPU tensor of a torch dtype and its copy on npu; `no_zero` keeps values away from 0."""
    if dtype == torch.bool:
        cpu = torch.randint(0, 2, tuple(shape)).bool()
    elif dtype.is_floating_point or dtype.is_complex:
        cpu = torch.randn(tuple(shape), dtype=dtype if dtype.is_complex else torch.float32).to(dtype)
    else:
        cpu = torch.randint(0 if dtype == torch.uint8 else -100, 100, tuple(shape)).to(dtype)
    if no_zero:
        cpu[cpu == 0] = 1
    return cpu, cpu.to(device or get_npu_device())


def _skip_unless(condition: Callable[[], bool], reason: str) -> _Decorator:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            if not condition():
                raise unittest.SkipTest(reason)
            return function(*arguments, **keywords)

        return wrapper

    return decorate


def SupportedDevices(prefixes: Sequence[str]) -> _Decorator:
    """Skip unless the SoC's name starts with one of `prefixes`."""
    return _skip_unless(
        lambda: torch.npu.get_device_name(0).startswith(tuple(prefixes)), f"only for {', '.join(prefixes)}"
    )


def SkipIfNotGteCANNVersion(version: str) -> _Decorator:
    """Skip unless the toolkit's interface is at least `version`."""
    return _skip_unless(lambda: Version(torch.version.cann) >= Version(version), f"needs toolkit {version}")


def SkipIfNoLapack(function: Callable[..., Any]) -> Callable[..., Any]:
    """Skip unless torch was built with LAPACK."""
    return _skip_unless(lambda: torch._C.has_lapack, "torch was built without LAPACK")(function)


def SkipIfNotRegistered(name: str) -> _Decorator:
    """Skip unless torch_npu has the operator `name`."""
    return _skip_unless(lambda: hasattr(torch_npu, name), f"torch_npu.{name} is not installed")
