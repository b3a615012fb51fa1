"""Dispatch and combine of a mixture of experts between two processes against the same composed of all_to_all_single.

Also runs by itself, from the repository's root: ``python -m benchmarks.suites.mc2_moe``.
"""

from __future__ import annotations

import argparse
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

RANKS, EXPERTS, TOP_K, HIDDEN = 2, 64, 8, 7168
TOKENS = {"decode": 8, "prefill": 512}


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

    def seconds(self, way: str, tokens: int, calls: int) -> float:
        """Time of one dispatch and combine, the mean of `calls` in a row, on the slowest rank."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{way} {tokens} {calls}\n")
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


def composed(x: Any, ids: Any, weights: Any) -> Any:
    """The same from sorting, indexing and all_to_all_single; the host has to know the numbers of rows."""
    import torch
    import torch.distributed as dist

    tokens = x.shape[0]
    flat = ids.flatten()
    order = flat.argsort(stable=True)
    sent = torch.bincount(flat, minlength=EXPERTS)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    input_splits = sent.view(RANKS, -1).sum(1).tolist()
    output_splits = received.view(RANKS, -1).sum(1).tolist()
    rows = x.index_select(0, order // TOP_K)
    arrived = x.new_empty((sum(output_splits), HIDDEN))
    dist.all_to_all_single(arrived, rows, output_splits, input_splits)
    local = torch.arange(EXPERTS // RANKS, device=x.device).repeat(RANKS).repeat_interleave(received)
    by_expert = local.argsort(stable=True)
    expert_rows = arrived.index_select(0, by_expert)
    # The experts would work here.
    back = torch.empty_like(arrived)
    back[by_expert] = expert_rows
    returned = torch.empty_like(rows)
    dist.all_to_all_single(returned, back, input_splits, output_splits)
    slots = torch.empty_like(returned)
    slots[order] = returned
    return (slots.view(tokens, TOP_K, HIDDEN).float() * weights[..., None]).sum(1).to(x.dtype)


def work(rank: int, store: str) -> None:
    """Serve one rank: answer each "way tokens calls" on stdin with the seconds it took."""
    import torch
    import torch.distributed as dist

    torch.npu.set_device(rank)
    dist.init_process_group("hccl", store=dist.FileStore(store, RANKS), rank=rank, world_size=RANKS)
    name = dist.group.WORLD._get_backend(torch.device("npu")).get_hccl_comm_name(rank)
    where = (name, RANKS, rank, EXPERTS)

    def fused(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        rows, _, assist, _, counts, _, _ = torch.ops.npu.npu_moe_distribute_dispatch_v2(x, ids, *where)
        return torch.ops.npu.npu_moe_distribute_combine_v2(rows, ids, assist, counts, weights, *where)

    ways: dict[str, Callable[..., torch.Tensor]] = {"fused": fused, "composed": composed}
    inputs: dict[int, tuple[torch.Tensor, ...]] = {}
    for line in sys.stdin:
        way, tokens, calls = line.split()[0], *map(int, line.split()[1:])
        if tokens not in inputs:
            generator = torch.Generator().manual_seed(rank)
            ids = torch.rand(tokens, EXPERTS, generator=generator).topk(TOP_K).indices.int()
            weights = torch.rand(tokens, TOP_K, generator=generator).softmax(1)
            x = torch.randn(tokens, HIDDEN, generator=generator).bfloat16()
            inputs[tokens] = (x.npu(), ids.npu(), weights.npu())
            fast, slow = fused(*inputs[tokens]), composed(*inputs[tokens])
            torch.testing.assert_close(fast, slow, rtol=2**-7, atol=1e-5)
        run = ways[way]
        torch.npu.synchronize()
        dist.barrier()
        begin = time.perf_counter()
        for _ in range(calls):
            run(*inputs[tokens])
        torch.npu.synchronize()
        print(time.perf_counter() - begin, flush=True)
    dist.destroy_process_group()


def calls_for(tokens: int) -> int:
    """Calls of a sample."""
    return max(2, 256 // tokens)


def cases(settings: Settings) -> Iterator[Case]:
    """One case per number of tokens."""
    from ..harness import Case

    pair = Pair()
    try:
        for name, tokens in TOKENS.items():
            if settings.quick and name != "decode":
                continue
            calls = calls_for(tokens)
            yield Case(
                name=f"{name}: {tokens} tokens x {HIDDEN} bfloat16, {EXPERTS} experts, top {TOP_K}, {RANKS} processes",
                subject=partial(pair.seconds, "fused", tokens, calls),
                baseline=partial(pair.seconds, "composed", tokens, calls),
                bytes_moved=2.0 * tokens * TOP_K * HIDDEN * 2,
                self_timed=True,
                allocators=("default",),
                note="dispatch and combine; baseline = all_to_all_single and indexing on npu",
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
        for name, tokens in TOKENS.items():
            calls = calls_for(tokens)
            times: dict[str, list[float]] = {"fused": [], "composed": []}
            for way in times:
                pair.seconds(way, tokens, calls)  # allocates, fills the caches
            for turn in range(options.samples):
                for way in sorted(times, reverse=turn % 2 == 1):
                    times[way].append(pair.seconds(way, tokens, calls))
            medians = {way: statistics.median(values) * 1e3 for way, values in times.items()}
            best = {way: min(values) * 1e3 for way, values in times.items()}
            print(
                f"{name:>8}  fused {medians['fused']:8.3f} ms (best {best['fused']:8.3f})   "
                f"composed {medians['composed']:8.3f} ms (best {best['composed']:8.3f})   "
                f"{medians['composed'] / medians['fused']:5.2f}x",
                flush=True,
            )
    finally:
        pair.close()


if __name__ == "__main__":
    main()
