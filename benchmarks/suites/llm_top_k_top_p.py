"""npu_top_k_top_p: the filter of logits before sampling."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import torch_npu

from ..fused import FusedOp, prefill
from ..harness import Case, Settings

VOCABULARY = 152064


def composition(logits: torch.Tensor, p: torch.Tensor | None, k: torch.Tensor | None) -> torch.Tensor:
    """The filter as samplers write it, with a full sort."""
    values, order = logits.float().sort(dim=-1, stable=True)
    if k is not None:
        least = values.gather(1, (values.shape[1] - k.long()).unsqueeze(1))
        values = values.masked_fill(values < least, -torch.inf)
    if p is not None:
        dropped = values.softmax(-1).cumsum(-1) <= 1 - p.float().unsqueeze(1)
        dropped[:, -1] = False
        values = values.masked_fill(dropped, -torch.inf)
    return torch.empty_like(values).scatter_(1, order, values).to(logits.dtype)


def filter_logits(rows: int, vocabulary: int, p: float | None, k: int | None) -> FusedOp:
    """The filter of `rows` rows of a vocabulary."""

    def inputs() -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        ps = None if p is None else torch.full((rows,), p).bfloat16()
        ks = None if k is None else torch.full((rows,), k, dtype=torch.int32)
        return (torch.randn(rows, vocabulary) * 3).bfloat16(), ps, ks

    return FusedOp(
        name=f"npu_top_k_top_p {rows}x{vocabulary} bfloat16 p={p} k={k}",
        ours=lambda logits, p, k: torch_npu.npu_top_k_top_p(logits, p, k),
        composition=composition,
        inputs=inputs,
        bytes_moved=4.0 * rows * vocabulary,
        bandwidth_bound=False,
        compiled=False,
    )


def cases(settings: Settings) -> Iterator[Case]:
    """One row and a batch."""
    vocabulary = 4096 if settings.quick else VOCABULARY
    for rows in (1, 8):
        for p, k in ((0.9, 50), (None, 1024), (0.9, None)):
            yield from prefill(filter_logits(rows, vocabulary, p, k), settings)
