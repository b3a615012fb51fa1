"""Calls of the gating operators for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments.  Tensors that can be differentiated require a gradient."""
    experts = torch.randint(0, 5, (20,), dtype=torch.int32).sort().values
    yield "npu_moe_compute_expert_tokens", (experts, 5), {}
    x = torch.randn(6, 16)
    yield "npu_moe_gating_top_k_softmax", (x, torch.rand(6) < 0.5, 3), {}
    yield "npu_moe_gating_top_k_softmax", (torch.randn(2, 3, 8).bfloat16(),), {"k": 2}
    yield "npu_moe_gating_top_k_softmax_v2", (x,), {"k": 3, "output_softmax": True}
    yield "npu_moe_gating_top_k_softmax_v2", (x.half(),), {"k": 3, "renorm": 1, "finished": torch.rand(6) < 0.5}
    for norm_type in range(3):
        yield (
            "npu_moe_gating_top_k",
            (torch.randn(6, 16).requires_grad_(), 4),
            {
                "bias": torch.randn(16),
                "k_group": 2,
                "group_count": 4,
                "group_select_mode": 1,
                "norm_type": norm_type,
                "renorm": 1,
                "routed_scaling_factor": 2.5,
            },
        )
    ids, table = torch.randint(0, 9, (6,)), torch.randint(0, 16, (9, 4), dtype=torch.int32)
    yield (
        "npu_moe_gating_top_k",
        (torch.randn(6, 16).bfloat16().requires_grad_(), 4),
        {"input_ids": ids, "tid2eid": table, "norm_type": 1},
    )
    yield (
        "npu_moe_gating_top_k_backward",
        (torch.rand(6, 16), torch.randn(6, 4), torch.rand(6, 16).topk(4).indices.int()),
        {"norm_type": 2, "routed_scaling_factor": 0.5},
    )
