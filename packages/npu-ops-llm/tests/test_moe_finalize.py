"""npu_moe_finalize_routing against its formula in float64."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

FINALIZE = torch.ops.npu.npu_moe_finalize_routing

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def reference(
    rows: Tensor,
    skip1: Tensor | None,
    skip2: Tensor | None,
    bias: Tensor | None,
    scales: Tensor | None,
    index: Tensor,
    experts: Tensor | None,
    mode: int | None = 0,
    k: int | None = 1,
) -> Tensor:
    """The formula of the specification, slot by slot."""
    flat = rows.double().reshape(-1, rows.shape[-1])
    ranks = scales.shape[1] if scales is not None else max(k or 1, 1)
    tokens = scales.shape[0] if scales is not None else index.numel() // ranks
    out = torch.zeros(tokens, rows.shape[-1], dtype=torch.float64)
    for skip in (skip1, skip2):
        if skip is not None:
            out += skip.double()
    for i in range(tokens):
        for j in range(ranks):
            row = int(index[j * tokens + i] if (mode or 0) < 2 else index[i * ranks + j])
            term = torch.zeros(rows.shape[-1], dtype=torch.float64) if row == -1 else flat[row]
            if bias is not None:
                assert experts is not None
                term = term + bias[int(experts[i, j])].double()
            out[i] += term * (float(scales[i, j]) if scales is not None else 1.0)
    return out


def moved(arguments: tuple, device: str) -> tuple:
    return tuple(one.to(device) if isinstance(one, Tensor) else one for one in arguments)


def assert_near(actual: Tensor, expected: Tensor, terms: int = 8) -> None:
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=tolerance, atol=1e-6 * terms)


def inputs(tokens: int, k: int, hidden: int, dtype: torch.dtype, experts: int = 5) -> tuple:
    rows = torch.randn(tokens * k, hidden).to(dtype)
    skip1, skip2 = torch.randn(2, tokens, hidden).to(dtype)
    bias = torch.randn(experts, hidden).to(dtype)
    scales = torch.rand(tokens, k).to(dtype)
    index = torch.randperm(tokens * k).to(torch.int32)
    expert = torch.randint(experts, (tokens, k)).to(torch.int32)
    return rows, skip1, skip2, bias, scales, index, expert


@pytest.mark.parametrize("mode", [0, 1, 2, 3, None])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "k", "hidden"), [(1, 1, 1), (7, 3, 67), (5, 8, 256), (13, 2, 131)])
def test_formula(tokens: int, k: int, hidden: int, dtype: torch.dtype, mode: int | None, device: str) -> None:
    rows, *rest = inputs(tokens, k, hidden, dtype)
    if mode in (1, 3):
        rest[4][::3] = -1
        rows = torch.cat([rows, rows]).view(2, -1, hidden)
    arguments = (rows, *rest, mode)
    out = FINALIZE(*moved(arguments, device))
    assert out.dtype == dtype and out.shape == (tokens, hidden) and out.device.type == device
    assert_near(out, reference(*arguments))


@pytest.mark.parametrize("given_names", ["", "skip1", "skip1 skip2", "bias", "scales", "skip1 scales", "bias scales"])
def test_every_argument_may_be_missing(given_names: str, device: str) -> None:
    rows, *rest, index, expert = inputs(6, 4, 33, torch.float32)
    names = ["skip1", "skip2", "bias", "scales"]
    chosen = [one if name in given_names.split() else None for name, one in zip(names, rest, strict=True)]
    for mode in range(4):
        arguments = (rows, *chosen, index, expert if "bias" in given_names else None, mode, 4)
        assert_near(FINALIZE(*moved(arguments, device)), reference(*arguments))


def test_specification_example(device: str) -> None:
    rows = torch.arange(1.0, 7.0)[:, None]
    scales = torch.tensor([[0.5, 0.5], [0.25, 0.75], [1, 0]])
    index = torch.tensor([2, 0, 1, 4, 3, 5], dtype=torch.int32)
    out = FINALIZE(*moved((rows, None, None, None, scales, index, None), device))
    assert torch.equal(out.cpu(), torch.tensor([[4.0], [3.25], [2.0]]))


@pytest.mark.parametrize("k", [None, 0, -3, 1])
def test_k_without_scales_defaults_to_one(k: int | None, device: str) -> None:
    rows, index = torch.randn(5, 7), torch.randperm(5).to(torch.int32)
    out = FINALIZE(*moved((rows, None, None, None, None, index, None, 0, k), device))
    assert torch.equal(out.cpu(), rows[index.long()])


def test_a_dropped_slot_keeps_its_bias(device: str) -> None:
    rows, bias = torch.full((1, 3), 7.0), torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    scales, experts = torch.tensor([[0.5, 2.0]]), torch.tensor([[0, 1]], dtype=torch.int32)
    index = torch.tensor([-1, 0], dtype=torch.int32)
    out = FINALIZE(*moved((rows, None, None, bias, scales, index, experts, 3), device))
    assert torch.equal(out.cpu(), torch.tensor([[34.5, 55.0, 75.5]]))


@pytest.mark.parametrize("scales_dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: torch.dtype, index_dtype: torch.dtype, scales_dtype: torch.dtype, device: str) -> None:
    rows, skip1, skip2, bias, scales, index, expert = inputs(4, 3, 40, dtype)
    arguments = (rows, skip1, skip2, bias, scales.to(scales_dtype), index.to(index_dtype), expert.to(index_dtype), 2)
    assert_near(FINALIZE(*moved(arguments, device)), reference(*arguments))


def test_sums_are_float32(device: str) -> None:
    """256 + 1 + 1 ... stays 256 when each step is rounded to bfloat16."""
    rows = torch.ones(65, 16, dtype=torch.bfloat16)
    rows[0] = 256
    index = torch.arange(65, dtype=torch.int32)
    out = FINALIZE(*moved((rows, None, None, None, None, index, None, 2, 65), device))
    assert torch.equal(out.cpu(), torch.full((1, 16), 320.0).bfloat16())


@pytest.mark.parametrize("k", [31, 32, 63, 64, 65, 200])
def test_many_experts_per_token(k: int, isa: str) -> None:
    for dtype in DTYPES:
        arguments = (*inputs(3, k, 1029, dtype), 2)
        assert_near(FINALIZE(*arguments), reference(*arguments), terms=k)


def test_every_kernel_table(isa: str) -> None:
    for hidden in (*range(1, 19), 63, 64, 65, 257):
        for dtype in DTYPES:
            arguments = (*inputs(3, 2, hidden, dtype), 0)
            assert_near(FINALIZE(*arguments), reference(*arguments))


def test_non_contiguous_and_unaligned(device: str) -> None:
    rows, skip1, skip2, bias, scales, index, expert = moved(inputs(6, 2, 30, torch.bfloat16), device)
    strided = [
        rows.t().contiguous().t(),
        torch.cat([skip1, skip1], 1)[:, :30],
        skip2.t().contiguous().t(),
        bias.repeat(2, 1)[::2][:5].flip(0).flip(0),
        scales.t().contiguous().t(),
        index.repeat_interleave(2)[::2],
        expert.t().contiguous().t(),
    ]
    packed = [one.contiguous() for one in strided]
    assert not any(one.is_contiguous() for one in (strided[0], strided[1], strided[4], strided[5], strided[6]))
    assert torch.equal(FINALIZE(*strided, 2).cpu(), FINALIZE(*packed, 2).cpu())
    odd = torch.empty(rows.numel() + 1, dtype=rows.dtype, device=device)[1:].view(rows.shape).copy_(rows)
    assert torch.equal(
        FINALIZE(odd, None, None, None, scales, index, None).cpu(),
        FINALIZE(rows, None, None, None, scales, index, None).cpu(),
    )


def test_empty(device: str) -> None:
    no_index = torch.empty(0, dtype=torch.int32)
    scales = torch.empty(0, 2)
    out = FINALIZE(*moved((torch.empty(0, 8), None, None, None, scales, no_index, None), device))
    assert out.shape == (0, 8)
    index = torch.arange(4, dtype=torch.int32)
    assert FINALIZE(*moved((torch.empty(4, 0), None, None, None, None, index, None), device)).shape == (4, 0)
    skip = torch.randn(3, 4)
    out = FINALIZE(*moved((torch.empty(0, 4), skip, None, None, torch.empty(3, 0), no_index, None), device))
    assert torch.equal(out.cpu(), skip)


def test_result_does_not_depend_on_threads() -> None:
    arguments = (*inputs(300, 8, 520, torch.bfloat16), 2)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(FINALIZE(*arguments))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


# ---- round trips with init_routing, written out in plain torch --------------------------------------------------


def init_routing(x: Tensor, experts: Tensor, expert_num: int, mode: int, capacity: int) -> tuple[Tensor, Tensor]:
    """Rows by expert and the row of every slot, numbered as `mode` of finalize routing wants it."""
    k = experts.shape[1]
    order = experts.flatten().argsort(stable=True)
    index = torch.full((experts.numel(),), -1, dtype=torch.int32)
    if mode in (0, 2):
        rows = x[order // k]
        index[order] = torch.arange(len(order), dtype=torch.int32)
    else:
        rows = torch.zeros(expert_num, capacity, x.shape[1], dtype=x.dtype)
        taken = [0] * expert_num
        for slot in order.tolist():
            expert = int(experts.flatten()[slot])
            if taken[expert] < capacity:
                rows[expert, taken[expert]] = x[slot // k]
                index[slot] = expert * capacity + taken[expert]
                taken[expert] += 1
    return rows, index.view(-1, k).t().flatten() if mode in (0, 1) else index


@settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_round_trip_in_every_mode(data: st.DataObject, device: str) -> None:
    tokens, expert_num = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 9))
    k, mode = data.draw(st.integers(1, expert_num)), data.draw(st.integers(0, 3))
    capacity = data.draw(st.integers(1, tokens))
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    x = torch.randn(tokens, 35)
    experts = torch.stack([torch.randperm(expert_num)[:k] for _ in range(tokens)])
    scales = torch.rand(tokens, k)
    rows, index = init_routing(x, experts, expert_num, mode, capacity)
    out = FINALIZE(*moved((rows, None, None, None, scales, index, None, mode), device)).cpu()
    kept = (index != -1).view(k, tokens).t() if mode in (0, 1) else (index != -1).view(tokens, k)
    assert bool(kept.all()) or mode in (1, 3)
    torch.testing.assert_close(out, x * (scales * kept).sum(1, keepdim=True), rtol=1e-5, atol=1e-5)


# ---- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["cpu", "npu", "meta"])
def test_errors(where: str) -> None:
    if where == "npu":
        import torch_npu  # noqa: F401
    rows, skip1, skip2, bias, scales, index, expert = moved(inputs(3, 2, 4, torch.float32), where)
    none = None
    calls = [
        ((rows, skip1, skip2, none, scales, index, none, 4), "argument drop_pad_mode: expected 0, 1, 2 or 3, got 4"),
        ((rows, none, skip2, none, scales, index, none), "argument skip2: expected None without skip1"),
        ((rows, none, none, bias, scales, index, none), "argument export_for_source_row: expected the expert of every"),
        ((rows, none, none, bias, scales, index, expert[:2]), r"export_for_source_row: expected shape \[3, 2\]"),
        ((rows, none, none, bias[:, :3], scales, index, expert), r"argument bias: expected shape \(experts, 4\)"),
        ((rows, none, none, none, none, index, none, 0, 4), "expected a multiple of k = 4 elements, got 6"),
        (
            (rows, none, none, none, scales, index[:5], none),
            "expanded_src_to_dst_row: expected (a multiple|6 elements)",
        ),
        ((rows, skip1[:2], none, none, scales, index, none), r"argument skip1: expected shape \[3, 4\]"),
        (
            (rows[0], none, none, none, scales, index, none),
            r"argument expanded_permuted_rows: expected \(rows, hidden\)",
        ),
    ]
    for arguments, message in calls:
        with pytest.raises(RuntimeError, match=message):
            FINALIZE(*arguments)


def test_errors_of_dtypes() -> None:
    rows, skip1, _, bias, scales, index, expert = inputs(3, 2, 4, torch.float32)
    for arguments, message in [
        ((rows, skip1.half(), None, None, scales, index, None), "argument skip1: expected dtype float32, got float16"),
        ((rows, None, None, bias.half(), scales, index, expert), "argument bias: expected dtype float32, got float16"),
        ((rows.long(), None, None, None, scales, index, None), "argument expanded_permuted_rows: expected dtype"),
        ((rows, None, None, None, scales, index.short(), None), "argument expanded_src_to_dst_row: expected dtype"),
        ((rows, None, None, None, scales.int(), index, None), "argument scales: expected dtype"),
        (
            (rows, None, None, bias, scales, index, expert[:2]),
            r"argument export_for_source_row: expected shape \[3, 2\]",
        ),
    ]:
        with pytest.raises(RuntimeError, match=message):
            FINALIZE(*arguments)


@pytest.mark.parametrize("bad", [-2, 6, 2**31 - 1])
def test_an_index_out_of_range_is_reported(bad: int, device: str) -> None:
    rows, *rest, index, _ = inputs(3, 2, 4, torch.float32)
    index[4] = bad
    arguments = moved((rows, None, None, None, rest[3], index, None), device)
    with pytest.raises(
        IndexError, match=f"expanded_src_to_dst_row: expected values from -1 on and below 6, got {bad} at"
    ):
        FINALIZE(*arguments)
        torch.accelerator.synchronize()


def test_an_expert_out_of_range_is_reported() -> None:
    rows, _, _, bias, scales, index, expert = inputs(3, 2, 4, torch.float32)
    expert[1, 1] = 5
    with pytest.raises(IndexError, match="export_for_source_row: expected values from 0 on and below 5, got 5"):
        FINALIZE(rows, None, None, bias, scales, index, expert)


def test_a_bias_without_experts_has_no_row_for_any(device: str) -> None:
    rows, index, expert = torch.randn(2, 4), torch.arange(2, dtype=torch.int32), torch.zeros(2, 1, dtype=torch.int32)
    with pytest.raises(IndexError, match="export_for_source_row: expected values from 0 on and below 0, got 0"):
        FINALIZE(*moved((rows, None, None, torch.empty(0, 4), None, index, expert), device))
        torch.accelerator.synchronize()


def test_devices_must_agree() -> None:
    import torch_npu  # noqa: F401

    rows, _, _, _, scales, index, _ = inputs(3, 2, 4, torch.float32)
    with pytest.raises(RuntimeError, match=r"npu:0 and cpu! \(when checking argument scales"):
        FINALIZE(rows.npu(), None, None, None, scales, index.npu(), None)
