"""The npu_add_rms_norm family against the formulas in float64."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

ADD = torch.ops.npu.npu_add_rms_norm
ADD_V2 = torch.ops.npu.npu_add_rms_norm_v2
ADD_V2_FUNCTIONAL = torch.ops.npu.npu_add_rms_norm_v2_functional
QUANT = torch.ops.npu.npu_add_rms_norm_quant
DYNAMIC = torch.ops.npu.npu_add_rms_norm_dynamic_quant

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Half a unit in the last place of the result, plus float32 sums for all.
RTOL = {torch.float32: 4e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
ATOL = {torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 2**-24}
FLOAT8 = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}

SHAPES = [
    # (shape of x1, dims of gamma)
    ((4,), 1),
    ((3, 1), 1),
    ((2, 7), 1),
    ((3, 2, 129), 1),
    ((4, 5, 6, 7), 2),
    ((4, 5, 6, 7), 4),
    ((2, 3), 0),
    ((), 0),
    ((257, 1031), 1),
    ((2, 20011), 1),
    ((1, 2048), 1),
]


def reference(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """y in float64, rstd in float64, the rounded sum."""
    x = (x1.double() + x2.double()).to(x1.dtype)
    flat = x.double().reshape([*x.shape[: x.dim() - gamma.dim()], -1])
    rstd = 1 / (flat.square().mean(-1) + epsilon).sqrt()
    rstd = rstd.reshape([*x.shape[: x.dim() - gamma.dim()], *[1] * gamma.dim()])
    return x.double() * rstd * gamma.double(), rstd, x


def inputs(shape: tuple[int, ...], gamma_dim: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    made = [torch.randn(shape) * 3, torch.randn(shape), torch.randn(shape[len(shape) - gamma_dim :])]
    return [one.to(dtype).to(device) for one in made]


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(
        actual.cpu().double(), expected.cpu().double(), rtol=RTOL[dtype], atol=ATOL[dtype], equal_nan=True
    )


def assert_quantised(actual: Tensor, wanted: Tensor, low: int, high: int) -> None:
    """`wanted` is the exact value before rounding; near a tie, float32 may go either way."""
    actual, rounded = actual.cpu().double(), wanted.cpu().clamp(low, high).round()
    tie = ((wanted.cpu() - wanted.cpu().floor()) - 0.5).abs() < 1e-5 * (1 + wanted.cpu().abs())
    assert torch.equal(actual[~tie], rounded[~tie])
    assert ((actual - rounded).abs()[tie] <= 1).all()


def unpack(packed: Tensor) -> Tensor:
    """The int4 values of int32 words, the least significant nibble first."""
    nibbles = torch.stack([(packed.cpu() >> (4 * j)) & 15 for j in range(8)], -1)
    return torch.where(nibbles > 7, nibbles - 16, nibbles).flatten(-2)


# ---- npu_add_rms_norm, _v2, _v2_functional ------------------------------------------------------------------------


@pytest.mark.parametrize("mixed", [False, True], ids=["same", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "gamma_dim"), SHAPES)
def test_sum_and_norm(shape: tuple[int, ...], gamma_dim: int, dtype: torch.dtype, mixed: bool, device: str) -> None:
    x1, x2, gamma = inputs(shape, gamma_dim, dtype, device)
    gamma = gamma.float() if mixed else gamma
    y, rstd, x = ADD(x1, x2, gamma, 1e-5)
    expected_y, expected_rstd, expected_x = reference(x1.cpu(), x2.cpu(), gamma.cpu(), 1e-5)
    assert y.dtype == dtype and y.shape == x1.shape and y.device == x1.device and y.is_contiguous()
    assert rstd.dtype == torch.float32 and rstd.shape == expected_rstd.shape
    assert x.dtype == dtype and x.is_contiguous()
    assert torch.equal(x.cpu(), expected_x)
    assert_near(rstd, expected_rstd, torch.float32)
    assert_near(y, expected_y, dtype)

    for actual, expected in zip(ADD_V2_FUNCTIONAL(x1, x2, gamma, 1e-5), (rstd, y, x), strict=True):
        assert torch.equal(actual.cpu(), expected.cpu())
    rstd_in_place = ADD_V2(x1, x2, gamma, 1e-5)
    for actual, expected in zip((rstd_in_place, x1, x2), (rstd, y, x), strict=True):
        assert torch.equal(actual.cpu(), expected.cpu())


def test_specification_example(device: str) -> None:
    x1, x2 = torch.tensor([0.0, 1.0, 1.0, 4.0], device=device), torch.tensor([1.0, 1.0, 2.0, 0.0], device=device)
    gamma = torch.tensor([1.0, 0.5, 2.0, 1.0], device=device)
    y, rstd, x = ADD(x1, x2, gamma)
    torch.testing.assert_close(rstd.cpu(), torch.tensor([0.365148]), rtol=0, atol=1e-6)
    torch.testing.assert_close(y.cpu(), torch.tensor([0.365148, 0.365148, 2.190890, 1.460593]), rtol=0, atol=1e-6)
    assert x.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norm_is_of_the_rounded_sum(dtype: torch.dtype, device: str) -> None:
    x1 = torch.tensor([[256.0, 2048.0]]).to(dtype).to(device)
    x2 = torch.tensor([[0.75, 0.75]]).to(dtype).to(device)
    y, rstd, x = ADD(x1, x2, torch.ones(2, dtype=dtype, device=device))
    rounded = (x1.cpu().double() + 0.75).to(dtype)
    assert torch.equal(x.cpu(), rounded) and float(x[0, 1]) == 2048
    assert_near(rstd, 1 / (rounded.double().square().mean(-1, keepdim=True) + 1e-6).sqrt(), torch.float32)


def strided(kind: str, shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> Tensor:
    a, b, c = shape
    if kind == "slice":
        view = torch.randn(a, b, c + 5).to(dtype).to(device)[..., 2 : c + 2]
    elif kind == "transposed rows":
        view = torch.randn(b, a, c).to(dtype).to(device).transpose(0, 1)
    elif kind == "transposed columns":
        view = torch.randn(a, c, b).to(dtype).to(device).transpose(1, 2)
    else:
        view = torch.randn(a, b, 2 * c).to(dtype).to(device)[..., ::2]
    assert view.shape == shape and not view.is_contiguous()
    return view


KINDS = ["slice", "transposed rows", "transposed columns", "steps"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_views(kind: str, dtype: torch.dtype, device: str) -> None:
    x1, x2 = strided(kind, (3, 4, 37), dtype, device), strided(kind, (3, 4, 37), dtype, device)
    gamma = torch.randn(74).to(dtype).to(device)[::2]
    scales = (torch.rand(74, device=device) + 0.1)[::2]
    packed = [t.contiguous() for t in (x1, x2, gamma, scales)]
    for op, parameters in ((ADD, ()), (QUANT, (None,)), (DYNAMIC, ())):
        chosen = 4 if op is QUANT else 3
        actual = op(x1, x2, gamma, scales, *parameters) if op is QUANT else op(x1, x2, gamma)
        for one, expected in zip(actual, op(*packed[:chosen], *parameters), strict=True):
            assert one.is_contiguous() and torch.equal(one.cpu(), expected.cpu())


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_in_place_through_views(first: str, second: str, device: str) -> None:
    x1, x2 = strided(first, (3, 4, 37), torch.bfloat16, device), strided(second, (3, 4, 37), torch.bfloat16, device)
    gamma = torch.randn(37).to(torch.bfloat16).to(device)
    y, rstd, x = ADD(x1, x2, gamma)
    around = [x1._base.clone(), x2._base.clone()]
    assert torch.equal(ADD_V2(x1, x2, gamma).cpu(), rstd.cpu())
    assert torch.equal(x1.cpu(), y.cpu()) and torch.equal(x2.cpu(), x.cpu())
    for view, before in zip((x1, x2), around, strict=True):
        before.as_strided(view.shape, view.stride(), view.storage_offset()).copy_(view)
        assert torch.equal(before.cpu(), view._base.cpu())  # nothing beside the view has changed


def test_in_place_on_two_halves_of_one_tensor(device: str) -> None:
    both, gamma = torch.randn(5, 64, device=device), torch.randn(32, device=device)
    x1, x2 = both[:, :32], both[:, 32:]
    y, _, x = ADD(x1, x2, gamma)
    ADD_V2(x1, x2, gamma)
    assert torch.equal(both.cpu(), torch.cat([y, x], 1).cpu())


def test_in_place_refuses_memory_that_would_be_written_twice(device: str) -> None:
    x, gamma = torch.randn(5, 32, device=device), torch.ones(32, device=device)
    for x1, x2, message in [
        (x, x, "argument x2: shares memory with x1"),
        (x[:4], x[1:], "argument x2: shares memory with x1"),
        (x[:1].expand(5, 32), x, "argument x1: is written in place, but it is an expanded view"),
        (x, x[:, :1].expand(5, 32), "argument x2: is written in place, but it is an expanded view"),
    ]:
        with pytest.raises(RuntimeError, match=f"npu_add_rms_norm_v2: {message}"):
            ADD_V2(x1, x2, gamma)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unaligned_storage(dtype: torch.dtype, device: str) -> None:
    x1, x2 = (torch.randn(1 + 5 * 37).to(dtype).to(device)[1:].view(5, 37) for _ in range(2))
    gamma = torch.randn(38).to(dtype).to(device)[1:]
    y, _, x = ADD(x1, x2, gamma)
    expected_y, _, expected_x = reference(x1.cpu(), x2.cpu(), gamma.cpu())
    assert torch.equal(x.cpu(), expected_x)
    assert_near(y, expected_y, dtype)


def test_no_rows_and_no_columns(device: str) -> None:
    for shape in ((0, 8), (3, 0), (0, 3, 8)):
        x1, x2, gamma = inputs(shape, 1, torch.float32, device)
        y, rstd, x = ADD(x1, x2, gamma)
        assert y.shape == x.shape == shape and rstd.shape == (*shape[:-1], 1)
        assert ADD_V2(x1, x2.clone(), gamma).shape == rstd.shape
        y1, y2, x = QUANT(x1, x2, gamma, torch.ones_like(gamma), None)
        assert y1.shape == y2.shape == x.shape == shape
        y1, y2, x, scale, none = DYNAMIC(x1, x2, gamma)
        assert y1.shape == x.shape == shape and scale.shape == shape[:-1]
        assert not scale.any() and y2.numel() == none.numel() == 1
    assert ADD(*inputs((3, 0), 1, torch.float32, device))[1].isnan().all()  # the mean of nothing


def test_infinities_and_nan(device: str) -> None:
    x1 = torch.tensor([[1.0, float("inf"), 2.0], [1.0, float("nan"), 2.0], [1.0, 2.0, 3.0]], device=device)
    gamma = torch.ones(3, device=device)
    y, rstd, _ = ADD(x1, torch.ones_like(x1), gamma)
    expected_y, expected_rstd, _ = reference(x1.cpu(), torch.ones(3, 3), gamma.cpu())
    assert_near(y, expected_y, torch.float32)
    assert_near(rstd, expected_rstd, torch.float32)


# ---- npu_add_rms_norm_quant --------------------------------------------------------------------------------------


@pytest.mark.parametrize("divide", [True, False], ids=["divide", "multiply"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "gamma_dim"), [*SHAPES[:6], ((9, 2051), 1), ((1, 4096), 1)])
def test_quant(shape: tuple[int, ...], gamma_dim: int, dtype: torch.dtype, divide: bool, device: str) -> None:
    x1, x2, gamma = inputs(shape, gamma_dim, dtype, device)
    beta = torch.randn_like(gamma)
    scales = torch.rand(gamma.shape, device=device) * 0.1 + 0.02
    scales = scales if divide else 1 / scales
    second_scales = torch.tensor([0.03 if divide else 30.0], dtype=torch.bfloat16, device=device)
    zeros = torch.randint(-20, 20, gamma.shape, dtype=torch.int32, device=device)
    second_zeros = torch.full(gamma.shape, 1.5, dtype=torch.bfloat16, device=device)
    y1, y2, x = QUANT(x1, x2, gamma, scales, zeros, beta, second_scales, second_zeros, epsilon=1e-5, div_mode=divide)
    y, _, expected_x = reference(x1.cpu(), x2.cpu(), gamma.cpu(), 1e-5)
    y = y + beta.cpu().double()
    assert y1.dtype == y2.dtype == torch.int8 and y1.shape == y2.shape == x1.shape
    assert torch.equal(x.cpu(), expected_x)
    for actual, scale, zero in ((y1, scales, zeros), (y2, second_scales, second_zeros)):
        scale = scale.cpu().double()
        assert_quantised(actual, (y / scale if divide else y * scale) + zero.cpu().double(), -128, 127)


@pytest.mark.parametrize("zero_dtype", [torch.int32, torch.bfloat16, torch.float16, torch.float32, None])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("single", [False, True], ids=["columns", "single"])
def test_quant_parameters(scale_dtype: torch.dtype, zero_dtype: torch.dtype | None, single: bool, device: str) -> None:
    x1, x2, gamma = inputs((5, 67), 1, torch.bfloat16, device)
    count = 1 if single else 67
    scales = (torch.rand(count) * 0.1 + 0.02).to(scale_dtype).to(device)
    zeros = None if zero_dtype is None else torch.randint(-9, 9, (count,)).to(zero_dtype).to(device)
    y1, y2, _ = QUANT(x1, x2, gamma, scales, zeros)
    y, _, _ = reference(x1.cpu(), x2.cpu(), gamma.cpu())
    shift = 0 if zeros is None else zeros.cpu().double()
    assert_quantised(y1, y / scales.cpu().double() + shift, -128, 127)
    assert y2.shape == x1.shape and y2.dtype == torch.int8 and not y2.any()


def test_quant_rounds_half_to_even_and_saturates(device: str) -> None:
    # One element per row: y is the sign of the sum times gamma.
    x1 = torch.tensor([[1.0], [-1.0]], device=device)
    zero = torch.zeros_like(x1)
    for size, up, down in [(0.5, 0, 0), (1.5, 2, -2), (2.5, 2, -2), (300.0, 127, -128)]:
        gamma = torch.tensor([size], device=device)
        y1, _, _ = QUANT(x1, zero, gamma, torch.ones(1, device=device), None, epsilon=0.0)
        assert y1.flatten().tolist() == [up, down]


@pytest.mark.parametrize("quantised", FLOAT8)
def test_quant_to_float8(quantised: torch.dtype, device: str) -> None:
    x1, x2, gamma = inputs((4, 131), 1, torch.bfloat16, device)
    gamma[::7] = 1e5  # out of range
    scales = torch.full((1,), 0.25, device=device)
    y1, y2, _ = QUANT(x1, x2, gamma, scales, None, dst_type=quantised)
    y, rstd, x = ADD(x1, x2, gamma.float())
    wanted = (x.float() * rstd * gamma.float() / 0.25).cpu().clamp(-FLOAT8[quantised], FLOAT8[quantised])
    assert y1.dtype == y2.dtype == quantised and not y2.float().any()
    step = 2**-3 if quantised == torch.float8_e4m3fn else 2**-2
    torch.testing.assert_close(y1.cpu().float(), wanted, rtol=step / 2 + 1e-4, atol=2**-9)
    assert float(y1.cpu().float().abs().max()) == FLOAT8[quantised]


def test_quant_without_second_scales_ignores_second_zero_points(device: str) -> None:
    x1, x2, gamma = inputs((2, 9), 1, torch.float32, device)
    one = torch.ones(1, device=device)
    assert not QUANT(x1, x2, gamma, one, None, None, None, one)[1].any()


# ---- npu_add_rms_norm_dynamic_quant ------------------------------------------------------------------------------

QMAX = {torch.int8: 127.0, torch.quint4x2: 7.0, torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}


def assert_dynamic(q: Tensor, scale: Tensor, v: Tensor, kind: torch.dtype) -> None:
    """`v` in float64."""
    largest = v.abs().amax(-1)
    assert scale.dtype == torch.float32 and scale.shape == v.shape[:-1]
    torch.testing.assert_close(scale.cpu().double(), largest / QMAX[kind], rtol=1e-5, atol=0)
    wanted = torch.where(largest[..., None] > 0, v * (QMAX[kind] / largest[..., None]), 0.0)
    if kind == torch.int8:
        assert q.dtype == torch.int8
        assert_quantised(q, wanted, -128, 127)
    elif kind == torch.quint4x2:
        assert q.dtype == torch.int32 and q.shape == (*v.shape[:-1], v.shape[-1] // 8)
        assert_quantised(unpack(q), wanted, -8, 7)
    else:
        assert q.dtype == kind
        step = 2**-3 if kind == torch.float8_e4m3fn else 2**-2
        torch.testing.assert_close(q.cpu().double(), wanted, rtol=step / 2 + 1e-4, atol=2**-9)


@pytest.mark.parametrize("kind", QMAX)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 8), (2, 3, 136), (5, 4096), (2, 8192 + 24)])
def test_dynamic_quant(shape: tuple[int, ...], dtype: torch.dtype, kind: torch.dtype, device: str) -> None:
    x1, x2, gamma = inputs(shape, 1, dtype, device)
    beta, smooth1, smooth2 = torch.randn_like(gamma), torch.rand_like(gamma) + 0.1, torch.rand_like(gamma) + 0.5
    y1, y2, x, scale1, scale2 = DYNAMIC(
        x1, x2, gamma, smooth_scale1=smooth1, smooth_scale2=smooth2, beta=beta, epsilon=1e-5, y_dtype=kind
    )
    y, _, expected_x = reference(x1.cpu(), x2.cpu(), gamma.cpu(), 1e-5)
    y = y + beta.cpu().double()
    assert torch.equal(x.cpu(), expected_x)
    assert_dynamic(y1, scale1, y * smooth1.cpu().double(), kind)
    assert_dynamic(y2, scale2, y * smooth2.cpu().double(), kind)


@pytest.mark.parametrize("columns", [1, 3, 17, 1031, 8195])
def test_dynamic_quant_of_odd_rows(columns: int, device: str) -> None:
    x1, x2, gamma = inputs((3, columns), 1, torch.float16, device)
    y1, _, _, scale1, _ = DYNAMIC(x1, x2, gamma)
    assert_dynamic(y1, scale1, reference(x1.cpu(), x2.cpu(), gamma.cpu())[0], torch.int8)


@pytest.mark.parametrize("mask", [None, [True, False], [False, True], [True, True]])
@pytest.mark.parametrize("smooths", [(), (1,), (2,), (1, 2)])
def test_dynamic_quant_branches(mask: list[bool] | None, smooths: tuple[int, ...], device: str) -> None:
    x1, x2, gamma = inputs((3, 40), 1, torch.bfloat16, device)
    smooth = {f"smooth_scale{i}": torch.rand_like(gamma) + 0.1 for i in smooths}
    y1, y2, _, scale1, scale2 = DYNAMIC(x1, x2, gamma, output_mask=mask, **smooth)
    y = reference(x1.cpu(), x2.cpu(), gamma.cpu())[0]
    wanted = mask if mask is not None else [True, len(smooths) == 2]
    for number, (q, scale) in enumerate(((y1, scale1), (y2, scale2)), 1):
        if wanted[number - 1]:
            factor = smooth.get(f"smooth_scale{number}")
            assert_dynamic(q, scale, y if factor is None else y * factor.cpu().double(), torch.int8)
        else:
            assert q.shape == scale.shape == () and q.numel() == scale.numel() == 1
            assert q.dtype == torch.int8 and scale.dtype == torch.float32 and int(q) == 0 and float(scale) == 0


def test_dynamic_quant_of_zero_rows(device: str) -> None:
    x1 = torch.randn(4, 48, device=device)
    x1[1::2] = 0
    for kind in QMAX:
        y1, _, _, scale, _ = DYNAMIC(x1, torch.zeros_like(x1), torch.ones(48, device=device), y_dtype=kind)
        assert not scale.cpu()[1::2].any() and scale.cpu()[::2].all()
        assert not y1.cpu().view(torch.int8)[1::2].any()


def test_dynamic_quant_accepts_the_names_of_npu_dtypes(device: str) -> None:
    x1, x2, gamma = inputs((3, 16), 1, torch.float32, device)
    for number, dtype in ((285, torch.quint4x2), (292, torch.float8_e4m3fn), (291, torch.float8_e5m2)):
        by_number, by_name = DYNAMIC(x1, x2, gamma, y_dtype=number), DYNAMIC(x1, x2, gamma, y_dtype=dtype)
        assert torch.equal(by_number[0].cpu().view(torch.int8), by_name[0].cpu().view(torch.int8))


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    values=st.lists(st.floats(-60000, 60000, width=16), min_size=8, max_size=40).filter(lambda v: len(v) % 8 == 0),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from([torch.int8, torch.quint4x2]),
)
def test_dynamic_quant_error_is_at_most_half_a_step(values: list[float], dtype: torch.dtype, kind: torch.dtype) -> None:
    x1 = torch.tensor([values]).to(dtype)
    y1, _, _, scale, _ = DYNAMIC(x1, torch.zeros_like(x1), torch.ones(len(values), dtype=dtype), y_dtype=kind)
    y = reference(x1, torch.zeros_like(x1), torch.ones(len(values)))[0]
    q = unpack(y1) if kind == torch.quint4x2 else y1
    assert int(q.abs().max()) <= QMAX[kind]
    assert ((q.double() * scale.double() - y).abs() <= scale.double() * 0.5001 + 1e-30).all()


# ---- instruction sets, threads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kernel_table(isa: str, dtype: torch.dtype) -> None:
    for columns in (*range(1, 20), 63, 64, 65, 2049, 8192, 8193 + 15):
        x1, x2, gamma = inputs((3, columns), 1, dtype)
        beta = torch.randn_like(gamma)
        expected_y, expected_rstd, expected_x = reference(x1, x2, gamma)
        for scale in (gamma, gamma.float()):
            y, rstd, x = ADD(x1, x2, scale)
            assert torch.equal(x, expected_x)
            assert_near(rstd, expected_rstd, torch.float32)
            assert_near(y, expected_y, dtype)
        shifted = expected_y + beta.double()
        scales, zeros = torch.rand(columns) * 0.1 + 0.02, torch.randint(-9, 9, (columns,), dtype=torch.int32)
        y1, _, _ = QUANT(x1, x2, gamma, scales, zeros, beta)
        assert_quantised(y1, shifted / scales.double() + zeros, -128, 127)
        kinds = QMAX if columns % 8 == 0 else {kind: 0 for kind in QMAX if kind != torch.quint4x2}
        for kind in kinds:
            q, _, _, scale1, _ = DYNAMIC(x1, x2, gamma, beta=beta, y_dtype=kind)
            assert_dynamic(q, scale1, shifted, kind)


def test_results_do_not_depend_on_threads() -> None:
    x1, x2, gamma = inputs((701, 1000), 1, torch.bfloat16)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([*ADD(x1, x2, gamma), *DYNAMIC(x1, x2, gamma), *QUANT(x1, x2, gamma, gamma.abs() + 1, None)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# ---- errors, torch.compile ----------------------------------------------------------------------------------------


def test_errors_name_operator_and_argument(device: str) -> None:
    def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    x, gamma, one = ones(2, 8), ones(8), ones(1)
    half, double = torch.float16, torch.float64
    nine = ones(*[1] * 9)
    for call, message in [
        (lambda: ADD(x, ones(2, 7), gamma), "npu_add_rms_norm: argument x2: The shape of x1 and x2 must be the same"),
        (lambda: ADD(x, ones(1, 8), gamma), "The shape of x1 and x2 must be the same"),
        (lambda: ADD(x, x, ones(1, 2, 8)), "argument gamma: The gamma shape should not be bigger than self shape."),
        (lambda: ADD(x, x, ones(7)), r"argument gamma: .*x1 has shape \[2, 8\], gamma has shape \[7\]"),
        (lambda: ADD(ones(2, 8, dtype=double), x, gamma), "argument x1: expected dtype float16, bfloat16 or float32"),
        (lambda: ADD(x, ones(2, 8, dtype=half), gamma), r"argument x2: expected dtype float32 \(as x1\), got float16"),
        (lambda: ADD(x, x, ones(8, dtype=half)), "argument gamma: expected dtype float32"),
        (lambda: ADD_V2(x, ones(2, 7), gamma), "npu_add_rms_norm_v2: argument x2"),
        (lambda: ADD_V2_FUNCTIONAL(x, x, ones(7)), "npu_add_rms_norm_v2_functional: argument gamma"),
        (lambda: QUANT(x, x, gamma, one, None, axis=1), "npu_add_rms_norm_quant: argument axis: axis only support -1."),
        (lambda: QUANT(x, x, gamma, ones(2), None), "argument scales1: expected one element or the shape of gamma"),
        (lambda: QUANT(x, x, gamma, one, ones(3)), "argument zero_points1: expected one element"),
        (lambda: QUANT(x, x, gamma, one.double(), None), "argument scales1: expected dtype .* got float64"),
        (lambda: QUANT(x, x, gamma, one, one.long()), "argument zero_points1: expected dtype .* got int64"),
        (lambda: QUANT(x, x, gamma, one, None, ones(7)), r"argument beta: expected shape \[8\] \(as gamma\)"),
        (lambda: QUANT(x, x, gamma, one, None, gamma.half()), r"argument beta: expected dtype float32 \(as gamma\)"),
        (lambda: QUANT(x, x, gamma, one, None, dst_type=torch.int32), "argument dst_type: expected one of int8"),
        (lambda: QUANT(x, x, gamma, one, None, dst_type=290), "hifloat8, which is not supported on this device"),
        (
            lambda: DYNAMIC(x, x, gamma, output_mask=[False, False]),
            "npu_add_rms_norm_dynamic_quant: argument output_mask: at least one of y1 and y2 must be output",
        ),
        (lambda: DYNAMIC(gamma, gamma, gamma), "argument x1: The x1 should be in 2~8D"),
        (lambda: DYNAMIC(nine, nine, one), "argument x1: The x1 should be in 2~8D"),
        (lambda: DYNAMIC(x, ones(2, 7), gamma), "The shape of x1 and x2 must be the same"),
        (lambda: DYNAMIC(x, x, x), r"argument gamma: expected shape \[8\] \(the last dim of x1\), got \[2, 8\]"),
        (lambda: DYNAMIC(x, x, gamma, smooth_scale1=ones(7)), r"argument smooth_scale1: expected shape \[8\]"),
        (lambda: DYNAMIC(x, x, gamma, smooth_scale2=gamma.half()), "argument smooth_scale2: expected dtype float32"),
        (
            lambda: DYNAMIC(ones(2, 7), ones(2, 7), ones(7), y_dtype=torch.quint4x2),
            "argument x1: expected a last dim divisible by 8 for an int4 result",
        ),
        (lambda: DYNAMIC(x, x, gamma, y_dtype=torch.float16), "argument y_dtype: expected one of int8, quint4x2"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_meta_tensors_raise_the_same_errors() -> None:
    x, gamma, one = (torch.ones(shape, device="meta") for shape in ((2, 8), (8,), (1,)))
    seven = torch.ones(2, 7, device="meta")
    for call, message in [
        (lambda: ADD(x, seven, gamma), "npu_add_rms_norm: argument x2: The shape of x1 and x2 must be the same"),
        (lambda: ADD(gamma, gamma, x), "argument gamma: The gamma shape should not be bigger than self shape."),
        (lambda: QUANT(x, x, gamma, one, None, axis=1), "npu_add_rms_norm_quant: argument axis: axis only support -1."),
        (lambda: QUANT(x, x, gamma, seven, None), "argument scales1: expected one element or the shape of gamma"),
        (lambda: DYNAMIC(gamma, gamma, gamma), "argument x1: The x1 should be in 2~8D"),
        (lambda: DYNAMIC(x, x, gamma, output_mask=[False, False]), "at least one of y1 and y2 must be output"),
        (lambda: DYNAMIC(seven, seven, seven[0], y_dtype=torch.quint4x2), "argument x1: expected a last dim divisible"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_devices_must_agree() -> None:
    import torch_npu  # noqa: F401

    x, gamma = torch.ones(2, 8), torch.ones(8)
    message = "^Expected all tensors to be on the same device, but found at least two devices, "
    with pytest.raises(RuntimeError, match=message + r"npu:0 and cpu! \(when checking argument x2"):
        ADD(x.npu(), x, gamma.npu())
    with pytest.raises(RuntimeError, match=message + r"cpu and npu:0! \(when checking argument smooth_scale2"):
        DYNAMIC(x, x, gamma, smooth_scale2=gamma.npu())


def test_compiled_in_place(device: str) -> None:
    """Functionalisation sees both writes."""

    def block(x: Tensor, residual: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        hidden, residual = x * 2, residual + 1
        rstd = ADD_V2(hidden, residual, gamma)
        return hidden + residual, rstd

    torch._dynamo.reset()
    arguments = inputs((6, 24), 1, torch.float32, device)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=True)
    for actual, expected in zip(compiled(*arguments), block(*arguments), strict=True):
        assert torch.equal(actual.cpu(), expected.cpu())
