"""Matrix multiplication, float32 and bfloat16, and its share of the machine's peak."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from ..harness import Case, Settings


def cases(settings: Settings) -> Iterator[Case]:
    """Square products, and the thin one of token-by-token inference."""
    for dtype in (torch.float32, torch.bfloat16):
        for m, k, n in ((128, 128, 128), (512, 512, 512), (2048, 2048, 2048), (1, 4096, 4096)):
            generator = torch.Generator().manual_seed(0)
            a = torch.randn(m, k, generator=generator).to(dtype)
            b = torch.randn(k, n, generator=generator).to(dtype)
            on_npu = (a.to("npu"), b.to("npu"))
            name = str(dtype).removeprefix("torch.")
            yield Case(
                name=f"{m}x{k} @ {k}x{n} {name}",
                subject=partial(torch.mm, *on_npu),
                baseline=partial(torch.mm, a, b),
                finish=torch.npu.synchronize,
                flops=2.0 * m * k * n,
                peak=name,
            )
