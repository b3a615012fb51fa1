"""scaled_dot_product_attention on npu against its formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import torch_npu  # noqa: F401


def _reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, causal: bool
) -> torch.Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, 1) for t in (k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, -1) @ v


TOLERANCE = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-9},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.bfloat16: {"rtol": 3e-2, "atol": 3e-2},
    torch.float16: {"rtol": 5e-3, "atol": 5e-3},
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mode", ["plain", "causal", "boolean mask", "additive mask", "grouped heads"])
@pytest.mark.parametrize("lengths", [(1, 5), (33, 40), (64, 64)], ids=str)
def test_values_and_gradients(dtype: torch.dtype, mode: str, lengths: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(7)
    heads = 2 if mode == "grouped heads" else 4
    q = torch.randn(2, 4, lengths[0], 16, generator=generator).to(dtype)
    k, v = (torch.randn(2, heads, lengths[1], 16, generator=generator).to(dtype) for _ in range(2))
    mask = None
    if mode == "boolean mask":
        mask = torch.rand(lengths, generator=generator) > 0.3
        mask[:, 0] = True  # no empty row
    elif mode == "additive mask":
        mask = torch.randn(2, 1, *lengths, generator=generator).to(dtype)
    leaves = [t.clone().npu().requires_grad_() for t in (q, k, v)]
    out = F.scaled_dot_product_attention(
        *leaves, attn_mask=None if mask is None else mask.npu(), is_causal=mode == "causal", enable_gqa=heads != 4
    )
    exact = [t.double().requires_grad_() for t in (q, k, v)]
    wide_mask = mask.double() if mode == "additive mask" else mask
    expected = _reference(*exact, wide_mask, mode == "causal")
    torch.testing.assert_close(out.cpu().double(), expected, **TOLERANCE[dtype])
    out.sum().backward()
    expected.sum().backward()
    for ours, theirs in zip(leaves, exact, strict=True):
        torch.testing.assert_close(ours.grad.cpu().double(), theirs.grad, **TOLERANCE[dtype])


def test_math_can_be_forced() -> None:
    q = torch.randn(1, 2, 8, 8, device="npu")
    flash = F.scaled_dot_product_attention(q, q, q)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        torch.testing.assert_close(F.scaled_dot_product_attention(q, q, q).cpu(), flash.cpu(), rtol=1e-4, atol=1e-5)


def test_dropout() -> None:
    q, v = torch.randn(1, 2, 16, 8, device="npu"), torch.ones(1, 2, 16, 8, device="npu")
    out = F.scaled_dot_product_attention(q, q, v, dropout_p=0.5).cpu()
    assert out.std() > 0 and 0.5 < out.mean() < 1.5  # rows of weights no longer sum to one


def test_does_not_wait() -> None:
    q = torch.randn(1, 2, 8, 8, device="npu")
    torch.npu.set_sync_debug_mode("error")
    try:
        out = F.scaled_dot_product_attention(q, q, q)
    finally:
        torch.npu.set_sync_debug_mode("default")
    assert out.shape == q.shape
