"""Cases of fused operators: against stock operators, eager and compiled, and against a plain copy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch

from .harness import Case, Settings, Target

#: More than any cache holds, so that memory is what is measured.
ROTATION_BYTES = 256 * 2**20

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class FusedOp:
    """A fused operator and what it replaces.

    Parameters
    ----------
    name : str
        Operator, shape, dtype: ``"npu_rms_norm 2048x4096 bfloat16"``.
    ours : callable
        Called with npu tensors.
    composition : callable
        The same from stock operators, as a user would write it; called with CPU tensors.
    inputs : callable
        Makes one set of CPU arguments.
    bytes_moved : float
        Bytes that must be read plus bytes that must be written.
    bandwidth_bound : bool
        Whether the operator should run as fast as memory: then it must reach 80 % of a copy.
    compiled : bool
        Whether inductor can compile the composition.
    speedup : float
        Least speed-up over the eager composition.
    """

    name: str
    ours: Callable[..., object]
    composition: Callable[..., object]
    inputs: Callable[[], Arguments]
    bytes_moved: float
    bandwidth_bound: bool = True
    compiled: bool = True
    speedup: float = 1.2


def to_npu(arguments: Arguments) -> Arguments:
    """The arguments with every tensor on npu."""
    return tuple(one.to("npu") if isinstance(one, torch.Tensor) else one for one in arguments)


def rotating(function: Callable[..., object], sets: list[Arguments]) -> Callable[[], object]:
    """Call `function` with the next arguments each time; keep the last results so that their memory rotates too."""
    walk = cycle(sets)
    results: deque[object] = deque(maxlen=len(sets))

    def call() -> object:
        with torch.inference_mode():
            results.append(function(*next(walk)))
        return results

    return call


def copying(bytes_moved: float, count: int) -> Callable[[], object]:
    """Copy half of the bytes, so that as many are read as written and their sum is `bytes_moved`."""
    size = max(1, int(bytes_moved) // 2)
    pairs = [(torch.zeros(size, dtype=torch.uint8), torch.ones(size, dtype=torch.uint8)) for _ in range(count)]
    walk = cycle(pairs)

    def copy() -> object:
        target, source = next(walk)
        return target.copy_(source)

    return copy


def prefill(op: FusedOp, settings: Settings) -> Iterator[Case]:
    """Cases of sizes that do not fit into caches."""
    count = 1 if settings.quick else max(2, min(32, int(ROTATION_BYTES / max(op.bytes_moved, 1))))
    sets = [op.inputs() for _ in range(count)]
    ours = rotating(op.ours, [to_npu(one) for one in sets])
    finish = torch.npu.synchronize
    yield Case(
        name=f"{op.name} / eager",
        subject=ours,
        baseline=rotating(op.composition, sets),
        finish=finish,
        bytes_moved=op.bytes_moved,
        target=Target("speedup", op.speedup),
        mean="fused, prefill, against eager",
    )
    if op.compiled and not settings.quick:
        torch._dynamo.reset()
        yield Case(
            name=f"{op.name} / inductor",
            subject=ours,
            baseline=rotating(torch.compile(op.composition, dynamic=False), sets),
            finish=finish,
            bytes_moved=op.bytes_moved,
            mean="fused, prefill, against inductor",
        )
    if op.bandwidth_bound:
        yield Case(
            name=f"{op.name} / copy",
            subject=ours,
            baseline=copying(op.bytes_moved, count),
            finish=finish,
            bytes_moved=op.bytes_moved,
            target=Target("ratio", 1.25),
            allocators=("tuned",),
            note="the copy reads and writes as many bytes; its buffers stay mapped",
        )


def decode(op: FusedOp, cheapest: Callable[..., object]) -> Iterator[Case]:
    """From the call to the result in memory, against the cheapest stock operator of the shape."""
    repeats = 20
    arguments = op.inputs()
    on_npu = to_npu(arguments)

    def launch_to_result() -> None:
        with torch.inference_mode():
            for _ in range(repeats):
                result = op.ours(*on_npu)  # noqa: F841  lives until the next result exists, as the stock one
                torch.npu.synchronize()

    def stock() -> None:
        with torch.inference_mode():
            for _ in range(repeats):
                result = cheapest(*arguments)  # noqa: F841

    yield Case(
        name=f"{op.name} / launch to result",
        subject=launch_to_result,
        baseline=stock,
        operations=repeats,
        target=Target("ratio", 1.0),
        allocators=("tuned",),
        mean="fused, decode, launch to result against the cheapest stock operator",
    )
