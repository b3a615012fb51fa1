"""Fully sharded data parallel, both generations, trains on npu as one process on all the data does."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffload,
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    ShardingStrategy,
    StateDictType,
    fully_shard,
)
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

STEPS = 3
ROWS = 8


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 2 * width + 1)  # odd: shards need padding
        self.outer = nn.Linear(2 * width + 1, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outer(F.gelu(self.inner(self.norm(x))))


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(10, 16), Block(16), Block(16), nn.Linear(16, 5))


def batch(size: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5 + step)
    return torch.randn(ROWS * size, 10, generator=generator), torch.randint(5, (ROWS * size,), generator=generator)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def reference(size: int) -> tuple[nn.Module, list[float]]:
    """One process, the whole batch, on the CPU."""
    model, losses = network(), []
    optimizer = optimizer_of(model)
    for step in range(STEPS):
        inputs, targets = batch(size, step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def train(rank: int, size: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    """The losses over the whole batch of each step."""
    losses = []
    for step in range(STEPS):
        inputs, targets = (part.chunk(size)[rank].npu() for part in batch(size, step))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs).float(), targets)
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean, op=dist.ReduceOp.AVG)
        losses.append(mean.item())
    return losses


def same(ours: dict, theirs: dict, bound: float) -> None:
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(
            ours[name].cpu().float(),
            theirs[name],
            rtol=bound,
            atol=bound,
            msg=lambda text, name=name: f"{name}: {text}",
        )


# ---- FullyShardedDataParallel ---------------------------------------------------------------------------------------


def wrapped(model: nn.Module, **options) -> FullyShardedDataParallel:
    return FullyShardedDataParallel(
        model, auto_wrap_policy=ModuleWrapPolicy({Block}), device_id=torch.npu.current_device(), **options
    )


def strategies(rank: int, size: int) -> None:
    expected, losses = reference(size)
    for strategy in (ShardingStrategy.FULL_SHARD, ShardingStrategy.SHARD_GRAD_OP, ShardingStrategy.NO_SHARD):
        for use_orig_params in (False, True):
            model = wrapped(network(), sharding_strategy=strategy, use_orig_params=use_orig_params)
            torch.testing.assert_close(train(rank, size, model, optimizer_of(model)), losses, rtol=1e-4, atol=1e-4)
            with FullyShardedDataParallel.summon_full_params(model):
                names = {name.replace("_fsdp_wrapped_module.", ""): p for name, p in model.named_parameters()}
                full = {name: p.detach().clone() for name, p in names.items()}
            same(full, dict(expected.named_parameters()), 1e-4)


def hybrid(rank: int, size: int) -> None:
    expected, losses = reference(size)
    mesh = init_device_mesh("npu", (2, 2), mesh_dim_names=("replicate", "shard"))
    model = wrapped(network(), sharding_strategy=ShardingStrategy.HYBRID_SHARD, device_mesh=mesh)
    torch.testing.assert_close(train(rank, size, model, optimizer_of(model)), losses, rtol=1e-4, atol=1e-4)
    again = network().npu()
    for block in (*again[1:3], again):
        fully_shard(block, mesh=mesh)
    torch.testing.assert_close(train(rank, size, again, optimizer_of(again)), losses, rtol=1e-4, atol=1e-4)


def mixed_precision(rank: int, size: int) -> None:
    _, losses = reference(size)
    for dtype, bound in ((torch.bfloat16, 5e-2), (torch.float16, 5e-3)):
        seen = []
        policy = MixedPrecision(param_dtype=dtype, reduce_dtype=torch.float32, buffer_dtype=dtype)
        model = wrapped(network(), mixed_precision=policy)
        model.register_forward_hook(lambda _m, _i, output, seen=seen: seen.append(output.dtype))
        ours = train(rank, size, model, optimizer_of(model))
        torch.testing.assert_close(ours, losses, rtol=bound, atol=bound)
        assert set(seen) == {dtype}
        assert {p.dtype for p in model.parameters()} == {torch.float32}


def state_dicts(rank: int, size: int) -> None:
    expected, _ = reference(size)
    model = wrapped(network())
    optimizer = optimizer_of(model)
    train(rank, size, model, optimizer)
    kind = FullyShardedDataParallel.state_dict_type
    with kind(model, StateDictType.FULL_STATE_DICT):
        full = model.state_dict()
        same(full, expected.state_dict(), 1e-4)
    moments = FullyShardedDataParallel.full_optim_state_dict(model, optimizer, rank0_only=False)
    assert set(moments["state"]) == set(dict(expected.named_parameters()))
    for which in (StateDictType.FULL_STATE_DICT, StateDictType.SHARDED_STATE_DICT, StateDictType.LOCAL_STATE_DICT):
        with kind(model, which):
            saved = copy.deepcopy(model.state_dict())
        other = wrapped(network())
        with kind(other, which):
            other.load_state_dict(saved)
        with kind(other, StateDictType.FULL_STATE_DICT):
            same(other.state_dict(), {name: value.cpu() for name, value in full.items()}, 0)
    other = wrapped(network())
    with kind(other, StateDictType.FULL_STATE_DICT):
        other.load_state_dict(full)
    resumed = optimizer_of(other)
    sharded = FullyShardedDataParallel.shard_full_optim_state_dict(moments, other, optim=resumed)
    resumed.load_state_dict(sharded)
    ours, theirs = train(rank, size, other, resumed), train(rank, size, model, optimizer)
    assert ours == theirs


def offloaded(rank: int, size: int) -> None:
    expected, losses = reference(size)
    model = wrapped(network(), cpu_offload=CPUOffload(offload_params=True))
    torch.testing.assert_close(train(rank, size, model, optimizer_of(model)), losses, rtol=1e-4, atol=1e-4)
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    again = network()
    shard = partial(fully_shard, offload_policy=CPUOffloadPolicy(pin_memory=True))
    mesh = init_device_mesh("npu", (size,))
    for block in (*again[1:3], again):
        shard(block, mesh=mesh)
    # Gradients are reduced on the device and land in host memory; AdamW then runs on the CPU.
    torch.testing.assert_close(train(rank, size, again, optimizer_of(again)), losses, rtol=1e-4, atol=1e-4)
    assert {p.to_local().device.type for p in again.parameters()} == {"cpu"}
    full = {
        name: p.full_tensor() if p.device.type == "npu" else p.to("npu").full_tensor()
        for name, p in again.named_parameters()
    }
    same(full, {name: p.detach() for name, p in expected.named_parameters()}, 1e-4)


def scaled_gradients(rank: int, size: int) -> list[float]:
    model = wrapped(network(), mixed_precision=MixedPrecision(param_dtype=torch.float16, reduce_dtype=torch.float16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = ShardedGradScaler(device="npu", init_scale=2.0**10, growth_interval=2)
    scales = []
    for step in range(5):
        inputs, targets = (part.chunk(size)[rank].npu() for part in batch(size, step))
        if step == 2 and rank == 1:
            inputs = inputs * float("inf")  # the others must skip this step too
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(inputs).float(), targets)).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        moved = any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert moved == (step != 2), step
        scales.append(scaler.get_scale())
    return scales


def clipped(rank: int, size: int) -> None:
    expected = network()
    inputs, targets = batch(size, 0)
    F.cross_entropy(expected(inputs), targets).backward()
    norm = nn.utils.clip_grad_norm_(expected.parameters(), 0.1)
    model = wrapped(network())
    sharded = network().npu()
    for block in (*sharded[1:3], sharded):
        fully_shard(block)
    mine = [part.chunk(size)[rank].npu() for part in (inputs, targets)]
    for ours in (model, sharded):
        F.cross_entropy(ours(mine[0]), mine[1]).backward()
    torch.testing.assert_close(model.clip_grad_norm_(0.1).cpu(), norm, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        nn.utils.clip_grad_norm_(sharded.parameters(), 0.1).full_tensor().cpu(), norm, rtol=1e-4, atol=1e-5
    )
    for ours, theirs in zip(sharded.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.full_tensor().cpu(), theirs.grad, rtol=1e-4, atol=1e-5)


# ---- fully_shard ----------------------------------------------------------------------------------------------------


def sharded_modules(rank: int, size: int) -> None:
    expected, losses = reference(size)
    for reshard in (True, False):
        model = network().npu()
        for block in (*model[1:3], model):
            fully_shard(block, reshard_after_forward=reshard)
        assert all(p.to_local().numel() < p.numel() for p in model.parameters() if p.shape[0] >= size)
        ours = train(rank, size, model, optimizer_of(model))
        torch.testing.assert_close(ours, losses, rtol=1e-4, atol=1e-4)
        full = {name: p.full_tensor() for name, p in model.named_parameters()}
        same(full, {name: p.detach() for name, p in expected.named_parameters()}, 1e-4)
    # Explicit control: all gathers ahead, no gradients reduced until the last microbatch.
    model, plain = network().npu(), network()
    fully_shard(model[1])
    fully_shard(model)
    model.unshard(async_op=True).wait()
    for step in range(2):
        inputs, targets = batch(size, step)
        F.cross_entropy(plain(inputs), targets).backward()
        model.set_requires_gradient_sync(step == 1)
        F.cross_entropy(model(inputs.chunk(size)[rank].npu()), targets.chunk(size)[rank].npu()).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.full_tensor().cpu(), theirs.grad, rtol=1e-4, atol=1e-5)


def sharded_mixed_precision(rank: int, size: int) -> None:
    _, losses = reference(size)
    for policy, bound in (
        (MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32), 5e-2),
        (MixedPrecisionPolicy(param_dtype=torch.float16, output_dtype=torch.float32), 5e-3),
    ):
        model, seen = network().npu(), []
        inner = dataclasses.replace(policy, output_dtype=None)  # the last layer takes what the blocks give
        for block in model[1:3]:
            fully_shard(block, mp_policy=inner)
        fully_shard(model, mp_policy=policy)
        model[1].register_forward_hook(lambda _m, inputs, _o, seen=seen: seen.append(inputs[0].dtype))
        ours = train(rank, size, model, optimizer_of(model))
        torch.testing.assert_close(ours, losses, rtol=bound, atol=bound)
        assert set(seen) == {policy.param_dtype}
        assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def parameters_on_meta(rank: int, size: int) -> None:
    """A model that never exists in full: made on meta, sharded, then filled from a full state dict of rank 0."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
        set_model_state_dict,
    )

    weights = network().state_dict()
    with torch.device("meta"):
        model = network()
    for block in (*model[1:3], model):
        fully_shard(block)
    model.to_empty(device="npu")
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, dict(weights) if rank == 0 else {}, options=options)
    same(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), weights, 0)
    optimizer = optimizer_of(model)
    expected, losses = reference(size)
    torch.testing.assert_close(train(rank, size, model, optimizer), losses, rtol=1e-4, atol=1e-4)
    state = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        assert state["state"].keys() == dict(expected.named_parameters()).keys()
        assert all(value["exp_avg"].device.type == "cpu" for value in state["state"].values())
    else:
        assert not state.get("state")


def test_strategies(ranks) -> None:
    ranks(2).run(strategies)


def test_mixed_precision(ranks) -> None:
    ranks(2).run(mixed_precision)
    ranks(2).run(sharded_mixed_precision)


def test_state_dicts(ranks) -> None:
    ranks(2).run(state_dicts)


def test_parameters_in_host_memory(ranks) -> None:
    ranks(2).run(offloaded)


def test_scaler_agrees_on_overflow(ranks) -> None:
    first, second = ranks(2).run(scaled_gradients)
    assert first == second == [1024.0, 2048.0, 1024.0, 1024.0, 2048.0]


def test_clipping_uses_the_norm_of_all_shards(ranks) -> None:
    ranks(2).run(clipped)


def test_fully_shard(ranks) -> None:
    ranks(2).run(sharded_modules)


def test_model_made_on_meta(ranks) -> None:
    ranks(2).run(parameters_on_meta)


def test_hybrid_shards_on_a_mesh(ranks) -> None:
    ranks(4).run(hybrid)
