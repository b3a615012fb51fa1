"""The fused RMS norm of npu-ops-llm against ``F.rms_norm`` of stock PyTorch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import cycle

import torch
import torch.nn.functional as F

import torch_npu

from ..harness import Case, Settings, Target

ROWS, WIDTH = 2048, 4096
# Tensors each side walks through, inputs and outputs: more than any cache holds, so that memory is what is measured.
ROTATION = 8


def rotating(function: Callable[[torch.Tensor], object], inputs: list[torch.Tensor]) -> Callable[[], object]:
    """Call `function` with the next input each time, and keep the last results so that their memory rotates too."""
    walk = cycle(inputs)
    results: deque[object] = deque(maxlen=len(inputs))
    return lambda: results.append(function(next(walk)))


def copying(inputs: list[torch.Tensor]) -> Callable[[], object]:
    """Copy the next input into the next of as many mapped targets."""
    walk = cycle([(torch.zeros_like(x), x) for x in inputs])

    def copy() -> object:
        target, source = next(walk)
        return target.copy_(source)

    return copy


def cases(settings: Settings) -> Iterator[Case]:
    """One shape of a large language model, as speed-up and as share of copy bandwidth."""
    for dtype in (torch.bfloat16, torch.float32):
        inputs = [torch.randn(ROWS, WIDTH).to(dtype) for _ in range(ROTATION)]
        weight = torch.randn(WIDTH).to(dtype)
        on_npu, npu_weight = [x.to("npu") for x in inputs], weight.to("npu")
        size = inputs[0].numel() * inputs[0].element_size()
        name = f"{ROWS}x{WIDTH} {str(dtype).removeprefix('torch.')}"
        wanted = dtype == torch.bfloat16

        def ours(x: torch.Tensor, weight: torch.Tensor = npu_weight) -> object:
            return torch_npu.npu_rms_norm(x, weight, epsilon=1e-6)

        def stock(x: torch.Tensor, weight: torch.Tensor = weight) -> object:
            return F.rms_norm(x, (WIDTH,), weight, 1e-6)

        yield Case(
            name=f"{name} against F.rms_norm",
            subject=rotating(ours, on_npu),
            baseline=rotating(stock, inputs),
            finish=torch.npu.synchronize,
            bytes_moved=2.0 * size,
            footprint=ROTATION * size,
            target=Target("speedup", 5.0) if wanted else None,
        )
        yield Case(
            name=f"{name} against a plain copy",
            subject=rotating(ours, on_npu),
            baseline=copying(inputs),
            finish=torch.npu.synchronize,
            bytes_moved=2.0 * size,
            footprint=ROTATION * size,
            target=Target("bandwidth_share", 0.75) if wanted else None,
            note="the copy's buffers stay mapped; both read and write the tensor once",
        )
