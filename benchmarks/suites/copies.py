"""Copies between host and device, and on the device, against a copy between two mapped host buffers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from ..harness import Case, Settings, Target, nothing

KIB, MIB = 2**10, 2**20
SIZES = (4 * KIB, 64 * KIB, MIB, 16 * MIB, 256 * MIB)
LARGE = 16 * MIB
SHARE = 0.9
# Memory is never allocated inside a sample, so the allocator makes no difference.
ALLOCATORS = ("tuned",)


def text(size: int) -> str:
    """A number of bytes, short."""
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"


def filled(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", pinned: bool = False) -> torch.Tensor:
    """A tensor whose memory is mapped: every page was written."""
    return torch.empty(shape, dtype=dtype, device=device, pin_memory=pinned).fill_(1)


def plain(size: int) -> Iterator[Case]:
    """Equal dtype, contiguous: bytes are moved."""
    make = partial(filled, (size,), torch.uint8)
    host_copy = partial(make().copy_, make())
    device, source = make("npu"), make("npu")
    for pinned in (True, False):
        host = make(pinned=pinned)
        for non_blocking in (False, True):
            kind = f"{'pinned' if pinned else 'pageable'}, {'non_blocking' if non_blocking else 'blocking'}"
            for direction, work in (
                ("H2D", partial(device.copy_, host, non_blocking=non_blocking)),
                ("D2H", partial(host.copy_, device, non_blocking=non_blocking)),
            ):
                wanted = direction == "H2D" and pinned and size >= LARGE
                yield Case(
                    name=f"{direction} {text(size)}, {kind}",
                    subject=work,
                    baseline=host_copy,
                    finish=torch.npu.synchronize if non_blocking else nothing,
                    bytes_moved=2.0 * size,
                    allocators=ALLOCATORS,
                    target=Target("speedup", SHARE) if wanted else None,
                )
    yield Case(
        name=f"D2D {text(size)}",
        subject=partial(device.copy_, source),
        baseline=host_copy,
        finish=torch.npu.synchronize,
        bytes_moved=2.0 * size,
        allocators=ALLOCATORS,
    )


def changing(side: int, change: str) -> Iterator[Case]:
    """A square float32 matrix that is transposed, or rounded to bfloat16, on its way."""
    shape = (side, side)
    to_dtype = torch.bfloat16 if change == "to bfloat16" else torch.float32

    def source(device: str) -> torch.Tensor:
        matrix = filled(shape, torch.float32, device)
        return matrix.t() if change == "transposed" else matrix

    bytes_moved = float(side * side * (4 + to_dtype.itemsize))
    stock = partial(filled(shape, to_dtype).copy_, source("cpu"))
    for direction, to, of in (("H2D", "npu", "cpu"), ("D2H", "cpu", "npu"), ("D2D", "npu", "npu")):
        yield Case(
            name=f"{direction} {text(4 * side * side)}, {change}",
            subject=partial(filled(shape, to_dtype, to).copy_, source(of)),
            baseline=stock,
            finish=torch.npu.synchronize,
            bytes_moved=bytes_moved,
            footprint=int(bytes_moved / 2),
            allocators=ALLOCATORS,
            note="baseline = the same change between host tensors; of copy = against a plain copy of as many bytes",
        )


def cases(settings: Settings) -> Iterator[Case]:
    """Plain copies of all sizes, then those that change what they copy."""
    for size in SIZES[:2] if settings.quick else SIZES:
        yield from plain(size)
    for change in ("to bfloat16", "transposed"):
        for side in (128,) if settings.quick else (128, 2048):
            yield from changing(side, change)
