"""DistributedDataParallel over backend hccl trains as one process on all the data would."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))


def data(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(8 * size, 20, generator=generator), torch.randint(5, (8 * size,), generator=generator)


def train(rank: int, size: int, hook: str, options: dict) -> list[float]:
    """Largest difference of each parameter from training on one process with the whole batch."""
    inputs, targets = data(size)
    reference = model()
    trained = DistributedDataParallel(model().npu(), device_ids=[rank], bucket_cap_mb=0.01, **options)
    if hook:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        trained.register_comm_hook(None, getattr(default_hooks, hook))
    steps = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (reference, trained)]
    mine = slice(8 * rank, 8 * (rank + 1))
    for _ in range(5):
        for optimizer in steps:
            optimizer.zero_grad()
        F.cross_entropy(reference(inputs), targets).backward()
        F.cross_entropy(trained(inputs[mine].npu()), targets[mine].npu()).backward()
        for optimizer in steps:
            optimizer.step()
    return [
        (ours.detach().cpu() - theirs.detach()).abs().max().item()
        for ours, theirs in zip(trained.module.parameters(), reference.parameters(), strict=True)
    ]


def train_channels_last(rank: int, size: int) -> float:
    """Largest difference of a gradient or a parameter from training with plain tensors on one process."""

    def convolutions() -> nn.Sequential:
        torch.manual_seed(7)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(144, 5))

    generator = torch.Generator().manual_seed(11)
    images, targets = torch.randn(4 * size, 3, 10, 10, generator=generator), torch.arange(4 * size) % 5
    mine = slice(4 * rank, 4 * (rank + 1))
    reference = convolutions()
    module = convolutions()
    for parameter in module.parameters():  # rank 0 has the weights of the reference and gives them to all others
        parameter.data.mul_(1 + rank)
    trained = DistributedDataParallel(module.npu().to(memory_format=torch.channels_last), device_ids=[rank])
    weight = trained.module[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    steps = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (reference, trained)]
    difference = 0.0
    for _ in range(3):
        for optimizer in steps:
            optimizer.zero_grad()
        F.cross_entropy(reference(images), targets).backward()
        batch = images[mine].npu().to(memory_format=torch.channels_last)
        F.cross_entropy(trained(batch), targets[mine].npu()).backward()
        for optimizer in steps:
            optimizer.step()
        for ours, theirs in zip(trained.module.parameters(), reference.parameters(), strict=True):
            for got, expected in ((ours.grad, theirs.grad), (ours.detach(), theirs.detach())):
                difference = max(difference, (got.cpu() - expected).abs().max().item())
    return difference


def without_synchronisation(rank: int, size: int) -> None:
    trained = DistributedDataParallel(nn.Linear(4, 1, bias=False).npu(), device_ids=[rank])
    nn.init.ones_(trained.module.weight)
    inputs = torch.full((1, 4), 1.0 + rank, device="npu")
    with trained.no_sync():
        trained(inputs).sum().backward()
    assert trained.module.weight.grad.unique().tolist() == [1.0 + rank]
    trained(inputs).sum().backward()
    mean = sum(2.0 * (r + 1) for r in range(size)) / size
    assert trained.module.weight.grad.unique().tolist() == [mean]


def buffers_follow_rank_0(rank: int, size: int) -> list[float]:
    torch.manual_seed(rank)
    trained = DistributedDataParallel(nn.BatchNorm1d(3).npu(), device_ids=[rank])
    for _ in range(3):
        trained(torch.randn(16, 3).npu() + rank).sum().backward()
    trained.eval()
    trained.train()
    trained(torch.randn(16, 3).npu())
    return trained.module.num_batches_tracked.cpu().tolist()


def different_models(rank: int, size: int) -> str:
    try:
        DistributedDataParallel(nn.Linear(4, 2 + rank).npu(), device_ids=[rank])
    except RuntimeError as error:
        return str(error)
    return "no error"


class Branches(nn.Module):
    """Rank by rank another branch is used; one parameter is in float64 and one in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(6, 6)
        self.left, self.right = nn.Linear(6, 2), nn.Linear(6, 2)
        self.wide = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.narrow = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, x: torch.Tensor, left: bool) -> torch.Tensor:
        branch = self.left if left else self.right
        return branch(self.trunk(x)) * self.wide.float() * self.narrow.float() * self.frozen


def unused_parameters_and_mixed_dtypes(rank: int, size: int) -> None:
    torch.manual_seed(0)
    plain = Branches()
    trained = DistributedDataParallel(
        copy.deepcopy(plain).npu(), device_ids=[rank], find_unused_parameters=True, gradient_as_bucket_view=True
    )
    for step in range(2):
        plain.zero_grad()
        trained.zero_grad()
        inputs = torch.randn(4 * size, 6, generator=torch.Generator().manual_seed(step))
        for r, part in enumerate(inputs.chunk(size)):
            (plain(part, r % 2 == step).square().mean() / size).backward()
        trained(inputs.chunk(size)[rank].npu(), rank % 2 == step).square().mean().backward()
        for (name, ours), theirs in zip(trained.module.named_parameters(), plain.parameters(), strict=True):
            if theirs.requires_grad:
                bound = 2e-2 if theirs.dtype == torch.bfloat16 else 1e-5
                torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=bound, atol=bound, msg=name)
        assert trained.module.frozen.grad is None


def uneven_inputs(rank: int, size: int) -> None:
    """Ranks with fewer batches shadow the others' collectives; the gradients are averaged over those still there."""
    trained = DistributedDataParallel(nn.Linear(4, 1, bias=False).npu(), device_ids=[rank])
    nn.init.zeros_(trained.module.weight)
    optimizer = torch.optim.SGD(trained.parameters(), lr=1.0)
    with trained.join(divide_by_initial_world_size=False):
        for step in range(2 + rank):
            optimizer.zero_grad()
            trained(torch.full((1, 4), 1.0 + step, device="npu")).sum().backward()
            optimizer.step()
    assert trained.module.weight.unique().tolist() == [-sum(range(1, size + 2))]


def compressed_by_power_iteration(rank: int, size: int) -> None:
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

    torch.manual_seed(0)
    trained = DistributedDataParallel(nn.Linear(32, 24, bias=False).npu(), device_ids=[rank])
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2, warm_start=True)
    trained.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    # A gradient of rank 2, the same in every step: the approximation is exact once its bases have converged.
    generator = torch.Generator().manual_seed(1)
    inputs, errors = torch.randn(2 * size, 32, generator=generator), torch.randn(2 * size, 24, generator=generator)
    inputs[2:] = torch.mm(torch.randn(2 * size - 2, 2, generator=generator), inputs[:2])
    expected = errors.t() @ inputs / size
    for step in range(5):
        trained.zero_grad()
        mine = slice(2 * rank, 2 * rank + 2)
        (trained(inputs[mine].npu()) * errors[mine].npu()).sum().backward()
        bound = 1e-5 if step < 2 else 1e-3
        torch.testing.assert_close(trained.module.weight.grad.cpu(), expected, rtol=bound, atol=bound)


def synchronised_batch_norm(rank: int, size: int) -> None:
    for shape, kind in (((6 * size, 3), nn.BatchNorm1d), ((2 * size, 3, 5, 4), nn.BatchNorm2d)):
        torch.manual_seed(0)
        plain = nn.Sequential(kind(shape[1]), nn.ReLU(), kind(shape[1], momentum=None))
        nn.init.uniform_(plain[0].weight)
        ours = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain)).npu()
        assert isinstance(ours[0], nn.SyncBatchNorm)
        ours = DistributedDataParallel(ours, device_ids=[rank])
        for step in range(3):
            whole = torch.randn(shape, generator=torch.Generator().manual_seed(step)) * 2 + 1
            scale = torch.randn(shape, generator=torch.Generator().manual_seed(9))
            # Shares of different sizes: the last rank takes what is left.
            rows = shape[0] // size - 1
            mine = slice(rows * rank, rows * (rank + 1) if rank < size - 1 else None)
            leaf, part = whole.clone().requires_grad_(), whole[mine].npu().requires_grad_()
            plain.zero_grad()
            ours.zero_grad()
            expected, result = plain(leaf), ours(part)
            torch.testing.assert_close(result.detach().cpu(), expected[mine].detach(), rtol=1e-4, atol=1e-5)
            (expected * scale).sum().backward()
            (result * scale[mine].npu()).sum().backward()
            torch.testing.assert_close(part.grad.cpu(), leaf.grad[mine], rtol=1e-3, atol=1e-4)
            for (name, a), b in zip(ours.module.named_parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(a.grad.cpu() * size, b.grad, rtol=1e-3, atol=1e-4, msg=name)
        for (name, a), b in zip(ours.module.named_buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-5, msg=name)


def sharded_optimizer(rank: int, size: int) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    inputs, targets = data(size)
    mine = slice(8 * rank, 8 * (rank + 1))
    for overlap in (False, True):
        reference, copied = model(), model().npu()
        trained = DistributedDataParallel(copied, device_ids=[rank], gradient_as_bucket_view=not overlap)
        expected = torch.optim.Adam(reference.parameters(), lr=0.01)
        sharded = ZeroRedundancyOptimizer(
            trained.parameters(), optimizer_class=torch.optim.Adam, lr=0.01, parameters_as_bucket_view=overlap
        )
        for _ in range(4):
            for optimizer in (expected, sharded):
                optimizer.zero_grad()
            F.cross_entropy(reference(inputs), targets).backward()
            F.cross_entropy(trained(inputs[mine].npu()), targets[mine].npu()).backward()
            for optimizer in (expected, sharded):
                optimizer.step()
        for ours, theirs in zip(trained.module.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(ours.detach().cpu(), theirs.detach(), rtol=1e-3, atol=1e-4)
        held = len(sharded.optim.state)
        assert 0 < held < len(list(trained.parameters()))
        sharded.consolidate_state_dict(to=0)
        if rank == 0:
            assert len(sharded.state_dict()["state"]) == len(expected.state_dict()["state"])


def internals(rank: int, size: int) -> None:
    """The names under which Ascend programs reach DDP's parts."""
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    import torch_npu

    names = torch_npu._C._distributed_c10d
    group = dist.group.WORLD
    tensors = [torch.full((n,), 1.0 + rank, device="npu") for n in (3, 1000, 5)]
    names._broadcast_coalesced(group, tensors, 2048, size - 1)
    assert [t.unique().tolist() for t in tensors] == [[float(size)]] * 3
    buckets, limits = names._compute_bucket_assignment_by_size(tensors, [2048], [False] * 3)
    assert sorted(index for bucket in buckets for index in bucket) == [0, 1, 2] and len(limits) == len(buckets)
    torch_npu.distributed._verify_params_across_processes(group, tensors)
    module = nn.Linear(4, 2).npu()
    nn.init.ones_(module.weight)
    for register in (
        lambda reducer: None,
        lambda reducer: names._register_comm_hook(reducer, None, default_hooks.allreduce_hook),
        lambda reducer: names._register_builtin_comm_hook(reducer, dist.BuiltinCommHookType.FP16_COMPRESS),
    ):
        module.zero_grad()
        parameters = list(module.parameters())
        reducer = names.Reducer(parameters, [[1, 0]], [1 << 20], group, [False, False])
        register(reducer)
        reducer.prepare_for_backward([])
        module(torch.full((1, 4), 1.0 + rank, device="npu")).sum().backward()
        assert module.weight.grad.unique().tolist() == [(size + 1) / 2]
        assert module.bias.grad.tolist() == [1.0, 1.0]


def test_gradients_are_averaged(ranks) -> None:
    for size in (2, 3):
        for differences in ranks(size).run(train, "", {}):
            assert max(differences) < 1e-5


def test_channels_last(ranks) -> None:
    for size in (2, 3):
        assert max(ranks(size).run(train_channels_last)) < 1e-5


def test_options(ranks) -> None:
    for options in ({"gradient_as_bucket_view": True}, {"find_unused_parameters": True}, {"static_graph": True}):
        for differences in ranks(2).run(train, "", options):
            assert max(differences) < 1e-5


def test_comm_hooks(ranks) -> None:
    for hook, bound in (("allreduce_hook", 1e-5), ("fp16_compress_hook", 3e-3), ("bf16_compress_hook", 2e-2)):
        for differences in ranks(2).run(train, hook, {}):
            assert max(differences) < bound


def test_no_sync(ranks) -> None:
    ranks(2).run(without_synchronisation)


def test_buffers(ranks) -> None:
    first, second = ranks(2).run(buffers_follow_rank_0)
    assert first == second


def test_unused_parameters_and_mixed_dtypes(ranks) -> None:
    ranks(2).run(unused_parameters_and_mixed_dtypes)


def test_uneven_inputs(ranks) -> None:
    ranks(2).run(uneven_inputs)


def test_compression_by_power_iteration(ranks) -> None:
    ranks(2).run(compressed_by_power_iteration)


def test_synchronised_batch_norm_is_that_of_the_whole_batch(ranks) -> None:
    for size in (2, 3):
        ranks(size).run(synchronised_batch_norm)


def test_sharded_optimizer(ranks) -> None:
    ranks(2).run(sharded_optimizer)


def test_names_of_the_internals(ranks) -> None:
    ranks(2).run(internals)


def different_tensors(rank: int, size: int) -> str:
    import torch_npu

    try:
        torch_npu.distributed._verify_params_across_processes(
            torch.distributed.group.WORLD, [torch.ones(2 + rank, device="npu")]
        )
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_models_must_match(fresh_ranks) -> None:
    group = fresh_ranks(2)
    group.start(different_models)
    answer = group.answer(1)
    assert answer is not None and "appears not to match sizes of the same param in process 0" in answer["value"]


def test_parameters_must_match(fresh_ranks) -> None:
    group = fresh_ranks(2)
    group.start(different_tensors)
    answer = group.answer(1)
    assert answer is not None and "appears not to match sizes of the same param in process 0" in answer["value"]
