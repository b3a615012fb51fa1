"""Collectives between two processes: backend hccl on npu tensors against Gloo on CPU tensors.

Also runs by itself: ``python -m benchmarks.suites.collectives --json out.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ..harness import Case, Settings

RANKS = 2
ROOT = Path(__file__).resolve().parents[2]
KIB, MIB = 1 << 10, 1 << 20
IDLE_SECONDS = 0.02


@dataclass(frozen=True)
class Job:
    """One collective to measure.  `size`: bytes of the largest tensor of the call."""

    operation: str
    size: int
    calls: int
    from_idle: bool = False
    speedup: float | None = None  # required, against Gloo

    @property
    def name(self) -> str:
        """What the tables call it."""
        size = f"{self.size // MIB} MiB" if self.size >= MIB else f"{self.size // KIB} KiB"
        return f"{self.operation} {size}" + (" from idle" if self.from_idle else "")

    @property
    def bus_bytes(self) -> float:
        """Bytes that must cross between ranks per rank, the measure in which groups of any size compare."""
        share = (RANKS - 1) / RANKS
        factor = {"all_reduce": 2 * share, "broadcast": 1.0, "send/recv": 1.0}.get(self.operation, share)
        return self.size * factor


def jobs() -> list[Job]:
    """All measurements, in the order of the tables."""
    reduced = [Job("all_reduce", size, calls_for(size)) for size in (4 * KIB, 256 * KIB, 4 * MIB)]
    return [
        Job("all_reduce", KIB, 300, speedup=5.0),
        *reduced,
        Job("all_reduce", 64 * MIB, 2, speedup=10.0),
        *(Job(operation, 64 * MIB, 2, speedup=6.0) for operation in ("all_gather", "reduce_scatter", "all_to_all")),
        *(Job(operation, 64 * MIB, 2) for operation in ("broadcast", "send/recv")),
        Job("send/recv", KIB, 300),
        Job("all_reduce", KIB, 15, from_idle=True, speedup=1.0),
    ]


def calls_for(size: int) -> int:
    """How many calls make a sample that is long against timer noise and short enough to repeat."""
    return max(2, min(200, 64 * MIB // size))


# ---- the two processes ----------------------------------------------------------------------------------------------


class Pair:
    """Two processes that do a job when told."""

    def __init__(self, backend: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(RANKS)}
        if backend == "gloo":
            environment["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
        store = Path(self._folder.name, "store")
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.suites.collectives", "--worker", backend, str(rank), str(store)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                cwd=ROOT,
            )
            for rank in range(RANKS)
        ]

    def seconds(self, job: Job) -> float:
        """Time of one call on the slowest rank: the mean of a row of calls, or from idle their median."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(asdict(job)) + "\n")
            process.stdin.flush()
        times = []
        for process in self._processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("a benchmark process ended; its message is above")
            times.append(float(line))
        return max(times)

    def close(self) -> None:
        """End both processes."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            process.wait(60)
        self._folder.cleanup()


def calls(device: torch.device, rank: int, operation: str, size: int) -> Callable[[], object]:
    """One call of the operation on tensors of its own."""
    import torch
    import torch.distributed as dist

    whole = torch.zeros(size // 4, device=device)
    part = torch.zeros(size // 4 // RANKS, device=device)
    other = torch.zeros(size // 4, device=device)
    if operation == "send/recv":
        return partial(dist.send if rank == 0 else dist.recv, whole, 1 - rank)
    operations: dict[str, Callable[[], object]] = {
        "all_reduce": partial(dist.all_reduce, whole),
        "broadcast": partial(dist.broadcast, whole, 0),
        "all_gather": partial(dist.all_gather_single, whole, part),
        "reduce_scatter": partial(dist.reduce_scatter_single, part, whole),
        "all_to_all": partial(dist.all_to_all_single, other, whole),
    }
    return operations[operation]


def work(backend: str, rank: int, store: str) -> None:
    """Serve one rank: answer each job on stdin with the seconds of a call."""
    import torch
    import torch.distributed as dist

    device = torch.device("cpu")
    synchronize: Callable[[], object] = lambda: None  # noqa: E731
    if backend == "hccl":
        torch.npu.set_device(rank)
        device = torch.device("npu", rank)
        synchronize = torch.npu.synchronize
    dist.init_process_group(backend, store=dist.FileStore(store, RANKS), rank=rank, world_size=RANKS)
    prepared: dict[tuple[str, int], Callable[[], object]] = {}
    for line in sys.stdin:
        job = Job(**json.loads(line))
        if (job.operation, job.size) not in prepared:
            prepared[job.operation, job.size] = calls(device, rank, job.operation, job.size)
        call = prepared[job.operation, job.size]
        synchronize()
        dist.barrier(device_ids=[rank] if backend == "hccl" else None)
        times = []
        if job.from_idle:
            for _ in range(job.calls):
                time.sleep(IDLE_SECONDS)
                begin = time.perf_counter()
                call()
                synchronize()
                times.append(time.perf_counter() - begin)
            print(statistics.median(times), flush=True)
        else:
            begin = time.perf_counter()
            for _ in range(job.calls):
                call()
            synchronize()
            print((time.perf_counter() - begin) / job.calls, flush=True)
    dist.destroy_process_group()


# ---- measuring ------------------------------------------------------------------------------------------------------


def cases(settings: Settings) -> Iterator[Case]:
    """One case per job; both pairs of processes stay up, only one of them works at a time."""
    from ..harness import Case, Target

    hccl, gloo = Pair("hccl"), Pair("gloo")
    try:
        for job in jobs():
            yield Case(
                name=f"{job.name}, {RANKS} processes",
                subject=partial(hccl.seconds, job),
                baseline=partial(gloo.seconds, job),
                bytes_moved=job.bus_bytes,
                self_timed=True,
                allocators=("default",),
                target=None if job.speedup is None else Target("speedup", job.speedup, allocator="default"),
                note="float32; rate = bus bandwidth; baseline = Gloo on CPU tensors",
            )
    finally:
        hccl.close()
        gloo.close()


def main() -> None:
    """Measure all jobs in turns and print a table."""
    parser = argparse.ArgumentParser(description="collectives between two processes, hccl against Gloo")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--only", default="", help="jobs whose name holds this text")
    parser.add_argument("--worker", nargs=3, metavar=("BACKEND", "RANK", "STORE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        backend, rank, store = options.worker
        return work(backend, int(rank), store)

    pairs = {"hccl": Pair("hccl"), "gloo": Pair("gloo")}
    results = []
    try:
        for job in jobs():
            if options.only not in job.name:
                continue
            times: dict[str, list[float]] = {backend: [] for backend in pairs}
            for pair in pairs.values():
                pair.seconds(job)  # maps the memory, fills the caches
            for turn in range(options.samples):
                for backend in sorted(pairs, reverse=turn % 2 == 1):
                    times[backend].append(pairs[backend].seconds(job))
            medians = {backend: statistics.median(values) for backend, values in times.items()}
            rates = {backend: job.bus_bytes / median / 1e9 for backend, median in medians.items()}
            row = {
                "name": job.name,
                "bytes": job.size,
                "microseconds": {backend: median * 1e6 for backend, median in medians.items()},
                "busbw_gb_per_s": rates,
                "best_microseconds": {backend: min(values) * 1e6 for backend, values in times.items()},
                "speedup": medians["gloo"] / medians["hccl"],
            }
            results.append(row)
            print(
                f"{job.name:>27}  hccl {medians['hccl'] * 1e6:9.1f} us (best {min(times['hccl']) * 1e6:9.1f}) "
                f"{rates['hccl']:6.2f} GB/s   gloo {medians['gloo'] * 1e6:9.1f} us {rates['gloo']:6.2f} GB/s   "
                f"{row['speedup']:5.2f}x",
                flush=True,
            )
    finally:
        for pair in pairs.values():
            pair.close()
    if options.json:
        options.json.write_text(json.dumps({"ranks": RANKS, "samples": options.samples, "results": results}, indent=1))


if __name__ == "__main__":
    main()
