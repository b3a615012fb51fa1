"""What a family of operators adds in Python to its schemas and kernels in C++: shapes, documentation, gradients."""

import inspect
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def fake(function: Function, *, namespace: str = "npu") -> Function:
    """Register the decorated function as the fake kernel and the documentation of the operator of its name.

    It gets what the operator gets and returns empty tensors (``x.new_empty(...)``) of the shapes and dtypes that the
    operator returns, symbolic sizes included.  ``help(torch_npu.npu_rms_norm)`` shows its docstring.
    """
    name = function.__name__
    torch.library.register_fake(f"{namespace}::{name}", function)
    if function.__doc__:
        packet = getattr(getattr(torch.ops, namespace), name)
        packet.__doc__ = function.__doc__
        packet.__signature__ = inspect.signature(function)
    return function


def kernel(name: str) -> Callable[[Function], Function]:
    """Register the decorated function as the kernel of ``npu::name`` for CPU and npu tensors.

    For operators whose arguments the stable C++ interface cannot take (``Scalar``, some dtypes): the function checks
    them and calls an internal operator.
    """

    def register(function: Function) -> Function:
        torch.library.impl(f"npu::{name}", ("CPU", "PrivateUse1"), function)
        return function

    return register


def differentiable(name: str, setup_context: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Register the gradient of ``npu::name``.

    Do not unpack ``ctx.needs_input_grad`` in `backward`: the dispatcher drops arguments that equal their defaults.
    """
    torch.library.register_autograd(f"npu::{name}", backward, setup_context=setup_context)


def once_differentiable(name: str, backward_name: str) -> None:
    """Make the operator ``npu::backward_name``, the gradient of ``npu::name``, refuse to be differentiated."""

    def refuse(ctx: Any, *grads: torch.Tensor) -> NoReturn:
        raise NotImplementedError(
            f"{name} has no second derivative: {backward_name} is not differentiable. "
            "Compute this function from torch operators where you need double backward."
        )

    torch.library.register_autograd(f"npu::{backward_name}", refuse)


def check(condition: Any, op: str, argument: str, message: str | Callable[[], str]) -> None:
    """Raise the RuntimeError that the kernel raises for the same mistake, for fake kernels.

    `condition` may be symbolic.
    """
    torch._check(condition, lambda: f"{op}: argument {argument}: {message() if callable(message) else message}")
