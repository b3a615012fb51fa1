"""What a family of operators adds in Python to its schemas and kernels in C++: shapes and documentation."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def fake(function: Function) -> Function:
    """Register the decorated function as the fake kernel and the documentation of the operator of its name.

    It gets what the operator gets and returns empty tensors (``x.new_empty(...)``) of the shapes and dtypes that the
    operator returns, symbolic sizes included.
    """
    name = function.__name__
    torch.library.register_fake(f"npu::{name}", function)
    packet = getattr(torch.ops.npu, name)
    packet.__doc__ = function.__doc__
    packet.__signature__ = inspect.signature(function)
    return function
