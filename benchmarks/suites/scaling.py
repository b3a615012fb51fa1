"""One operation from 16 to 16 Mi elements, with one thread and with two."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch

from ..harness import Case, Settings, Target

# A process each: the command line runs the suite once for every number of threads.
THREAD_COUNTS = (1, 2)
SIZES = tuple(4**k for k in range(2, 13))
QUICK_SIZES = (16, 4096)

Operands = tuple[torch.Tensor, torch.Tensor]
# What is timed, and how often it reads or writes as many bytes as the tensor has.
OPERATIONS: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], object], int]] = {
    "add": (torch.add, 3),
    "add_": (lambda x, y: x.add_(y), 3),
    "mul": (torch.mul, 3),
    "exp": (lambda x, _: torch.exp(x), 2),
    "sum": (lambda x, _: torch.sum(x), 1),
    "softmax": (lambda x, _: torch.softmax(x, -1), 2),
}
SMALL = 16
TARGETS: dict[tuple[str, int], Target] = {
    ("add", SMALL): Target("ratio", 1.0),
    ("add_", SMALL): Target("ratio", 1.2),
    ("add", 2**20): Target("ratio", 1.1),
    ("mm bfloat16", 4096**2): Target("ratio", 1.0),
}


def threads_of(settings: Settings) -> str:
    """How the name of a case tells the number of threads."""
    return f"{settings.threads} thread{'s' if settings.threads > 1 else ''}"


def square(size: int) -> tuple[int, int]:
    """Shape of the square matrix of `size` elements; softmax works along its rows."""
    side = math.isqrt(size)
    return side, side


def on_both(shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Operands]:
    """The same two tensors of `shape` on each device."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    return {"npu": (x.to("npu"), y.to("npu")), "cpu": (x, y)}


def cases(settings: Settings) -> Iterator[Case]:
    """Every operation at every size."""
    for size in QUICK_SIZES if settings.quick else SIZES:
        for name, (operation, passes) in OPERATIONS.items():
            # Each has its own: add_ changes them, and exp is many times slower where it overflows.
            operands = on_both(square(size), torch.float32)
            yield Case(
                name=f"{name}, {size} elements, {threads_of(settings)}",
                subject=partial(operation, *operands["npu"]),
                baseline=partial(operation, *operands["cpu"]),
                finish=torch.npu.synchronize,
                bytes_moved=4 * passes * size,
                target=TARGETS.get((name, size)),
                series=name,
                size=size,
            )
        for dtype in (torch.float32, torch.bfloat16):
            yield product(size, dtype, settings)


def product(size: int, dtype: torch.dtype, settings: Settings) -> Case:
    """The product of two square matrices of `size` elements."""
    side, _ = square(size)
    operands = on_both((side, side), dtype)
    width = str(dtype).removeprefix("torch.")
    name = f"mm {width}"
    return Case(
        name=f"{name}, {side}x{side}, {threads_of(settings)}",
        subject=partial(torch.mm, *operands["npu"]),
        baseline=partial(torch.mm, *operands["cpu"]),
        finish=torch.npu.synchronize,
        flops=2.0 * side**3,
        peak=width,
        samples=5 if side >= 2048 else 9,  # a call of the large ones is a sample by itself, up to a second long
        target=TARGETS.get((name, size)),
        series=name,
        size=size,
    )
