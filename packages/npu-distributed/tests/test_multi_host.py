"""Groups whose ranks live on several machines: network namespaces of this one that are told to count as hosts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hccl_testing.hosts import Hosts, interfaces, left_of

pytest.importorskip("torch_npu")

FLOATS = ("float32", "float64", "float16", "bfloat16")
REDUCED = (*FLOATS, "int8", "int16", "int32", "int64", "uint8", "bool")
TRANSPORT = (*REDUCED, "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")
SMALL, LARGE = 1000, 70001  # bytes: with the announcement, and in lanes of unequal length
HUGE = 5_000_011  # several chunks


def whole(rank: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """What a rank brings: small whole numbers, which every type holds and sums exactly in any order."""
    values = (torch.arange(count) * 5 + rank * 3) % 7 + 1
    if dtype == torch.bool:
        return values % 2 == 0
    if dtype.is_floating_point or dtype in (torch.int8, torch.int16, torch.int32, torch.int64):
        values = values - 4
    return values.float().to(dtype) if dtype.is_floating_point else values.to(dtype)


def reduced(size: int, count: int, dtype: torch.dtype, op: str) -> torch.Tensor:
    parts = torch.stack([whole(rank, count, dtype) for rank in range(size)])
    if dtype == torch.bool:
        return parts.any(0) if op in ("SUM", "MAX") else parts.all(0)
    exact = parts.double()
    if op == "AVG":
        mean = exact.sum(0) / size
        return (
            (mean.float() if dtype.itemsize < 4 else mean).to(dtype)
            if dtype.is_floating_point
            else mean.trunc().to(dtype)
        )
    return {"SUM": exact.sum(0), "PRODUCT": exact.prod(0), "MIN": exact.amin(0), "MAX": exact.amax(0)}[op].to(dtype)


def same(got: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    got = got.cpu()
    assert got.dtype == expected.dtype and got.shape == expected.shape, what
    if got.dtype.is_floating_point and got.dtype.itemsize > 1:
        assert torch.equal(got, expected), f"{what}: {got} is not {expected}"
    else:
        assert torch.equal(got.view(torch.uint8), expected.view(torch.uint8)), f"{what}: {got} is not {expected}"


# ---- on every rank --------------------------------------------------------------------------------------------------


def check_reductions(rank: int, size: int) -> None:
    for name in REDUCED:
        dtype = getattr(torch, name)
        for op in ("SUM", "AVG", "PRODUCT", "MIN", "MAX"):
            for amount in (SMALL, LARGE):
                count = amount // dtype.itemsize
                kind = getattr(dist.ReduceOp, op)
                what = f"{op} of {count} {name}"
                expected = reduced(size, count, dtype, op)
                tensor = whole(rank, count, dtype).npu()
                dist.all_reduce(tensor, kind)
                same(tensor, expected, f"all_reduce {what}")
                if op not in ("SUM", "AVG"):
                    continue
                root = size - 1
                tensor = whole(rank, count, dtype).npu()
                dist.reduce(tensor, root, kind)
                same(tensor, expected if rank == root else whole(rank, count, dtype), f"reduce {what}")
                if name in ("uint8", "bool"):
                    continue
                output = torch.empty(count, dtype=dtype, device="npu")
                dist.reduce_scatter_tensor(output, whole(rank, size * count, dtype).npu(), kind)
                part = reduced(size, size * count, dtype, op)[rank * count : (rank + 1) * count]
                same(output, part, f"reduce_scatter {what}")
    for count in (0, 1, HUGE):
        tensor = whole(rank, count, torch.bfloat16).npu()
        dist.all_reduce(tensor)
        same(tensor, reduced(size, count, torch.bfloat16, "SUM"), f"all_reduce of {count}")


def check_rounding(rank: int, size: int, hosts: list[int]) -> None:
    """Sums of a host stay float32 until the one rounding at the end: bits of a reference that does so."""
    from torch_npu.distributed import _make_hccl_premul_sum

    for dtype in (torch.float16, torch.bfloat16):
        for count in (500, 30011):
            factors = [0.375 * (r + 1) for r in range(size)]
            parts = [
                torch.rand(count, generator=torch.Generator().manual_seed(r + count)).to(dtype) for r in range(size)
            ]
            scaled = [part.float() * factor for part, factor in zip(parts, factors, strict=True)]

            def by_host(values: list[torch.Tensor]) -> torch.Tensor:
                total = None
                for host in dict.fromkeys(hosts):
                    mine = [value for value, place in zip(values, hosts, strict=True) if place == host]
                    partial = mine[0].clone()
                    for value in mine[1:]:
                        partial = partial + value
                    total = partial if total is None else total + partial
                assert total is not None
                return total

            cases = {
                "SUM": (dist.ReduceOp.SUM, by_host([p.float() for p in parts])),
                "AVG": (dist.ReduceOp.AVG, by_host([p.float() for p in parts]) / size),
                "PREMUL_SUM": (_make_hccl_premul_sum(factors[rank]), by_host(scaled)),
            }
            for name, (kind, expected) in cases.items():
                tensor = parts[rank].npu()
                dist.all_reduce(tensor, kind)
                same(tensor, expected.to(dtype), f"{name} of {count} {dtype}")


def check_moves(rank: int, size: int) -> None:
    for name in TRANSPORT:
        dtype = getattr(torch, name)
        for amount in (SMALL, LARGE):
            count = amount // dtype.itemsize
            parts = [whole(r, count, dtype) for r in range(size)]
            what = f"of {count} {name}"
            for root in range(size):
                tensor = parts[rank].npu()
                dist.broadcast(tensor, root)
                same(tensor, parts[root], f"broadcast {what} from {root}")
            gathered = [torch.empty(count, dtype=dtype, device="npu") for _ in range(size)]
            dist.all_gather(gathered, parts[rank].npu())
            for got, expected in zip(gathered, parts, strict=True):
                same(got, expected, f"all_gather {what}")
    for base in (0, 3, 9000):
        outputs = [torch.full((base * (r + 1), 2), -1, device="npu") for r in range(size)]
        dist.all_gather(outputs, torch.full((base * (rank + 1), 2), rank, device="npu"))
        assert [t.unique().tolist() for t in outputs] == [[r] if base else [] for r in range(size)]
    for count in (1, 7000):
        sent = [torch.full((count * (r % 2 + rank),), rank * 10 + r, device="npu") for r in range(size)]
        received = [torch.empty(count * (rank % 2 + r), dtype=torch.int64, device="npu") for r in range(size)]
        dist.all_to_all(received, sent)
        for r, tensor in enumerate(received):
            assert tensor.tolist() == [r * 10 + rank] * (count * (rank % 2 + r))
        output = torch.empty(sum(map(len, received)), dtype=torch.int64, device="npu")
        dist.all_to_all_single(output, torch.cat(sent), list(map(len, received)), list(map(len, sent)))
        assert output.tolist() == torch.cat(received).tolist()
    for root in range(size):
        for count in (3, 9001):
            parts = [torch.full((count,), 10.0 * root + r, device="npu") for r in range(size)]
            output = torch.empty(count, device="npu")
            dist.scatter(output, parts if rank == root else None, root)
            assert output.unique().tolist() == [10 * root + rank]
            collected = [torch.empty(count, device="npu") for _ in range(size)] if rank == root else None
            dist.gather(output, collected, root)
            if collected is not None:
                assert [t.unique().tolist() for t in collected] == [[10 * root + r] for r in range(size)]
    tensor = torch.full((HUGE,), float(rank), device="npu")
    dist.broadcast(tensor, 1)
    assert tensor.unique().tolist() == [1.0]


def check_messages(rank: int, size: int) -> None:
    """Every pair in both directions, small and large; rings in which all send and receive at once."""
    for count in (10, 50001):
        for source in range(size):
            for target in range(size):
                if rank == source and source != target:
                    dist.send(torch.full((count,), 100.0 * source + target, device="npu"), target)
                elif rank == target and source != target:
                    tensor = torch.empty(count, device="npu")
                    dist.recv(tensor, source)
                    assert tensor.unique().tolist() == [100.0 * source + target]
        received = [torch.empty(count, dtype=torch.int32, device="npu") for _ in range(size)]
        peers = [(rank + step) % size for step in range(1, size)]
        mine = torch.full((count,), rank, dtype=torch.int32, device="npu")
        operations = [dist.P2POp(dist.irecv, received[peer], peer) for peer in peers]
        operations += [dist.P2POp(dist.isend, mine, peer) for peer in reversed(peers)]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        assert [received[peer].unique().tolist() for peer in peers] == [[peer] for peer in peers]


def send_first(rank: int, size: int) -> None:
    """Both ranks send before they receive: long messages, more short ones than may be under way, one after another."""
    other = 1 - rank
    for count, messages in ((2000, 1), (2000, 3), (1, 100), (1_000_000, 2)):
        sent = [torch.full((count,), 1000.0 * rank + number, device="npu") for number in range(messages)]
        works = [dist.isend(tensor, other) for tensor in sent]
        received = [torch.empty(count, device="npu") for _ in sent]
        works += [dist.irecv(tensor, other) for tensor in received]
        for work in works:
            work.wait()
        assert [t.unique().tolist() for t in received] == [[1000.0 * other + number] for number in range(messages)]
        dist.send(sent[0], other)
        dist.recv(received[0], other)
        assert received[0].unique().tolist() == [1000.0 * other]


def name_the_host(rank: int, size: int) -> None:
    os.environ["NPU_HCCL_HOST_ID"] = f"h{rank}"


def check_objects_and_groups(rank: int, size: int) -> None:
    gathered: list = [None] * size
    dist.all_gather_object(gathered, {"rank": rank, "text": "x" * (rank * 3000)})
    assert [len(entry["text"]) for entry in gathered] == [r * 3000 for r in range(size)]
    objects = [("from", rank), None] if rank == 1 else [None, None]
    dist.broadcast_object_list(objects, src=1)
    assert objects == [("from", 1), None]
    for members in ([0, 1], [0, size - 1], list(range(size))[::-1]):
        group = dist.new_group(members)
        if rank in members:
            tensor = torch.full((30000,), 1.0 + rank, device="npu")
            dist.all_reduce(tensor, group=group)
            assert tensor.unique().tolist() == [float(sum(members) + len(members))]
    dist.barrier()


def check_training_step(rank: int, size: int) -> None:
    """A step of DistributedDataParallel on parts of a batch equals one of a single process on all of it."""

    def model() -> torch.nn.Module:
        torch.manual_seed(3)
        return torch.nn.Sequential(torch.nn.Linear(20, 300), torch.nn.Tanh(), torch.nn.Linear(300, 5)).double()

    generator = torch.Generator().manual_seed(5)
    data = torch.rand(8 * size, 20, generator=generator, dtype=torch.double)
    target = torch.rand(8 * size, 5, generator=generator, dtype=torch.double)
    reference = model()
    torch.nn.functional.mse_loss(reference(data), target).backward()
    parallel = torch.nn.parallel.DistributedDataParallel(model().npu())
    own = slice(8 * rank, 8 * (rank + 1))
    torch.nn.functional.mse_loss(parallel(data[own].npu()), target[own].npu()).backward()
    for got, expected in zip(parallel.parameters(), reference.parameters(), strict=True):
        assert got.grad is not None
        torch.testing.assert_close(got.grad.cpu(), expected.grad)


def check_late_rank(rank: int, size: int) -> float:
    group = dist.new_group()
    tensor = torch.ones(3, device="npu")
    dist.all_reduce(tensor, group=group)
    return tensor[0].item()


def warm_up(rank: int, size: int) -> int:
    dist.all_reduce(torch.ones(5000, device="npu"))
    dist.barrier()
    return os.getpid()


def reduce_and_read(rank: int, size: int) -> dict:
    tensor = torch.ones(50000, device="npu")
    try:
        dist.all_reduce(tensor)
        return {"value": tensor[0].item()}
    except RuntimeError as error:
        return {"error": str(error)}


def different_calls(rank: int, size: int, odd: int) -> str:
    tensor = torch.ones(64 if rank != odd else 65, device="npu")
    try:
        dist.all_reduce(tensor)
        tensor.sum().item()
    except RuntimeError as error:
        return str(error)
    return "no error"


def different_messages(rank: int, size: int, source: int, target: int) -> str:
    try:
        if rank == source:
            dist.send(torch.ones(7, device="npu"), target)
        if rank == target:
            dist.recv(torch.ones(9, device="npu"), source)
        torch.npu.synchronize()
    except RuntimeError as error:
        return str(error)
    return "no error"


def rebuild(rank: int, size: int) -> float:
    from torch_npu.distributed import reinit_process_group

    reinit_process_group()
    tensor = torch.full((5000,), 1.0 + rank, device="npu")
    dist.all_reduce(tensor)
    return tensor[0].item()


def abort(rank: int, size: int) -> None:
    dist.group.WORLD._get_backend(torch.device("npu")).abort_hccl_comm("called off by hand")


# ---- tests ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hosts() -> Iterator[Callable[[int], Hosts]]:
    """Makes hosts, and sees to it that nothing of them is left."""
    before = interfaces()
    made: list[Hosts] = []

    def make(count: int) -> Hosts:
        made.append(Hosts(count))
        return made[-1]

    yield make
    namespaces = set().union(*(each.namespaces() for each in made))
    for each in made:
        each.close()
    assert interfaces() == before
    assert not left_of(namespaces)


@pytest.mark.parametrize("places", ([0, 0, 1, 1], [0, 1, 0, 0], [0, 1, 0, 2]), ids=lambda p: "".join(map(str, p)))
def test_collectives(hosts, fresh_ranks, places: list[int]) -> None:
    """Equal hosts, unequal ones with interleaved ranks, and three of them."""
    ranks = fresh_ranks(len(places), **hosts(max(places) + 1).variables(places))
    ranks.run(check_reductions)
    ranks.run(check_rounding, places)
    ranks.run(check_moves)
    ranks.run(check_messages)
    ranks.run(check_objects_and_groups)
    ranks.run(check_training_step)
    ranks.start(check_late_rank, only=tuple(range(1, len(places))))
    assert ranks.run_only(0, check_late_rank) == len(places)
    assert [ranks.answer(rank) for rank in range(1, len(places))] == [{"value": float(len(places))}] * (len(places) - 1)
    assert ranks.close() == [0] * len(places), ranks.logs()


def test_failures(hosts, fresh_ranks) -> None:
    machines = hosts(2)
    ranks = fresh_ranks(
        4, **machines.variables([0, 0, 1, 1]), HCCL_EXEC_TIMEOUT="10", TORCH_HCCL_ASYNC_ERROR_HANDLING="2"
    )
    pids = ranks.run(warm_up)
    # A mismatch on another host is the same error on every rank.
    for text in ranks.run(different_calls, 2):
        assert "EI0005" in text and "rank 0 all_reduce(64 x float32" in text, text
        assert "rank 2 all_reduce(65 x float32" in text and "call number" in text, text
    assert ranks.run(rebuild) == [10.0] * 4
    # One rank gives up: the others, here and there, learn why.
    ranks.start(reduce_and_read, only=(0, 2, 3))
    ranks.run_only(1, abort)
    for rank in (0, 2, 3):
        answer = ranks.answer(rank)
        assert answer is not None and "called off by hand" in answer["value"]["error"], answer
    assert ranks.run(rebuild) == [10.0] * 4
    # The network is cut: nobody says anything any more, so it takes the time-out.
    machines.cut(1)
    for answer in ranks.run(reduce_and_read):
        assert "EI0002" in answer["error"], answer
    assert any("HCCL_EXEC_TIMEOUT" in ranks.log(rank) for rank in range(4))
    machines.plug(1)
    assert ranks.run(rebuild) == [10.0] * 4
    # A process ends: every rank says so at once, also those that never talk to it directly.
    ranks.start(reduce_and_read, only=(0, 1, 2))
    ranks.processes[3].kill()
    for rank in (0, 1, 2):
        answer = ranks.answer(rank)
        assert answer is not None and "EI0002" in answer["value"]["error"], answer
        assert "HCCL_EXEC_TIMEOUT" not in answer["value"]["error"], answer
    assert any(f"process {pids[3]}" in ranks.log(rank) for rank in range(3))


def test_sends_before_receives(fresh_ranks) -> None:
    """Told to be two hosts, so it needs no namespaces."""
    ranks = fresh_ranks(2, HCCL_EXEC_TIMEOUT="30")
    ranks.run(name_the_host)
    ranks.run(send_first)


def test_messages_that_differ(hosts, fresh_ranks) -> None:
    ranks = fresh_ranks(2, **hosts(2).variables([0, 1]), TORCH_HCCL_ASYNC_ERROR_HANDLING="2", P2P_HCCL_BUFFSIZE="0")
    ranks.run(warm_up)
    text = ranks.run(different_messages, 1, 0)[0]  # the sender has sent before anybody looks at it
    assert "EI0005" in text and "rank 1 sends 7 x float32" in text and "rank 0 receives 9 x float32" in text, text
    for answer in ranks.run(reduce_and_read):
        assert "EI0005" in answer["error"], answer


JOB = """
import os
import torch, torch.distributed as dist
torch.npu.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group("hccl")
rank, size = dist.get_rank(), dist.get_world_size()
tensor = torch.full((40000,), 1.0 + rank, device="npu")
dist.all_reduce(tensor)
assert tensor.unique().tolist() == [10.0], tensor
dist.barrier()
dist.destroy_process_group()
dist.init_process_group("hccl")  # the same names in the same store
dist.all_reduce(tensor)
assert tensor.unique().tolist() == [40.0], tensor
dist.destroy_process_group()
os.write(1, f"rank {rank} of {size} done\\n".encode())
"""


def test_torchrun_on_two_nodes(hosts, tmp_path: Path) -> None:
    machines = hosts(2)
    script = tmp_path / "job.py"
    script.write_text(JOB)
    environment = {name: value for name, value in os.environ.items() if name != "NPU_HOST_DEVICE_COUNT"}
    environment |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    nodes = []
    for node in range(2):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"]
        command += ["--node-rank", str(node), "--master-addr", machines.address(0), "--master-port", "29501"]
        place = {"NPU_HCCL_HOST_ID": f"node{node}", "HCCL_IF_IP": machines.address(node)}
        nodes.append(
            subprocess.Popen(
                machines.command(node, [*command, str(script)]),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment | place,
            )
        )
    try:
        outputs = [node.communicate(timeout=200) for node in nodes]
    finally:
        for node in nodes:
            node.terminate()  # the agent ends its workers
            node.wait(60)
    assert [node.returncode for node in nodes] == [0, 0], outputs
    lines = sorted(line for output, _ in outputs for line in output.splitlines())
    assert lines == [f"rank {rank} of 4 done" for rank in range(4)]


def test_an_address_that_is_not_there(hosts, fresh_ranks) -> None:
    machines = hosts(2)
    ranks = fresh_ranks(2, **machines.variables([0, 1]) | {"HCCL_SOCKET_IFNAME": "=ib0"})
    for answer in ranks.run(reduce_and_read):
        assert "HCCL_SOCKET_IFNAME" in answer["error"] and "ib0" in answer["error"] and "eth0" in answer["error"]
