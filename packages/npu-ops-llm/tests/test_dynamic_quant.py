"""npu_dynamic_quant and npu_dynamic_quant_asymmetric against the formulas in plain torch."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

SYMMETRIC = torch.ops.npu.npu_dynamic_quant
ASYMMETRIC = torch.ops.npu.npu_dynamic_quant_asymmetric

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
#: dst_type -> (least, largest) integer
INTEGERS = {None: (-128, 127), torch.int8: (-128, 127), torch.quint4x2: (-8, 7)}
FLOAT8 = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
REDUCED = {"pertoken": -1, "perchannel": -2, "pertensor": None}

properties = settings(
    deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def unpack(packed: Tensor) -> Tensor:
    """The eight int4 values of each int32, the first in the lowest bits."""
    nibbles = (packed.cpu()[..., None] >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15
    return torch.where(nibbles > 7, nibbles - 16, nibbles).flatten(-2)


def plain(y: Tensor, dst_type: torch.dtype | None) -> Tensor:
    return unpack(y) if dst_type == torch.quint4x2 else y.cpu()


def smoothed(x: Tensor, smooth: Tensor | None, ends: Tensor | None, mode: str) -> Tensor:
    """input * smooth_scales in float32."""
    values = x.cpu().float()
    if smooth is None:
        return values
    factors = smooth.cpu().float()
    if mode == "perchannel":
        return values * factors[:, None]
    if ends is None:
        return values * factors
    counts = torch.diff(ends.cpu().long(), prepend=torch.zeros(1, dtype=torch.long))
    return values * factors.repeat_interleave(counts, 0).view(values.shape)


def largest_over(values: Tensor, mode: str) -> Tensor:
    return values.amax(REDUCED[mode], keepdim=True) if mode != "pertensor" else values.max().view([1] * values.dim())


def symmetric_reference(values: Tensor, dst_type: torch.dtype | None, mode: str) -> tuple[Tensor, Tensor]:
    """Unrounded quantised values and the scale, in float32 as the specification says."""
    top = FLOAT8.get(dst_type) or float(INTEGERS[dst_type][1])
    m = largest_over(values.abs(), mode)
    # Not top / m: torch computes that as a product with the reciprocal.
    multiplier = torch.where(m == 0, 0.0, torch.full_like(m, top) / m)
    return values * multiplier, m / top


def asymmetric_reference(values: Tensor, dst_type: torch.dtype | None, mode: str) -> tuple[Tensor, Tensor, Tensor]:
    low, high = INTEGERS[dst_type]
    top, bottom = largest_over(values, mode), -largest_over(-values, mode)
    scale = torch.clamp((top - bottom) / (high - low), min=1e-12)
    offset = high - top / scale
    return values * (1 / scale) + offset, scale, offset


def scale_shape(shape: tuple[int, ...], mode: str) -> tuple[int, ...]:
    return {"pertoken": shape[:-1], "perchannel": (*shape[:-2], shape[-1]), "pertensor": (1,)}[mode]


def check_symmetric(
    x: Tensor, mode: str, dst_type: Any, smooth: Tensor | None = None, ends: Tensor | None = None
) -> None:
    y, scale = SYMMETRIC(x, smooth_scales=smooth, group_index=ends, dst_type=dst_type, quant_mode=mode)
    unrounded, expected_scale = symmetric_reference(smoothed(x, smooth, ends, mode), dst_type, mode)
    assert y.device == x.device and scale.device == x.device and scale.dtype == torch.float32
    assert scale.shape == scale_shape(tuple(x.shape), mode)
    assert torch.equal(scale.cpu().reshape(expected_scale.shape), expected_scale)
    if dst_type in FLOAT8:
        assert y.dtype == dst_type and y.shape == x.shape
        expected = unrounded.clamp(-FLOAT8[dst_type], FLOAT8[dst_type]).to(dst_type)
        assert torch.equal(y.cpu().float(), expected.float())
        return
    assert y.dtype == (torch.int32 if dst_type == torch.quint4x2 else torch.int8)
    assert torch.equal(plain(y, dst_type).float(), unrounded.round().clamp(*INTEGERS[dst_type]))


def check_asymmetric(
    x: Tensor, mode: str, dst_type: Any, smooth: Tensor | None = None, ends: Tensor | None = None
) -> None:
    y, scale, offset = ASYMMETRIC(x, smooth_scales=smooth, group_index=ends, dst_type=dst_type, quant_mode=mode)
    unrounded, expected_scale, expected_offset = asymmetric_reference(smoothed(x, smooth, ends, mode), dst_type, mode)
    for actual, expected in ((scale, expected_scale), (offset, expected_offset)):
        assert actual.shape == scale_shape(tuple(x.shape), mode) and actual.dtype == torch.float32
        assert torch.equal(actual.cpu().reshape(expected.shape), expected)
    assert torch.equal(plain(y, dst_type).float(), unrounded.round().clamp(*INTEGERS[dst_type]))


CHECKS = [check_symmetric, check_asymmetric]
both = pytest.mark.parametrize("check", CHECKS, ids=["symmetric", "asymmetric"])


@both
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", REDUCED)
@pytest.mark.parametrize("shape", [(1, 8), (3, 1), (5, 64), (2, 3, 131), (2, 257, 300), (1, 4, 2, 2, 17)])
def test_values(check: Any, shape: tuple[int, ...], mode: str, dtype: torch.dtype, device: str) -> None:
    x = (torch.randn(shape) * 3).to(dtype).to(device)
    check(x, mode, None)
    check(x, mode, torch.int8)


@both
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", REDUCED)
@pytest.mark.parametrize("shape", [(1, 8), (3, 16), (2, 3, 40), (5, 264), (3, 520)])
def test_int4(check: Any, shape: tuple[int, ...], mode: str, dtype: torch.dtype, device: str) -> None:
    check((torch.randn(shape) * 3).to(dtype).to(device), mode, torch.quint4x2)


@pytest.mark.parametrize("dst_type", FLOAT8)
@pytest.mark.parametrize("mode", REDUCED)
def test_float8(mode: str, dst_type: torch.dtype, device: str) -> None:
    for dtype in FLOATS:
        check_symmetric((torch.randn(4, 3, 100) * 3).to(dtype).to(device), mode, dst_type)


@both
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("smooth_dtype", FLOATS)
def test_smoothing(check: Any, smooth_dtype: torch.dtype, dtype: torch.dtype, device: str) -> None:
    x = torch.randn(3, 5, 24).to(dtype).to(device)

    def factors(*shape: int) -> Tensor:
        return (torch.rand(shape) + 0.1).to(smooth_dtype).to(device)

    for mode in ("pertoken", "pertensor"):
        for dst_type in (None, torch.quint4x2):
            check(x, mode, dst_type, factors(24))
            for index_dtype in (torch.int32, torch.int64):
                ends = torch.tensor([0, 4, 4, 9, 15], dtype=index_dtype, device=device)
                check(x, mode, dst_type, factors(5, 24), ends)
    check(x, "perchannel", None, factors(5))


def test_specification_examples(device: str) -> None:
    x = torch.tensor([[0.5, -1.0, 2.0, 0.25], [0.0, 0.0, 0.0, 0.0]], device=device)
    y, scale = SYMMETRIC(x)
    assert y.cpu().tolist() == [[32, -64, 127, 16], [0, 0, 0, 0]]
    torch.testing.assert_close(scale.cpu(), torch.tensor([0.015748, 0.0]), rtol=0, atol=1e-6)
    y, scale, offset = ASYMMETRIC(x[:1])
    assert y.cpu().tolist() == [[0, -128, 127, -22]]
    torch.testing.assert_close(scale.cpu(), torch.tensor([0.0117647]), rtol=0, atol=1e-7)
    torch.testing.assert_close(offset.cpu(), torch.tensor([-43.0]), rtol=0, atol=1e-5)
    packed, scale = SYMMETRIC(torch.tensor([[1.0, -1, 7, -7, 0, 2, -3, 4]], device=device), dst_type=torch.quint4x2)
    assert scale.item() == 1.0 and packed.item() & 0xFFFFFFFF == 0x4D2097F1


@pytest.mark.parametrize("mode", REDUCED)
def test_zeros_give_zeros(mode: str, device: str) -> None:
    x = torch.zeros(3, 16, device=device)
    for dst_type in (None, torch.quint4x2, *FLOAT8):
        y, scale = SYMMETRIC(x, dst_type=dst_type, quant_mode=mode)
        assert not y.view(torch.uint8).any() and not scale.any()
    y, scale, offset = ASYMMETRIC(x, quant_mode=mode)
    assert (y == 127).all() and (offset == 127).all() and (scale.cpu() == torch.tensor(1e-12)).all()


def test_nan_becomes_zero_and_does_not_count(device: str) -> None:
    x = torch.tensor([[1.0, float("nan"), -2.0, 0.5] * 5], device=device)
    y, scale = SYMMETRIC(x)
    assert y.cpu().tolist() == [[64, 0, -127, 32] * 5]
    assert scale.item() == pytest.approx(2 / 127)
    every = torch.full((2, 20), float("nan"), device=device)
    assert not SYMMETRIC(every)[0].any()
    assert not ASYMMETRIC(every)[0].any()


@both
def test_rows_that_are_views(check: Any, device: str) -> None:
    x = torch.randn(6, 5, 80).bfloat16().to(device)
    for view in (
        x[..., 8:48],
        x[:, ::2, 16:],
        x.transpose(0, 1),
        x[..., ::2],
        x.permute(2, 0, 1)[:40],
        x[:1].expand(3, 5, 80),
    ):
        assert not view.is_contiguous()
        for mode in REDUCED:
            check(view, mode, None)
    check(x.flatten()[1:1201].view(30, 40), "pertoken", torch.quint4x2)


@both
def test_factors_that_are_views(check: Any, device: str) -> None:
    x = torch.randn(6, 24, device=device)
    check(x, "pertoken", None, (torch.rand(48, device=device) + 1)[::2])
    ends = torch.tensor([2, 0, 6, 0], device=device)[::2]
    check(x, "pertoken", None, (torch.rand(24, 2, device=device) + 1).t(), ends)


@pytest.mark.parametrize("mode", REDUCED)
def test_empty(mode: str, device: str) -> None:
    for shape in ((0, 8), (2, 0, 8), (2, 3, 0), (0, 2, 8)):
        x = torch.empty(shape, device=device)
        for result in (SYMMETRIC(x, quant_mode=mode), ASYMMETRIC(x, quant_mode=mode)):
            assert result[0].shape == shape
            assert all(t.shape == scale_shape(shape, mode) for t in result[1:])
        assert not SYMMETRIC(x, quant_mode=mode)[1].any()


def test_rows_behind_the_last_group_become_zero(device: str) -> None:
    x = torch.randn(6, 8, device=device)
    smooth, ends = torch.ones(2, 8, device=device), torch.tensor([1, 4], device=device)
    for mode in ("pertoken", "pertensor"):
        y, scale = SYMMETRIC(x, smooth_scales=smooth, group_index=ends, quant_mode=mode)
        wanted_y, wanted_scale = SYMMETRIC(x[:4], quant_mode=mode)
        assert torch.equal(y[:4].cpu(), wanted_y.cpu()) and not y[4:].any()
        if mode == "pertoken":
            assert torch.equal(scale[:4].cpu(), wanted_scale.cpu()) and not scale[4:].any()
        else:
            assert torch.equal(scale.cpu(), wanted_scale.cpu())


def test_group_index_alone_changes_nothing(device: str) -> None:
    x = torch.randn(6, 8, device=device)
    assert torch.equal(SYMMETRIC(x, group_index=torch.tensor([6], device=device))[0].cpu(), SYMMETRIC(x)[0].cpu())


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_kernel_table(isa: str, dtype: torch.dtype) -> None:
    for columns, mode in itertools.product((*range(1, 20), 33, 63, 64, 65, 300), REDUCED):
        x = (torch.randn(3, columns) * 5).to(dtype)
        smooth = torch.rand(3 if mode == "perchannel" else columns).to(dtype)
        check_symmetric(x, mode, None, smooth)
        check_asymmetric(x, mode, None, smooth)
    for columns, mode in itertools.product((8, 16, 24, 40, 264), REDUCED):
        x = (torch.randn(3, columns) * 5).to(dtype)
        check_symmetric(x, mode, torch.quint4x2)
        check_asymmetric(x, mode, torch.quint4x2)
        check_symmetric(x, mode, torch.float8_e4m3fn)
        check_symmetric(x, mode, torch.float8_e5m2)


floats = st.floats(-1e4, 1e4, width=16)
rows = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(floats, min_size=8 * n, max_size=8 * n), min_size=1, max_size=4)
)


@given(values=rows, dst_type=st.sampled_from([torch.int8, torch.quint4x2]))
@properties
def test_error_is_half_a_step(values: list[list[float]], dst_type: torch.dtype, isa: str) -> None:
    x = torch.tensor(values)
    y, scale = SYMMETRIC(x, dst_type=dst_type)
    back = plain(y, dst_type).double() * scale[:, None].double()
    assert ((back - x).abs() <= scale[:, None].double() * 0.50001).all()
    y, scale, offset = ASYMMETRIC(x, dst_type=dst_type)
    back = (plain(y, dst_type).double() - offset[:, None].double()) * scale[:, None].double()
    # Where the range is small beside the values, the offset is large and float32 rounds it.
    step = scale[:, None].double() * (0.50001 + offset[:, None].double().abs() * 2**-22)
    assert ((back - x).abs() <= step).all()


@given(values=rows, dst_type=st.sampled_from([None, torch.quint4x2]))
@properties
def test_largest_magnitude_becomes_the_largest_integer(
    values: list[list[float]], dst_type: torch.dtype | None, isa: str
) -> None:
    x = torch.tensor(values)
    y = plain(SYMMETRIC(x, dst_type=dst_type)[0], dst_type)
    for row, quantized in zip(x, y, strict=True):
        m = row.abs().max()
        largest = INTEGERS[dst_type][1] if m > 0 else 0
        assert (quantized[row == m] == largest).all() and (quantized[row == -m] == -largest).all()


def test_results_do_not_depend_on_threads() -> None:
    x = torch.randn(300, 1000)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(
                [t for mode in REDUCED for t in (*SYMMETRIC(x, quant_mode=mode), *ASYMMETRIC(x, quant_mode=mode))]
            )
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("op", [SYMMETRIC, ASYMMETRIC], ids=["symmetric", "asymmetric"])
def test_errors(op: Any, device: str) -> None:
    import torch_npu

    name = op.__name__
    x = torch.ones(4, 12, device=device)

    def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    ends = torch.tensor([2, 4], device=device)
    for args, kwargs, message in [
        ((ones(8),), {}, "argument input: Input shape dim should be greater than 1"),
        ((x,), {"dst_type": torch.quint4x2}, "Input shape last dim must be divded by 8 when int4 quantization"),
        ((x,), {"dst_type": torch_npu.int4}, "Input shape last dim must be divded by 8 when int4 quantization"),
        ((x.double(),), {}, "argument input: expected dtype float16, bfloat16 or float32, got float64"),
        ((x,), {"dst_type": torch.int16}, "argument dst_type: expected one of int8, .* got int16"),
        ((x,), {"dst_type": 290}, "hifloat8, which is not supported on this device"),
        ((x,), {"quant_mode": "pergroup"}, 'argument quant_mode: expected "pertoken", .* got "pergroup"'),
        ((x,), {"smooth_scales": ones(4)}, r"argument smooth_scales: expected shape \[12\]"),
        ((x,), {"smooth_scales": ones(12), "quant_mode": "perchannel"}, r"smooth_scales: expected shape \[4\]"),
        ((x,), {"smooth_scales": ones(3, 12), "group_index": ends}, r"smooth_scales: expected shape \[2, 12\]"),
        (
            (x,),
            {"smooth_scales": ones(2, 12), "group_index": ends.float()},
            "group_index: expected dtype int32 or int64",
        ),
        ((x,), {"smooth_scales": ones(2, 12), "group_index": ends, "quant_mode": "perchannel"}, "argument group_index"),
    ]:
        with pytest.raises(RuntimeError, match=f"{name}: .*{message}"):
            op(*args, **kwargs)
    with pytest.raises(
        ValueError, match=f"{name}.*argument group_index: expected row ends that do not decrease, got 1"
    ):
        op(x, smooth_scales=ones(2, 12), group_index=torch.tensor([4, 1], device=device))
        torch_npu.npu.synchronize()


def test_ends_behind_the_last_row_are_refused(device: str) -> None:
    import torch_npu

    x, smooth = torch.ones(2, 3, 8, device=device), torch.ones(2, 8, device=device)
    for op, dtype, last in itertools.product((SYMMETRIC, ASYMMETRIC), (torch.int32, torch.int64), (7, 1000)):
        with pytest.raises(
            ValueError,
            match=f"{op.__name__}.*argument group_index: expected row ends of at most 6, .* got {last} for group 1",
        ):
            op(x, smooth_scales=smooth, group_index=torch.tensor([2, last], dtype=dtype, device=device))
            torch_npu.npu.synchronize()


def test_fake_kernels_refuse_dtypes() -> None:
    x, smooth = torch.ones(4, 8, device="meta"), torch.ones(2, 8, device="meta")
    ends = torch.ones(2, device="meta")
    for op in (SYMMETRIC, ASYMMETRIC):
        for call, message in (
            (lambda op=op: op(x.double()), "argument input: expected dtype float16, bfloat16 or float32, got float64"),
            (lambda op=op: op(x, smooth_scales=smooth[0].double()), "argument smooth_scales: .* got float64"),
            (
                lambda op=op: op(x, smooth_scales=smooth, group_index=ends),
                "group_index: .* int32 or int64, got float32",
            ),
        ):
            with pytest.raises(RuntimeError, match=f"{op.__name__}: .*{message}"):
                call()


def test_many_dims(device: str) -> None:
    x = torch.randn(*[2] * 10, 8).to(device).permute(9, 7, 5, 3, 1, 8, 6, 4, 2, 0, 10)
    for op, mode in itertools.product((SYMMETRIC, ASYMMETRIC), REDUCED):
        for actual, expected in zip(op(x, quant_mode=mode), op(x.contiguous(), quant_mode=mode), strict=True):
            assert torch.equal(actual.cpu(), expected.cpu())


@pytest.mark.parametrize("mode", REDUCED)
@pytest.mark.parametrize(("dst_type", "largest"), [(None, 127), (torch.quint4x2, 7), (torch.float8_e5m2, 57344.0)])
def test_tiny_values_do_not_overflow(mode: str, dst_type: torch.dtype | None, largest: float, isa: str) -> None:
    """Where largest / m is above the range of float32, its greatest number stands for it."""
    m = largest / 3.4028235e38 / 2.2
    x = torch.tensor([m, -m, 0.0, m / 2, -m / 2, 0.0, m / 4, 0.0]).repeat(8, 1)
    y, scale = SYMMETRIC(x.t().contiguous() if mode == "perchannel" else x, dst_type=dst_type, quant_mode=mode)
    wanted = x.double() * torch.finfo(torch.float32).max
    wanted = wanted.t() if mode == "perchannel" else wanted
    if dst_type in FLOAT8:
        assert torch.equal(y.double(), wanted.to(dst_type).double())
    else:
        assert torch.equal(plain(y, dst_type).double(), wanted.round())
    torch.testing.assert_close(scale.double(), torch.full_like(scale, m / largest).double(), rtol=0, atol=2.0**-149)


def test_devices_must_agree() -> None:
    import torch_npu  # noqa: F401

    with pytest.raises(RuntimeError, match=r"npu:0 and cpu! \(when checking argument smooth_scales"):
        SYMMETRIC(torch.ones(2, 3).npu(), smooth_scales=torch.ones(3))


def test_numbers_of_npu_dtypes(device: str) -> None:
    import torch_npu

    x = torch.randn(3, 16, device=device)
    assert torch.equal(SYMMETRIC(x, dst_type=torch_npu.int4)[0].cpu(), SYMMETRIC(x, dst_type=torch.quint4x2)[0].cpu())
    assert SYMMETRIC(x, dst_type=292)[0].dtype == torch.float8_e4m3fn
