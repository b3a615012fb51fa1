"""The gating operators against their formulas in float64."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

OPS = torch.ops.npu
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RTOL = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11 + 1e-5}
ATOL = {torch.float32: 1e-7, torch.bfloat16: 1e-6, torch.float16: 2**-24}

properties = settings(
    deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def stable_top_k(values: Tensor, k: int) -> Tensor:
    return values.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def spread(rows: int, experts: int, dtype: torch.dtype) -> Tensor:
    """Scores whose order no rounding changes."""
    steps = torch.stack([torch.randperm(experts) for _ in range(rows)]) if rows else torch.empty(0, experts)
    return (steps / 16 if experts <= 256 else steps / 64).sub(4).to(dtype)


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype, scale: float = 1.0) -> None:
    torch.testing.assert_close(
        actual.cpu().double(), expected.cpu().double(), rtol=RTOL[dtype] * scale, atol=ATOL[dtype] * scale
    )


# ---- npu_moe_compute_expert_tokens ------------------------------------------------------------------------------


def test_expert_tokens_example(device: str) -> None:
    experts = torch.tensor([0, 0, 0, 1, 1, 2], dtype=torch.int32, device=device)
    out = OPS.npu_moe_compute_expert_tokens(experts, 3)
    assert out.dtype == torch.int32 and out.tolist() == [3, 5, 6]


@pytest.mark.parametrize("experts", [1, 7, 256, 9001])
@pytest.mark.parametrize("count", [0, 1, 1000, 30011])
def test_expert_tokens(count: int, experts: int, device: str) -> None:
    chosen = torch.randint(0, experts + 2, (count,), dtype=torch.int32).sort().values
    out = OPS.npu_moe_compute_expert_tokens(chosen.to(device), experts)
    expected = torch.bincount(chosen, minlength=experts)[:experts].cumsum(0)
    assert torch.equal(out.cpu().long(), expected)


def test_expert_tokens_of_a_strided_tensor(device: str) -> None:
    chosen = torch.tensor([0, 9, 1, 9, 1, 9], dtype=torch.int32, device=device)[::2]
    assert OPS.npu_moe_compute_expert_tokens(chosen, 3).tolist() == [1, 3, 3]


def test_expert_tokens_errors(device: str) -> None:
    op = OPS.npu_moe_compute_expert_tokens
    good = torch.zeros(4, dtype=torch.int32, device=device)
    with pytest.raises(RuntimeError, match="argument sorted_expert_for_source_row: expected 1 dim"):
        op(good.view(2, 2), 3)
    with pytest.raises(RuntimeError, match="argument sorted_expert_for_source_row: expected dtype int32, got int64"):
        op(good.long(), 3)
    with pytest.raises(RuntimeError, match="argument num_expert: expected a positive number, got 0"):
        op(good, 0)


# ---- softmax gating ---------------------------------------------------------------------------------------------


def test_softmax_example(device: str) -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]], device=device)
    y, experts, rows = OPS.npu_moe_gating_top_k_softmax(x, None, 2)
    torch.testing.assert_close(y.cpu(), torch.tensor([[0.6652, 0.2447]] * 2), rtol=0, atol=5e-5)
    assert experts.tolist() == [[2, 1], [0, 2]] and rows.tolist() == [[0, 2], [1, 3]]


SIZES = [
    (1, 1, 1),
    (3, 5, 5),
    (7, 31, 4),
    (2, 64, 8),
    (40, 129, 6),
    (33, 256, 8),
    (5, 256, 65),
    (4, 500, 64),
    (3, 1000, 1),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "experts", "k"), SIZES)
def test_softmax(rows: int, experts: int, k: int, dtype: torch.dtype, device: str) -> None:
    x = spread(rows, experts, dtype)
    p = x.double().softmax(-1)
    indices = stable_top_k(x.double(), k)
    y, chosen, row_idx = OPS.npu_moe_gating_top_k_softmax(x.to(device), None, k)
    assert y.dtype == dtype and chosen.dtype == row_idx.dtype == torch.int32
    assert torch.equal(chosen.cpu().long(), indices)
    assert_near(y, p.gather(-1, indices), dtype)
    expected_rows = torch.arange(k)[None, :] * rows + torch.arange(rows)[:, None]
    assert torch.equal(row_idx.cpu().long(), expected_rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("renorm", [0, 1, None])
@pytest.mark.parametrize(("rows", "experts", "k"), SIZES)
def test_softmax_v2(rows: int, experts: int, k: int, renorm: int | None, dtype: torch.dtype, device: str) -> None:
    x = spread(rows, experts, dtype)
    finished = torch.rand(rows) < 0.3
    op = OPS.npu_moe_gating_top_k_softmax_v2
    y, chosen, full = op(x.to(device), k=k, finished=finished.to(device), renorm=renorm, output_softmax=True)
    indices = stable_top_k(x.double(), k)
    if renorm == 1:
        expected = x.double().gather(-1, indices).softmax(-1)
        assert full.shape == (0,)
    else:
        expected = x.double().softmax(-1).gather(-1, indices)
        assert_near(full, x.double().softmax(-1), torch.float32)
    assert full.dtype == torch.float32
    assert_near(y, expected, dtype)
    assert torch.equal(chosen.cpu().long(), torch.where(finished[:, None], experts, indices))
    assert op(x.to(device), k=k)[2].shape == (0,)


def test_softmax_of_three_dims_and_finished(device: str) -> None:
    x = torch.randn(2, 5, 12)
    finished = torch.rand(2, 5) < 0.5
    y, chosen, rows = OPS.npu_moe_gating_top_k_softmax(x.to(device), finished.to(device), 3)
    flat_y, flat_chosen, flat_rows = OPS.npu_moe_gating_top_k_softmax(x.view(10, 12).to(device), None, 3)
    assert y.shape == (2, 5, 3) and torch.equal(y.view(10, 3), flat_y) and torch.equal(rows.view(10, 3), flat_rows)
    expected = torch.where(finished.view(10, 1), 12, flat_chosen.cpu())
    assert torch.equal(chosen.cpu().view(10, 3), expected)


def test_equal_scores_keep_the_lower_index(isa: str) -> None:
    for experts in (3, 17, 64, 256, 257):
        for k in {1, 3, min(8, experts), min(64, experts), experts}:
            x = torch.randint(-1, 2, (9, experts)).float()
            _, chosen, _ = OPS.npu_moe_gating_top_k_softmax(x, None, k)
            assert torch.equal(chosen.long(), stable_top_k(x, k))
            x = torch.where(torch.rand(9, experts) < 0.5, 0.0, -0.0)
            _, chosen, _ = OPS.npu_moe_gating_top_k_softmax_v2(x, k=k, renorm=1)
            assert torch.equal(chosen.long(), torch.arange(k).expand(9, k))


@properties
@given(data=st.data())
def test_selection_is_the_head_of_a_stable_sort(isa: str, data: st.DataObject) -> None:
    experts = data.draw(st.integers(1, 300))
    k = data.draw(st.integers(1, min(experts, 70)))
    values = st.sampled_from([float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1.0, -1.0, 1e-40, 3e38, -2.5])
    x = torch.tensor([data.draw(st.lists(values, min_size=experts, max_size=experts))])
    _, chosen, _ = OPS.npu_moe_gating_top_k_softmax_v2(x, k=k, renorm=1)
    assert torch.equal(chosen.long(), stable_top_k(x, k))


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_scores_with_every_kernel_table(isa: str, dtype: torch.dtype) -> None:
    for experts in (*range(1, 20), 63, 64, 65, 255, 256, 1023):
        k = min(8, experts)
        x = torch.randn(6, experts).mul(3).to(dtype)
        y, chosen, full = OPS.npu_moe_gating_top_k_softmax_v2(x, k=k, output_softmax=True)
        p = x.double().softmax(-1)
        assert_near(full, p, torch.float32)
        assert torch.equal(chosen.long(), stable_top_k(full, k))
        assert_near(y, p.gather(-1, chosen.long()), dtype)


def test_softmax_without_anything_to_do(device: str) -> None:
    op = OPS.npu_moe_gating_top_k_softmax
    assert [t.shape for t in op(torch.empty(0, 8, device=device), None, 2)] == [(0, 2)] * 3
    assert [t.shape for t in op(torch.empty(2, 0, 8, device=device), None, 2)] == [(2, 0, 2)] * 3
    assert [t.shape for t in op(torch.empty(3, 8, device=device), None, 0)] == [(3, 0)] * 3
    assert [t.shape for t in op(torch.empty(3, 0, device=device), None, 0)] == [(3, 0)] * 3


def test_softmax_of_strided_scores(device: str) -> None:
    x = torch.randn(24, 9).to(device).t()
    finished = (torch.rand(18) < 0.5).to(device)[::2]
    ours = OPS.npu_moe_gating_top_k_softmax(x, finished, 4)
    packed = OPS.npu_moe_gating_top_k_softmax(x.contiguous(), finished.contiguous(), 4)
    assert all(torch.equal(a, b) for a, b in zip(ours, packed, strict=True))


@pytest.mark.parametrize("version", ["", "_v2"])
def test_softmax_errors(version: str, device: str) -> None:
    op = getattr(OPS, f"npu_moe_gating_top_k_softmax{version}")
    x = torch.randn(4, 8, device=device)
    flags = torch.zeros(4, dtype=torch.bool, device=device)
    with pytest.raises(RuntimeError, match="argument x: expected 2 or 3 dims"):
        op(x[0], k=1)
    with pytest.raises(RuntimeError, match="argument x: expected dtype float16, bfloat16 or float32, got float64"):
        op(x.double(), k=1)
    for k in (-1, 9):
        with pytest.raises(RuntimeError, match=f"argument k: expected 0 to 8 .*got {k}"):
            op(x, k=k)
    with pytest.raises(RuntimeError, match="argument finished: expected dtype bool, got int32"):
        op(x, finished=flags.int(), k=1)
    with pytest.raises(RuntimeError, match="argument finished: expected shape"):
        op(x, finished=flags[:, None], k=1)
    with pytest.raises(RuntimeError, match="argument finished: expected shape"):
        op(x, finished=flags[:3], k=1)
    if version:
        with pytest.raises(RuntimeError, match="argument renorm: expected 0 .*got 2"):
            op(x, k=1, renorm=2)


# ---- npu_moe_gating_top_k ---------------------------------------------------------------------------------------


def normalise(x: Tensor, norm_type: int) -> Tensor:
    if norm_type == 0:
        return x.softmax(-1)
    return x.sigmoid() if norm_type == 1 else torch.nn.functional.softplus(x, threshold=1e9).sqrt()


def weights(p: Tensor, indices: Tensor, settings: dict[str, Any]) -> Tensor:
    g = p.gather(-1, indices)
    if settings.get("norm_type", 0) != 0 or settings.get("renorm", 0) == 1:
        g = g / (g.sum(-1, keepdim=True) + settings.get("eps", 1e-20))
    return g * settings.get("routed_scaling_factor", 1.0)


def choose(v: Tensor, k: int, k_group: int, group_count: int, mode: int) -> Tensor:
    if group_count > 1:
        groups = v.view(len(v), group_count, -1)
        score = groups.amax(-1) if mode == 0 else groups.topk(2, -1).values.sum(-1)
        kept = torch.zeros(len(v), group_count, dtype=torch.bool)
        kept.scatter_(1, stable_top_k(score, k_group), True)
        v = groups.masked_fill(~kept[:, :, None], float("-inf")).view_as(v)
    return stable_top_k(v, k)


def test_top_k_example(device: str) -> None:
    x = torch.tensor([[0.0, 1.0, 2.0, 3.0]], device=device)
    bias = torch.tensor([5.0, 0.0, 0.0, 0.0], device=device)
    y, chosen, p = OPS.npu_moe_gating_top_k(
        x, 2, bias=bias, k_group=1, group_count=2, norm_type=1, routed_scaling_factor=2.5
    )
    assert chosen.tolist() == [[0, 1]]
    torch.testing.assert_close(y.cpu(), torch.tensor([[1.015386, 1.484614]]), rtol=0, atol=2e-6)
    torch.testing.assert_close(p.cpu(), torch.tensor([[0.5, 0.731059, 0.880797, 0.952574]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm_type", [0, 1, 2])
@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize(
    ("rows", "experts", "k", "k_group", "group_count"),
    [(1, 4, 2, 1, 1), (5, 30, 4, 2, 3), (67, 256, 8, 4, 8), (9, 256, 8, 1, 1), (3, 400, 100, 70, 100), (2, 7, 7, 1, 1)],
)
def test_top_k(
    rows: int, experts: int, k: int, k_group: int, group_count: int, mode: int, norm_type: int, dtype: torch.dtype,
    device: str,
) -> None:  # fmt: skip
    x = torch.randn(rows, experts).to(dtype)
    bias = torch.randn(experts).to(dtype)
    config = {"renorm": mode, "norm_type": norm_type, "routed_scaling_factor": 2.5}
    y, chosen, p = OPS.npu_moe_gating_top_k(
        x.to(device),
        k,
        bias=bias.to(device),
        k_group=k_group,
        group_count=group_count,
        group_select_mode=mode,
        **config,
    )
    assert y.dtype == dtype and chosen.dtype == torch.int32 and p.dtype == torch.float32
    expected_p = normalise(x.double(), norm_type)
    assert_near(p, expected_p, torch.float32)
    # Ranking is compared on the operator's own p, in float32 as the operator does it: no near tie can differ.
    indices = choose(p.cpu() + bias.float(), k, k_group, group_count, mode)
    assert torch.equal(chosen.cpu().long(), indices)
    assert_near(y, weights(expected_p, indices, config), dtype)


@pytest.mark.parametrize("mode", [0, 1])
def test_a_nan_makes_its_group_the_best(mode: int, isa: str) -> None:
    for experts, group_count, k_group, k in ((8, 4, 1, 2), (12, 3, 2, 5), (160, 8, 2, 8), (96, 2, 1, 40)):
        for where in range(experts):
            x = torch.randn(3, experts)
            x[0, where] = float("nan")
            x[1, [where, where - experts // group_count]] = float("nan")  # in two groups
            _, chosen, p = OPS.npu_moe_gating_top_k(
                x, k, k_group=k_group, group_count=group_count, group_select_mode=mode, norm_type=1
            )
            assert torch.equal(chosen.long(), choose(p, k, k_group, group_count, mode))
            assert chosen[0, 0] == where


@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
def test_top_k_by_table(id_dtype: torch.dtype, device: str) -> None:
    x = torch.randn(20, 16)
    table = torch.randint(0, 16, (9, 3)).to(id_dtype)
    ids = torch.randint(0, 9, (20,)).to(id_dtype)
    y, chosen, _ = OPS.npu_moe_gating_top_k(
        x.to(device), 3, input_ids=ids.to(device), tid2eid=table.to(device), norm_type=1
    )
    assert torch.equal(chosen.cpu().long(), table[ids.long()].long())
    assert_near(y, weights(x.double().sigmoid(), chosen.cpu().long(), {"norm_type": 1}), torch.float32)


def test_extreme_scores(isa: str) -> None:
    x = torch.tensor([[-200.0, -90.0, -20.0, 0.0, 20.0, 90.0, 3e38, -3e38]])
    for norm_type in range(3):
        p = OPS.npu_moe_gating_top_k(x, 2, norm_type=norm_type)[2]
        torch.testing.assert_close(p.double(), normalise(x.double(), norm_type), rtol=1e-5, atol=1e-30)
    y, _, p = OPS.npu_moe_gating_top_k(torch.full((1, 4), -200.0), 2, norm_type=1)
    assert torch.equal(p, torch.zeros(1, 4)) and torch.equal(y, torch.zeros(1, 2))  # 0 / (0 + eps)


def test_results_do_not_depend_on_threads() -> None:
    x = torch.randn(700, 256)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(OPS.npu_moe_gating_top_k(x, 8, norm_type=1, k_group=4, group_count=8, group_select_mode=1))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_top_k_of_strided_and_empty_scores(device: str) -> None:
    x, bias = torch.randn(32, 9).to(device).t(), torch.randn(64).to(device)[::2]
    ours = OPS.npu_moe_gating_top_k(x, 4, bias=bias, norm_type=1)
    packed = OPS.npu_moe_gating_top_k(x.contiguous(), 4, bias=bias.contiguous(), norm_type=1)
    assert all(torch.equal(a, b) for a, b in zip(ours, packed, strict=True))
    assert [t.shape for t in OPS.npu_moe_gating_top_k(torch.empty(0, 8, device=device), 2)] == [(0, 2), (0, 2), (0, 8)]


# ---- gradients --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("renorm", [0, 1])
@pytest.mark.parametrize("norm_type", [0, 1, 2])
@pytest.mark.parametrize("hashed", [False, True])
def test_gradient(hashed: bool, norm_type: int, renorm: int, dtype: torch.dtype, device: str) -> None:
    rows, experts, k = 37, 24, 4
    x = torch.randn(rows, experts).to(dtype)
    dy = torch.randn(rows, k).to(dtype)
    config = {"renorm": renorm, "norm_type": norm_type, "routed_scaling_factor": 1.5, "eps": 1e-3}
    tables = {}
    if hashed:  # a table may name an expert twice
        tables = {"input_ids": torch.randint(0, 5, (rows,)), "tid2eid": torch.randint(0, experts, (5, k))}
    ours = x.clone().to(device).requires_grad_()
    y, chosen, p = OPS.npu_moe_gating_top_k(ours, k, **{name: t.to(device) for name, t in tables.items()}, **config)
    assert y.requires_grad and not p.requires_grad and not chosen.requires_grad
    y.backward(dy.to(device))
    exact = x.double().requires_grad_()
    weights(normalise(exact, norm_type), chosen.cpu().long(), config).backward(dy.double())
    assert ours.grad is not None and ours.grad.dtype == dtype and exact.grad is not None
    torch.testing.assert_close(ours.grad.cpu().double(), exact.grad, rtol=RTOL[dtype] * 2, atol=3e-6)


def test_gradient_with_every_kernel_table(isa: str) -> None:
    for norm_type in range(3):
        for experts in (3, 16, 33):
            x = torch.randn(20, experts).requires_grad_()
            y, chosen, _ = OPS.npu_moe_gating_top_k(x, 3, norm_type=norm_type, eps=1e-3)
            dy = torch.randn(20, 3)
            y.backward(dy)
            exact = x.detach().double().requires_grad_()
            expected = weights(normalise(exact, norm_type), chosen.long(), {"norm_type": norm_type, "eps": 1e-3})
            expected.backward(dy.double())
            assert x.grad is not None and exact.grad is not None
            torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


def test_gradient_of_nothing(device: str) -> None:
    dx = OPS.npu_moe_gating_top_k_backward(
        torch.empty(0, 8, device=device),
        torch.empty(0, 2, device=device),
        torch.empty(0, 2, dtype=torch.int32, device=device),
    )
    assert dx.shape == (0, 8)


def test_second_derivative_is_refused(device: str) -> None:
    x = torch.randn(3, 8, device=device, requires_grad=True)
    (dx,) = torch.autograd.grad(OPS.npu_moe_gating_top_k(x, 2)[0].square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="npu_moe_gating_top_k has no second derivative"):
        dx.sum().backward()


# ---- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(8)}, "argument x: expected 2 dims"),
        ({"x": torch.zeros(4, 8, dtype=torch.float64)}, "argument x: expected dtype"),
        ({"bias": torch.zeros(8, dtype=torch.float16)}, "argument bias: expected dtype float32, got float16"),
        ({"bias": torch.zeros(7)}, r"argument bias: expected shape \[8\]"),
        ({"bias": torch.zeros(1, 8)}, r"argument bias: expected shape \[8\]"),
        ({"input_ids": torch.zeros(4, dtype=torch.int64)}, "argument tid2eid: expected input_ids and tid2eid together"),
        ({"tid2eid": torch.zeros(4, 2, dtype=torch.int64)}, "argument input_ids: expected input_ids and tid2eid"),
        (
            {"input_ids": torch.zeros(4), "tid2eid": torch.zeros(4, 2, dtype=torch.int64)},
            "argument input_ids: expected dtype int32 or int64",
        ),
        (
            {"input_ids": torch.zeros(3, dtype=torch.int64), "tid2eid": torch.zeros(4, 2, dtype=torch.int64)},
            r"argument input_ids: expected shape \[4\]",
        ),
        (
            {"input_ids": torch.zeros(4, dtype=torch.int64), "tid2eid": torch.zeros(4, 3, dtype=torch.int64)},
            r"argument tid2eid: expected shape \[any, 2\]",
        ),
        ({"group_count": 3}, "argument group_count: expected a divisor of the 8 experts, got 3"),
        ({"group_count": 0}, "argument group_count: expected a divisor"),
        ({"group_count": 2, "k_group": 3}, "argument k_group: expected 1 to 2"),
        ({"k_group": 0}, "argument k_group: expected 1 to 1"),
        ({"k": 0}, "argument k: expected 1 to 8"),
        ({"k": 5, "group_count": 2}, "argument k: expected 1 to 4"),
        ({"group_select_mode": 2}, "argument group_select_mode: expected 0"),
        ({"group_select_mode": 1, "group_count": 8, "k_group": 8}, "argument group_select_mode: 1 takes the two"),
        ({"norm_type": 3}, "argument norm_type: expected 0"),
    ],
)
def test_top_k_errors(change: dict[str, Any], message: str, device: str) -> None:
    arguments: dict[str, Any] = {"x": torch.zeros(4, 8), "k": 2} | change
    arguments = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in arguments.items()}
    with pytest.raises(RuntimeError, match=f"npu_moe_gating_top_k: {message}"):
        OPS.npu_moe_gating_top_k(**arguments)


@pytest.mark.parametrize(
    ("ids", "table", "message"),
    [
        ([0, 1, 2, -1], [[0, 1]] * 3, "argument input_ids: expected indices from 0 to 2, got -1 for row 3"),
        ([0, 3, 2, 1], [[0, 1]] * 3, "argument input_ids: expected indices from 0 to 2, got 3 for row 1"),
        ([0, 0, 1, 1], [[0, 1], [8, 0]], "argument tid2eid: expected indices from 0 to 7, got 8 for row 2"),
    ],
)
def test_indices_out_of_range(ids: list[int], table: list[list[int]], message: str, device: str) -> None:
    with pytest.raises(IndexError, match=message):
        OPS.npu_moe_gating_top_k(
            torch.zeros(4, 8, device=device),
            2,
            input_ids=torch.tensor(ids, device=device),
            tid2eid=torch.tensor(table, device=device),
        )
        torch.npu.synchronize()


def test_backward_errors(device: str) -> None:
    op = OPS.npu_moe_gating_top_k_backward
    p, dy = torch.rand(4, 8, device=device), torch.rand(4, 2, device=device)
    chosen = torch.zeros(4, 2, dtype=torch.int32, device=device)
    with pytest.raises(RuntimeError, match="argument x_norm: expected dtype float32"):
        op(p.half(), dy, chosen)
    with pytest.raises(RuntimeError, match="argument grad_y: expected shape"):
        op(p, dy[:3], chosen)
    with pytest.raises(RuntimeError, match="argument expertIdx: expected dtype int32, got int64"):
        op(p, dy, chosen.long())
    with pytest.raises(RuntimeError, match="argument expertIdx: expected shape"):
        op(p, dy, chosen[:, :1])
    with pytest.raises(RuntimeError, match="argument norm_type"):
        op(p, dy, chosen, norm_type=5)
    with pytest.raises(IndexError, match="argument expertIdx: expected indices from 0 to 7, got 8 in row 0"):
        op(p, dy, chosen + 8)
        torch.npu.synchronize()


def test_fake_kernels_refuse_what_kernels_refuse() -> None:
    x = torch.empty(4, 8, device="meta")
    with pytest.raises(RuntimeError, match="argument k: expected 0 to 8"):
        OPS.npu_moe_gating_top_k_softmax(x, None, 9)
    with pytest.raises(RuntimeError, match="argument bias: expected shape"):
        OPS.npu_moe_gating_top_k(x, 2, bias=torch.empty(7, device="meta"))
