"""Permutation of tokens by expert and back, npu-ops-llm."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

import torch_npu

from ..fused import Arguments, FusedOp, decode, prefill
from ..harness import Case, Settings

EXPERTS, K, WIDTH = 256, 8, 4096
Pair = tuple[torch.Tensor, torch.Tensor]


def chosen_experts(tokens: int) -> torch.Tensor:
    """K different experts for each token."""
    return torch.rand(tokens, EXPERTS).topk(K).indices.to(torch.int32)


def permute(tokens: int) -> FusedOp:
    """Tokens to their experts."""

    def composition(x: torch.Tensor, indices: torch.Tensor) -> Pair:
        order = indices.flatten().argsort(stable=True)
        return x.index_select(0, order // K), order.argsort().to(torch.int32)

    return FusedOp(
        name=f"npu_moe_token_permute {tokens}x{K}x{WIDTH} bfloat16",
        ours=torch_npu.npu_moe_token_permute,
        composition=composition,
        inputs=lambda: (torch.randn(tokens, WIDTH).bfloat16(), chosen_experts(tokens)),
        bytes_moved=2.0 * tokens * WIDTH * (K + 1),
        compiled=False,
    )


def permute_by_map(tokens: int) -> FusedOp:
    """Tokens to the experts that a map selects."""

    def inputs() -> Arguments:
        indices = chosen_experts(tokens).long()
        return (
            torch.randn(tokens, WIDTH).bfloat16(),
            torch.zeros(tokens, EXPERTS, dtype=torch.bool).scatter_(1, indices, True),
            torch.rand(tokens, EXPERTS),
        )

    def composition(x: torch.Tensor, routing_map: torch.Tensor, probs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        by_expert = routing_map.t().contiguous()
        token = torch.arange(tokens).expand(EXPERTS, -1).masked_select(by_expert)
        permuted_probs = probs.t().contiguous().masked_select(by_expert)
        return x.index_select(0, token), permuted_probs, token.argsort(stable=True).to(torch.int32)

    return FusedOp(
        name=f"npu_moe_token_permute_with_routing_map {tokens}x{K}x{WIDTH} bfloat16",
        ours=lambda x, routing_map, probs: torch_npu.npu_moe_token_permute_with_routing_map(
            x, routing_map, probs=probs, num_out_tokens=tokens * K
        ),
        composition=composition,
        inputs=inputs,
        bytes_moved=2.0 * tokens * WIDTH * (K + 1),
        compiled=False,
    )


def rows_and_index(tokens: int) -> Arguments:
    """Rows of the experts, the row of every slot, probabilities."""
    rows = torch.randn(tokens * K, WIDTH, dtype=torch.bfloat16)
    return rows, torch.randperm(tokens * K).to(torch.int32), torch.rand(tokens, K)


def unpermute(tokens: int) -> FusedOp:
    """Rows back to their tokens."""

    def composition(rows: torch.Tensor, index: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        picked = rows.index_select(0, index).view(tokens, K, WIDTH)
        return (picked * probs.unsqueeze(-1)).sum(1).to(rows.dtype)

    return FusedOp(
        name=f"npu_moe_token_unpermute {tokens}x{K}x{WIDTH} bfloat16",
        ours=torch_npu.npu_moe_token_unpermute,
        composition=composition,
        inputs=lambda: rows_and_index(tokens),
        bytes_moved=2.0 * tokens * WIDTH * (K + 1),
        speedup=5.0,
    )


def unpermute_grad(tokens: int) -> FusedOp:
    """Gradients of rows and probabilities."""

    def inputs() -> Arguments:
        rows, index, probs = rows_and_index(tokens)
        return rows, torch.randn(tokens, WIDTH).bfloat16(), index, probs

    def composition(rows: torch.Tensor, grad: torch.Tensor, index: torch.Tensor, probs: torch.Tensor) -> Pair:
        weighted = (grad.unsqueeze(1) * probs.unsqueeze(-1)).to(rows.dtype).flatten(0, 1)
        grad_rows = torch.empty_like(rows).index_copy_(0, index.long(), weighted)
        picked = rows.index_select(0, index).view(tokens, K, WIDTH)
        return grad_rows, (picked.float() @ grad.float().unsqueeze(-1)).squeeze(-1)

    return FusedOp(
        name=f"npu_moe_token_unpermute_grad {tokens}x{K}x{WIDTH} bfloat16",
        ours=torch_npu.npu_moe_token_unpermute_grad,
        composition=composition,
        inputs=inputs,
        bytes_moved=2.0 * tokens * WIDTH * (2 * K + 1),
        compiled=False,
        speedup=5.0,
    )


def permute_grad(tokens: int) -> FusedOp:
    """Gradient of the tokens."""

    def composition(rows: torch.Tensor, index: torch.Tensor, *_: object) -> torch.Tensor:
        return rows.index_select(0, index).view(tokens, K, WIDTH).sum(1)

    return FusedOp(
        name=f"npu_moe_token_permute_grad_v2 {tokens}x{K}x{WIDTH} bfloat16",
        ours=torch_npu.npu_moe_token_permute_grad_v2,
        composition=composition,
        inputs=lambda: (*rows_and_index(tokens)[:2], tokens, torch.bfloat16, K),
        bytes_moved=2.0 * tokens * WIDTH * (K + 1),
    )


def cases(settings: Settings) -> Iterator[Case]:
    """Prefill sizes of everything, decode sizes of the forward operators."""
    tokens = 64 if settings.quick else 4096
    for make in (permute, permute_by_map, permute_grad, unpermute, unpermute_grad):
        yield from prefill(make(tokens), settings)
    for count in (1, 32):
        yield from decode(permute(count), lambda x, _: F.layer_norm(x, (WIDTH,)))
        yield from decode(unpermute(count), lambda rows, *_: F.layer_norm(rows, (WIDTH,)))
