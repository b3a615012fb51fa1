"""DistributedDataParallel over backend hccl trains as one process on all the data would."""

from __future__ import annotations

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


def test_gradients_are_averaged(ranks) -> None:
    for size in (2, 3):
        for differences in ranks(size).run(train, "", {}):
            assert max(differences) < 1e-5


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


def test_models_must_match(fresh_ranks) -> None:
    group = fresh_ranks(2)
    group.start(different_models)
    answer = group.answer(1)
    assert answer is not None and "appears not to match sizes of the same param in process 0" in answer["value"]
