"""all_reduce between two processes: backend hccl on npu tensors against Gloo on CPU tensors.

Also runs by itself: ``python benchmarks/suites/allreduce.py --json out.json``.
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
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..harness import Case, Settings

RANKS = 2
SIZES = {"4 KiB": 4 << 10, "256 KiB": 256 << 10, "4 MiB": 4 << 20, "64 MiB": 64 << 20}
TARGET_SIZE, TARGET_SPEEDUP = "64 MiB", 6.0


class Pair:
    """Two processes that do all_reduce when told."""

    def __init__(self, backend: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(RANKS)}
        if backend == "gloo":
            environment["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
        store = Path(self._folder.name, "store")
        self._processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--worker", backend, str(rank), str(store)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for rank in range(RANKS)
        ]

    def seconds(self, size: int, calls: int) -> float:
        """Time of one all_reduce of `size` bytes, the mean of `calls` in a row, on the slowest rank."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{size} {calls}\n")
            process.stdin.flush()
        times = []
        for process in self._processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("a benchmark process ended; its message is above")
            times.append(float(line))
        return max(times) / calls

    def close(self) -> None:
        """End both processes."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            process.wait(60)
        self._folder.cleanup()


def work(backend: str, rank: int, store: str) -> None:
    """Serve one rank: answer each "size calls" on stdin with the seconds it took."""
    import torch
    import torch.distributed as dist

    device = torch.device("cpu")
    if backend == "hccl":
        torch.npu.set_device(rank)
        device = torch.device("npu", rank)
    dist.init_process_group(backend, store=dist.FileStore(store, RANKS), rank=rank, world_size=RANKS)
    tensors: dict[int, torch.Tensor] = {}
    for line in sys.stdin:
        size, calls = map(int, line.split())
        if size not in tensors:
            tensors[size] = torch.zeros(size // 4, device=device)
        if backend == "hccl":
            torch.npu.synchronize()
        dist.barrier()
        begin = time.perf_counter()
        for _ in range(calls):
            dist.all_reduce(tensors[size])
        if backend == "hccl":
            torch.npu.synchronize()
        print(time.perf_counter() - begin, flush=True)
    dist.destroy_process_group()


def calls_for(size: int) -> int:
    """How many all_reduces make a sample that is long against timer noise and short enough to repeat."""
    return max(2, min(200, (64 << 20) // size))


def bus_bytes(size: int) -> float:
    """Bytes that must cross between ranks per rank, the measure in which all_reduce of any group size compares."""
    return size * 2 * (RANKS - 1) / RANKS


def cases(settings: Settings) -> Iterator[Case]:
    """One case per size; both pairs of processes stay up, only one of them works at a time."""
    from ..harness import Case, Target

    hccl, gloo = Pair("hccl"), Pair("gloo")
    try:
        for name, size in SIZES.items():
            calls = calls_for(size)
            yield Case(
                name=f"all_reduce {name} float32, {RANKS} processes",
                subject=partial(hccl.seconds, size, calls),
                baseline=partial(gloo.seconds, size, calls),
                bytes_moved=bus_bytes(size),
                self_timed=True,
                allocators=("default",),
                target=Target("speedup", TARGET_SPEEDUP, allocator="default") if name == TARGET_SIZE else None,
                note="rate = bus bandwidth; baseline = Gloo on CPU tensors",
            )
    finally:
        hccl.close()
        gloo.close()


def main() -> None:
    """Measure all sizes in turns and print a table."""
    parser = argparse.ArgumentParser(description="all_reduce between two processes, hccl against Gloo")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--worker", nargs=3, metavar=("BACKEND", "RANK", "STORE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        backend, rank, store = options.worker
        return work(backend, int(rank), store)

    pairs = {"hccl": Pair("hccl"), "gloo": Pair("gloo")}
    results = []
    try:
        for name, size in SIZES.items():
            calls = calls_for(size)
            times: dict[str, list[float]] = {backend: [] for backend in pairs}
            for pair in pairs.values():
                pair.seconds(size, calls)  # maps the memory, fills the caches
            for turn in range(options.samples):
                for backend in sorted(pairs, reverse=turn % 2 == 1):
                    times[backend].append(pairs[backend].seconds(size, calls))
            medians = {backend: statistics.median(values) for backend, values in times.items()}
            rates = {backend: bus_bytes(size) / median / 1e9 for backend, median in medians.items()}
            row = {
                "size": name,
                "bytes": size,
                "microseconds": {backend: median * 1e6 for backend, median in medians.items()},
                "busbw_gb_per_s": rates,
                "best_microseconds": {backend: min(values) * 1e6 for backend, values in times.items()},
                "speedup": medians["gloo"] / medians["hccl"],
            }
            results.append(row)
            print(
                f"{name:>8}  hccl {medians['hccl'] * 1e6:9.1f} us {rates['hccl']:6.2f} GB/s   "
                f"gloo {medians['gloo'] * 1e6:9.1f} us {rates['gloo']:6.2f} GB/s   {row['speedup']:5.2f}x",
                flush=True,
            )
    finally:
        for pair in pairs.values():
            pair.close()
    if options.json:
        options.json.write_text(json.dumps({"ranks": RANKS, "samples": options.samples, "results": results}, indent=1))


if __name__ == "__main__":
    main()
