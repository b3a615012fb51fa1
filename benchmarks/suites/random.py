"""Random numbers and dropout: Philox on all threads against the serial generator of stock PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F

from ..harness import Case, Settings, Target

SMALL, LARGE = 2**16, 2**24
SPEEDUP = 6.0


def makers(dtype: torch.dtype) -> dict[str, Callable[[int, str], Callable[[], object]]]:
    """Functions of (size, device) that give one call of a generator."""

    def tensor(size: int, device: str) -> torch.Tensor:
        return torch.zeros(size, dtype=dtype, device=device)

    return {
        "randn": lambda size, device: partial(torch.randn, size, dtype=dtype, device=device),
        "rand": lambda size, device: partial(torch.rand, size, dtype=dtype, device=device),
        "normal_": lambda size, device: partial(tensor(size, device).normal_, 1.0, 2.0),
        "bernoulli_ p=0.1": lambda size, device: partial(tensor(size, device).bernoulli_, 0.1),
        "bernoulli_ p=0.5": lambda size, device: partial(tensor(size, device).bernoulli_, 0.5),
        "exponential_": lambda size, device: partial(tensor(size, device).exponential_),
    }


def dropout(size: int, device: str, dtype: torch.dtype, p: float, backward: bool) -> Callable[[], object]:
    """One dropout of `size` elements, with the gradient of its input if `backward`."""
    x = torch.ones(size, dtype=dtype, device=device, requires_grad=backward)
    if not backward:
        return partial(F.dropout, x, p)
    gradient = torch.ones_like(x)
    return lambda: torch.autograd.grad(F.dropout(x, p), x, gradient)


def cases(settings: Settings) -> Iterator[Case]:
    """Every generator and dropout, at a size of a cache and a size of memory."""
    for size in (SMALL,) if settings.quick else (SMALL, LARGE):
        elements = f"2^{size.bit_length() - 1}"
        for dtype in (torch.float32, torch.bfloat16):
            wanted = size == LARGE and dtype == torch.float32
            width = dtype.itemsize
            label = f"{elements} {str(dtype).removeprefix('torch.')}"
            for name, maker in makers(dtype).items():
                yield Case(
                    name=f"{name} {label}",
                    subject=maker(size, "npu"),
                    baseline=maker(size, "cpu"),
                    finish=torch.npu.synchronize,
                    bytes_moved=width * size,
                    target=Target("speedup", SPEEDUP) if wanted and name == "randn" else None,
                )
            for p in (0.1, 0.5):
                for backward in (False, True):
                    # Read and written by each pass, and one byte of mask per element in between.
                    passes = 2 if backward else 1
                    yield Case(
                        name=f"dropout p={p}{' forward+backward' if backward else ''} {label}",
                        subject=dropout(size, "npu", dtype, p, backward),
                        baseline=dropout(size, "cpu", dtype, p, backward),
                        finish=torch.npu.synchronize,
                        bytes_moved=passes * (2 * width + 1) * size,
                        target=Target("speedup", SPEEDUP) if wanted and not backward else None,
                    )
        yield Case(
            name=f"randint {elements} int64",
            subject=partial(torch.randint, 1000, (size,), device="npu"),
            baseline=partial(torch.randint, 1000, (size,)),
            finish=torch.npu.synchronize,
            bytes_moved=8 * size,
        )
