"""One cached allocation and free on the device against the same on the CPU, from Python and natively."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from .. import native
from ..harness import Case, Settings, Target, Work, nothing

KIB, MIB = 2**10, 2**20
SIZES = (512, 4 * KIB, 64 * KIB, MIB, 16 * MIB, 64 * MIB)
LOOPS, LIVE, STREAMS = 10_000, 8, 4
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


def own_time(work: Work, finish: Work = nothing) -> Callable[[], float]:
    """A self-timed call: the processor time of this thread in `work`, so that a busy machine disturbs less."""

    def run() -> float:
        begin = time.thread_time()
        work()
        seconds = time.thread_time() - begin
        finish()
        return seconds

    return run


def natively(size: int, library: ctypes.CDLL, streams: list[torch.npu.Stream]) -> Iterator[Case]:
    """The allocators that torch.empty calls, in a native loop."""
    loops, bytes_ = ctypes.c_int64(LOOPS), ctypes.c_size_t(size)
    ids = (ctypes.c_int64 * len(streams))(*(stream.stream_id for stream in streams))

    def cycle(on_npu: bool, live: int) -> Callable[[], float]:
        return own_time(partial(library.allocate_free, int(on_npu), bytes_, loops, ctypes.c_size_t(live)))

    on_streams = partial(library.allocate_free_on_streams, bytes_, loops, ids, ctypes.c_size_t(len(streams)))
    recorded = partial(library.allocate_record_free, bytes_, loops, ctypes.c_int64(ids[0]))
    name = f"native {text(size)}"
    target = Target("nanoseconds", NANOSECONDS)
    common: dict = {"operations": LOOPS, "self_timed": True}
    yield Case(name, cycle(True, 1), cycle(False, 1), target=target, **common)
    yield Case(f"{name}, {LIVE} live", cycle(True, LIVE), cycle(False, LIVE), target=target, **common)
    yield Case(
        f"{name}, {len(streams)} streams in turn",
        own_time(on_streams, torch.npu.synchronize),
        cycle(False, 1),
        note="includes the change of the current stream",
        **common,
    )
    yield Case(
        f"{name}, used on another stream",
        own_time(recorded, torch.npu.synchronize),
        cycle(False, 1),
        note="record_stream: the free queues an event on the other stream, and the block waits for it",
        **common,
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
