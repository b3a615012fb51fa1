"""Random programs over devices, streams, events and threads; every value is checked against what it must be.

    python packages/npu-core/tests/stress.py --seconds 600 --seed 7

Threads keep tensors whose content they know. They move them between streams and devices, hand them to each other, copy
them through pinned memory and free them while work is queued; device memory is small, so that allocation fails now and
then; tasks are delayed at random; some fail, and then exactly what comes behind them in stream order must be dropped.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

os.environ.setdefault("NPU_HOST_DEVICE_COUNT", "2")
os.environ.setdefault("NPU_HOST_MEMORY", "192MiB")

import torch

from npu_core import _C

THREADS = 6
PRIVATE_STREAMS = 2  # of each thread on each device
SHARED_STREAMS = 2  # on each device
MOST_CELLS = 12

# Only a thread that holds the lock runs an operator of this name: an injected failure strikes whom it is meant for.
FAILING_OPERATOR = "aten::erf"
failure_lock = threading.Lock()

private_streams: list[list[list[torch.npu.Stream]]] = []  # by thread, device, number
shared_streams: list[list[torch.npu.Stream]] = []  # by device, number


@dataclass
class Cell:
    """A tensor all of whose elements equal `value` once its stream has come so far."""

    tensor: torch.Tensor
    value: int
    stream: torch.npu.Stream

    @property
    def device(self) -> int:
        return self.tensor.get_device()


class Mismatch(AssertionError):
    """The device computed something else than it must."""


class Worker:
    """One thread's random program."""

    def __init__(self, number: int, seed: int, exchange: collections.deque, deadline: float) -> None:
        self.random = random.Random(f"{seed}/{number}")
        self.number = number
        self.exchange = exchange
        self.deadline = deadline
        self.cells: list[Cell] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.trouble: str | None = None
        self.steps: list[tuple[int, Callable[[], None]]] = [
            (12, self.create),
            (14, self.add),
            (10, self.derive),
            (8, self.to_other_device),
            (6, self.through_pinned_memory),
            (8, self.verify_by_item),
            (6, self.verify_by_copy),
            (4, self.verify_by_fallback),
            (10, self.free),
            (5, self.give),
            (6, self.take),
            (3, self.delay),
            (3, self.fail),
            (2, self.exhaust),
            (1, self.empty_cache),
            (1, self.in_another_thread),
            (1, self.synchronize_device),
        ]

    def run(self, stop: threading.Event) -> None:
        weights = [weight for weight, _ in self.steps]
        name = "start"
        try:
            while not stop.is_set() and time.monotonic() < self.deadline:
                step = self.random.choices(self.steps, weights)[0][1]
                name = step.__name__
                try:
                    step()
                    self.counts[name] += 1
                except torch.OutOfMemoryError:
                    self.counts["out of memory"] += 1
                    del self.cells[: 1 + len(self.cells) // 2]
                if len(self.cells) > MOST_CELLS:
                    self.free()
            for cell in self.cells:
                self.check(cell)
        except Exception:
            self.trouble = f"thread {self.number}, {name}:\n{traceback.format_exc()}"
            stop.set()
        finally:
            self.cells.clear()

    # ---- choices ----

    def any_device(self) -> int:
        return self.random.randrange(torch.npu.device_count())

    def any_stream(self, device: int) -> torch.npu.Stream:
        return self.random.choice(private_streams[self.number][device] + shared_streams[device])

    def any_cell(self) -> Cell:
        if not self.cells:
            self.create()
        return self.random.choice(self.cells)

    def any_size(self) -> int:
        return self.random.choice((1, 7, 1000, 4099, 100_003, 300_000))

    @contextmanager
    def using(self, cell: Cell, stream: torch.npu.Stream | None = None):
        """Make a stream current that is ordered behind all use of the cell; later use is ordered behind it."""
        stream = stream or self.any_stream(cell.device)
        if stream != cell.stream:
            if self.random.random() < 0.5:
                stream.wait_stream(cell.stream)
            else:
                stream.wait_event(cell.stream.record_event())
            cell.tensor.record_stream(stream)
            cell.stream = stream
        with torch.npu.stream(stream):
            yield stream

    # ---- steps ----

    def create(self) -> None:
        device = self.any_device()
        value = self.random.randrange(-1000, 1000)
        with torch.npu.stream(self.any_stream(device)) as context:
            tensor = torch.full((self.any_size(),), float(value), dtype=torch.float64, device=f"npu:{device}")
            self.cells.append(Cell(tensor, value, context.stream))

    def add(self) -> None:
        cell = self.any_cell()
        number = self.random.randrange(1, 9)
        with self.using(cell):
            for _ in range(self.random.choice((1, 1, 5, 50))):
                cell.tensor.add_(number)
                cell.value += number

    def derive(self) -> None:
        cell = self.any_cell()
        with self.using(cell) as stream:
            if self.random.random() < 0.5:
                self.cells.append(Cell(cell.tensor * 2 - 3, cell.value * 2 - 3, stream))
            else:
                self.cells.append(Cell(torch.cat([cell.tensor[:50], cell.tensor[:3]]), cell.value, stream))
        if abs(self.cells[-1].value) > 1 << 40:
            self.cells.pop()

    def to_other_device(self) -> None:
        cell = self.any_cell()
        other = (cell.device + 1) % torch.npu.device_count()
        target = self.any_stream(other)
        with self.using(cell), torch.npu.stream(target):
            self.cells.append(Cell(cell.tensor.to(f"npu:{other}", non_blocking=True), cell.value, target))

    def through_pinned_memory(self) -> None:
        cell = self.any_cell()
        with self.using(cell) as stream:
            host = torch.empty(cell.tensor.shape, dtype=torch.float64, pin_memory=True)
            host.copy_(cell.tensor, non_blocking=True)
            if self.random.random() < 0.5:
                # Freed at once on both sides; the copies are still queued.
                back = host.to(cell.tensor.device, non_blocking=True)
                del host
                self.cells.append(Cell(back, cell.value, stream))
            else:
                stream.record_event().synchronize()
                self.expect(bool((host == cell.value).all()), cell, host)

    def expect(self, right: bool, cell: Cell, got: object) -> None:
        self.counts["values checked"] += 1
        if not right:
            raise Mismatch(f"expected {cell.value} on {cell.tensor.device}, got {got}")

    def check(self, cell: Cell) -> None:
        with self.using(cell):
            got = cell.tensor.cpu()
        self.expect(bool((got == cell.value).all()), cell, got)

    def verify_by_item(self) -> None:
        cell = self.any_cell()
        with self.using(cell):
            got = cell.tensor[self.random.randrange(cell.tensor.numel())].item()
        self.expect(got == cell.value, cell, got)

    def verify_by_copy(self) -> None:
        self.check(self.any_cell())

    def verify_by_fallback(self) -> None:
        cell = self.any_cell()
        with self.using(cell):
            got = torch.unique(cell.tensor[:2000]).tolist()
        self.expect(got == [cell.value], cell, got)

    def free(self) -> None:
        if self.cells:
            del self.cells[self.random.randrange(len(self.cells))]

    def give(self) -> None:
        if self.cells and len(self.exchange) < 20:
            cell = self.cells.pop()
            # Off the private streams, which may carry an error while another thread orders its streams behind them.
            with self.using(cell, self.random.choice(shared_streams[cell.device])):
                self.exchange.append(cell)

    def take(self) -> None:
        try:
            cell = self.exchange.popleft()
        except IndexError:
            return
        self.cells.append(cell)
        if self.random.random() < 0.3:
            self.check(cell)

    def delay(self) -> None:
        nanoseconds = self.random.choice((10_000, 200_000, 3_000_000))
        _C._inject_fault(
            self.any_device(), _C._FAULT_DELAY_TASK, count=self.random.randrange(1, 4), delay_ns=nanoseconds
        )

    def exhaust(self) -> None:
        device = self.any_device()
        hoard = []
        with torch.npu.stream(self.any_stream(device)) as context:
            for _ in range(40):
                tensor = torch.full((1 << 20,), 5.0, dtype=torch.float64, device=f"npu:{device}")
                hoard.append(Cell(tensor, 5, context.stream))
        self.check(self.random.choice(hoard))

    def empty_cache(self) -> None:
        torch.npu.empty_cache()

    def in_another_thread(self) -> None:
        raised: list[Exception] = []

        def step() -> None:
            try:
                self.add()
                self.verify_by_item()
            except Exception as error:
                raised.append(error)

        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
        if raised:
            raise raised[0]

    def synchronize_device(self) -> None:
        with failure_lock:  # it would take the error that another thread is about to check
            torch.npu.synchronize(self.any_device())

    def fail(self) -> None:
        """Fail a task and check who is dropped, who hears of it, and that all is well afterwards."""
        producer_device, consumer_device = self.any_device(), self.any_device()
        producer = private_streams[self.number][producer_device][0]
        consumer = private_streams[self.number][consumer_device][1]
        before, behind, onward = self.three_cells(producer, consumer)
        with failure_lock:
            with torch.npu.stream(producer):
                source = torch.ones(4, device=f"npu:{producer_device}")
            for cell in (before, behind, onward):
                cell.stream.synchronize()  # the injected failure must find the streams clean and their cells settled
            producer.synchronize()
            _C._inject_fault(
                producer_device, _C._FAULT_FAIL_TASK, match=FAILING_OPERATOR, status=self.random.choice((5, 8))
            )
            with torch.npu.stream(producer):
                before.tensor.add_(1)
                before.value += 1
                source.erf_()
                behind.tensor.add_(1)  # dropped
            consumer.wait_stream(producer)
            with torch.npu.stream(consumer):
                onward.tensor.add_(1)  # dropped
            order = [producer, consumer]
            if self.random.random() < 0.5:
                order.reverse()
            self.must_raise(order[0])
            if order[1] is consumer:
                self.must_raise(consumer)  # the consumer's own work was dropped too
            else:
                order[1].synchronize()  # what the consumer raised came from here
        for cell in (before, behind, onward):
            self.check(cell)
        self.cells += [before, behind, onward]

    def three_cells(self, producer: torch.npu.Stream, consumer: torch.npu.Stream) -> list[Cell]:
        cells = []
        for stream in (producer, producer, consumer):
            with torch.npu.stream(stream):
                value = self.random.randrange(1000)
                tensor = torch.full((1000,), float(value), dtype=torch.float64, device=stream.device)
                cells.append(Cell(tensor, value, stream))
        return cells

    def must_raise(self, stream: torch.npu.Stream) -> None:
        ways = (stream.synchronize, lambda: stream.record_event().synchronize())
        try:
            self.random.choice(ways)()
        except RuntimeError as error:
            if f"{FAILING_OPERATOR}" not in str(error):
                raise
            self.counts["failures raised"] += 1
        else:
            raise Mismatch(f"{stream} should have raised the injected failure")


def leftovers() -> dict[str, int]:
    """What is still allocated when all tensors are gone."""
    found = {f"npu:{d}": torch.npu.memory_allocated(d) for d in range(torch.npu.device_count())}
    found["pinned"] = torch.npu.host_memory_stats()["active_bytes.current"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--threads", type=int, default=THREADS)
    options = parser.parse_args()
    seconds = options.seconds if options.minutes is None else 60 * options.minutes
    print(f"seed {options.seed} (the choices repeat with it, the timing of the threads does not)", flush=True)

    torch.npu.init()
    devices = range(torch.npu.device_count())
    shared_streams.extend([torch.npu.Stream(d, priority=-(i % 2)) for i in range(SHARED_STREAMS)] for d in devices)
    for _ in range(options.threads):
        private_streams.append([[torch.npu.Stream(d) for _ in range(PRIVATE_STREAMS)] for d in devices])
    exchange: collections.deque[Cell] = collections.deque()
    stop = threading.Event()
    deadline = time.monotonic() + seconds
    workers = [Worker(number, options.seed, exchange, deadline) for number in range(options.threads)]
    threads = [threading.Thread(target=worker.run, args=(stop,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for device in devices:
        _C._inject_fault(device, _C._FAULT_NONE)
    troubles = [worker.trouble for worker in workers if worker.trouble]
    if not troubles:
        exchange.clear()
        for device in devices:
            torch.npu.synchronize(device)
        if any(leftovers().values()):
            troubles.append(f"still allocated at the end: {leftovers()}")
    counts = sum((worker.counts for worker in workers), collections.Counter())
    for name, count in sorted(counts.items()):
        print(f"{count:9d} {name}")
    for trouble in troubles:
        print(trouble)
    print(f"{'FAILED' if troubles else 'passed'}: seed {options.seed}, {seconds:.0f} s, {options.threads} threads")
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
