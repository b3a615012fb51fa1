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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ..harness import Case, Settings

RANKS = 2
EXPERTS = 4  # per rank


@dataclass(frozen=True)
class Problem:
    """One operator with the sizes and types of what it gets.

    Parameters
    ----------
    operator : str
        A key of `OPERATORS`.
    rows, inner, columns : int
        Of one rank's product.
    kind : str
        Type of both factors, ``"int8"`` with scales of the columns, or the type of the first one followed by
        ``" with int8 weights"``.
    """

    operator: str
    rows: int
    inner: int
    columns: int
    kind: str = "bfloat16"

    @property
    def name(self) -> str:
        """The problem in words, unique."""
        return f"{OPERATORS[self.operator]} {self.rows}x{self.inner}x{self.columns} {self.kind}"


OPERATORS = {
    "all_reduce": "mm + all_reduce",
    "reduce_scatter": "mm + reduce_scatter",
    "all_gather": "all_gather + mm",
    "to_experts": f"alltoallv + gmm of {EXPERTS} experts per rank",
    "from_experts": f"gmm of {EXPERTS} experts per rank + alltoallv",
}
TARGET = Problem("all_reduce", 2048, 4096, 4096)
PICTURE = Problem("all_reduce", 2048, 256, 4096)
PROBLEMS = {
    problem.name: problem
    for problem in (
        TARGET,
        PICTURE,
        Problem("all_reduce", 16, 4096, 4096),
        Problem("all_reduce", 2048, 512, 4096, "float16"),
        Problem("all_reduce", 2048, 512, 4096, "int8"),
        Problem("all_reduce", 2048, 512, 4096, "bfloat16 with int8 weights"),
        Problem("reduce_scatter", 2048, 512, 4096),
        Problem("all_gather", 1024, 4096, 512),
        Problem("to_experts", 2048, 2048, 512),
        Problem("from_experts", 2048, 512, 2048),
        Problem("all_reduce", 16, 4096, 4096, "bfloat16 with int8 weights"),
    )
}
TARGET_RATIO = 1.0
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


def fastest(*candidates: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """The quickest of several ways to compute the same."""
    import torch

    def seconds(candidate: Callable[[], torch.Tensor]) -> float:
        begin = time.perf_counter()
        candidate()
        torch.npu.synchronize()
        return time.perf_counter() - begin

    for candidate in candidates:
        candidate()
    return min(candidates, key=lambda candidate: min(seconds(candidate), seconds(candidate)))


def product_of(problem: Problem) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor], Callable]:
    """Factors, scales of the fused all_reduce, and the best plain product, which calls nothing but operators of torch.

    Scales are powers of two: it makes no difference to the values whether a weight is scaled or a product.
    """
    import torch

    shapes = (problem.rows, problem.inner), (problem.inner, problem.columns)

    def integers(shape: tuple[int, int]) -> torch.Tensor:
        return torch.randint(-128, 128, shape, dtype=torch.int8, device="npu")

    def scales(dtype: torch.dtype) -> torch.Tensor:
        return (2.0 ** -torch.randint(8, 11, (problem.columns,), device="npu")).to(dtype)

    if problem.kind == "int8":
        x, weight, scale = integers(shapes[0]), integers(shapes[1]), scales(torch.float32)

        def in_one_pass() -> torch.Tensor:
            target = torch.empty(problem.rows, problem.columns, dtype=torch.float16, device="npu")
            return torch.mul(torch._int_mm(x, weight), scale, out=target)

        product = fastest(in_one_pass, lambda: (torch._int_mm(x, weight) * scale).half())
        return x, weight, {"dequant_scale": scale}, product
    dtype = getattr(torch, problem.kind.split()[0])
    x = torch.randn(shapes[0], device="npu").to(dtype)
    if problem.kind.endswith("with int8 weights"):
        weight, scale = integers(shapes[1]), scales(dtype)
        product = fastest(
            lambda: torch.mm(x, weight.to(dtype).mul_(scale)), lambda: torch.mm(x, weight.to(dtype)).mul_(scale)
        )
        return x, weight, {"antiquant_scale": scale}, product
    weight = torch.randn(shapes[1], device="npu").to(dtype)
    product = fastest(lambda: torch.mm(x, weight), lambda: torch.mm(x.float(), weight.float()).to(dtype))
    return x, weight, {}, product


def require_same(problem: Problem, ways: dict[str, Callable], rank: int) -> None:
    """Raise AssertionError when the operator and its parts give more different results than roundings explain."""
    import torch
    import torch.distributed as dist

    fused, separate = ways["fused"](), ways["separate"]()
    fused = fused if isinstance(fused, torch.Tensor) else fused[0]
    roundings = 2 * separate.float().abs()  # of the results
    if problem.operator in ("all_reduce", "reduce_scatter"):
        terms = ways["product"]().float().abs()
        dist.all_reduce(terms)
        if problem.operator == "reduce_scatter":
            terms = terms.chunk(RANKS)[rank]
        roundings += 2 * terms  # a 16-bit type may carry the terms, here and there
    limit = torch.finfo(fused.dtype).eps / 2 * 1.01 * roundings + 2.0**-20 * problem.inner
    worst = ((fused.float() - separate.float()).abs() - limit).max().item()
    if fused.dtype != separate.dtype or fused.shape != separate.shape or not worst <= 0:
        raise AssertionError(
            f"{problem.name}, rank {rank}: the operator gives {fused.dtype} {tuple(fused.shape)}, its parts give "
            f"{separate.dtype} {tuple(separate.shape)}, {worst:.3g} further apart than roundings explain"
        )


def ways_of(problem: Problem, rank: int) -> dict[str, Callable]:
    """Make the tensors of a problem; return what to call for each way."""
    import torch
    import torch.distributed as dist

    name = dist.group.WORLD._get_backend(torch.device("npu")).get_hccl_comm_name(rank)
    npu = torch.ops.npu
    torch.manual_seed(rank)
    if problem.operator in ("to_experts", "from_experts"):
        return ways_of_experts(problem, name)
    x, weight, scales, product = product_of(problem)
    shape = (problem.rows, problem.columns)
    # What is summed in place again and again consists of zeros, which do not grow.
    terms = torch.zeros(shape, dtype=product().dtype, device="npu")

    def all_reduced(tensor: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(tensor)
        return tensor

    def scattered(tensor: torch.Tensor) -> torch.Tensor:
        target = tensor.new_empty(tensor.size(0) // RANKS, tensor.size(1))
        dist.reduce_scatter_single(target, tensor)
        return target

    def gathered(tensor: torch.Tensor) -> torch.Tensor:
        target = tensor.new_empty(tensor.size(0) * RANKS, tensor.size(1))
        dist.all_gather_single(target, tensor)
        return target

    if problem.operator == "all_reduce":
        return {
            "fused": lambda: npu.npu_mm_all_reduce_base(x, weight, name, **scales),
            "separate": lambda: all_reduced(product()),
            "product": product,
            "communication": lambda: all_reduced(terms),
        }
    if problem.operator == "reduce_scatter":
        return {
            "fused": lambda: npu.npu_mm_reduce_scatter_base(x, weight, name, RANKS),
            "separate": lambda: scattered(product()),
            "product": product,
            "communication": lambda: scattered(terms),
        }
    every_row = gathered(x)
    return {
        "fused": lambda: npu.npu_all_gather_base_mm(x, weight, name, RANKS),
        "separate": lambda: torch.mm(gathered(x), weight),
        "product": lambda: torch.mm(every_row, weight),
        "communication": lambda: gathered(x),
    }


def ways_of_experts(problem: Problem, name: str) -> dict[str, Callable]:
    """The same for products of experts, each of which gets as many rows from each rank."""
    import torch
    import torch.distributed as dist

    npu, rows = torch.ops.npu, problem.rows
    x = torch.randn(rows, problem.inner, device="npu").bfloat16()
    weights = torch.randn(EXPERTS, problem.inner, problem.columns, device="npu").bfloat16()
    block = rows // (RANKS * EXPERTS)
    counts = [block] * (RANKS * EXPERTS)

    def grouped(source: torch.Tensor) -> torch.Tensor:
        return torch.bmm(source.view(EXPERTS, -1, problem.inner), weights).view(-1, problem.columns)

    def reordered(source: torch.Tensor, first: int, second: int) -> torch.Tensor:
        return source.view(first, second, block, -1).transpose(0, 1).reshape(rows, -1)

    def exchanged(source: torch.Tensor) -> torch.Tensor:
        target = torch.empty_like(source)
        dist.all_to_all_single(target, source)
        return target

    if problem.operator == "to_experts":
        return {
            "fused": lambda: npu.npu_alltoallv_gmm(x, weights, name, RANKS, counts, counts),
            "separate": lambda: grouped(reordered(exchanged(x), RANKS, EXPERTS)),
            "product": lambda: grouped(x),
            "communication": lambda: exchanged(x),
        }
    products = grouped(x)
    return {
        "fused": lambda: npu.npu_gmm_alltoallv(x, weights, name, RANKS, counts, counts),
        "separate": lambda: exchanged(reordered(grouped(x), EXPERTS, RANKS)),
        "product": lambda: grouped(x),
        "communication": lambda: exchanged(products),
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
    problem, ways = "", dict[str, Callable]()
    for line in sys.stdin:
        request = json.loads(line)
        if request["problem"] != problem:
            problem = request["problem"]
            ways = ways_of(PROBLEMS[problem], rank)
            require_same(PROBLEMS[problem], ways, rank)
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
    sizes = PROBLEMS[problem]
    return max(1, min(20, int(2e10 / (2.0 * sizes.rows * sizes.inner * sizes.columns))))


def cases(settings: Settings) -> Iterator[Case]:
    """Two cases per problem: against separate operators, and against the product alone."""
    from ..harness import Case, Target

    pair = Pair()
    try:
        for problem in list(PROBLEMS)[-2:] if settings.quick else PROBLEMS:
            measure = partial(pair.seconds, problem, calls=calls_for(problem))
            yield Case(
                name=f"{problem}, {RANKS} processes",
                subject=partial(measure, "fused"),
                baseline=partial(measure, "separate"),
                self_timed=True,
                allocators=("default",),
                target=Target("ratio", TARGET_RATIO, allocator="default") if problem == TARGET.name else None,
                note="baseline = the fastest product of operators of torch, then the collective, on npu",
            )
            yield Case(
                name=f"{problem}, against the product alone",
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
        pair.seconds(PICTURE.name, way, 3)

    def length(ranks: list[list[dict[str, Any]]]) -> float:
        return max(float(task["end"]) for tasks in ranks for task in tasks)

    # The shortest of some calls: the one in which nothing else ran on the machine.
    traces = {way: min((pair.trace(PICTURE.name, way) for _ in range(40)), key=length) for way in ("separate", "fused")}
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
