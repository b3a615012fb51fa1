"""Operators on tokens and experts without tokens: optional tensors may then have any shape."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

OPS = torch.ops.npu
X = torch.empty(0, 4)
NONE = torch.zeros(0)
INDEX = torch.zeros(0, dtype=torch.int32)
EXPERTS = torch.zeros(0, 2, dtype=torch.int32)
COUNTS = torch.zeros(2, 2, dtype=torch.int32)
MAP = torch.zeros(0, 3, dtype=torch.bool)
ODD = torch.ones(3)
BYTES = torch.empty(0, 100, dtype=torch.uint8)

#: Operator, arguments, keyword arguments, shapes of the results.
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], list[tuple[int, ...]]]] = [
    ("npu_moe_finalize_routing", (X, NONE, None, None, torch.zeros(0, 2), INDEX, None, 0, 1), {}, [(0, 4)]),
    ("npu_moe_finalize_routing", (X, ODD, ODD, ODD, NONE, INDEX, INDEX, 2, 3), {}, [(0, 4)]),
    ("npu_moe_finalize_routing", (X, None, None, ODD, ODD, INDEX, INDEX), {}, [(0, 4)]),
    ("npu_moe_gating_top_k", (X, 2), {"bias": NONE}, [(0, 2), (0, 2), (0, 4)]),
    (
        "npu_moe_gating_top_k",
        (X, 2),
        {"input_ids": INDEX, "tid2eid": INDEX, "bias": ODD},
        [(0, 2), (0, 2), (0, 4)],
    ),
    ("npu_moe_gating_top_k_softmax", (X, ODD.bool(), 2), {}, [(0, 2)] * 3),
    ("npu_moe_gating_top_k_softmax", (torch.empty(3, 0, 4), NONE.bool(), 2), {}, [(3, 0, 2)] * 3),
    (
        "npu_moe_gating_top_k_softmax_v2",
        (X,),
        {"k": 2, "finished": ODD.bool(), "output_softmax": True},
        [(0, 2), (0, 2), (0, 4)],
    ),
    ("npu_moe_token_unpermute", (X, INDEX, NONE), {}, [(0, 4)]),
    ("npu_moe_token_unpermute", (torch.ones(5, 4), INDEX, torch.ones(3, 2)), {}, [(0, 4)]),
    ("npu_moe_token_unpermute", (X, INDEX, ODD, True, [0, 4]), {}, [(0, 4)]),
    ("_npu_moe_token_unpermute", (X, INDEX, NONE), {}, [(0, 4), (0, 4)]),
    ("npu_moe_token_unpermute_grad", (X, X, INDEX, ODD), {}, [(0, 4), (3,)]),
    ("npu_moe_token_unpermute_grad", (torch.ones(5, 4), X, INDEX, torch.ones(2, 3)), {}, [(5, 4), (2, 3)]),
    (
        "npu_moe_token_permute_with_routing_map",
        (X, MAP),
        {"probs": NONE, "num_out_tokens": 0},
        [(0, 4), (0,), (0,)],
    ),
    (
        "npu_moe_token_permute_with_routing_map",
        (X, MAP),
        {"probs": ODD, "num_out_tokens": 0, "drop_and_pad": True},
        [(0, 4), (0,), (0,)],
    ),
    ("npu_moe_token_permute_with_routing_map_grad", (X, ODD, INDEX, MAP, 3, 0, False), {}, [(0, 4), (0, 3)]),
    (
        "npu_moe_token_unpermute_with_routing_map",
        (X, INDEX, [0, 4]),
        {"probs": ODD, "routing_map": NONE.bool()},
        [(0, 4)],
    ),
    (
        "npu_moe_token_unpermute_with_routing_map",
        (X, INDEX, [0, 4]),
        {"probs": NONE, "routing_map": ODD.bool(), "drop_and_pad": True},
        [(0, 4)],
    ),
    (
        "npu_moe_token_unpermute_with_routing_map_grad",
        (X, INDEX, INDEX, NONE.bool(), ODD, ODD, False, [0, 4]),
        {},
        [(0, 4), (3,)],
    ),
    (
        "npu_moe_token_unpermute_with_routing_map_grad",
        (X.bfloat16(), INDEX, INDEX, NONE.bool(), ODD.bfloat16(), ODD, True, [0, 4]),
        {},
        [(0, 4), (3,)],
    ),
    ("npu_moe_re_routing", (X, COUNTS), {"per_token_scales": ODD}, [(0, 4), (0,), (0,), (2,)]),
    (
        "npu_moe_re_routing",
        (X, COUNTS),
        {"per_token_scales": torch.ones(3, 5, 2).byte()},
        [(0, 4), (0, 5, 2), (0,), (2,)],
    ),
    (
        "npu_moe_re_routing",
        (X, COUNTS),
        {"per_token_scales": torch.tensor(1.0)},
        [(0, 4), (0,), (0,), (2,)],
    ),
    *(
        ("npu_moe_init_routing_v2", (x, EXPERTS), {"scale": scale, "expert_num": 3} | more, [*shapes])
        for x, scale, more, shapes in (
            (X, torch.ones(0, 7, 7), {}, ((0, 4), (0,), (3,), (0,))),
            (X, ODD, {"quant_mode": 1}, ((0, 4), (0,), (3,), (0,))),
            (BYTES, torch.ones(0, 7, 7), {}, ((0, 100), (0,), (3,), (0,))),
            (BYTES, torch.ones(0, 7, 7).byte(), {}, ((0, 100), (0,), (3,), (0, 2, 2))),
            (BYTES, torch.ones(0, 4, 2).byte(), {"x_dtype": 296}, ((0, 100), (0,), (3,), (0, 4, 2))),
        )
    ),
]  # fmt: skip


def move(device: str, value: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


@pytest.mark.parametrize(("name", "arguments", "keywords", "shapes"), CALLS)
def test_shapes_of_optional_tensors_do_not_matter(
    name: str, arguments: tuple[Any, ...], keywords: dict[str, Any], shapes: list[tuple[int, ...]], device: str
) -> None:
    results = []
    for where in (device, "meta"):
        moved = tree_map(partial(move, where), (arguments, keywords))
        out = getattr(OPS, name)(*moved[0], **moved[1])
        results.append((out,) if isinstance(out, Tensor) else tuple(out))
    ours, fakes = results
    assert [tuple(one.shape) for one in ours] == shapes
    assert [(one.shape, one.dtype) for one in ours] == [(one.shape, one.dtype) for one in fakes]
    assert not any(one.cpu().count_nonzero() for one in ours)  # counters, and gradients of what was not used


@pytest.mark.parametrize("shape", [(0,), (3,), (2, 3)])
def test_gradients_have_the_shape_of_the_probabilities(shape: tuple[int, ...], device: str) -> None:
    def leaf(*sizes: int) -> Tensor:
        return torch.ones(sizes, device=device, requires_grad=True)

    index, routing_map = INDEX.to(device), MAP.to(device)

    def permuted(x: Tensor, probs: Tensor) -> Tensor:
        rows, weights, _ = OPS.npu_moe_token_permute_with_routing_map(x, routing_map, probs=probs)
        return rows.sum() + weights.sum()

    def unpermuted(x: Tensor, probs: Tensor) -> Tensor:
        return OPS.npu_moe_token_unpermute_with_routing_map(
            x, index, [0, 4], probs=probs, routing_map=routing_map
        ).sum()

    for call in (permuted, unpermuted, lambda x, probs: OPS.npu_moe_token_unpermute(x, index, probs).sum()):
        x, probs = leaf(0, 4), leaf(*shape)
        call(x, probs).backward()
        assert x.grad is not None and x.grad.shape == (0, 4)
        assert probs.grad is not None and torch.equal(probs.grad.cpu(), torch.zeros(shape))
