"""torch.distributed.checkpoint: what one job saved, jobs of other sizes and layouts load."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 3))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, device: str) -> float:
    inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).to(device)
    optimizer.zero_grad()
    loss = model(inputs).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


class Job(Stateful):
    """Model and optimizer as one entry of a checkpoint."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.parts = model, optimizer

    def state_dict(self) -> dict:
        model, optimizer = get_state_dict(*self.parts)
        return {"model": model, "optimizer": optimizer}

    def load_state_dict(self, state: dict) -> None:
        set_state_dict(*self.parts, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def sharded(mesh) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network().npu()
    fully_shard(model[2], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def losses_on_cpu(steps: int) -> list[float]:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    return [step(model, optimizer, "cpu") for _ in range(steps)]


def save(rank: int, size: int, folder: str) -> list[float]:
    mesh = init_device_mesh("npu", (size,))
    model, optimizer = sharded(mesh)
    losses = [step(model, optimizer, "npu") for _ in range(2)]
    checkpoint.save({"job": Job(model, optimizer)}, checkpoint_id=f"{folder}/plain")
    # torch plans asynchronous saving over a CPU backend.
    both = dist.new_group(backend="cpu:gloo,npu:hccl")
    future = checkpoint.async_save({"job": Job(model, optimizer)}, checkpoint_id=f"{folder}/async", process_group=both)
    # The state was copied before the call came back: going on does not change what is saved.
    after = step(model, optimizer, "npu")
    future.result(timeout=120)
    return [*losses, after]


def resume(rank: int, size: int, folder: str, kind: str) -> float:
    """The loss of the step after the saved ones."""
    model, optimizer = sharded(init_device_mesh("npu", (size,)))
    checkpoint.load({"job": Job(model, optimizer)}, checkpoint_id=f"{folder}/{kind}")
    return step(model, optimizer, "npu")


def other_layouts(rank: int, size: int, folder: str) -> None:
    mesh = init_device_mesh("npu", (size,))
    whole = {"a": torch.arange(35.0).view(5, 7), "b": torch.arange(12, dtype=torch.bfloat16).view(3, 4)}
    state = {name: distribute_tensor(value.npu(), mesh, [Shard(0)]) for name, value in whole.items()}
    state |= {"plain": torch.full((3,), 7.0, device="npu"), "count": 5, "text": {"deep": "value"}}
    checkpoint.save(state, checkpoint_id=f"{folder}/layouts")
    for placement in (Shard(1), Replicate(), Shard(0)):
        other = {
            name: distribute_tensor(torch.zeros_like(value).npu(), mesh, [placement]) for name, value in whole.items()
        }
        other |= {"plain": torch.zeros(3, device="npu"), "count": 0, "text": {"deep": ""}}
        checkpoint.load(other, checkpoint_id=f"{folder}/layouts")
        for name, value in whole.items():
            assert other[name].placements == (placement,)
            assert torch.equal(other[name].full_tensor().cpu(), value)
        assert other["plain"].tolist() == [7.0] * 3 and other["count"] == 5 and other["text"] == {"deep": "value"}
    dist.barrier()


def test_save_and_resume(ranks, tmp_path: Path) -> None:
    expected = losses_on_cpu(3)
    for losses in ranks(2).run(save, str(tmp_path)):
        torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    for size, kind in ((2, "plain"), (2, "async"), (3, "plain")):
        for loss in ranks(size).run(resume, str(tmp_path), kind):
            torch.testing.assert_close(loss, expected[2], rtol=1e-4, atol=1e-5)
    # Without any group: the files hold whole tensors for whoever reads them.
    model = network()
    state = {"job": {"model": model.state_dict()}}
    checkpoint.load(state, checkpoint_id=tmp_path / "plain", no_dist=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    torch.testing.assert_close(step(model, optimizer, "cpu"), expected[2], rtol=1e-4, atol=1e-5)


def test_other_layouts(ranks, tmp_path: Path) -> None:
    ranks(2).run(other_layouts, str(tmp_path))
