"""Attention over a sequence that is split between ranks equals attention of one process over all of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.attention import SDPBackend, sdpa_kernel


def values(seed: int, length: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(1, 2, length, 32, generator=torch.Generator().manual_seed(seed)).to(dtype)


def attention(rank: int, size: int) -> None:
    from torch.distributed.tensor.experimental import context_parallel
    from torch.distributed.tensor.experimental._attention import (
        _cp_options,
        context_parallel_unshard,
        set_rotate_method,
    )

    mesh = init_device_mesh("npu", (size,))
    length = 16 * size
    # Causal attention must be balanced or not; the other one cannot be.
    cases = [(causal, balanced) for causal in (False, True) for balanced in (False, True) if causal or not balanced]
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        for causal, balanced in cases:
            for rotate in ("allgather", "alltoall"):
                whole = [values(seed, length, dtype) for seed in range(4)]
                leaves = [t.float().clone().requires_grad_() for t in whole[:3]]
                expected = F.scaled_dot_product_attention(*leaves, is_causal=causal, scale=0.2)
                expected.backward(whole[3].float())
                _cp_options.enable_load_balance = balanced
                set_rotate_method(rotate)
                parts = [t.clone().npu() for t in whole]
                with context_parallel(mesh, buffers=parts, buffer_seq_dims=[2] * 4):
                    ours = [t.detach().clone().requires_grad_() for t in parts[:3]]
                    out = F.scaled_dot_product_attention(*ours, is_causal=causal, scale=0.2)
                    assert out.shape == (1, 2, 16, 32)
                    out.backward(parts[3])
                    results = context_parallel_unshard(mesh, [out.detach(), *(t.grad for t in ours)], [2] * 4)
                for got, wanted in zip(results, [expected, *(t.grad for t in leaves)], strict=True):
                    assert got.dtype == dtype
                    torch.testing.assert_close(got.cpu().float(), wanted.detach(), rtol=bound, atol=bound)


def refusals(rank: int, size: int) -> None:
    from torch.distributed.tensor.experimental import context_parallel

    mesh = init_device_mesh("npu", (size,))
    parts = [values(seed, 8 * size, torch.float32).npu() for seed in range(3)]
    mask = torch.ones(8, 8, dtype=torch.bool, device="npu")
    with context_parallel(mesh, buffers=parts, buffer_seq_dims=[2] * 3):
        with pytest.raises(NotImplementedError, match="attn_mask is not supported"):
            F.scaled_dot_product_attention(*parts, attn_mask=mask)
        with sdpa_kernel(SDPBackend.MATH), pytest.raises(NotImplementedError, match="only the fused attention"):
            F.scaled_dot_product_attention(*parts)


@pytest.mark.parametrize("size", (2, 4))
def test_attention(ranks, size: int) -> None:
    ranks(size).run(attention)


def test_refusals(ranks) -> None:
    ranks(2).run(refusals)
