"""Dispatch and combine of a mixture of experts between two processes against the same composed of all_to_all_single.

Also runs by itself, from the repository's root: ``python -m benchmarks.suites.mc2_moe``.
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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ..harness import Case, Settings

RANKS, EXPERTS, TOP_K, HIDDEN = 2, 64, 8, 7168
#: Name -> tokens of each rank and the type in which they travel to the experts; int8 has a scale for each token.
PROBLEMS = {
    "decode": (8, "bfloat16"),
    "prefill": (512, "bfloat16"),
    "prefill float16": (512, "float16"),
    "decode int8": (8, "int8"),
    "prefill int8": (512, "int8"),
}


class Pair:
    """Two processes that take tokens to their experts and back when told."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(RANKS)}
        store = Path(self._folder.name, "store")
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.suites.mc2_moe", "--worker", str(rank), str(store)],
                cwd=Path(__file__).parents[2],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for rank in range(RANKS)
        ]

    def seconds(self, problem: str, way: str, calls: int) -> float:
        """Time of one dispatch and combine, the mean of `calls` in a row, on the slowest rank."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps([problem, way, calls]) + "\n")
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


@dataclass(frozen=True)
class Inputs:
    """What a rank brings."""

    x: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    is_quantised: bool


@dataclass(frozen=True)
class Arrived:
    """Rows by expert, their scales if they are int8, and what the way back needs to know."""

    rows: torch.Tensor
    scales: torch.Tensor | None
    way_back: tuple


class Fused:
    """The operators."""

    def __init__(self, name: str, rank: int) -> None:
        self._where = (name, RANKS, rank, EXPERTS)

    def dispatch(self, given: Inputs) -> Arrived:
        """Rows to the ranks of their experts."""
        import torch

        mode = 2 if given.is_quantised else 0
        results = torch.ops.npu.npu_moe_distribute_dispatch_v2(given.x, given.ids, *self._where, quant_mode=mode)
        return Arrived(results[0], results[1] if given.is_quantised else None, (results[2], results[4]))

    def combine(self, rows: torch.Tensor, way_back: tuple, given: Inputs) -> torch.Tensor:
        """And back."""
        import torch

        return torch.ops.npu.npu_moe_distribute_combine_v2(rows, given.ids, *way_back, given.weights, *self._where)


class Composed:
    """The same from sorting, gathering and all_to_all_single; the host has to know the numbers of rows."""

    def dispatch(self, given: Inputs) -> Arrived:
        """Rows to the ranks of their experts."""
        import torch
        import torch.distributed as dist

        flat = given.ids.flatten()
        order = flat.argsort(stable=True)
        sent = torch.bincount(flat, minlength=EXPERTS)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        splits = sent.view(RANKS, -1).sum(1).tolist(), received.view(RANKS, -1).sum(1).tolist()
        local = torch.arange(EXPERTS // RANKS, device=sent.device).repeat(RANKS).repeat_interleave(received)
        by_expert = local.argsort(stable=True)

        def exchanged(tokens: torch.Tensor) -> torch.Tensor:
            target = tokens.new_empty((sum(splits[1]), *tokens.shape[1:]))
            dist.all_to_all_single(target, tokens.index_select(0, order // TOP_K), splits[1], splits[0])
            return target.index_select(0, by_expert)

        way_back = (inverse(by_expert), inverse(order), splits)
        if not given.is_quantised:
            return Arrived(exchanged(given.x), None, way_back)
        values = given.x.float()
        largest = values.abs().amax(1)
        steps = torch.full_like(largest, 127).div_(largest)  # 127 / largest would round twice
        quantised = values.mul_(steps[:, None]).round_().to(torch.int8)
        return Arrived(exchanged(quantised), exchanged(largest / 127), way_back)

    def combine(self, rows: torch.Tensor, way_back: tuple, given: Inputs) -> torch.Tensor:
        """And back."""
        import torch
        import torch.distributed as dist

        as_arrived, as_sent, splits = way_back
        returned = rows.new_empty((len(as_sent), HIDDEN))
        dist.all_to_all_single(returned, rows.index_select(0, as_arrived), splits[0], splits[1])
        slots = returned.index_select(0, as_sent).view(-1, TOP_K, HIDDEN)
        return torch.bmm(given.weights[:, None], slots.float()).squeeze(1).to(rows.dtype)


def inverse(order: torch.Tensor) -> torch.Tensor:
    """The permutation that undoes `order`: rows are gathered by it faster than they are scattered by the other."""
    import torch

    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


def ways_of(problem: str, name: str, rank: int) -> dict[str, Callable]:
    """Make the tensors of a problem and see that both ways give the same; return what to call for each."""
    import torch

    tokens, kind = PROBLEMS[problem]
    dtype = torch.float16 if kind == "float16" else torch.bfloat16
    generator = torch.Generator().manual_seed(rank)
    ids = torch.rand(tokens, EXPERTS, generator=generator).topk(TOP_K).indices.int()
    weights = torch.rand(tokens, TOP_K, generator=generator).softmax(1)
    x = torch.randn(tokens, HIDDEN, generator=generator).to(dtype)
    given = Inputs(x.npu(), ids.npu(), weights.npu(), kind == "int8")

    def way(operators: Fused | Composed) -> tuple[torch.Tensor, Callable[[], torch.Tensor]]:
        first = operators.dispatch(given)
        # The experts, which would work here, give what they got; what they do to int8 rows is not measured.
        results = first.rows
        if first.scales is not None:
            results = (first.rows * first.scales[:, None]).to(dtype)

        def run() -> torch.Tensor:
            arrived = operators.dispatch(given)
            return operators.combine(results if given.is_quantised else arrived.rows, arrived.way_back, given)

        return run(), run

    (fast, fused), (slow, composed) = way(Fused(name, rank)), way(Composed())
    # Both sum in float32 and round once: they differ by one unit of the last place at most.
    torch.testing.assert_close(fast, slow, rtol=torch.finfo(dtype).eps, atol=1e-5)
    return {"fused": fused, "composed": composed}


def work(rank: int, store: str) -> None:
    """Serve one rank: answer each [problem, way, calls] on stdin with the seconds it took."""
    import torch
    import torch.distributed as dist

    torch.npu.set_device(rank)
    dist.init_process_group("hccl", store=dist.FileStore(store, RANKS), rank=rank, world_size=RANKS)
    name = dist.group.WORLD._get_backend(torch.device("npu")).get_hccl_comm_name(rank)
    ways: dict[str, dict[str, Callable]] = {}
    for line in sys.stdin:
        problem, way, calls = json.loads(line)
        if problem not in ways:
            ways[problem] = ways_of(problem, name, rank)
        run = ways[problem][way]
        torch.npu.synchronize()
        dist.barrier()
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        torch.npu.synchronize()
        print(time.perf_counter() - begin, flush=True)
    dist.destroy_process_group()


def calls_for(problem: str) -> int:
    """Calls of a sample."""
    return max(2, 256 // PROBLEMS[problem][0])


def cases(settings: Settings) -> Iterator[Case]:
    """One case per problem."""
    from ..harness import Case

    pair = Pair()
    try:
        for problem, (tokens, kind) in PROBLEMS.items():
            if settings.quick and not problem.startswith("decode"):
                continue
            calls = calls_for(problem)
            size = 2 if kind != "int8" else 1.5  # bytes of a number, the mean of both directions
            yield Case(
                name=f"{problem.split()[0]}: {tokens} tokens x {HIDDEN} {kind}, {EXPERTS} experts, top {TOP_K}, "
                f"{RANKS} processes",
                subject=partial(pair.seconds, problem, "fused", calls),
                baseline=partial(pair.seconds, problem, "composed", calls),
                bytes_moved=2.0 * tokens * TOP_K * HIDDEN * size,
                self_timed=True,
                allocators=("default",),
                note="dispatch and combine; baseline = all_to_all_single and gathering on npu",
            )
    finally:
        pair.close()


def main() -> None:
    """Measure in turns and print a table."""
    parser = argparse.ArgumentParser(description="dispatch and combine between two processes")
    parser.add_argument("--samples", type=int, default=9)
    parser.add_argument("--worker", nargs=2, metavar=("RANK", "STORE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        rank, store = options.worker
        return work(int(rank), store)

    pair = Pair()
    try:
        for problem in PROBLEMS:
            calls = calls_for(problem)
            times: dict[str, list[float]] = {"fused": [], "composed": []}
            for way in times:
                pair.seconds(problem, way, calls)  # allocates, fills the caches
            for turn in range(options.samples):
                for way in sorted(times, reverse=turn % 2 == 1):
                    times[way].append(pair.seconds(problem, way, calls))
            medians = {way: statistics.median(values) * 1e3 for way, values in times.items()}
            best = {way: min(values) * 1e3 for way, values in times.items()}
            print(
                f"{problem:>16}  fused {medians['fused']:8.3f} ms (best {best['fused']:8.3f})   "
                f"composed {medians['composed']:8.3f} ms (best {best['composed']:8.3f})   "
                f"{medians['composed'] / medians['fused']:5.2f}x",
                flush=True,
            )
    finally:
        pair.close()


if __name__ == "__main__":
    main()
