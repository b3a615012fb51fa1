"""Calls of the operators that permute tokens for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch

TOKENS, EXPERTS, K, HIDDEN = 6, 5, 2, 24


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments.  Tensors that can be differentiated require a gradient."""
    for dtype in (torch.float32, torch.bfloat16):
        tokens = torch.randn(TOKENS, HIDDEN).to(dtype)
        rows = torch.randn(TOKENS * K, HIDDEN).to(dtype)
        indices = torch.stack([torch.randperm(EXPERTS)[:K] for _ in range(TOKENS)])
        sorted_indices = torch.randperm(TOKENS * K).to(torch.int32)
        probs = torch.rand(TOKENS, K)
        wanted = tokens.clone().requires_grad_()
        yield "npu_moe_token_permute", (wanted, indices), {}
        yield "npu_moe_token_permute", (wanted, indices.to(torch.int32)), {"num_out_tokens": 9}
        yield "npu_moe_token_permute_grad", (tokens, rows, indices, sorted_indices), {}
        yield "npu_moe_token_permute_grad_v2", (rows[:9].clone(), sorted_indices, TOKENS, dtype, K), {}
        for name in ("npu_moe_token_unpermute", "_npu_moe_token_unpermute"):
            yield name, (rows.clone().requires_grad_(), sorted_indices, probs.clone().requires_grad_()), {}
            yield name, (rows.clone().requires_grad_(), sorted_indices), {}
        yield "npu_moe_token_unpermute_grad", (rows, tokens, sorted_indices, probs), {}
        yield "npu_moe_token_unpermute_grad", (rows, rows + 1, sorted_indices), {}
        yield (
            "npu_moe_token_unpermute_grad_v2",
            (tokens, sorted_indices, TOKENS * K, dtype, probs),
            {"permuted_tokens": rows},
        )
        yield from routing_map_samples(tokens, rows, indices, sorted_indices)


def routing_map_samples(
    tokens: torch.Tensor, rows: torch.Tensor, indices: torch.Tensor, sorted_indices: torch.Tensor
) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """The operators that take a map of tokens and experts."""
    chosen = torch.zeros(TOKENS, EXPERTS, dtype=torch.bool).scatter_(1, indices, True)
    probs = torch.rand(TOKENS, EXPERTS)
    permute, unpermute = "npu_moe_token_permute_with_routing_map", "npu_moe_token_unpermute_with_routing_map"
    trained, trained_probs = tokens.clone().requires_grad_(), probs.clone().requires_grad_()
    yield permute, (trained, chosen), {"num_out_tokens": TOKENS * K}
    yield permute, (trained, chosen), {"num_out_tokens": TOKENS * K, "probs": trained_probs}
    yield (
        permute,
        (trained, chosen.to(torch.int8)),
        {
            "num_out_tokens": 2 * EXPERTS,
            "probs": trained_probs,
            "drop_and_pad": True,
        },
    )
    tokens_of_rows = torch.randint(TOKENS, (2 * EXPERTS,)).to(torch.int32)
    yield permute + "_grad", (rows, torch.rand(TOKENS * K), sorted_indices, chosen, EXPERTS, TOKENS, False), {}
    yield permute + "_grad", (rows[:10].clone(), None, tokens_of_rows, chosen, EXPERTS, TOKENS, True), {}
    shape = [TOKENS, HIDDEN]
    for name in (unpermute, "_" + unpermute):
        trained_rows = rows.clone().requires_grad_()
        yield name, (trained_rows, sorted_indices, shape), {}
        yield name, (trained_rows, sorted_indices, shape), {"probs": trained_probs, "routing_map": chosen}
        yield (
            name,
            (rows[:10].clone().requires_grad_(), tokens_of_rows, shape),
            {
                "probs": trained_probs,
                "routing_map": chosen,
                "drop_and_pad": True,
            },
        )
    yield unpermute + "_grad", (tokens, sorted_indices, sorted_indices, chosen, rows, probs, False, shape), {}
    yield unpermute + "_grad", (tokens, sorted_indices, sorted_indices, None, None, None, False, shape), {}
