"""One cached allocation and free on the device against the same on the CPU, from Python and natively."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import partial

import torch

from .. import native
from ..harness import Case, Settings, Target

KIB, MIB = 2**10, 2**20
SIZES = (512, 4 * KIB, 64 * KIB, MIB, 16 * MIB, 64 * MIB)
LOOPS, LIVE, STREAMS = 1000, 8, 4
NANOSECONDS = 150.0


def text(size: int) -> str:
    """A number of bytes, short."""
    for scale, unit in ((MIB, "MiB"), (KIB, "KiB")):
        if size >= scale:
            return f"{size // scale} {unit}"
    return f"{size} B"


def from_python(size: int) -> Iterator[Case]:
    """torch.empty whose result is dropped: the allocator and everything around it."""
    empty = partial(torch.empty, size, dtype=torch.uint8)
    yield Case(name=f"torch.empty {text(size)}", subject=partial(empty, device="npu"), baseline=empty)


def natively(size: int, library: ctypes.CDLL, streams: list[torch.npu.Stream]) -> Iterator[Case]:
    """The allocators that torch.empty calls, in a native loop."""
    bytes_, loops = ctypes.c_size_t(size), ctypes.c_int64(LOOPS)
    ids = (ctypes.c_int64 * len(streams))(*(stream.stream_id for stream in streams))

    def on_cpu(live: int) -> partial[object]:
        return partial(library.allocate_free, 0, bytes_, loops, ctypes.c_size_t(live))

    def on_npu(live: int) -> partial[object]:
        return partial(library.allocate_free, 1, bytes_, loops, ctypes.c_size_t(live))

    target = Target("nanoseconds", NANOSECONDS)
    yield Case(name=f"native {text(size)}", subject=on_npu(1), baseline=on_cpu(1), operations=LOOPS, target=target)
    yield Case(
        name=f"native {text(size)}, {LIVE} live",
        subject=on_npu(LIVE),
        baseline=on_cpu(LIVE),
        operations=LOOPS,
        target=target,
    )
    yield Case(
        name=f"native {text(size)}, {len(streams)} streams in turn",
        subject=partial(library.allocate_free_on_streams, bytes_, loops, ids, ctypes.c_size_t(len(streams))),
        baseline=on_cpu(1),
        operations=LOOPS,
        note="includes the change of the current stream",
    )
    yield Case(
        name=f"native {text(size)}, used on another stream",
        subject=partial(library.allocate_record_free, bytes_, loops, ctypes.c_int64(ids[0])),
        baseline=on_cpu(1),
        finish=torch.npu.synchronize,
        operations=LOOPS,
        note="record_stream: the free queues an event on the other stream, and the block waits for it",
    )


def cases(settings: Settings) -> Iterator[Case]:
    """From the smallest block to one of the large pool."""
    sizes = SIZES[:2] if settings.quick else SIZES
    for size in sizes:
        yield from from_python(size)
    if native.compiler() is None:
        print("    no C++ compiler: the native figures, and with them the target, are left out", flush=True)
        return
    library = native.load("allocator")
    streams = [torch.npu.Stream() for _ in range(STREAMS)]
    for size in sizes:
        yield from natively(size, library, streams)
