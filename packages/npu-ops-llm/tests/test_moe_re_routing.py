"""npu_moe_re_routing against its definition, row by row."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

RE_ROUTING = torch.ops.npu.npu_moe_re_routing
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.float8_e4m3fn]

properties = settings(
    deadline=None, derandomize=True, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def moved(device: str, **arguments: Any) -> dict[str, Any]:
    return {name: v.to(device) if isinstance(v, Tensor) else v for name, v in arguments.items()}


def reference_re_routing(numbers: Tensor) -> list[int]:
    """Old row of every new row."""
    ranks, experts = numbers.shape
    starts = (numbers.flatten().cumsum(0) - numbers.flatten()).view(ranks, experts)
    return [
        int(starts[i, j]) + t for j in range(experts) for i in range(ranks) for t in range(int(numbers[i, j]))
    ]  # fmt: skip


def test_re_routing_example(device: str) -> None:
    numbers = torch.tensor([[1, 2], [3, 1]], device=device)
    _, _, index, counts = RE_ROUTING(torch.zeros(7, 4, device=device), numbers)
    assert index.tolist() == [0, 3, 4, 5, 1, 2, 6] and counts.tolist() == [4, 3]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scales", ["", "numbers", "blocks"])
@pytest.mark.parametrize(("ranks", "experts", "extra"), [(1, 1, 0), (3, 5, 0), (8, 32, 4), (2, 0, 3), (0, 4, 0)])
def test_re_routing(
    ranks: int, experts: int, extra: int, scales: str, dtype: torch.dtype, device: str
) -> None:  # fmt: skip
    numbers = torch.randint(0, 6, (ranks, experts), dtype=torch.int32 if scales else torch.int64)
    total = int(numbers.sum())
    rows = total + extra
    tokens = torch.randint(0, 100, (rows, 3, 7)).to(dtype)
    given = {"": None, "numbers": torch.rand(rows), "blocks": torch.randint(0, 255, (rows, 2, 2)).byte()}[scales]
    old = torch.tensor(reference_re_routing(numbers), dtype=torch.int64)
    inputs = moved(device, tokens=tokens, expert_token_num_per_rank=numbers, per_token_scales=given)
    out, out_scales, index, counts = RE_ROUTING(**inputs)
    as_bytes = tokens.view(torch.uint8) if rows else tokens
    assert out.dtype == dtype and out.shape == tokens.shape
    if rows:
        assert torch.equal(out.cpu().view(torch.uint8)[:total], as_bytes[old])
        assert not out.cpu().view(torch.uint8)[total:].any()
    assert index.dtype == torch.int32
    assert torch.equal(index.cpu().long(), torch.cat([old, torch.full((extra,), -1)]))
    assert counts.dtype == numbers.dtype and torch.equal(counts.cpu(), numbers.sum(0).to(numbers.dtype))
    if given is None:
        assert out_scales.dtype == torch.float32 and torch.equal(out_scales.cpu(), torch.zeros(rows))
    else:
        assert out_scales.dtype == given.dtype and torch.equal(out_scales.cpu()[:total], given[old])
        assert not out_scales.cpu()[total:].any()
    _, _, scattered, sums = RE_ROUTING(**inputs, idx_type=1, expert_token_num_type=0)
    assert torch.equal(scattered.cpu()[old], torch.arange(total, dtype=torch.int32))
    assert (scattered.cpu()[total:] == -1).all()
    assert torch.equal(sums.cpu(), numbers.sum(0).cumsum(0).to(numbers.dtype))


@properties
@given(data=st.data())
def test_re_routing_is_undone_by_argsort(data: st.DataObject) -> None:
    ranks, experts = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    numbers = torch.tensor(data.draw(st.lists(st.integers(0, 9), min_size=ranks * experts, max_size=ranks * experts)))
    tokens = torch.randn(int(numbers.sum()), 3)
    out, _, index, counts = RE_ROUTING(tokens, numbers.view(ranks, experts))
    assert torch.equal(out[index.argsort()], tokens) and int(counts.sum()) == len(tokens)


def test_re_routing_of_much(isa: str) -> None:
    numbers = torch.randint(0, 40, (8, 16))
    tokens = torch.randn(int(numbers.sum()), 2049)
    out, _, index, _ = RE_ROUTING(tokens, numbers)
    assert torch.equal(index.long(), torch.tensor(reference_re_routing(numbers)))
    assert torch.equal(out, tokens[index.long()])


def test_re_routing_of_strided_tokens(device: str) -> None:
    tokens = torch.randn(5, 7).to(device).t()
    numbers = torch.tensor([[1, 2], [3, 1]], device=device).t()
    ours = RE_ROUTING(tokens, numbers, per_token_scales=tokens[:, 0])
    packed = RE_ROUTING(tokens.contiguous(), numbers.contiguous(), per_token_scales=tokens[:, 0].contiguous())
    assert all(torch.equal(a, b) for a, b in zip(ours, packed, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": torch.zeros(7)}, "argument tokens: expected 2 dims or more"),
        (
            {"expert_token_num_per_rank": torch.ones(4, dtype=torch.int32)},
            "argument expert_token_num_per_rank: expected 2",
        ),
        ({"expert_token_num_per_rank": torch.ones(2, 2)}, "argument expert_token_num_per_rank: expected dtype int32"),
        ({"tokens_dtype": 1}, "argument tokens_dtype: expected None, hifloat8"),
        ({"idx_type": 2}, "argument idx_type: expected 0"),
        ({"expert_token_num_type": 2}, "argument expert_token_num_type: expected 0"),
        ({"per_token_scales": torch.ones(6)}, "argument per_token_scales: expected one row for each of the 7 tokens"),
        (
            {"expert_token_num_per_rank": torch.tensor([[1, 2], [3, 2]])},
            "argument expert_token_num_per_rank: expected counts .*at most 7.*got 2 for rank 1, expert 1 after 6 rows",
        ),
        (
            {"expert_token_num_per_rank": torch.tensor([[1, -1], [3, 2]])},
            "argument expert_token_num_per_rank: expected counts .*got -1 for rank 0, expert 1",
        ),
    ],
)
def test_re_routing_errors(change: dict[str, Any], message: str, device: str) -> None:
    arguments = {"tokens": torch.zeros(7, 4), "expert_token_num_per_rank": torch.ones(2, 2, dtype=torch.int32)} | change
    with pytest.raises(RuntimeError, match=message):
        RE_ROUTING(**moved(device, **arguments))
        torch.npu.synchronize()
