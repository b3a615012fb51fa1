"""Calls of the routing operators for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments."""
    x = torch.randn(6, 72)
    experts = torch.stack([torch.randperm(8)[:3] for _ in range(6)]).int()
    row_idx = torch.arange(18, dtype=torch.int32).view(3, 6).t()
    yield "npu_moe_init_routing", (x, row_idx, experts, 4), {}
    v2 = "npu_moe_init_routing_v2"
    yield v2, (x, experts), {"expert_num": 8, "scale": torch.rand(6), "row_idx_type": 1, "active_num": 11}
    yield v2, (x, experts), {"expert_num": 8, "active_expert_range": [2, 6], "expert_tokens_num_flag": True}
    pairs = {"expert_tokens_num_type": 2, "expert_tokens_num_flag": True}
    one = torch.tensor([20.0])
    yield v2, (x.half(), experts), {"expert_num": 8, "quant_mode": 0, "scale": one, "offset": one / 40, **pairs}
    smooth = torch.rand(8, 72)
    padded = {"drop_pad_mode": 1, "expert_capacity": 2, "expert_tokens_num_type": 1, "expert_tokens_num_flag": True}
    yield v2, (x.bfloat16(), experts), {"expert_num": 8, "quant_mode": 1, "scale": smooth, **padded}
    for mode in (2, 3, 4, 5, 11, 12, 13, 14, 15, 16, 17):
        yield v2, (x, experts), {"expert_num": 8, "quant_mode": mode}
    numbers = torch.tensor([[1, 2], [3, 0]])
    yield "npu_moe_re_routing", (x, numbers), {"per_token_scales": torch.rand(6)}
    yield "npu_moe_re_routing", (x.char(), numbers.int()), {"idx_type": 1, "expert_token_num_type": 0}
