"""Device meshes, distributed tensors and tensor parallel modules compute what one process does."""

from __future__ import annotations

import itertools

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
    empty,
    full,
    ones,
    rand,
    randn,
    zeros,
)
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)


def close(ours: torch.Tensor, theirs: torch.Tensor, bound: float = 1e-5) -> None:
    if isinstance(ours, DTensor):
        ours = ours.full_tensor()
    torch.testing.assert_close(ours.cpu(), theirs, rtol=bound, atol=bound)


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- meshes ---------------------------------------------------------------------------------------------------------


def meshes(rank: int, size: int) -> None:
    mesh = init_device_mesh("npu", (2, 2), mesh_dim_names=("dp", "tp"))
    assert mesh.device_type == "npu" and tuple(mesh.get_coordinate()) == (rank // 2, rank % 2)
    assert torch.npu.current_device() == rank
    t = torch.tensor([float(rank)], device="npu")
    for name, peers in (("dp", [rank % 2, rank % 2 + 2]), ("tp", [rank // 2 * 2, rank // 2 * 2 + 1])):
        part = mesh[name]
        assert dist.get_process_group_ranks(part.get_group()) == peers
        assert dist.get_backend(part.get_group()) == "hccl"
        ours = t.clone()
        dist.all_reduce(ours, group=part.get_group())
        assert ours.item() == sum(peers) and part.get_local_rank() == peers.index(rank)
    flat = mesh._flatten("all")
    assert flat.size() == 4 and mesh["all"].get_local_rank() == rank
    dist.all_reduce(t, group=mesh["all"].get_group())
    assert t.item() == 6
    again = init_device_mesh("npu", (4,))
    assert dist.get_process_group_ranks(again.get_group()) == [0, 1, 2, 3]
    from torch.distributed.device_mesh import DeviceMesh

    made = DeviceMesh.from_group(
        [mesh.get_group("dp"), mesh.get_group("tp")], "npu", mesh=mesh.mesh, mesh_dim_names=("a", "b")
    )
    assert dist.get_process_group_ranks(made.get_group("b")) == [rank // 2 * 2, rank // 2 * 2 + 1]


# ---- tensors --------------------------------------------------------------------------------------------------------


def placements_of(tensor: torch.Tensor) -> list:
    return [Replicate(), *(Shard(dim) for dim in range(tensor.dim()))]


def redistributions(rank: int, size: int) -> None:
    mesh = init_device_mesh("npu", (size,))
    for shape in ((4, 6), (5, 3), (1, 7)):  # even, uneven, empty shards
        whole = values(*shape)
        for start, end in itertools.product(placements_of(whole), repeat=2):
            there = distribute_tensor(whole.npu(), mesh, [start]).redistribute(mesh, [end])
            assert there.placements == (end,)
            close(there, whole, 0)
            for dim in range(2):
                if end == Shard(dim):
                    chunks = whole.chunk(size, dim)
                    expected = chunks[rank] if rank < len(chunks) else whole.narrow(dim, 0, 0)
                    close(there.to_local(), expected, 0)
        share = values(*shape, seed=rank)
        total = sum(values(*shape, seed=r) for r in range(size))
        for end in placements_of(whole):
            close(DTensor.from_local(share.npu(), mesh, [Partial()]).redistribute(mesh, [end]), total)
        close(DTensor.from_local(share.npu(), mesh, [Partial("avg")]), total / size)
        largest = torch.stack([values(*shape, seed=r) for r in range(size)]).amax(0)
        close(DTensor.from_local(share.npu(), mesh, [Partial("max")]), largest, 0)
    # Gradients take the way back.
    whole = values(4, 6).requires_grad_()
    weight = values(4, 6, seed=9)
    (whole * weight).square().sum().backward()
    ours = distribute_tensor(whole.detach().npu(), mesh, [Shard(0)]).requires_grad_()
    (
        ours.redistribute(mesh, [Shard(1)]) * distribute_tensor(weight.npu(), mesh, [Replicate()])
    ).square().sum().backward()
    assert ours.grad.placements == (Shard(0),)
    close(ours.grad, whole.grad)


PAIRS = [(Shard(0), Shard(0)), (Shard(1), Shard(1)), (Shard(1), Replicate()), (Shard(0), Shard(1))]
OPERATORS = {
    "add": lambda a, b: a + b,
    "lerp": lambda a, b: torch.lerp(a, b, 0.25),
    "gelu": lambda a, b: F.gelu(a) * b.sigmoid(),
    "where": lambda a, b: torch.where(a > b, a, b),
    "matmul": lambda a, b: a @ b.t(),
    "addmm": lambda a, b: torch.addmm(a[:, :1], a, b.t()),
    "softmax": lambda a, b: F.softmax(a, 1) + F.log_softmax(b, 0),
    "layer_norm": lambda a, b: F.layer_norm(a, (8,), b[0], b[1]),
    "rms_norm": lambda a, b: F.rms_norm(a, (8,), b[0]),
    "mean": lambda a, b: a.mean(0) + b.sum(0),
    "var": lambda a, b: a.var(1) + b.var(1),
    "norm": lambda a, b: torch.linalg.vector_norm(a) + b.norm(),
    "amax": lambda a, b: a.amax(1) - b.amin(1),
    "cumsum": lambda a, b: a.cumsum(1) + b,
    "cat": lambda a, b: torch.cat([a, b], 1),
    "stack": lambda a, b: torch.stack([a, b]),
    "transpose": lambda a, b: a.t().contiguous().t() + b,
    "view": lambda a, b: a.view(8, 4, 2).sum(-1) + b.reshape(8, 4, 2).amax(2),
    "slice": lambda a, b: a[:, 2:5] * b[:, :3],
    "split": lambda a, b: torch.add(*a.split(4, 1)) * torch.mul(*b.chunk(2, 1)),
    "topk": lambda a, b: a.topk(3, 1).values + b.sort(1).values[:, :3],
    "embedding": lambda a, b: F.embedding((a.abs() * 2).long().clamp(max=7), b),
    "gather": lambda a, b: a.gather(1, (b.abs() * 2).long().clamp(max=7)),
    "index_select": lambda a, b: (
        a.index_select(1, torch.tensor([1, 3], device=a.device)) if not isinstance(a, DTensor) else a[:, 1:4:2]
    ),
    "attention": lambda a, b: F.scaled_dot_product_attention(
        a.view(2, 2, 4, 4), b.view(2, 2, 4, 4), a.view(2, 2, 4, 4), is_causal=True
    ),
    "einsum": lambda a, b: torch.einsum("ij,kj->ik", a, b),
    "dropout of 0": lambda a, b: F.dropout(a, 0.0) + b,
}


def operators(rank: int, size: int) -> list[str]:
    """Names of operators that torch cannot shard in some placement (its own refusal, with any backend)."""
    mesh = init_device_mesh("npu", (size,))
    a, b = values(8, 8, seed=1), values(8, 8, seed=2)
    refused = set()
    for name, operator in OPERATORS.items():
        leaves = a.clone().requires_grad_(), b.clone().requires_grad_()
        expected = operator(*leaves)
        differentiable = expected.requires_grad
        if differentiable:
            expected.square().sum().backward()
        for left, right in PAIRS:
            ours = [
                distribute_tensor(t.npu(), mesh, [placement]).requires_grad_()
                for t, placement in ((a, left), (b, right))
            ]
            try:
                result = operator(*ours)
            except (RuntimeError, NotImplementedError) as error:
                if "require placement changes" not in str(error):
                    raise AssertionError(f"{name} of {left}, {right}: {error}") from error
                refused.add(name)
                continue
            # Once: the partial result of a sharded embedding cannot be reduced again.
            result = result.redistribute(mesh, [Replicate()])
            close(result.detach(), expected.detach(), 1e-4)
            if differentiable:
                result.square().sum().backward()
                for mine, theirs in zip(ours, leaves, strict=True):
                    if theirs.grad is not None:
                        close(mine.grad, theirs.grad, 1e-4)
    return sorted(refused)


def factories(rank: int, size: int) -> None:
    mesh = init_device_mesh("npu", (size,))
    close(ones(6, 4, device_mesh=mesh, placements=[Shard(0)]), torch.ones(6, 4), 0)
    close(zeros(5, device_mesh=mesh, placements=[Shard(0)]), torch.zeros(5), 0)
    close(full((3, 3), 7.0, device_mesh=mesh, placements=[Replicate()]), torch.full((3, 3), 7.0), 0)
    assert empty(9, device_mesh=mesh, placements=[Shard(0)]).to_local().device.type == "npu"
    # Random numbers of a sharded tensor do not depend on how it is sharded.
    results = []
    for placement in (Shard(0), Shard(1), Replicate()):
        torch.manual_seed(11)
        results.append(
            [
                rand(4, 6, device_mesh=mesh, placements=[placement]),
                randn(4, 6, device_mesh=mesh, placements=[placement]),
            ]
        )
    for uniform, normal in results:
        assert uniform.full_tensor().unique().numel() == 24 and normal.full_tensor().unique().numel() == 24
        for tensor in (uniform, normal):
            largest = tensor.full_tensor()
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
            assert torch.equal(largest, tensor.full_tensor())
    # Calls follow each other without overlap too, and the ranks' generators stay together.
    a, b = (rand(100, device_mesh=mesh, placements=[Shard(0)]).full_tensor() for _ in range(2))
    assert torch.cat([a, b]).unique().numel() == 200
    states: list = [None] * size
    dist.all_gather_object(states, torch.npu.get_rng_state().tolist())
    assert states[0] == states[1]
    dropped = F.dropout(ones(4096, device_mesh=mesh, placements=[Shard(0)]), 0.5)
    left, right = (dropped.full_tensor() != 0).chunk(2)
    assert 0.4 < (left == right).float().mean().item() < 0.6


# ---- modules --------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """A block of a transformer with separate projections, as tensor parallel plans expect."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm1(x)
        q, k, v = (projection(h).unflatten(-1, (-1, 4)).transpose(1, 2) for projection in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 16)
        self.layers = nn.Sequential(Layer(), Layer())
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 12)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.layers(self.embedding(tokens))))


def language() -> Language:
    torch.manual_seed(4)
    return Language()


def tokens_of(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    both = torch.randint(12, (4, 9), generator=torch.Generator().manual_seed(step))
    return both[:, :-1], both[:, 1:].reshape(-1)


def train(model: nn.Module, device: str, loss_of) -> list[float]:
    # Not Adam: gradients that are zero in exact arithmetic (the bias of the keys) would move their parameter.
    # foreach=False: torch refuses lists of both kinds of tensors, whatever the backend.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
    losses = []
    for step in range(3):
        inputs, targets = (t.to(device) for t in tokens_of(step))
        optimizer.zero_grad()
        losses.append(loss_of(model, inputs, targets))
        optimizer.step()
    return losses


def plain_loss(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    loss = F.cross_entropy(model(inputs).flatten(0, 1), targets)
    loss.backward()
    return loss.item()


def parallel_loss(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """The vocabulary stays sharded through cross entropy and its gradient."""
    with loss_parallel():
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets)
        loss.backward()
    return loss.full_tensor().item()


COLUMN_AND_ROW = {
    **dict.fromkeys(("q", "k", "v", "up"), ColwiseParallel()),
    **dict.fromkeys(("o", "down"), RowwiseParallel()),
}
SEQUENCE = {
    "norm1": SequenceParallel(),
    "norm2": SequenceParallel(),
    **dict.fromkeys(("q", "k", "v", "up"), ColwiseParallel(input_layouts=Shard(1))),
    **dict.fromkeys(("o", "down"), RowwiseParallel(output_layouts=Shard(1))),
}


def apply_tensor_parallel(model: Language, mesh, kind: str) -> Language:
    if kind == "columns and rows":
        plan = {
            "head": ColwiseParallel(output_layouts=Replicate()),
            "embedding": RowwiseParallel(input_layouts=Replicate()),
        }
        per_layer = COLUMN_AND_ROW
    else:
        plan = {
            "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
            "norm": SequenceParallel(),
            "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=kind != "loss"),
        }
        per_layer = SEQUENCE
        if kind == "sequence":
            plan["head"] = ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate())
    for layer in model.layers:
        parallelize_module(layer, mesh, per_layer)
    return parallelize_module(model, mesh, plan)


def tensor_parallel(rank: int, size: int) -> None:
    expected = language()
    losses = train(expected, "cpu", plain_loss)
    mesh = init_device_mesh("npu", (size,))
    for kind in ("columns and rows", "sequence", "loss"):
        model = apply_tensor_parallel(language().npu(), mesh, kind)
        assert model.layers[0].up.weight.to_local().shape == (64 // size, 16)
        ours = train(model, "npu", parallel_loss if kind == "loss" else plain_loss)
        torch.testing.assert_close(ours, losses, rtol=1e-4, atol=1e-4)
        for (name, mine), theirs in zip(model.named_parameters(), expected.parameters(), strict=True):
            whole = mine.full_tensor() if isinstance(mine, DTensor) else mine
            torch.testing.assert_close(
                whole.detach().cpu(),
                theirs.detach(),
                rtol=1e-3,
                atol=1e-3,
                msg=lambda t, name=f"{kind} {name}": f"{name}: {t}",
            )


def prepared_inputs(rank: int, size: int) -> None:
    mesh = init_device_mesh("npu", (size,))
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    x = values(4, 8)
    model = parallelize_module(
        nn.Sequential(nn.Linear(8, 8), nn.ReLU()).npu(),
        mesh,
        PrepareModuleInput(input_layouts=Shard(0), desired_input_layouts=Replicate(), use_local_output=True),
    )
    model.load_state_dict(plain.state_dict())
    close(model(x.chunk(size)[rank].npu()).detach(), plain(x).detach())
    model = parallelize_module(
        nn.Sequential(nn.Linear(8, 8), nn.ReLU()).npu(),
        mesh,
        PrepareModuleOutput(output_layouts=Replicate(), desired_output_layouts=Shard(0)),
    )
    model.load_state_dict(plain.state_dict())
    close(model(x.npu()).detach(), plain(x).chunk(size)[rank].detach())

    def shard(name: str, module: nn.Module, mesh) -> None:
        for key, parameter in list(module.named_parameters(recurse=False)):
            module.register_parameter(key, nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)])))

    module = distribute_module(nn.Linear(8, 8).npu(), mesh, shard)
    module.load_state_dict(
        {key: distribute_tensor(value.npu(), mesh, [Shard(0)]) for key, value in plain[0].state_dict().items()}
    )
    close(module(distribute_tensor(x.npu(), mesh, [Replicate()])).detach(), plain[0](x).detach())


def two_dimensions(rank: int, size: int) -> None:
    """FSDP over one dimension of the mesh, tensor parallel over the other."""
    expected = language()
    losses = train(expected, "cpu", plain_loss)
    mesh = init_device_mesh("npu", (2, 2), mesh_dim_names=("dp", "tp"))
    model = apply_tensor_parallel(language().npu(), mesh["tp"], "columns and rows")
    for layer in (*model.layers, model):
        fully_shard(layer, mesh=mesh["dp"])
    mine = slice(2 * (rank // 2), 2 * (rank // 2) + 2)

    def loss_of(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> float:
        part = targets.view(4, -1)[mine].reshape(-1)
        loss = F.cross_entropy(model(inputs[mine]).flatten(0, 1), part)
        loss.backward()
        mean = loss.detach().clone()
        dist.all_reduce(mean, op=dist.ReduceOp.AVG)
        return mean.item()

    torch.testing.assert_close(train(model, "npu", loss_of), losses, rtol=1e-4, atol=1e-4)
    for (name, ours), theirs in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(
            ours.full_tensor().cpu(), theirs.detach(), rtol=1e-3, atol=1e-3, msg=lambda t, name=name: f"{name}: {t}"
        )


def test_meshes(ranks) -> None:
    ranks(4).run(meshes)


def test_two_dimensions(ranks) -> None:
    ranks(4).run(two_dimensions)


def test_redistribution(ranks) -> None:
    ranks(2).run(redistributions)


def test_operators(ranks) -> None:
    # rms_norm over a sharded dimension: torch's decomposition adds in place to a partial mean.
    assert ranks(2).run(operators) == [["rms_norm"], ["rms_norm"]]


def test_factories(ranks) -> None:
    ranks(2).run(factories)


def test_tensor_parallel(ranks) -> None:
    ranks(2).run(tensor_parallel)


def test_module_inputs_and_outputs(ranks) -> None:
    ranks(2).run(prepared_inputs)
