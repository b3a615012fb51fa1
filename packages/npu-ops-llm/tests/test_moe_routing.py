"""The routing operators against their definitions, slot by slot."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

OPS = torch.ops.npu
V1, V2 = OPS.npu_moe_init_routing, OPS.npu_moe_init_routing_v2
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

properties = settings(
    deadline=None, derandomize=True, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def moved(device: str, **arguments: Any) -> dict[str, Any]:
    return {name: v.to(device) if isinstance(v, Tensor) else v for name, v in arguments.items()}


def distinct_experts(tokens: int, k: int, experts: int) -> Tensor:
    if tokens == 0:
        return torch.empty(0, k, dtype=torch.int32)
    return torch.stack([torch.randperm(experts)[:k] for _ in range(tokens)]).int()


# ---- npu_moe_init_routing ---------------------------------------------------------------------------------------


def reference_v1(x: Tensor, row_idx: Tensor, experts: Tensor, active: int) -> tuple[Tensor, Tensor, Tensor]:
    tokens, k = experts.shape
    order = experts.flatten().sort(stable=True).indices
    source = row_idx.flatten()[order].long()
    expanded_row_idx = torch.empty(tokens * k, dtype=torch.int32)
    expanded_row_idx[source] = torch.arange(tokens * k, dtype=torch.int32)
    rows = x[source % max(tokens, 1)][: min(active, tokens) * k]
    return rows, expanded_row_idx, experts.flatten()[order]


def test_v1_example(device: str) -> None:
    x = torch.tensor([[0.1], [0.2], [0.3]], device=device)
    row_idx = torch.tensor([[0, 3], [1, 4], [2, 5]], dtype=torch.int32, device=device)
    experts = torch.tensor([[1, 2], [0, 1], [0, 2]], dtype=torch.int32, device=device)
    rows, index, sorted_experts = V1(x, row_idx, experts, 3)
    torch.testing.assert_close(rows.cpu(), torch.tensor([[0.2], [0.3], [0.1], [0.2], [0.1], [0.3]]))
    assert index.tolist() == [2, 0, 1, 4, 3, 5] and sorted_experts.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("active", [0, 5, 1000])
@pytest.mark.parametrize(
    ("tokens", "k", "experts", "columns"), [(1, 1, 1, 1), (7, 3, 8, 5), (50, 4, 3000, 64), (0, 2, 4, 8)]
)
def test_v1(
    tokens: int, k: int, experts: int, columns: int, active: int, dtype: torch.dtype, device: str
) -> None:  # fmt: skip
    x = torch.randn(tokens, columns).to(dtype)
    chosen = torch.randint(-3, experts, (tokens, k), dtype=torch.int32)
    row_idx = torch.arange(tokens * k, dtype=torch.int32).view(k, tokens).t()
    actual = V1(x.to(device), row_idx.to(device), chosen.to(device), active)
    for ours, expected in zip(actual, reference_v1(x, row_idx, chosen, active), strict=True):
        assert ours.dtype == expected.dtype and torch.equal(ours.cpu(), expected)


def test_v1_of_many_rows_of_any_experts() -> None:
    experts = torch.randint(-(2**31), 2**31 - 1, (9000, 2), dtype=torch.int32)
    experts[::3] = 7
    row_idx = torch.arange(18000, dtype=torch.int32).view(2, 9000).t()
    x = torch.randn(9000, 3)
    for ours, expected in zip(V1(x, row_idx, experts, 9000), reference_v1(x, row_idx, experts, 9000), strict=True):
        assert torch.equal(ours, expected)


def test_v1_errors(device: str) -> None:
    x = torch.zeros(3, 4, device=device)
    index = torch.arange(6, dtype=torch.int32, device=device).view(3, 2)
    with pytest.raises(RuntimeError, match="argument x: expected 2 dims"):
        V1(x[0], index, index, 1)
    with pytest.raises(RuntimeError, match="argument expert_idx: expected 2 dims"):
        V1(x, index.flatten(), index.flatten(), 1)
    with pytest.raises(RuntimeError, match="argument row_idx: expected shape"):
        V1(x, index[:2], index, 1)
    with pytest.raises(RuntimeError, match="argument x: expected as many rows"):
        V1(x[:2], index, index, 1)
    with pytest.raises(RuntimeError, match="argument x: expected dtype"):
        V1(x.int(), index, index, 1)
    with pytest.raises(RuntimeError, match="argument row_idx: expected dtype int32"):
        V1(x, index.long(), index, 1)
    with pytest.raises(RuntimeError, match="argument expert_idx: expected dtype int32"):
        V1(x, index, index.long(), 1)
    with pytest.raises(RuntimeError, match="argument active_num: expected 0 or more tokens, got -1"):
        V1(x, index, index, -1)
    for bad in (-1, 6):
        broken = index.clone()
        broken[1, 1] = bad
        with pytest.raises(IndexError, match=f"argument row_idx: expected a permutation .*got {bad} at position 3"):
            V1(x, broken, index, 3)
            torch.npu.synchronize()


# ---- npu_moe_init_routing_v2: sorting ---------------------------------------------------------------------------


def reference_v2(
    x: Tensor,
    experts: Tensor,
    *,
    expert_num: int,
    active_num: int = -1,
    expert_capacity: int = -1,
    drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0,
    expert_tokens_num_flag: bool = False,
    active_expert_range: tuple[int, int] | None = None,
    row_idx_type: int = 0,
) -> tuple[list[int], Tensor, Tensor]:
    """Slot of every expanded row (-1: none), expanded_row_idx, expert tokens."""
    first, last = active_expert_range or (0, expert_num)
    flat = experts.flatten().long()
    slots = len(flat)
    order = torch.where(flat < first, 2**31 - 1, flat).sort(stable=True).indices.tolist()
    local = [s for s in order if first <= flat[s] < last]
    counts = [sum(1 for s in local if flat[s] == e) for e in range(first, last)]
    index = torch.full((slots,), -1, dtype=torch.int32)
    if drop_pad_mode:
        rows = [-1] * (expert_num * expert_capacity)
        for e in range(expert_num):
            for c, s in enumerate([s for s in local if flat[s] == e][:expert_capacity]):
                rows[e * expert_capacity + c] = s
                index[s] = e * expert_capacity + c
    else:
        allocated = slots if active_num in (-1, 0) else min(active_num, slots)
        rows = (local + [-1] * slots)[:allocated]
        if row_idx_type == 0:
            for i, s in enumerate(local):
                index[s] = i
        else:
            index = torch.tensor(order, dtype=torch.int32)
    if expert_tokens_num_type == 2:
        tokens = torch.zeros(expert_num, 2, dtype=torch.int64)
        used = [[first + i, n] for i, n in enumerate(counts) if n > 0]
        if used:
            tokens[: len(used)] = torch.tensor(used)
    else:
        tokens = torch.tensor(counts)
        if expert_tokens_num_type == 0:
            tokens = tokens.cumsum(0)
    return rows, index, tokens if expert_tokens_num_flag else torch.zeros_like(tokens)


def expanded(x: Tensor, rows: list[int], k: int) -> Tensor:
    out = torch.zeros(len(rows), *x.shape[1:], dtype=x.dtype)
    for i, slot in enumerate(rows):
        if slot >= 0:
            out[i] = x[slot // k]
    return out


CONFIGS: list[dict[str, Any]] = [
    {},
    {"active_num": 0},
    {"active_num": 7},
    {"active_num": 100000},
    {"row_idx_type": 1},
    {"active_expert_range": (3, 11), "expert_tokens_num_flag": True},
    {"active_expert_range": (3, 11), "row_idx_type": 1, "active_num": 9},
    {"active_expert_range": (15, 16), "expert_tokens_num_flag": True, "expert_tokens_num_type": 1},
    {"expert_tokens_num_flag": True, "expert_tokens_num_type": 2},
    {"active_expert_range": (3, 11), "expert_tokens_num_flag": True, "expert_tokens_num_type": 2},
    {"drop_pad_mode": 1, "expert_capacity": 1, "expert_tokens_num_type": 1, "expert_tokens_num_flag": True},
    {"drop_pad_mode": 1, "expert_capacity": 5, "expert_tokens_num_type": 1},
]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize(("tokens", "k", "columns"), [(5, 2, 1), (37, 4, 67)])
def test_v2(tokens: int, k: int, columns: int, config: dict[str, Any], dtype: torch.dtype, device: str) -> None:
    x = torch.randn(tokens, columns).mul(50).to(dtype)
    scale = torch.rand(tokens)
    experts = distinct_experts(tokens, k, 16)
    rows, index, counts = reference_v2(x, experts, expert_num=16, **config)
    out = V2(x.to(device), experts.to(device), scale=scale.to(device), expert_num=16, **config)
    assert out[0].dtype == dtype
    assert out[0].shape == (
        (16, config["expert_capacity"], columns) if "drop_pad_mode" in config else (len(rows), columns)
    )
    assert torch.equal(out[0].cpu().view(len(rows), columns), expanded(x, rows, k))
    assert out[1].dtype == torch.int32 and torch.equal(out[1].cpu(), index)
    assert out[2].dtype == torch.int64 and torch.equal(out[2].cpu(), counts)
    assert torch.equal(out[3].cpu(), expanded(scale, rows, k))
    unscaled = V2(x.to(device), experts.to(device), expert_num=16, **config)
    assert torch.equal(unscaled[0], out[0]) and torch.equal(unscaled[3].cpu(), torch.zeros(len(rows)))


def test_v2_example(device: str) -> None:
    x = torch.tensor([[0.1], [0.2], [0.3]], device=device)
    experts = torch.tensor([[1, 2], [0, 1], [0, 2]], dtype=torch.int32, device=device)
    local = {"expert_num": 3, "active_expert_range": [0, 2], "expert_tokens_num_flag": True}
    rows, index, sums, _ = V2(x, experts, **local)
    torch.testing.assert_close(rows[:4].cpu(), torch.tensor([[0.2], [0.3], [0.1], [0.2]]))
    assert index.tolist() == [2, -1, 0, 3, 1, -1] and sums.tolist() == [2, 4]
    assert V2(x, experts, row_idx_type=1, **local)[1][:4].tolist() == [2, 4, 0, 3]
    assert V2(x, experts, expert_tokens_num_type=1, **local)[2].tolist() == [2, 2]
    assert V2(x, experts, expert_tokens_num_type=2, **local)[2].tolist() == [[0, 2], [1, 2], [0, 0]]
    rows, index, counts, _ = V2(
        x, experts, expert_num=3, drop_pad_mode=1, expert_capacity=1, expert_tokens_num_type=1,
        expert_tokens_num_flag=True,
    )  # fmt: skip
    torch.testing.assert_close(rows.cpu(), torch.tensor([[[0.2]], [[0.1]], [[0.1]]]))
    assert index.tolist() == [1, 2, 0, -1, -1, -1] and counts.tolist() == [2, 2, 2]


@properties
@given(data=st.data())
def test_routing_is_a_permutation_within_capacity(data: st.DataObject) -> None:
    tokens, k = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 6))
    expert_num = data.draw(st.integers(1, 30))
    experts = torch.tensor(
        data.draw(st.lists(st.integers(0, expert_num - 1), min_size=tokens * k, max_size=tokens * k)), dtype=torch.int32
    ).view(tokens, k)
    x = torch.arange(tokens, dtype=torch.float32)[:, None] + 1
    counted = {"expert_num": expert_num, "expert_tokens_num_type": 1, "expert_tokens_num_flag": True}
    rows, index, counts, _ = V2(x, experts, **counted)
    assert sorted(index.tolist()) == list(range(tokens * k))
    assert int(counts.sum()) == tokens * k
    assert torch.equal(counts, torch.bincount(experts.flatten().long(), minlength=expert_num))
    assert torch.equal(rows[index.long()].view(tokens, k), x.expand(tokens, k))
    slots = V2(x, experts, row_idx_type=1, **counted)[1]
    assert torch.equal(slots[index.long()].long(), torch.arange(tokens * k))
    assert (experts.flatten()[slots.long()].diff() >= 0).all()

    capacity = data.draw(st.integers(1, tokens))
    kept, places, before, _ = V2(x, experts, drop_pad_mode=1, expert_capacity=capacity, **counted)
    assert torch.equal(before, counts)
    assert torch.equal((kept != 0).sum((1, 2)), counts.clamp(max=capacity))
    used = places[places >= 0].long()
    assert len(used.unique()) == len(used) == int(counts.clamp(max=capacity).sum())
    assert torch.equal(used // capacity, experts.flatten()[places >= 0].long())


def test_many_experts_and_threads() -> None:
    experts = torch.randint(0, 5000, (3000, 4), dtype=torch.int32)
    x = torch.randn(3000, 8)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(
                V2(x, experts, expert_num=5000, expert_tokens_num_flag=True, expert_tokens_num_type=1, row_idx_type=1)
            )
    finally:
        torch.set_num_threads(threads)
    order = experts.flatten().sort(stable=True).indices
    for rows, slots, counts, _ in results:
        assert torch.equal(slots.long(), order) and torch.equal(rows, x[order // 4])
        assert torch.equal(counts, torch.bincount(experts.flatten().long(), minlength=5000))


@pytest.mark.parametrize("first", [0, 5, 2**31 - 4])
@pytest.mark.parametrize("count_type", [0, 1])
def test_memory_does_not_grow_with_experts_elsewhere(count_type: int, first: int, device: str) -> None:
    """A count for each of these experts would take 16 GiB."""
    pick = torch.tensor([0, 1, 2, 5, 2**30, first, first + 1, first + 2])
    experts = pick[torch.randint(len(pick), (40, 3))].to(torch.int32)
    x = torch.randn(40, 4)
    rows, slots, counts, _ = V2(
        x.to(device),
        experts.to(device),
        expert_num=2**31 - 1,
        active_expert_range=[first, first + 3],
        expert_tokens_num_flag=True,
        expert_tokens_num_type=count_type,
        row_idx_type=1,
    )
    flat = experts.flatten().long()
    order = torch.where(flat < first, 2**31 - 1, flat).sort(stable=True).indices
    expected = torch.stack([(flat == first + i).sum() for i in range(3)])
    available = int(expected.sum())
    assert torch.equal(slots.cpu().long(), order)
    assert torch.equal(rows.cpu()[:available], x[order[:available] // 3]) and not rows.cpu()[available:].any()
    assert torch.equal(counts.cpu(), expected if count_type == 1 else expected.cumsum(0))


@pytest.mark.parametrize("columns", [2048, 4097])
def test_results_larger_than_caches(isa: str, columns: int) -> None:
    """Rows are then written past the caches."""
    x = torch.randn(600, columns).bfloat16()
    experts = distinct_experts(600, 8, 32)
    order = experts.flatten().long().sort(stable=True).indices
    rows, slots, _, _ = V2(x, experts, expert_num=32, row_idx_type=1)
    assert torch.equal(slots.long(), order) and torch.equal(rows, x[order // 8])
    quantised, _, _, scale = V2(x, experts, expert_num=32, row_idx_type=1, quant_mode=1)
    alone = V2(x, torch.zeros(600, 1, dtype=torch.int32), expert_num=1, quant_mode=1)
    assert torch.equal(quantised, alone[0][order // 8]) and torch.equal(scale, alone[3][order // 8])


def test_ids_that_are_no_experts_are_left_out(device: str) -> None:
    experts = torch.tensor([[0, 4], [-1, 1], [2**31 - 1, 3]], dtype=torch.int32, device=device)
    x = torch.tensor([[1.0], [2.0], [3.0]], device=device)
    rows, index, counts, _ = V2(x, experts, expert_num=4, expert_tokens_num_flag=True)
    assert rows.flatten().tolist() == [1, 2, 3, 0, 0, 0]
    assert index.tolist() == [0, -1, -1, 1, -1, 2] and counts.tolist() == [1, 2, 2, 3]


def test_bytes_are_moved(device: str) -> None:
    experts = distinct_experts(9, 2, 4).to(device)
    order = experts.cpu().flatten().long().sort(stable=True).indices // 2
    packed = torch.randint(0, 255, (9, 100), dtype=torch.uint8)
    blocks = torch.randint(0, 255, (9, 4, 2), dtype=torch.uint8)
    rows, _, _, scale = V2(packed.to(device), experts, scale=blocks.to(device), expert_num=4, x_dtype=296)
    assert torch.equal(rows.cpu(), packed[order]) and torch.equal(scale.cpu(), blocks[order])
    float8 = packed.view(torch.float8_e4m3fn)
    rows, _, _, scale = V2(float8.to(device), experts, scale=blocks[:, :2].to(device), expert_num=4)
    assert rows.dtype == torch.float8_e4m3fn and torch.equal(rows.cpu().view(torch.uint8), packed[order])
    assert torch.equal(scale.cpu(), blocks[order, :2])


def test_v2_of_strided_and_unaligned_rows(device: str) -> None:
    experts = distinct_experts(9, 2, 4)
    x = torch.randn(70, 9).to(device).t()
    strided = experts.t().contiguous().t().to(device)
    ours, packed = V2(x, strided, expert_num=4), V2(x.contiguous(), experts.to(device), expert_num=4)
    assert all(torch.equal(a, b) for a, b in zip(ours, packed, strict=True))
    shifted = torch.randn(1 + 9 * 70).bfloat16().to(device)[1:].view(9, 70)
    for mode in (-1, 1, 3):
        ours, packed = (V2(v, experts.to(device), expert_num=4, quant_mode=mode) for v in (shifted, shifted.clone()))
        for a, b in zip(ours, packed, strict=True):
            assert torch.equal(a.cpu().view(torch.uint8), b.cpu().view(torch.uint8))


@pytest.mark.parametrize("mode", [-1, 0, 1, 2, 5, 11, 13])
def test_v2_without_tokens(mode: int, device: str) -> None:
    empty = torch.empty(0, dtype=torch.float32, device=device)
    given = {"scale": empty, "offset": empty} if mode == 0 else {"scale": empty}
    x, experts = torch.empty(0, 64, device=device), torch.empty(0, 2, dtype=torch.int32, device=device)
    rows, index, counts, scale = V2(x, experts, expert_num=3, quant_mode=mode, expert_tokens_num_flag=True, **given)
    assert rows.shape == (0, 32 if mode == 13 else 64) and index.shape == (0,) and scale.shape[0] == 0
    assert counts.tolist() == [0, 0, 0]


# ---- npu_moe_init_routing_v2: quantisation ----------------------------------------------------------------------


def half(x: Tensor) -> Tensor:
    return x.to(torch.float16).float()


def power_above(value: Tensor) -> Tensor:
    """Smallest power of two that is not below `value`, at least 2^-126."""
    mantissa, exponent = torch.frexp(value)
    return torch.ldexp(torch.ones_like(value), torch.where(mantissa == 0.5, exponent - 1, exponent).clamp(min=-126))


def blocks_of(x: Tensor, length: int) -> Tensor:
    padding = -x.shape[1] % length
    return torch.nn.functional.pad(x, (0, padding)).view(len(x), -1, length)


def reference_rows(mode: int, r: Tensor, smooth: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Quantised rows of r (as float32 values) and their scales; `smooth` has one row for each of r."""
    dtype, r = r.dtype, r.float()
    if mode == 0:
        assert smooth is not None and offset is not None
        return half(half(half(r) * half(smooth)) + half(offset)).round().clamp(-128, 127), torch.zeros(len(r))
    if mode in (1, 13):
        r = r if smooth is None else r * smooth
        d = r.abs().amax(1) / (127 if mode == 1 else 7)
        return torch.where(d[:, None] == 0, 0, r / d[:, None]).round(), d
    largest = 57344.0 if mode in (2, 4, 11, 14, 16) else 448.0
    float8 = torch.float8_e5m2 if largest > 448 else torch.float8_e4m3fn
    mx = mode in (2, 3, 16, 17)
    blocks = blocks_of(r, 32 if mx else 128)
    seen = blocks.abs()
    if mx and dtype == torch.float16:
        seen = (seen.view(torch.int32) & -65536).view(torch.float32)
    amax = seen.amax(2)
    if mode >= 14:
        amax = amax.clamp(min=1e-4)
    s = amax / largest
    if mode in (11, 12):
        scale = torch.where(s < 2.0**-126, 0, s)
    else:
        scale = torch.where(amax == 0, 0, power_above(s))
    q = torch.where(scale[:, :, None] == 0, 0, blocks / scale[:, :, None]).clamp(-largest, largest)
    q = q.to(float8).float().flatten(1)[:, : r.shape[1]]
    odd = scale.shape[1] % 2
    if (mx or mode in (11, 12)) and odd:
        scale = torch.nn.functional.pad(scale, (0, 1))
    return q, scale.view(len(r), -1, 2) if mode in (11, 12) else scale


def unpacked(rows: Tensor, mode: int) -> Tensor:
    rows = rows.cpu()
    if mode != 13:
        return rows.float()
    low, high = rows & 15, rows >> 4
    return (torch.stack([low, high], -1).flatten(-2).to(torch.int16) ^ 8).sub(8).float()


def scale_values(scale: Tensor) -> Tensor:
    """e8m0 as numbers; the byte 0 stands for no value here."""
    scale = scale.cpu()
    if scale.dtype != torch.float8_e8m0fnu:
        return scale
    byte = scale.view(torch.uint8).int()
    return torch.where(byte == 0, 0.0, torch.ldexp(torch.ones(()), byte - 127))


OUT_DTYPES = {0: torch.int8, 1: torch.int8, 13: torch.uint8}
FLOAT8_MODES = [2, 3, 4, 5, 11, 12, 14, 15, 16, 17]


def check_quantised(mode: int, x: Tensor, smooth: str, drop_pad: bool, device: str) -> None:
    tokens, columns = x.shape
    k, expert_num = 2, 6
    experts = distinct_experts(tokens, k, expert_num)
    config: dict[str, Any] = {"active_expert_range": (1, 5)}
    if drop_pad:
        config = {"drop_pad_mode": 1, "expert_capacity": max(1, tokens // 2), "expert_tokens_num_type": 1}
    first, last = config.get("active_expert_range", (0, expert_num))
    scale = offset = None
    if mode == 0:
        scale, offset = torch.tensor([17.3]), torch.tensor([-3.7])
    elif smooth == "shared":
        scale = torch.rand(1, columns) + 0.5
    elif smooth == "experts":
        scale = torch.rand(last - first, columns) + 0.5
    slots, _, _ = reference_v2(x, experts, expert_num=expert_num, **config)
    arguments = moved(device, x=x, expert_idx=experts, scale=scale, offset=offset)
    rows, _, _, scales = V2(**arguments, expert_num=expert_num, quant_mode=mode, **config)
    float8 = torch.float8_e5m2 if mode in (2, 4, 11, 14, 16) else torch.float8_e4m3fn
    assert rows.dtype == OUT_DTYPES.get(mode, float8)
    assert scales.dtype == (torch.float8_e8m0fnu if mode in (2, 3, 16, 17) else torch.float32)
    used = [i for i, s in enumerate(slots) if s >= 0]
    r = x[[slots[i] // k for i in used]]
    smooth_rows = scale
    if smooth == "experts" and scale is not None:
        smooth_rows = scale[[int(experts.flatten()[slots[i]]) - first for i in used]]
    expected, expected_scales = reference_rows(mode, r, smooth_rows, offset)
    flat = unpacked(rows, mode).view(len(slots), columns)
    assert scales.shape == (len(slots), *expected_scales.shape[1:])
    assert torch.equal(flat[used], expected)
    assert torch.equal(scale_values(scales)[used], expected_scales)
    free = [i for i, s in enumerate(slots) if s < 0]
    assert not flat[free].any() and not scale_values(scales)[free].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("drop_pad", [False, True])
@pytest.mark.parametrize("columns", [65, 300])
@pytest.mark.parametrize(
    ("mode", "smooth"), [(0, ""), (1, ""), (1, "shared"), (1, "experts"), *[(m, "") for m in FLOAT8_MODES]]
)
def test_quantised(mode: int, smooth: str, columns: int, drop_pad: bool, dtype: torch.dtype, device: str) -> None:
    x = torch.randn(12, columns) * torch.logspace(-5, 3, 12)[:, None]
    x[3] = 0
    check_quantised(mode, x.to(dtype), smooth, drop_pad, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [2, 66, 300])
@pytest.mark.parametrize("smooth", ["", "shared"])
def test_int4(smooth: str, columns: int, dtype: torch.dtype, device: str) -> None:
    x = torch.randn(12, columns)
    x[3] = 0
    check_quantised(13, x.to(dtype), smooth, False, device)


@pytest.mark.parametrize("mode", [0, 1, *FLOAT8_MODES])
def test_quantised_with_every_kernel_table(isa: str, mode: int) -> None:
    for columns in (*range(1, 20), 31, 32, 33, 127, 128, 129, 256, 257):
        for dtype in DTYPES:
            check_quantised(mode, torch.randn(4, columns).mul(30).to(dtype), "", False, "cpu")


def quantised_alone(x: Tensor, mode: int, **arguments: Any) -> tuple[Tensor, Tensor]:
    rows, _, _, scale = V2(
        x, torch.zeros(len(x), 1, dtype=torch.int32), expert_num=1, quant_mode=mode, **arguments
    )  # fmt: skip
    return unpacked(rows, mode), scale


@properties
@given(values=st.lists(st.floats(-60000, 60000, width=16), min_size=1, max_size=70))
def test_dynamic_int8_is_within_half_a_step(isa: str, values: list[float]) -> None:
    x = torch.tensor([values])
    q, scale = quantised_alone(x, 1)
    assert q.abs().max() <= 127
    assert ((q * scale[:, None] - x).abs() <= scale[:, None] * (0.5 + 1e-4)).all()


@properties
@given(values=st.lists(st.floats(width=16, allow_nan=False), min_size=1, max_size=40))
def test_static_int8_saturates(isa: str, values: list[float]) -> None:
    x = torch.tensor([values])
    q, _ = quantised_alone(x, 0, scale=torch.tensor([2.0]), offset=torch.tensor([1.0]))
    assert torch.equal(q, half(half(x * 2) + 1).round().clamp(-128, 127))


@pytest.mark.parametrize("mode", [2, 3, 16, 17])
def test_scale_of_a_block_that_is_not_finite(isa: str, mode: int) -> None:
    for bad in (float("inf"), float("-inf"), float("nan")):
        x = torch.ones(1, 96)
        x[0, 40] = bad
        q, scale = quantised_alone(x, mode)
        assert scale.view(torch.uint8)[0, 1] == 255 and scale.view(torch.uint8)[0, 3] == 0
        assert q[0, 32:64].isnan().all()
        assert q[0, :32].isfinite().all() and q[0, 64:].isfinite().all()


def test_scales_of_tiny_rows(isa: str) -> None:
    x = torch.full((1, 128), 2.0**-140)
    assert quantised_alone(x, 3)[1].view(torch.uint8)[0, 0] == 1  # 2^-126
    assert not quantised_alone(x, 12)[1].any() and not quantised_alone(x, 12)[0].any()
    q, scale = quantised_alone(torch.zeros(1, 128), 17)
    assert not q.any() and scale.view(torch.uint8)[0, 0] == 105  # 1e-4 / 448 is above 2^-23


# ---- npu_moe_init_routing_v2: errors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(4)}, "argument x: expected 2 dims"),
        ({"expert_idx": torch.zeros(4, dtype=torch.int32)}, "argument expert_idx: expected 2 dims"),
        ({"expert_idx": torch.zeros(4, 2)}, "argument expert_idx: expected dtype int32"),
        ({"expert_idx": torch.zeros(3, 2, dtype=torch.int32)}, "argument expert_idx: expected as many rows as x has"),
        ({"active_expert_range": [1]}, "argument active_expert_range: expected no or 2 numbers|active_expert_range"),
        ({"active_expert_range": [0, 1, 2]}, "argument active_expert_range: expected no or 2 numbers"),
        ({"active_expert_range": [2, 2]}, "argument active_expert_range: expected 0 <= begin < end"),
        ({"active_expert_range": [-1, 2]}, "argument active_expert_range: expected 0 <= begin < end"),
        ({"active_expert_range": [0, 9]}, "argument active_expert_range: expected 0 <= begin < end"),
        ({"expert_num": -1}, "argument active_expert_range: expected 0 <= begin < end"),
        ({"active_num": -2}, "argument active_num: expected -1 or 0"),
        ({"drop_pad_mode": 2}, "argument drop_pad_mode: expected 0 or 1, got 2"),
        ({"drop_pad_mode": 1, "expert_tokens_num_type": 1}, "argument expert_capacity: expected 1 to 4"),
        (
            {"drop_pad_mode": 1, "expert_tokens_num_type": 1, "expert_capacity": 5},
            "argument expert_capacity: expected 1 to 4",
        ),
        (
            {"drop_pad_mode": 1, "expert_tokens_num_type": 1, "expert_capacity": 2, "active_expert_range": [0, 3]},
            r"argument active_expert_range: expected \[0, 8\]",
        ),
        (
            {"drop_pad_mode": 1, "expert_tokens_num_type": 1, "expert_capacity": 2, "row_idx_type": 1},
            "argument row_idx_type: expected 0 with drop_pad_mode 1",
        ),
        ({"drop_pad_mode": 1, "expert_capacity": 2}, "argument expert_tokens_num_type: expected 1"),
        ({"expert_tokens_num_type": 3}, "argument expert_tokens_num_type: expected 0"),
        ({"row_idx_type": 2}, "argument row_idx_type: expected 0"),
        ({"quant_mode": 0}, "argument scale: expected one float32 number for quant_mode 0, got None"),
        ({"quant_mode": 0, "scale": torch.ones(1)}, "argument offset: expected one float32 number"),
        ({"quant_mode": 0, "scale": torch.ones(2), "offset": torch.ones(1)}, r"argument scale: expected shape \[1\]"),
        ({"quant_mode": 1, "x_dtype": 285}, "argument x_dtype: int4 needs quant_mode 13"),
        ({"quant_mode": 1, "scale": torch.ones(3, 6)}, r"argument scale: expected shape \[1, 6\] or \[8, 6\]"),
        ({"quant_mode": 1, "x": torch.zeros(4, 6, dtype=torch.int8)}, "argument x: expected dtype float16"),
        ({"quant_mode": 13, "offset": torch.ones(1)}, "argument offset: expected None"),
        ({"quant_mode": 13, "x": torch.zeros(4, 5)}, "argument x: expected an even hidden size"),
        ({"quant_mode": 13, "x": torch.zeros(4, 6).half()}, "argument x: expected dtype float32 or bfloat16"),
        ({"quant_mode": 13, "scale": torch.ones(8, 6)}, r"argument scale: expected shape \[1, 6\]"),
        (
            {"quant_mode": 13, "drop_pad_mode": 1, "expert_capacity": 2, "expert_tokens_num_type": 1},
            "argument drop_pad_mode: expected 0 with quant_mode 13",
        ),
        ({"quant_mode": 6}, r"argument quant_mode: 6 \(hifloat8\) is not supported on this device"),
        ({"quant_mode": 7}, r"argument quant_mode: 7 \(hifloat8\) is not supported on this device"),
        ({"quant_mode": 8}, r"argument quant_mode: 8 \(hifloat8\) is not supported on this device"),
        ({"quant_mode": 9}, r"argument quant_mode: 9 \(MXFP4\) is not supported on this device"),
        ({"quant_mode": 10}, "argument quant_mode: expected -1"),
        ({"quant_mode": 18}, "argument quant_mode: expected -1"),
        ({"quant_mode": -2}, "argument quant_mode: expected -1"),
        ({"scale": torch.ones(3)}, r"argument scale: expected shape \[4\]"),
        ({"scale": torch.ones(4).half()}, "argument scale: expected dtype float32"),
        ({"x": torch.zeros(4, 6, dtype=torch.int64)}, "argument x: expected dtype"),
        ({"x_dtype": 290}, "argument x_dtype: expected the dtype of x"),
    ],
)
def test_v2_errors(change: dict[str, Any], message: str, device: str) -> None:
    arguments: dict[str, Any] = {
        "x": torch.zeros(4, 6), "expert_idx": torch.zeros(4, 2, dtype=torch.int32), "expert_num": 8
    } | change  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        V2(**moved(device, **arguments))
