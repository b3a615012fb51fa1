"""Random collectives, messages and fused operators over overlapping groups for a long time.

Every result is checked, nothing may grow.

    python packages/npu-distributed/tests/soak.py --calls 20000 --groups 3 --ranks 2 --seed 7

All ranks draw the same program from the seed: kind of call, group, type, size, root, splits.  Up to eight works are
pending at a time and are waited for in another order on every rank.  After every 500 calls each rank reports its
resident memory, descriptors, mappings and threads.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from hccl_testing.reference import (
    REDUCED,
    TRANSPORT,
    as_bytes,
    assert_same,
    assert_same_copy,
    contribution,
    pool,
    reduced,
)
from mc2_reference import comm_name

CHUNK = 500
MOST_PENDING = 8
# What a rank may grow by once it is warm: allocators still meet new sizes, streams wake more workers.
GROWTH_LIMITS = {"heap": 8 << 20, "shared": 32 << 20, "descriptors": 0, "threads": 4}

Check = Callable[[], None]


@dataclass
class Program:
    """The random program of one rank."""

    rank: int
    shared: random.Random  # decisions that all ranks take alike
    own: random.Random  # and those that each takes for itself
    groups: list[tuple[list[int], dist.ProcessGroup]]
    pending: list[tuple[list[dist.Work], Check]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def step(self) -> None:
        """One call on one group; ranks outside the group draw the same numbers."""
        members, group = self.shared.choice(self.groups)
        kind = self.shared.choices(list(CALLS), [weight for weight, _ in CALLS.values()])[0]
        call = CALLS[kind][1]
        seed = self.shared.random()
        if self.rank not in members:
            return
        works, check = call(self, random.Random(seed), members, group)
        self.counts[kind] += 1
        self.pending.append(([work for work in works if work is not None], check))
        while len(self.pending) > self.own.randrange(MOST_PENDING):
            self.finish(self.own.randrange(len(self.pending)))

    def finish(self, index: int) -> None:
        """Wait for one pending call and check what it gave."""
        works, check = self.pending.pop(index)
        for work in works:
            work.wait()
        check()

    def drain(self) -> None:
        """Finish everything that is pending."""
        while self.pending:
            self.finish(0)


def size_of_call(draw: random.Random) -> int:
    """Mostly small, around the inline limit now and then, sometimes large."""
    kind = draw.random()
    if kind < 0.04:
        return draw.randrange(200_000, 400_000)
    if kind < 0.12:
        return draw.choice((0, 1))
    return int(2 ** draw.uniform(0, 14))


def empty(count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(count, dtype=dtype, device="npu")


def transported(draw: random.Random) -> torch.dtype:
    return getattr(torch, draw.choice(TRANSPORT))


def joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """torch.cat, which does not know all types."""
    return torch.cat([as_bytes(part) for part in parts]).view(parts[0].dtype)


def all_reduce(program: Program, draw: random.Random, members: list[int], group: dist.ProcessGroup):
    dtype = getattr(torch, draw.choice(REDUCED))
    op, count, salt = draw.choice(("SUM", "AVG", "PRODUCT", "MIN", "MAX")), size_of_call(draw), draw.randrange(1000)
    tensor = contribution(program.rank, count, dtype, salt).npu()
    root = draw.choice((None, None, *members))
    reduce_op = getattr(dist.ReduceOp, op)
    if root is None:
        work = dist.all_reduce(tensor, reduce_op, group=group, async_op=True)
    else:
        work = dist.reduce(tensor, root, reduce_op, group=group, async_op=True)

    def check() -> None:
        parts = [contribution(r, count, dtype, salt) for r in members]
        expected = reduced(parts, op) if root in (None, program.rank) else parts[members.index(program.rank)]
        assert_same(tensor, expected, f"reduction {op} of {count} {dtype}", signed_zero=op not in ("MIN", "MAX"))

    return [work], check


def all_reduce_list(program: Program, draw: random.Random, members: list[int], group: dist.ProcessGroup):
    counts, salt = [size_of_call(draw) // 4 for _ in range(draw.randrange(1, 5))], draw.randrange(1000)
    tensors = [contribution(program.rank, count, torch.float32, salt).npu() for count in counts]
    with dist._coalescing_manager(group, torch.device("npu", program.rank), async_ops=True) as manager:
        for tensor in tensors:
            dist.all_reduce(tensor, group=group)

    def check() -> None:
        for tensor, count in zip(tensors, counts, strict=True):
            assert_same(tensor, reduced([contribution(r, count, torch.float32, salt) for r in members], "SUM"), "list")

    return [manager], check


def broadcast(program: Program, draw: random.Random, members: list[int], group: dist.ProcessGroup):
    dtype, count, root = transported(draw), size_of_call(draw), draw.choice(members)
    tensor = contribution(program.rank, count, dtype).npu()
    work = dist.broadcast(tensor, root, group=group, async_op=True)
    return [work], lambda: assert_same_copy(tensor, contribution(root, count, dtype), f"broadcast of {count} {dtype}")


def all_gather(program: Program, draw: random.Random, members: list[int], group: dist.ProcessGroup):
    dtype = transported(draw)
    counts = [size_of_call(draw)] * len(members)
    even = draw.random() < 0.7
    if not even:
        counts = [size_of_call(draw) for _ in members]
    parts = [contribution(r, n, dtype) for r, n in zip(members, counts, strict=True)]
    source = parts[members.index(program.rank)].npu()
    output = empty(sum(counts), dtype)
    if even:
        work = dist.all_gather_into_tensor(output, source, group=group, async_op=True)
    else:
        work = dist.all_gather(list(output.split(counts)), source, group=group, async_op=True)
    return [work], lambda: assert_same_copy(output, joined(parts), f"all_gather of {counts} {dtype}")


def reduce_scatter(program: Program, draw: random.Random, members: list[int], group: dist.ProcessGroup):
    dtype = getattr(torch, draw.choice([name for name in REDUCED if name not in ("uint8", "bool")]))
    op, count = draw.choice(("SUM", "AVG", "MAX")), size_of_call(draw) // len(members)
    size, own = len(members), members.index(program.rank)
    output = empty(count, dtype)
    source = contribution(program.rank, size * count, dtype).npu()
    work = dist.reduce_scatter_tensor(output, source, getattr(dist.ReduceOp, op), group=group, async_op=True)

    def check() -> None:
        parts = [contribution(r, size * count, dtype)[own * count : (own + 1) * count] for r in members]
        assert_same(output, reduced(parts, op), f"reduce_scatter of {count} {dtype}", signed_zero=op != "MAX")

    return [work], check


def all_to_all(program: Program, draw: random.Random, members: list[int], group: dist.ProcessGroup):
    dtype, size, own = transported(draw), len(members), members.index(program.rank)
    splits = [[size_of_call(draw) // size for _ in members] for _ in members]
    received = [splits[q][own] for q in range(size)]
    output = empty(sum(received), dtype)
    source = contribution(program.rank, sum(splits[own]), dtype).npu()
    work = dist.all_to_all_single(output, source, received, splits[own], group=group, async_op=True)

    def check() -> None:
        sent = [contribution(r, sum(splits[q]), dtype).split(splits[q])[own] for q, r in enumerate(members)]
        assert_same_copy(output, joined(sent), f"all_to_all of {splits} {dtype}")

    return [work], check


def scatter_and_gather(program: Program, draw: random.Random, members: list[int], group: dist.ProcessGroup):
    dtype, count, root = transported(draw), size_of_call(draw), draw.choice(members)
    parts = [contribution(r, count, dtype) for r in members]
    output = empty(count, dtype)
    collected = [empty(count, dtype) for _ in members] if program.rank == root else None
    sent = [part.npu() for part in parts] if program.rank == root else None
    first = dist.scatter(output, sent, root, group=group, async_op=True)
    second = dist.gather(output, collected, root, group=group, async_op=True)

    def check() -> None:
        assert_same_copy(output, parts[members.index(program.rank)], f"scatter of {count} {dtype}")
        if collected is not None:
            assert_same_copy(joined([t.cpu() for t in collected]), joined(parts), f"gather of {count} {dtype}")

    return [first, second], check


def ring(program: Program, draw: random.Random, members: list[int], group: dist.ProcessGroup):
    """Everybody sends to the next and receives from the one before, as one batch in any order."""
    dtype, counts, own = transported(draw), [size_of_call(draw) for _ in members], members.index(program.rank)
    after, before = members[(own + 1) % len(members)], members[own - 1]
    received = empty(counts[own - 1], dtype)
    operations = [
        dist.P2POp(dist.isend, contribution(program.rank, counts[own], dtype).npu(), after, group),
        dist.P2POp(dist.irecv, received, before, group),
    ]
    program.own.shuffle(operations)
    works = dist.batch_isend_irecv(operations)
    expected = contribution(before, counts[own - 1], dtype)
    return works, lambda: assert_same_copy(received, expected, f"ring of {counts} {dtype}")


def message(program: Program, draw: random.Random, members: list[int], group: dist.ProcessGroup):
    """One rank to another; nobody else takes part."""
    dtype, count, (source, target) = transported(draw), size_of_call(draw), draw.sample(members, 2)
    sent = contribution(source, count, dtype)
    if program.rank == source:
        return [dist.isend(sent.npu(), target, group=group)], lambda: None
    if program.rank == target:
        received = empty(count, dtype)
        work = dist.irecv(received, source, group=group)
        return [work], lambda: assert_same_copy(received, sent, f"message of {count} {dtype}")
    return [], lambda: None


def whole_numbers(shape: tuple[int, ...], seed: str, dtype: torch.dtype, largest: int = 2) -> torch.Tensor:
    """Small ones: their products and sums are exact in float32, and so is what the operators make of them."""
    generator = torch.Generator().manual_seed(random.Random(seed).randrange(1 << 60))
    return torch.randint(-largest, largest + 1, shape, generator=generator).to(dtype)


def mm_all_reduce(program: Program, draw: random.Random, members: list[int], group: dist.ProcessGroup):
    """Products, summed over the ranks; sometimes in several tiles."""
    dtype, salt = draw.choice((torch.float16, torch.bfloat16, torch.int8)), draw.randrange(1000)
    # Of few shapes: the library that multiplies bfloat16 keeps its code for each of the last thousand.
    rows, inner, columns = draw.choice((1, 7, 32, 77)), draw.choice((1, 16, 59)), draw.choice((3, 40, 89))
    if draw.random() < 0.04:
        rows, columns = draw.choice((950, 1100)), 1300
    shapes = (rows, inner), (inner, columns)

    def operands(of: int) -> list[torch.Tensor]:
        return [whole_numbers(shape, f"{salt} {of} {i}", dtype) for i, shape in enumerate(shapes)]

    x, weight = operands(program.rank)
    scales = {"dequant_scale": torch.tensor([0.5]).npu()} if dtype == torch.int8 else {}
    name = comm_name(program.rank, group)
    result = torch.ops.npu.npu_mm_all_reduce_base(x.npu(), weight.npu(), name, **scales)

    def check() -> None:
        total = torch.zeros(rows, columns)
        for of in members:
            x, weight = operands(of)
            total += x.float() @ weight.float()
        expected = (total * 0.5).half() if dtype == torch.int8 else total.to(dtype)
        assert_same(result, expected, f"mm_all_reduce {rows} x {inner} x {columns} {dtype}", signed_zero=False)

    return [], check


def to_experts_and_back(program: Program, draw: random.Random, members: list[int], group: dist.ProcessGroup):
    """Dispatch, experts that multiply by their number, and combine."""
    size, own, salt = len(members), members.index(program.rank), draw.randrange(1000)
    tokens, hidden, dtype = [draw.randrange(40) for _ in members], draw.randrange(1, 600), torch.bfloat16
    local = draw.randrange(1, 4)
    experts = local * size
    top = draw.randrange(1, min(4, experts) + 1)
    suffix = draw.choice(("", "_v2"))

    def tensors(of: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        seed = f"{salt} {of}"
        ids = whole_numbers((tokens[of], experts), seed + " ids", torch.float32, 1 << 20).argsort(1)[:, :top].int()
        weights = 2.0 ** whole_numbers((tokens[of], top), seed + " weights", torch.float32)
        return whole_numbers((tokens[of], hidden), seed, dtype), ids, weights

    x, ids, weights = (tensor.npu() for tensor in tensors(own))
    where = (comm_name(program.rank, group), size, own, experts)
    batch = {"global_bs": size * max(1, *tokens)}
    npu = torch.ops.npu
    results = getattr(npu, f"npu_moe_distribute_dispatch{suffix}")(x, ids, *where, **batch)
    sums = results[3].cumsum(0)
    number = torch.searchsorted(sums, torch.arange(len(results[0]), device="npu"), right=True) + own * local + 1
    rows = results[0] * number[:, None].to(dtype)
    combine = getattr(npu, f"npu_moe_distribute_combine{suffix}")
    result = combine(rows, ids, results[2], results[4], weights, *where, **batch)

    def check() -> None:
        what = f"experts{suffix}, {tokens} tokens x {hidden}, {local} experts per rank, top {top}"
        inputs = [tensors(of) for of in range(size)]
        arrived = [
            given[0][(given[1] == expert).any(1)]
            for expert in range(own * local, (own + 1) * local)
            for given in inputs
        ]
        count = sum(map(len, arrived))
        assert_same_copy(results[0][:count], torch.cat(arrived), f"dispatch of {what}")
        x, ids, weights = inputs[own]
        expected = x.float() * ((ids + 1) * weights).sum(1, keepdim=True)
        assert_same(result, expected.to(dtype), f"combine of {what}", signed_zero=False)

    return [], check


def objects(program: Program, draw: random.Random, members: list[int], group: dist.ProcessGroup):
    texts = [f"{r} " * draw.randrange(1, 3000) for r in members]
    gathered: list[str | None] = [None] * len(members)
    dist.all_gather_object(gathered, texts[members.index(program.rank)], group=group)
    assert gathered == texts
    return [], lambda: None


def barrier(program: Program, draw: random.Random, members: list[int], group: dist.ProcessGroup):
    dist.barrier(group)
    return [], lambda: None


CALLS: dict[str, tuple[int, Callable]] = {
    "reductions": (24, all_reduce),
    "coalesced reductions": (6, all_reduce_list),
    "broadcasts": (12, broadcast),
    "gatherings": (14, all_gather),
    "reduce_scatters": (12, reduce_scatter),
    "all_to_alls": (10, all_to_all),
    "scatters with gathers": (6, scatter_and_gather),
    "rings": (8, ring),
    "messages": (8, message),
    "fused products": (6, mm_all_reduce),
    "experts": (4, to_experts_and_back),
    "objects": (1, objects),
    "barriers": (1, barrier),
}

programs: list[Program] = []  # of this process, between chunks


def begin(rank: int, size: int, seed: int, groups: int) -> None:
    """Make the groups: the world, and subsets that overlap."""
    chooser = random.Random(f"{seed} groups")
    made: list[tuple[list[int], dist.ProcessGroup]] = [(list(range(size)), dist.group.WORLD)]
    for _ in range(groups - 1):
        members = sorted(chooser.sample(range(size), chooser.randrange(2, size + 1)))
        made.append((members, dist.new_group(members)))
    for members, group in made:
        if rank in members:
            dist.barrier(group)
            for pair in itertools.combinations(members, 2):  # what is made for a pair of ranks exists from now on
                if rank == pair[0]:
                    dist.send(torch.ones(1, device="npu"), pair[1], group=group)
                elif rank == pair[1]:
                    dist.recv(torch.empty(1, device="npu"), pair[0], group=group)
    for name in TRANSPORT:
        pool(getattr(torch, name))
    programs.append(Program(rank, random.Random(seed), random.Random(f"{seed} rank {rank}"), made))


def chunk(rank: int, size: int, calls: int) -> dict[str, int]:
    """The next `calls` calls; returns what the process holds afterwards."""
    program = programs[-1]
    for _ in range(calls):
        program.step()
    program.drain()
    dist.barrier()
    gc.collect()
    resident = dict(re.findall(r"^(Rss\w+):\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE))
    return {
        "heap": int(resident["RssAnon"]) << 10,
        "shared": int(resident["RssShmem"]) << 10,  # device memory, own and imported, as far as it was ever touched
        "descriptors": len(os.listdir("/proc/self/fd")),
        "mappings": Path("/proc/self/maps").read_text().count("\n"),
        "threads": len(os.listdir("/proc/self/task")),
    }


def end(rank: int, size: int) -> dict[str, int]:
    """Destroy the groups; returns how often each kind of call was made."""
    program = programs.pop()
    for members, group in program.groups[1:]:
        if rank in members:
            dist.destroy_process_group(group)
    return dict(program.counts)


def growth(samples: list[dict[str, int]]) -> list[str]:
    """What has grown since a rank was warm, the first half of its samples, as sentences."""
    warm, later = samples[: (len(samples) + 1) // 2], samples[(len(samples) + 1) // 2 :]
    found = []
    for name, limit in GROWTH_LIMITS.items():
        before, after = max(s[name] for s in warm), min((s[name] for s in later), default=0)
        if after > before + limit:
            found.append(f"{name} grew from {before} to {after}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--groups", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()

    from hccl_testing.processes import SERVER_OF_SESSION, Ranks

    print(f"{options.calls} calls over {options.groups} groups of {options.ranks} ranks, --seed {options.seed}")
    started = time.monotonic()
    team = Ranks(Path(__file__).resolve(), options.ranks)
    try:
        team.run(begin, options.seed, options.groups)
        samples: list[list[dict[str, int]]] = []
        done = 0
        while done < options.calls:
            count = min(CHUNK, options.calls - done)
            samples.append(team.run(chunk, count, timeout=600))
            done += count
            sample = samples[-1][0]
            print(
                f"{time.monotonic() - started:6.0f} s {done:6} calls, rank 0: {sample['heap'] / 2**20:.1f} MiB heap, "
                f"{sample['shared'] / 2**20:.1f} MiB device memory, "
                f"{sample['descriptors']} descriptors, {sample['mappings']} mappings, {sample['threads']} threads",
                flush=True,
            )
        counts = team.run(end)
        statuses = team.close()
    finally:
        left = team.discard()
        SERVER_OF_SESSION.close()
    for kind, number in counts[0].items():
        print(f"{number:6} {kind}")
    trouble = [f"rank {r}: {text}" for r in range(options.ranks) for text in growth([s[r] for s in samples])]
    if any(statuses):
        trouble.append(f"exit statuses {statuses}")
    trouble += [f"temporary file {file}" for file in left]
    print("\n".join(trouble) or f"every result right, nothing grew, {time.monotonic() - started:.0f} s")
    sys.exit(bool(trouble))


if __name__ == "__main__":
    main()
