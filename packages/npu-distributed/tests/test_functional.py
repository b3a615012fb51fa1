"""Collectives as functions: traceable ones, under torch.compile, differentiable ones, and those of Python objects."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.distributed.nn.functional as differentiable
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def mine(rank: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank))


def traceable(rank: int, size: int) -> None:
    group = dist.group.WORLD
    all_of = [mine(r, 4, 3) for r in range(size)]
    ours = all_of[rank].npu()
    kept = ours.clone()
    results = {
        "sum": (functional.all_reduce(ours, "sum", group), sum(all_of)),
        "avg": (functional.all_reduce(ours, "avg", group), sum(all_of) / size),
        "max": (functional.all_reduce(ours, "max", group), torch.stack(all_of).amax(0)),
        "gather 0": (functional.all_gather_tensor(ours, 0, group), torch.cat(all_of)),
        "gather 1": (functional.all_gather_tensor(ours, 1, group), torch.cat(all_of, 1)),
        "scatter 0": (functional.reduce_scatter_tensor(ours, "sum", 0, group), sum(all_of).chunk(size)[rank]),
        "broadcast": (functional.broadcast(ours, size - 1, group), all_of[-1]),
        "all to all": (
            functional.all_to_all_single(ours, [2] * size, [2] * size, group),
            torch.cat([t.chunk(size)[rank] for t in all_of]),
        ),
        "permute": (
            functional.permute_tensor(ours.flatten(), [(r + 1) % size for r in range(size)], group),
            all_of[rank - 1].flatten(),
        ),
    }
    for name, (result, expected) in results.items():
        if name != "gather 1":  # joined along another dimension, so waited for already
            assert isinstance(result, functional.AsyncCollectiveTensor), name
        torch.testing.assert_close((result + 0).cpu(), expected, msg=name)
    assert torch.equal(ours, kept)
    several = functional.all_reduce_coalesced([ours, 2 * ours], "sum", group)
    torch.testing.assert_close([t.cpu() for t in several], [sum(all_of), 2 * sum(all_of)])
    several = functional.all_gather_into_tensor_coalesced([ours, 2 * ours], group)
    torch.testing.assert_close([t.cpu() for t in several], [torch.cat(all_of), 2 * torch.cat(all_of)])
    several = functional.reduce_scatter_tensor_coalesced([ours, 2 * ours], "sum", [0, 0], group)
    part = sum(all_of).chunk(size)[rank]
    torch.testing.assert_close([t.cpu() for t in several], [part, 2 * part])
    raw = torch.ops._c10d_functional
    in_place = ours.clone()
    torch.testing.assert_close(raw.wait_tensor(raw.all_reduce_(in_place, "sum", group.group_name)).cpu(), sum(all_of))
    torch.testing.assert_close(in_place.cpu(), sum(all_of))
    for _ in range(20):  # results nobody waits for
        raw.all_reduce(ours, "sum", group.group_name)
    torch.testing.assert_close(functional.all_reduce(ours, "sum", group).cpu(), sum(all_of))
    leaf = ours.clone().requires_grad_()
    gathered = functional.all_gather_tensor_autograd(leaf, 0, group)
    (gathered * (rank + 1)).sum().backward()
    torch.testing.assert_close(leaf.grad.cpu(), torch.full((4, 3), size * (size + 1) / 2))


class Mixed(nn.Module):
    """Collectives between layers, as sequence parallel code has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(x))
        h = functional.all_gather_tensor_autograd(h, 0, dist.group.WORLD)
        h = functional.reduce_scatter_tensor_autograd(self.second(h), "sum", 0, dist.group.WORLD)
        return h + functional.all_reduce(x.mean(), "avg", dist.group.WORLD)


def compiled(rank: int, size: int, backend: str) -> None:
    torch._dynamo.reset()
    x = mine(rank, 4, 6).npu()
    eager, other = Mixed().npu(), Mixed().npu()
    fast = torch.compile(other, backend=backend, fullgraph=True)
    for _ in range(2):
        outputs = eager(x), fast(x)
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
        for output in outputs:
            output.square().sum().backward()
    for ours, theirs in zip(other.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    # Plain calls of torch.distributed are traced into functional ones.
    step = torch.compile(reduced_twice, backend=backend, fullgraph=True)
    torch.testing.assert_close(step(x.clone()).cpu(), 2 * sum(mine(r, 4, 6) for r in range(size)))


def reduced_twice(x: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(x)
    return x * 2


def compiled_data_parallel(rank: int, size: int) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 2))
    ours = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 2)).npu()
    ours.load_state_dict(plain.state_dict())
    fast = torch.compile(DistributedDataParallel(ours, device_ids=[rank]), backend="aot_eager")
    x = mine(9, 4 * size, 6)
    plain(x).square().mean().backward()
    fast(x.chunk(size)[rank].npu()).square().mean().backward()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad.cpu(), b.grad, rtol=1e-4, atol=1e-5)


def with_gradients(rank: int, size: int) -> None:
    everyone = [mine(r, 4, 3) for r in range(size)]

    def check(function, reference) -> None:
        """`function(leaf)` against `reference(leaves, r)`: what rank r gets from the leaves of all ranks."""
        leaf = everyone[rank].npu().requires_grad_()
        leaves = [t.clone().requires_grad_() for t in everyone]
        result = function(leaf)
        torch.testing.assert_close(result.detach().cpu(), reference(leaves, rank).detach())
        (result * (rank + 1)).square().sum().backward()
        sum((reference(leaves, r) * (r + 1)).square().sum() for r in range(size)).backward()
        expected = leaves[rank].grad if leaves[rank].grad is not None else torch.zeros(4, 3)
        torch.testing.assert_close(leaf.grad.cpu(), expected, rtol=1e-4, atol=1e-5)

    check(lambda x: differentiable.all_reduce(x.clone()), lambda all_of, r: sum(all_of))
    check(lambda x: torch.cat(differentiable.all_gather(x)), lambda all_of, r: torch.cat(all_of))
    check(
        lambda x: differentiable.reduce_scatter(torch.empty(4 // size, 3, device="npu"), list(x.chunk(size))),
        lambda all_of, r: sum(all_of).chunk(size)[r],
    )
    check(
        lambda x: differentiable.all_to_all_single(torch.empty_like(x), x),
        lambda all_of, r: torch.cat([t.chunk(size)[r] for t in all_of]),
    )
    check(lambda x: differentiable.broadcast(x.clone(), 0), lambda all_of, r: all_of[0])

    leaf = everyone[rank].npu().requires_grad_()
    gathered = torch.empty(4 * size, 3, device="npu")
    result = differentiable._all_gather_base(gathered, leaf)
    torch.testing.assert_close(result.detach().cpu(), torch.cat(everyone))
    (result * (rank + 1)).sum().backward()
    assert leaf.grad.unique().tolist() == [size * (size + 1) / 2]


def objects(rank: int, size: int) -> None:
    def exchange(group, members: list[int]) -> None:
        count, first, last = len(members), members[0], members[-1]
        mine = {"rank": rank, "text": "x" * (1 + 100 * rank), "tensor": torch.full((2,), float(rank), device="npu")}
        gathered: list = [None] * count
        dist.all_gather_object(gathered, mine, group=group)
        assert [one["rank"] for one in gathered] == members
        assert [len(one["text"]) for one in gathered] == [1 + 100 * r for r in members]
        assert [one["tensor"].device.type for one in gathered] == ["npu"] * count
        collected: list | None = [None] * count if rank == last else None
        dist.gather_object((rank, "é"), collected, dst=last, group=group)
        assert collected is None or collected == [(r, "é") for r in members]
        sent = [{"from": rank}, [rank, None], b"bytes"] if rank == first else [None] * 3
        dist.broadcast_object_list(sent, src=first, group=group)
        assert sent == [{"from": first}, [first, None], b"bytes"]
        received: list = [None]
        dist.scatter_object_list(
            received, [f"for {r}" for r in members] if rank == last else None, src=last, group=group
        )
        assert received == [f"for {rank}"]
        if rank == first:
            dist.send_object_list(["hello", {"to": last}], dst=last, group=group)
        elif rank == last:
            received = [None, None]
            dist.recv_object_list(received, src=first, group=group)
            assert received == ["hello", {"to": last}]

    exchange(None, list(range(size)))
    for members in ([0, 2], [1, 2]):
        group = dist.new_group(members)
        if rank in members:
            exchange(group, members)
    dist.barrier()


def test_functional_collectives(ranks) -> None:
    ranks(2).run(traceable)


def test_compiled(ranks) -> None:
    for backend in ("aot_eager", "inductor"):
        ranks(2).run(compiled, backend, timeout=180)


def test_compiled_data_parallel(ranks) -> None:
    ranks(2).run(compiled_data_parallel)


def test_gradients_of_collectives(ranks) -> None:
    ranks(2).run(with_gradients)


def test_objects(ranks) -> None:
    ranks(3).run(objects)
