"""A training step under DistributedDataParallel: backend hccl on npu tensors against Gloo on CPU tensors.

Two processes of one thread each train a transformer of 25 million parameters. Also runs by itself:
``python -m benchmarks.suites.ddp_step``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..harness import Case, Settings

RANKS = 2
WIDTH, LAYERS, HEADS, TOKENS = 512, 8, 8, 64  # 25.2 million parameters
QUICK_LAYERS = 1
ROWS = (1, 4)  # sequences per process and step: much communication for the work, and less
TARGET_ROWS, TARGET_SPEEDUP = 1, 1.3


class Pair:
    """Two processes that train when told."""

    def __init__(self, backend: str, layers: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(RANKS)}
        if backend == "gloo":
            environment["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
        store = Path(self._folder.name, "store")
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.suites.ddp_step"]
                + ["--worker", backend, str(rank), str(store), str(layers)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                cwd=Path(__file__).resolve().parents[2],
            )
            for rank in range(RANKS)
        ]

    def seconds(self, rows: int, steps: int) -> float:
        """Time of one step with `rows` sequences per process, the mean of `steps` in a row, on the slowest rank."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{rows} {steps}\n")
            process.stdin.flush()
        times = []
        for process in self._processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("a benchmark process ended; its message is above")
            times.append(float(line))
        return max(times) / steps

    def close(self) -> None:
        """End both processes."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            process.wait(60)
        self._folder.cleanup()


def build(layers: int) -> Any:
    """The model: an encoder without dropout, whose random masks would differ between devices."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def work(backend: str, rank: int, store: str, layers: int) -> None:
    """Serve one rank: answer each "rows steps" on stdin with the seconds it took."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    device = torch.device("cpu")
    if backend == "hccl":
        torch.npu.set_device(rank)
        device = torch.device("npu", rank)
    dist.init_process_group(backend, store=dist.FileStore(store, RANKS), rank=rank, world_size=RANKS)
    model = DistributedDataParallel(build(layers).to(device), gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def finish() -> None:
        if backend == "hccl":
            torch.npu.synchronize()

    for line in sys.stdin:
        rows, steps = map(int, line.split())
        inputs = torch.ones(rows, TOKENS, WIDTH, device=device)
        finish()
        dist.barrier()
        begin = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=False)
            model(inputs).square().mean().backward()
            optimizer.step()
        finish()
        print(time.perf_counter() - begin, flush=True)
    dist.destroy_process_group()


def cases(settings: Settings) -> Iterator[Case]:
    """One case per batch; both pairs of processes stay up, only one of them works at a time."""
    from ..harness import Case, Target

    layers = QUICK_LAYERS if settings.quick else LAYERS
    hccl, gloo = Pair("hccl", layers), Pair("gloo", layers)
    try:
        for rows in ROWS[:1] if settings.quick else ROWS:
            yield Case(
                name=f"transformer of {layers} layers, {rows} x {TOKENS} tokens per process, {RANKS} processes",
                subject=partial(hccl.seconds, rows, 1),
                baseline=partial(gloo.seconds, rows, 1),
                self_timed=True,
                allocators=("default",),
                target=Target("speedup", TARGET_SPEEDUP, allocator="default") if rows == TARGET_ROWS else None,
                note="one thread per process; baseline = Gloo on CPU tensors",
            )
    finally:
        hccl.close()
        gloo.close()


def main() -> None:
    """Measure in turns and print a table."""
    parser = argparse.ArgumentParser(description="DDP training step of two processes, hccl against Gloo")
    parser.add_argument("--samples", type=int, default=9)
    parser.add_argument("--worker", nargs=4, metavar=("BACKEND", "RANK", "STORE", "LAYERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        backend, rank, store, layers = options.worker
        return work(backend, int(rank), store, int(layers))

    pairs = {"hccl": Pair("hccl", LAYERS), "gloo": Pair("gloo", LAYERS)}
    try:
        for rows in ROWS:
            times: dict[str, list[float]] = {backend: [] for backend in pairs}
            for pair in pairs.values():
                pair.seconds(rows, 2)  # maps the memory, lets DDP rebuild its buckets
            for turn in range(options.samples):
                for backend in sorted(pairs, reverse=turn % 2 == 1):
                    times[backend].append(pairs[backend].seconds(rows, 1))
            hccl, gloo = (statistics.median(times[backend]) for backend in ("hccl", "gloo"))
            best = min(times["gloo"]) / min(times["hccl"])
            print(
                f"{rows} x {TOKENS} tokens  hccl {hccl * 1e3:7.1f} ms  gloo {gloo * 1e3:7.1f} ms  "
                f"{gloo / hccl:5.2f}x  (best of both {best:5.2f}x)",
                flush=True,
            )
    finally:
        for pair in pairs.values():
            pair.close()


if __name__ == "__main__":
    main()
