"""Checks that the fake kernels share, with the texts of the kernels' own in ``csrc/mc2/argument_checks.h``.

A fake kernel refuses what the kernel refuses, so that a mistake shows when code is compiled.  It knows no communicator
and looks at no lengths of metadata (``ep_send_counts``, ``expand_idx``).  Sizes may be symbolic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.float4_e2m1fn_x2)

_TYPE_NAMES = {
    torch.bool: "Bool",
    torch.uint8: "Byte",
    torch.int8: "Char",
    torch.int16: "Short",
    torch.int32: "Int",
    torch.int64: "Long",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
    torch.float32: "Float",
    torch.float64: "Double",
}


def type_name(dtype: torch.dtype) -> str:
    """Return the name that errors of kernels have for `dtype`."""
    return _TYPE_NAMES.get(dtype, str(dtype).removeprefix("torch."))


def check(condition: Any, op: str, argument: str, message: str | Callable[[], str]) -> None:
    """Raise the RuntimeError that the kernel raises for the same mistake unless `condition`, which may be symbolic."""
    torch._check(condition, lambda: f"{op}: argument {argument}: {message() if callable(message) else message}")


def check_sizes(op: str, argument: str, tensor: Tensor, shape: Sequence[Any], message: str | Callable[[], str]) -> None:
    """Check that `tensor` has `shape`."""
    check(tensor.dim() == len(shape), op, argument, message)
    for got, expected in zip(tensor.shape, shape, strict=True):
        check(got == expected, op, argument, message)


def check_row(op: str, argument: str, tensor: Tensor, length: Any) -> None:
    """Check that `tensor` has the shape ``[length]`` or ``[1, length]``."""
    shape = [length] if tensor.dim() == 1 else [1, length]
    check_sizes(
        op,
        argument,
        tensor,
        shape,
        lambda: f"expected the shape [{length}] or [1, {length}], but got {list(tensor.shape)}",
    )


def check_number_or_row(op: str, argument: str, tensor: Tensor, length: Any) -> None:
    """Check that `tensor` has the shape ``[1]``, ``[length]`` or ``[1, length]``."""
    if not (tensor.dim() == 1 and tensor.size(0) == 1):
        check_row(op, argument, tensor, length)


def check_world_size(op: str, argument: str, world_size: Any) -> None:
    """Check that there are ranks at all."""
    check(world_size > 0, op, argument, lambda: f"expected a positive number, but got {world_size}")


def check_comm_mode(op: str, comm_mode: str | None) -> None:
    """Check `comm_mode`, which has no effect."""
    check(
        comm_mode in (None, "ai_cpu", "aiv"),
        op,
        "comm_mode",
        lambda: f'expected None, "ai_cpu" or "aiv", but got "{comm_mode}"',
    )


def check_comm_turn(op: str, comm_turn: int) -> None:
    """Check `comm_turn`, which has no effect."""
    check(comm_turn == 0, op, "comm_turn", lambda: f"expected 0, but got {comm_turn}")


def check_reduce_op(op: str, reduce_op: str) -> None:
    """Check `reduce_op`."""
    check(reduce_op == "sum", op, "reduce_op", lambda: f'expected "sum", but got "{reduce_op}"')


def refuse_float8(op: str, argument: str, tensor: Tensor) -> None:
    """Raise NotImplementedError for types of the newest chips."""
    if tensor.dtype in FLOAT8:
        raise NotImplementedError(
            f"{op}: argument {argument}: float8 and float4 are not supported by this version; use float16, bfloat16 or "
            "int8 tensors"
        )
