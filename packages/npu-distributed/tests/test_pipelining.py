"""Pipeline schedules over batched transfers give the losses and gradients of one process."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleLoopedBFS,
    ScheduleZBVZeroBubble,
    SplitPoint,
    pipeline,
)

MICROBATCHES = 4


def network() -> nn.Sequential:
    torch.manual_seed(7)
    parts = [nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)) for _ in range(4)]
    return nn.Sequential(*parts)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(8, 8, generator=generator), torch.randn(8, 8, generator=generator)


def reference() -> tuple[nn.Sequential, list[float], torch.Tensor]:
    """Whole model on the CPU: gradients of the mean loss over microbatches, their losses, the output."""
    model = network()
    inputs, targets = batch()
    losses = [
        F.mse_loss(model(x), y) for x, y in zip(inputs.chunk(MICROBATCHES), targets.chunk(MICROBATCHES), strict=True)
    ]
    (sum(losses) / MICROBATCHES).backward()
    return model, [loss.item() for loss in losses], model(inputs).detach()


def run(schedule, first: bool, last: bool) -> tuple[list[float], torch.Tensor | None]:
    inputs, targets = (t.npu() for t in batch())
    losses: list = []
    result = None
    first_arguments = (inputs,) if first else ()
    if last:
        result = schedule.step(*first_arguments, target=targets, losses=losses)
    else:
        schedule.step(*first_arguments)
    return [loss.item() for loss in losses], result


def schedules(rank: int, size: int) -> None:
    expected, losses, output = reference()
    device = torch.device("npu", rank)
    one_stage = (ScheduleGPipe, Schedule1F1B)
    several = (ScheduleInterleaved1F1B, ScheduleLoopedBFS, ScheduleInterleavedZeroBubble, ScheduleZBVZeroBubble)
    for kind in (*one_stage, *several):
        model = network()
        last = size - 1
        if kind in several:
            back = kind is ScheduleZBVZeroBubble  # down the ranks and up again
            last = 0 if back else last
            total = 2 * size
            second = total - 1 - rank if back else rank + size
            held = [(index, copy.deepcopy(model[index])) for index in (rank, second)]
        else:
            per_rank = len(model) // size
            held = [(rank, copy.deepcopy(model[per_rank * rank : per_rank * (rank + 1)]))]
            total = size
        stages = [PipelineStage(module.npu(), index, total, device) for index, module in held]
        schedule = kind(stages if len(held) > 1 else stages[0], MICROBATCHES, loss_fn=F.mse_loss)
        for _ in range(2):  # the second step reuses buffers and shapes
            for stage in stages:
                stage.submod.zero_grad()
            ours, result = run(schedule, rank == 0, rank == last)
        if rank == last:
            torch.testing.assert_close(ours, losses, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(result.detach().cpu(), output, rtol=1e-5, atol=1e-6)
        for index, module in held:
            rows = len(expected) // total
            parameters = expected[rows * index : rows * (index + 1)].parameters()
            for mine, theirs in zip(module.parameters(), parameters, strict=True):
                torch.testing.assert_close(mine.grad.cpu(), theirs.grad, rtol=1e-4, atol=1e-6)
        dist.barrier()


def traced(rank: int, size: int) -> None:
    """A model split by torch at a named module."""
    expected, losses, _ = reference()
    inputs, _ = batch()
    pipe = pipeline(network(), mb_args=(inputs.chunk(MICROBATCHES)[0],), split_spec={"2": SplitPoint.BEGINNING})
    stage = pipe.build_stage(rank, torch.device("npu", rank))
    ours, _ = run(ScheduleGPipe(stage, MICROBATCHES, loss_fn=F.mse_loss), rank == 0, rank == size - 1)
    if rank == size - 1:
        torch.testing.assert_close(ours, losses, rtol=1e-5, atol=1e-6)
    half = list(expected.parameters())[8 * rank : 8 * (rank + 1)]
    for mine, theirs in zip(stage.submod.parameters(), half, strict=True):
        torch.testing.assert_close(mine.grad.cpu(), theirs.grad, rtol=1e-4, atol=1e-6)


def test_schedules(ranks) -> None:
    ranks(2).run(schedules)


def test_model_split_by_tracing(ranks) -> None:
    ranks(2).run(traced)
