"""Many threads on shared streams, and things that come and go ten thousand times."""

from __future__ import annotations

import threading

import pytest
import torch


def test_eight_producers_on_shared_streams():
    """Each thread's values are its own, whichever stream of two it uses; events order the hand-overs."""
    streams = [torch.npu.Stream(), torch.npu.Stream(priority=-1)]
    wrong: list[str] = []

    def produce(number: int) -> None:
        try:
            own, other = streams[number % 2], streams[(number + 1) % 2]
            for step in range(40):
                with torch.npu.stream(own):
                    value = torch.full((257,), float(number * 1000 + step), device="npu")
                    value.add_(1)
                    event = own.record_event()
                with torch.npu.stream(other):
                    other.wait_event(event)
                    doubled = value * 2
                    value.record_stream(other)
                    del value
                    got = doubled.unique().tolist()
                if got != [2.0 * (number * 1000 + step + 1)]:
                    wrong.append(f"thread {number} step {step}: {got}")
        except Exception as error:
            wrong.append(f"thread {number}: {error!r}")

    threads = [threading.Thread(target=produce, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:5]


def test_producers_go_on_after_one_of_them_failed():
    """The failing thread gets its error; the others see an error or right values, never wrong values.

    Each thread has a stream of its own behind the shared one: of threads that share a stream, one gets its error.
    """
    stream, *streams = [torch.npu.Stream() for _ in range(5)]
    wrong: list[str] = []
    errors: list[str] = []
    done = threading.Event()

    def produce(number: int) -> None:
        own = streams[number]
        while not done.is_set():
            try:
                own.wait_stream(stream)
                with torch.npu.stream(own):
                    value = torch.full((64,), float(number), device="npu")
                    total = (value + 1).sum().item()
                if total != 64.0 * (number + 1):
                    wrong.append(f"{number}: {total}")
            except RuntimeError as error:
                if "index 77" not in str(error):
                    wrong.append(repr(error))

    threads = [threading.Thread(target=produce, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        with torch.npu.stream(stream):
            torch.gather(torch.zeros(4, 3, device="npu"), 0, torch.full((1, 3), 77, device="npu"))
        try:
            stream.synchronize()
        except RuntimeError as error:
            errors.append(str(error))
    done.set()
    for thread in threads:
        thread.join()
    try:
        torch.npu.synchronize()
    except RuntimeError as error:
        errors.append(str(error))
    assert not wrong, wrong[:5]
    assert errors and all("index 77" in error for error in errors)
    assert (torch.ones(2, device="npu") + 1).tolist() == [2.0, 2.0]


GROWTH = """
import gc, os, threading, time, torch

def usage():
    gc.collect()
    torch.npu.synchronize()
    for _ in range(1000):  # join() returns a little before the thread has left the process
        if len(os.listdir("/proc/self/task")) <= threads_at_rest:
            break
        time.sleep(0.01)
    resident = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")
    return resident, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

def tensor(i):
    torch.empty(1 + i % 5000, device="npu").add_(1)

def stream(i):
    with torch.npu.stream(torch.npu.Stream(priority=-(i % 2))):
        one.add_(1)

def event(i):
    first, second = torch.npu.Event(enable_timing=True), torch.npu.Event()
    first.record()
    second.record(side)
    second.wait()
    if i % 100 == 0:
        first.synchronize()

def generator(i):
    torch.rand(4, device="npu", generator=torch.Generator(device="npu").manual_seed(i))

def thread(i):
    worker = threading.Thread(target=lambda: torch.ones(4, device="npu").add_(1))
    worker.start()
    worker.join()

def pinned(i):
    torch.empty(1 + i % 3000).pin_memory().to("npu", non_blocking=True)
    if i % 100 == 0:
        torch.npu.synchronize()  # bounds what is in flight, and so what is kept for reuse

def failure(i):
    torch.gather(one.view(2, 2), 0, torch.full((1, 2), 77, device="npu"))
    try:
        torch.npu.synchronize()
    except RuntimeError:
        return
    raise AssertionError("no error")

def fallback(i):
    one.nonzero()

one = torch.zeros(4, device="npu")
side = torch.npu.Stream()
for i in range(16):  # the queue of a stream grows page by page until it has gone round once
    with torch.npu.stream(torch.npu.Stream(priority=-(i % 2))):
        for _ in range(1100):
            one.add_(1)
for _ in range(1100):
    one.add_(1)
torch.npu.synchronize()
cycle = {kind}
for i in range({warm}):
    cycle(i)
threads_at_rest = 1000
before = usage()
threads_at_rest = before[2]
for i in range({count}):
    cycle(i)
after = usage()
print(after[0] - before[0], after[1] - before[1], after[2] - before[2])
"""

# A leak of one small object per cycle would be 10,000 of at least 64 bytes with their bookkeeping; pages that malloc
# keeps for its arenas come and go in steps of this order.
_ALLOWED_BYTES = 4 << 20


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("tensor", 10_000),
        ("stream", 10_000),
        ("event", 10_000),
        ("generator", 10_000),
        ("thread", 10_000),
        ("pinned", 10_000),
        ("fallback", 10_000),
        ("failure", 2_000),
    ],
)
def test_ten_thousand_leave_nothing_behind(run_python, kind: str, count: int):
    code = GROWTH.replace("{kind}", kind).replace("{warm}", str(count // 5)).replace("{count}", str(count))
    done = run_python(code, timeout=280, MALLOC_ARENA_MAX="2", OMP_NUM_THREADS="1", STREAMS_PER_DEVICE="8")
    resident, descriptors, threads = map(int, done.stdout.split())
    assert (descriptors, threads) == (0, 0)
    assert resident < _ALLOWED_BYTES, f"{kind}: {count} cycles left {resident} bytes"
