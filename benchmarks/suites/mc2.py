"""Fused products and collectives between two processes, against the same work as separate operators.

Also runs by itself, from the repository's root: ``python -m benchmarks.suites.mc2`` prints a table with the times of
the parts, and ``--picture out.svg`` draws when the tasks of both streams ran (needs npu-profiler and matplotlib).
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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..harness import Case, Settings

RANKS = 2
EXPERTS = 4  # per rank
#: Name -> operator, rows, inner size and columns; the first one has the target.
PROBLEMS: dict[str, tuple[str, int, int, int]] = {
    "mm + all_reduce 2048x4096x4096": ("all_reduce", 2048, 4096, 4096),
    "mm + all_reduce 2048x256x4096": ("all_reduce", 2048, 256, 4096),
    "mm + all_reduce 16x4096x4096": ("all_reduce", 16, 4096, 4096),
    "mm + reduce_scatter 2048x512x4096": ("reduce_scatter", 2048, 512, 4096),
    "all_gather + mm 1024x4096x512": ("all_gather", 1024, 4096, 512),
    "alltoallv + gmm 2048x2048x512, 4 experts per rank": ("to_experts", 2048, 2048, 512),
    "gmm + alltoallv 2048x512x2048, 4 experts per rank": ("from_experts", 2048, 512, 2048),
}
TARGET_PROBLEM, TARGET_RATIO = "mm + all_reduce 2048x4096x4096", 1.0
PICTURE_PROBLEM = "mm + all_reduce 2048x256x4096"
WAYS = ("fused", "separate", "product", "communication")


class Pair:
    """Two processes that do the same work when told."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(RANKS)}
        store = Path(self._folder.name, "store")
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.suites.mc2", "--worker", str(rank), str(store)],
                cwd=Path(__file__).parents[2],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for rank in range(RANKS)
        ]

    def _ask(self, **request: Any) -> list[Any]:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        answers = []
        for process in self._processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("a benchmark process ended; its message is above")
            answers.append(json.loads(line))
        return answers

    def seconds(self, problem: str, way: str, calls: int) -> float:
        """Time of one call, the mean of `calls` in a row, on the slowest rank."""
        return float(max(self._ask(problem=problem, way=way, calls=calls, trace=False))) / calls

    def trace(self, problem: str, way: str) -> list[list[dict[str, Any]]]:
        """Tasks of one call by rank: kind of stream, and begin and end in seconds after the first one began."""
        ranks: list[list[dict[str, Any]]] = self._ask(problem=problem, way=way, calls=1, trace=True)
        start = min(task["begin"] for tasks in ranks for task in tasks)
        return [
            [task | {"begin": (task["begin"] - start) / 1e9, "end": (task["end"] - start) / 1e9} for task in tasks]
            for tasks in ranks
        ]

    def close(self) -> None:
        """End both processes."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            process.wait(60)
        self._folder.cleanup()


def ways_of(problem: str, rank: int) -> dict[str, Callable[[], object]]:
    """Make the tensors of a problem; return what to call for each way."""
    import torch
    import torch.distributed as dist

    operator, rows, inner, columns = PROBLEMS[problem]
    name = dist.group.WORLD._get_backend(torch.device("npu")).get_hccl_comm_name(rank)
    npu = torch.ops.npu

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="npu").bfloat16()

    x = random(rows, inner)
    weight = random(inner, columns)
    if operator == "all_reduce":
        product = random(rows, columns)
        return {
            "fused": lambda: npu.npu_mm_all_reduce_base(x, weight, name),
            "separate": lambda: dist.all_reduce(torch.mm(x, weight)),
            "product": lambda: torch.mm(x, weight),
            "communication": lambda: dist.all_reduce(product),
        }
    if operator == "reduce_scatter":
        product, part = random(rows, columns), random(rows // RANKS, columns)
        return {
            "fused": lambda: npu.npu_mm_reduce_scatter_base(x, weight, name, RANKS),
            "separate": lambda: dist.reduce_scatter_single(torch.empty_like(part), torch.mm(x, weight)),
            "product": lambda: torch.mm(x, weight),
            "communication": lambda: dist.reduce_scatter_single(part, product),
        }
    if operator == "all_gather":
        gathered = random(rows * RANKS, inner)

        def gather_then_multiply() -> torch.Tensor:
            target = torch.empty_like(gathered)
            dist.all_gather_single(target, x)
            return torch.mm(target, weight)

        return {
            "fused": lambda: npu.npu_all_gather_base_mm(x, weight, name, RANKS),
            "separate": gather_then_multiply,
            "product": lambda: torch.mm(gathered, weight),
            "communication": lambda: dist.all_gather_single(gathered, x),
        }
    weights = random(EXPERTS, inner, columns)
    block = rows // (RANKS * EXPERTS)
    counts = [block] * (RANKS * EXPERTS)

    def grouped(source: torch.Tensor) -> torch.Tensor:
        return torch.bmm(source.view(EXPERTS, -1, inner), weights).view(-1, columns)

    def reordered(source: torch.Tensor, first: int, second: int) -> torch.Tensor:
        return source.view(first, second, block, -1).transpose(0, 1).reshape(rows, -1)

    def exchanged(source: torch.Tensor) -> torch.Tensor:
        target = torch.empty_like(source)
        dist.all_to_all_single(target, source)
        return target

    if operator == "to_experts":
        return {
            "fused": lambda: npu.npu_alltoallv_gmm(x, weights, name, RANKS, counts, counts),
            "separate": lambda: grouped(reordered(exchanged(x), RANKS, EXPERTS)),
            "product": lambda: grouped(x),
            "communication": lambda: exchanged(x),
        }
    product = random(rows, columns)
    return {
        "fused": lambda: npu.npu_gmm_alltoallv(x, weights, name, RANKS, counts, counts),
        "separate": lambda: exchanged(reordered(grouped(x), EXPERTS, RANKS)),
        "product": lambda: grouped(x),
        "communication": lambda: exchanged(product),
    }


def traced(function: Callable[[], object]) -> list[dict[str, Any]]:
    """Call `function` and return the tasks that ran: kind of stream, begin and end in nanoseconds of one clock."""
    import torch

    from npu_profiler import collector

    collector.start()
    function()
    torch.npu.synchronize()
    collector.stop()
    current = torch.npu.current_stream().stream_id
    return [
        {
            "kind": "product" if one.stream_id == current else "communication",
            "begin": one.begin_ns,
            "end": one.end_ns,
        }
        for one in collector.take().records()
        if one.kind == collector.KIND_TASK
    ]


def work(rank: int, store: str) -> None:
    """Serve one rank: answer each request on stdin with the seconds it took, or the tasks that ran."""
    import torch
    import torch.distributed as dist

    torch.npu.set_device(rank)
    dist.init_process_group("hccl", store=dist.FileStore(store, RANKS), rank=rank, world_size=RANKS)
    problem, ways = "", dict[str, Callable[[], object]]()
    for line in sys.stdin:
        request = json.loads(line)
        if request["problem"] != problem:
            problem = request["problem"]
            ways = ways_of(problem, rank)
        call = ways[request["way"]]
        torch.npu.synchronize()
        dist.barrier(device_ids=[rank])
        answer: Any
        if request["trace"]:
            answer = traced(call)
        else:
            begin = time.perf_counter()
            for _ in range(request["calls"]):
                call()
            torch.npu.synchronize()
            answer = time.perf_counter() - begin
        print(json.dumps(answer), flush=True)
    dist.destroy_process_group()


def calls_for(problem: str) -> int:
    """How many calls make a sample that is long against timer noise and short enough to repeat."""
    _, rows, inner, columns = PROBLEMS[problem]
    return max(1, min(20, int(2e10 / (2.0 * rows * inner * columns))))


def cases(settings: Settings) -> Iterator[Case]:
    """Two cases per problem: against separate operators, and against the product alone."""
    from ..harness import Case, Target

    pair = Pair()
    try:
        for problem in list(PROBLEMS)[-1:] if settings.quick else PROBLEMS:
            measure = partial(pair.seconds, problem, calls=calls_for(problem))
            yield Case(
                name=f"{problem} bfloat16, {RANKS} processes",
                subject=partial(measure, "fused"),
                baseline=partial(measure, "separate"),
                self_timed=True,
                allocators=("default",),
                target=Target("ratio", TARGET_RATIO, allocator="default") if problem == TARGET_PROBLEM else None,
                note="baseline = the product and the collective as separate operators on npu",
            )
            yield Case(
                name=f"{problem} bfloat16, against the product alone",
                subject=partial(measure, "fused"),
                baseline=partial(measure, "product"),
                self_timed=True,
                allocators=("default",),
                note="what is left of the communication",
            )
    finally:
        pair.close()


def draw(pair: Pair, path: Path) -> None:
    """Draw the tasks of one call, separate and fused, on both streams of both ranks."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "mc2"}  # text as text; the same picture, the same file
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    for way in ("separate", "fused"):
        pair.seconds(PICTURE_PROBLEM, way, 3)

    def length(ranks: list[list[dict[str, Any]]]) -> float:
        return max(float(task["end"]) for tasks in ranks for task in tasks)

    # The shortest of some calls: the one in which nothing else ran on the machine.
    traces = {
        way: min((pair.trace(PICTURE_PROBLEM, way) for _ in range(40)), key=length) for way in ("separate", "fused")
    }
    colors = {"product": "#4c78a8", "communication": "#f58518"}
    figure, axes = pyplot.subplots(2, 1, sharex=True, figsize=(9, 4.2), layout="constrained")
    lanes = [f"rank {rank} {kind}" for rank in range(RANKS) for kind in colors]
    for axis, (way, ranks) in zip(axes, traces.items(), strict=True):
        for rank, tasks in enumerate(ranks):
            for task in tasks:
                kind = task["kind"]
                span = (task["begin"] * 1e3, (task["end"] - task["begin"]) * 1e3)
                axis.broken_barh(
                    [span], (lanes.index(f"rank {rank} {kind}") - 0.4, 0.8), facecolor=colors[kind], edgecolor="white"
                )
        axis.set_yticks(range(len(lanes)), lanes)
        axis.invert_yaxis()
        axis.set_title("npu_mm_all_reduce_base" if way == "fused" else "torch.mm, then all_reduce", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("milliseconds after the first task")
    figure.legend(
        handles=[Patch(color=color, label=kind) for kind, color in colors.items()],
        loc="outside lower center",
        ncols=2,
        fontsize=8,
        frameon=False,
    )
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Measure all problems in turns and print a table, or draw the picture."""
    parser = argparse.ArgumentParser(description="fused products and collectives between two processes")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--samples", type=int, default=9)
    parser.add_argument("--only", default="", help="measure the problems whose name contains this")
    parser.add_argument("--picture", type=Path, help="draw the tasks of both streams to this file instead")
    parser.add_argument("--worker", nargs=2, metavar=("RANK", "STORE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(int(options.worker[0]), options.worker[1])

    pair = Pair()
    results = []
    try:
        if options.picture:
            return draw(pair, options.picture)
        for problem in PROBLEMS:
            if options.only not in problem:
                continue
            calls = calls_for(problem)
            times: dict[str, list[float]] = {way: [] for way in WAYS}
            for way in WAYS:
                pair.seconds(problem, way, 1)  # maps the memory, fills the caches
            for turn in range(options.samples):
                for way in WAYS if turn % 2 == 0 else reversed(WAYS):
                    times[way].append(pair.seconds(problem, way, calls))
            medians = {way: statistics.median(values) for way, values in times.items()}
            ratio = medians["fused"] / medians["separate"]
            results.append(
                {
                    "problem": problem,
                    "milliseconds": {way: 1e3 * value for way, value in medians.items()},
                    "best_milliseconds": {way: 1e3 * min(values) for way, values in times.items()},
                    "ratio": ratio,
                }
            )
            parts = "   ".join(f"{way} {1e3 * median:8.2f} ms" for way, median in medians.items())
            print(f"{problem}\n    {parts}   fused / separate {ratio:.3f}", flush=True)
    finally:
        pair.close()
    if options.json:
        options.json.write_text(json.dumps({"ranks": RANKS, "samples": options.samples, "results": results}, indent=1))


if __name__ == "__main__":
    main()
