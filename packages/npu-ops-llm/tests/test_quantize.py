"""npu_quantize, npu_group_quant, npu_anti_quant and npu_trans_quant_param against the formulas in plain torch."""

import struct
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

QUANTIZE = torch.ops.npu.npu_quantize
GROUP_QUANT = torch.ops.npu.npu_group_quant
ANTI_QUANT = torch.ops.npu.npu_anti_quant
PACK = torch.ops.npu.npu_trans_quant_param

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
FLOAT8 = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
#: dtype argument -> dtype of the result
INTEGERS = {
    torch.qint8: torch.int8,
    torch.int8: torch.int8,
    torch.quint8: torch.uint8,
    torch.uint8: torch.uint8,
    torch.qint32: torch.int32,
    torch.int32: torch.int32,
}

properties = settings(
    deadline=None, derandomize=True, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def unpack(packed: Tensor) -> Tensor:
    """The eight int4 values of each int32, the first in the lowest bits."""
    nibbles = (packed.cpu()[..., None] >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15
    return torch.where(nibbles > 7, nibbles - 16, nibbles).flatten(-2)


def saturated(values: Tensor, low: int, high: int) -> Tensor:
    """clip(rint(values)) with NaN as 0, exact for bounds of int32."""
    return values.double().round().nan_to_num(0.0, float("inf"), float("-inf")).clamp(low, high).long()


def affine(x: Tensor, scales: Tensor, zero_points: Tensor | None, dim: int, divide: bool) -> Tensor:
    """x / scales + zero_points in float32, factors along `dim`."""

    def along(factors: Tensor) -> Tensor:
        shape = [1] * x.dim()
        if x.dim() > 0:
            shape[dim] = -1
        return factors.cpu().float().reshape(shape)

    values = x.cpu().float()
    values = values / along(scales) if divide else values * along(scales)
    return values if zero_points is None else values + along(zero_points)


# ---- npu_quantize -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((5, 64), 1), ((5, 64), 0), ((7,), 0), ((2, 3, 131), 1), ((2, 3, 131), -1), ((2, 3, 131), -3), ((3, 2, 1, 9), 1)],
)
def test_divided(shape: tuple[int, ...], axis: int, dtype: torch.dtype, device: str) -> None:
    x = (torch.randn(shape) * 40).to(dtype).to(device)
    channels = shape[axis]
    for length in {channels, 1}:
        scales = (torch.rand(length) + 0.25).to(device)
        offsets = torch.randint(-20, 20, (length,))
        for zero_points in (None, offsets.int(), offsets.to(torch.int8), offsets.abs().to(torch.uint8), offsets + 0.5):
            on_device = None if zero_points is None else zero_points.to(device)
            unrounded = affine(x, scales, zero_points, axis, divide=True)
            for quantized, stored in INTEGERS.items():
                y = QUANTIZE(x, scales, on_device, quantized, axis)
                info = torch.iinfo(stored)
                assert y.dtype == stored and y.shape == x.shape and y.device == x.device and y.is_contiguous()
                assert torch.equal(y.cpu().long(), saturated(unrounded, info.min, info.max))
            for float8, largest in FLOAT8.items():
                y = QUANTIZE(x, scales, on_device, float8, axis)
                assert torch.equal(y.cpu().float(), unrounded.clamp(-largest, largest).to(float8).float())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("axis", [1, -1, 0, 2, -2, -3])
def test_multiplied(axis: int, dtype: torch.dtype, device: str) -> None:
    x = (torch.randn(3, 5, 40) * 40).to(dtype).to(device)
    dim = 1 if axis < -1 else 2
    length = x.shape[dim]
    shapes = [(length,), (1,), tuple(length if d == dim else 1 for d in range(3)), (1, 1, 1)]
    for shape in shapes:
        scales, zero_points = (torch.rand(shape).to(dtype).to(device), torch.randn(shape).to(dtype).to(device))
        for offsets in (None, zero_points):
            unrounded = affine(x, scales, offsets, dim, divide=False)
            for quantized in (torch.qint8, torch.quint8):
                info = torch.iinfo(INTEGERS[quantized])
                y = QUANTIZE(x, scales, offsets, quantized, axis, False)
                assert torch.equal(y.cpu().long(), saturated(unrounded, info.min, info.max))
            for quantized in (torch.quint4x2, torch.int32, 285):
                y = QUANTIZE(x, scales, offsets, quantized, axis, False)
                assert y.dtype == torch.int32 and y.shape == (3, 5, 5)
                assert torch.equal(unpack(y).long(), saturated(unrounded, -8, 7))
            for float8, largest in FLOAT8.items():
                y = QUANTIZE(x, scales, offsets, float8, axis, False)
                assert torch.equal(y.cpu().float(), unrounded.clamp(-largest, largest).to(float8).float())


def test_quantize_examples(device: str) -> None:
    x = torch.tensor([0.5, 1.5, -0.5, 200.0], device=device)
    one = torch.ones(1, device=device)
    assert QUANTIZE(x, one, one, torch.qint8, 0).cpu().tolist() == [2, 2, 0, 127]
    packed = QUANTIZE(
        torch.tensor([[1.0, -1, 7, -8, 0, 2, -3, 4]], device=device), one, None, torch.quint4x2, -1, False
    )
    assert packed.cpu().tolist() == [[1293977585]]


def test_scales_of_other_floats(device: str) -> None:
    x = torch.randn(4, 24).half().to(device)
    for dtype in FLOATS:
        scales = (torch.rand(24) + 0.5).to(dtype).to(device)
        y = QUANTIZE(x, scales, scales, torch.qint8, 1)
        assert torch.equal(y.cpu().long(), saturated(affine(x, scales, scales, 1, divide=True), -128, 127))


def test_quantize_views(device: str) -> None:
    x = (torch.randn(6, 80, 5) * 30).bfloat16().to(device)
    for view in (x[:, 8:48], x.transpose(0, 1), x[..., ::2], x[:1].expand(3, 80, 5), x.flatten()[1:401].view(4, 20, 5)):
        scales = (torch.rand(view.shape[1] * 2, device=device) + 0.5)[::2]
        y = QUANTIZE(view, scales, scales, torch.qint8, 1)
        assert torch.equal(y.cpu().long(), saturated(affine(view, scales, scales, 1, divide=True), -128, 127))


def test_quantize_empty_and_scalar(device: str) -> None:
    one = torch.ones(1, device=device)
    for shape in ((0,), (0, 8), (3, 0), (2, 0, 8)):
        x = torch.empty(shape, device=device)
        assert QUANTIZE(x, one, None, torch.qint8, -1).shape == shape
        packed = QUANTIZE(x, one, None, torch.quint4x2, -1, False)
        assert packed.shape == (*shape[:-1], shape[-1] // 8)
    assert QUANTIZE(torch.tensor(3.5, device=device), one, None, torch.qint8, 0).item() == 4


def test_special_values_saturate(isa: str) -> None:
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([inf, -inf, nan, 1e30, -1e30, 2147483520.0, 2147483648.0, -2147483648.0, -0.0])
    for quantized, stored in INTEGERS.items():
        info = torch.iinfo(stored)
        y = QUANTIZE(x, torch.ones(1), None, quantized, 0)
        assert torch.equal(y.long(), saturated(x, info.min, info.max))
    packed = QUANTIZE(x[:8], torch.ones(1), None, torch.quint4x2, -1, False)
    assert unpack(packed).tolist() == [7, -8, 0, 7, -8, 7, 7, -8]


@given(
    values=st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=40),
    scale=st.sampled_from([1.0, 0.5, 3.0, 2.0**-10, 1e-3]),
    zero=st.integers(-128, 127),
    quantized=st.sampled_from([torch.qint8, torch.quint8, torch.qint32]),
)
@properties
def test_any_float_is_rounded_and_saturated(
    values: list[float], scale: float, zero: int, quantized: torch.dtype, isa: str
) -> None:
    x, scales, zero_points = torch.tensor(values), torch.tensor([scale]), torch.tensor([zero], dtype=torch.int32)
    info = torch.iinfo(INTEGERS[quantized])
    y = QUANTIZE(x, scales, zero_points, quantized, 0)
    assert torch.equal(y.long(), saturated(affine(x, scales, zero_points, 0, divide=True), info.min, info.max))


@given(
    halves=st.lists(st.integers(-300, 300), min_size=8, max_size=48), dst=st.sampled_from([torch.int8, torch.quint4x2])
)
@properties
def test_halves_go_to_even(halves: list[int], dst: torch.dtype, isa: str) -> None:
    halves = halves[: len(halves) // 8 * 8]
    y = QUANTIZE(torch.tensor(halves) * 0.5, torch.ones(1), None, dst, -1, False)
    low, high = (-128, 127) if dst == torch.int8 else (-8, 7)
    actual = y.tolist() if dst == torch.int8 else unpack(y).tolist()
    assert actual == [min(max(round(h / 2), low), high) for h in halves]  # Python rounds half to even


def test_every_kernel_table(isa: str) -> None:
    for dtype in FLOATS:
        for columns in (*range(1, 20), 33, 64, 131):
            x = (torch.randn(3, columns) * 40).to(dtype)
            scales, zero_points = torch.rand(columns) + 0.5, torch.randn(columns)
            for quantized in (torch.qint8, torch.quint8, torch.qint32):
                info = torch.iinfo(INTEGERS[quantized])
                unrounded = affine(x, scales, zero_points, 1, divide=True)
                y = QUANTIZE(x, scales, zero_points, quantized, 1)
                assert torch.equal(y.long(), saturated(unrounded, info.min, info.max))
        for columns in (8, 16, 24, 40, 72):
            x = (torch.randn(3, columns) * 4).to(dtype)
            scales = (torch.rand(columns) + 0.5).to(dtype)
            y = QUANTIZE(x, scales, None, torch.quint4x2, -1, False)
            assert torch.equal(unpack(y).long(), saturated(affine(x, scales, None, 1, divide=False), -8, 7))
            back = ANTI_QUANT(y, torch.ones(columns), dst_dtype=torch.float32)
            assert torch.equal(back, unpack(y).float())


def test_quantize_errors(device: str) -> None:
    def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    x = ones(4, 12)
    for args, message in [
        (
            (x, ones(12), None, torch.quint4x2, 1),
            r"Param \(dtype\) must be Int8, UInt8, Int32, .* got quint4x2; int4 needs",
        ),
        ((x, ones(12), None, torch.int16, 1), r"Param \(dtype\) must be Int8, UInt8, Int32, .* got int16"),
        ((x, ones(12), None, torch.int16, 1, False), "argument dtype: expected one of int8"),
        ((x, ones(1), None, torch.quint4x2, -1, False), "Input shape last dim must be divded by 8"),
        ((x, ones(1), None, torch.int32, -1, False), "Input shape last dim must be divded by 8"),
        ((x, ones(1, 12), None, torch.qint8, 1), r"argument scales: expected shape \[12\] or \[1\]"),
        ((x, ones(11), None, torch.qint8, 1), r"argument scales: expected shape \[12\] or \[1\]"),
        ((x, ones(12), ones(4), torch.qint8, 1), r"argument zero_points: expected shape \[12\] or \[1\]"),
        ((x, ones(4, 12), None, torch.qint8, -1, False), "argument scales: expected shape"),
        ((x, ones(12), None, torch.qint8, 2), "argument axis: expected a dim of self, between -2 and 1, got 2"),
        ((ones(12), ones(12), None, torch.qint8, -2, False), "argument axis: expected self to have a second last dim"),
        ((x.double(), ones(12), None, torch.qint8, 1), "argument self: expected dtype .* got float64"),
        ((x, ones(12, dtype=torch.float64), None, torch.qint8, 1), "argument scales: expected dtype .* got float64"),
        (
            (x, ones(12), ones(12, dtype=torch.int64), torch.qint8, 1),
            "argument zero_points: expected dtype .* got int64",
        ),
    ]:
        with pytest.raises(RuntimeError, match=f"npu_quantize: .*{message}"):
            QUANTIZE(*args)


# ---- npu_group_quant --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale_dtype", FLOATS)
@pytest.mark.parametrize("columns", [8, 40, 136])
def test_group_quant(columns: int, scale_dtype: torch.dtype, dtype: torch.dtype, device: str) -> None:
    counts = [0, 3, 0, 5, 1]
    x = (torch.randn(9, columns) * 50).to(dtype).to(device)
    scale = torch.rand(5, columns).to(scale_dtype).to(device)
    factors = scale.cpu().float().repeat_interleave(torch.tensor(counts), 0)
    for index_dtype in (torch.int32, torch.int64):
        ends = torch.tensor(counts).cumsum(0).to(index_dtype).to(device)
        for offset in (None, torch.tensor([2.5]), torch.tensor(-1.0)):
            shift = None if offset is None else offset.to(scale_dtype).to(device)
            unrounded = x.cpu().float() * factors + (0.0 if shift is None else shift.cpu().float())
            for dst in (None, torch.int8, torch.qint8):
                y = GROUP_QUANT(x, scale, ends, offset=shift, dst_dtype=dst)
                assert y.dtype == torch.int8 and y.shape == x.shape and y.device == x.device
                assert torch.equal(y.cpu().long(), saturated(unrounded, -128, 127))
            y = GROUP_QUANT(x, scale, ends, offset=shift, dst_dtype=torch.quint4x2)
            assert y.dtype == torch.int32 and y.shape == (9, columns // 8)
            assert torch.equal(unpack(y).long(), saturated(unrounded, -8, 7))


def test_group_quant_views_and_missing_rows(device: str) -> None:
    x, scale = torch.randn(24, 6, device=device).t(), torch.rand(24, 2, device=device).t()
    ends = torch.tensor([1, 9, 4, 9], device=device)[::2]
    y = GROUP_QUANT(x, scale, ends).cpu()
    factors = scale.cpu()[[0, 1, 1, 1]]
    assert torch.equal(y[:4].long(), saturated(x.cpu()[:4] * factors, -128, 127))
    assert not y[4:].any()  # rows of no group
    assert GROUP_QUANT(x[:0], scale, ends).shape == (0, 24)
    assert not GROUP_QUANT(x, scale[:0], ends[:0]).any()


def test_group_quant_errors(device: str) -> None:
    import torch_npu

    x, scale = torch.ones(4, 12, device=device), torch.ones(2, 12, device=device)
    ends = torch.tensor([1, 4], device=device)
    for args, kwargs, message in [
        ((x, scale, ends), {"dst_dtype": torch.int16}, "dst_dtype must be Int8 or Int4, got int16"),
        ((x, scale, ends), {"dst_dtype": torch.quint4x2}, "input shape last dim must be divded by 8"),
        ((x[0], scale, ends), {}, r"argument x: expected shape \[rows, columns\]"),
        ((x, scale[:1], ends), {}, r"argument scale: expected shape \[2, 12\]"),
        ((x, scale, ends[None]), {}, "argument group_index: expected the row end of each group"),
        ((x, scale, ends.float()), {}, "argument group_index: expected dtype int32 or int64"),
        ((x, scale, ends), {"offset": torch.ones(2, device=device)}, "argument offset: expected one value"),
    ]:
        with pytest.raises(RuntimeError, match=f"npu_group_quant: .*{message}"):
            GROUP_QUANT(*args, **kwargs)
    with pytest.raises(ValueError, match="npu_group_quant.* row ends that do not decrease, got 1 for group 1 after 4"):
        GROUP_QUANT(x, scale, torch.tensor([4, 1], device=device))
        torch_npu.npu.synchronize()
    with pytest.raises(ValueError, match="npu_group_quant.* row ends of at most 4, .* got 5 for group 1"):
        GROUP_QUANT(x, scale, torch.tensor([4, 5], device=device))
        torch_npu.npu.synchronize()


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_the_number_of_int4_is_explained(where: str) -> None:
    import torch_npu

    x, scale = torch.ones(4, 8, device=where), torch.ones(1, 8, device=where)
    ends = torch.full((1,), 4, device=where)
    with pytest.raises(RuntimeError, match="argument dst_dtype: .*; for int4 pass torch.quint4x2"):
        GROUP_QUANT(x, scale, ends, dst_dtype=torch_npu.int4)


def test_fake_kernels_refuse_dtypes() -> None:
    def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(shape, dtype=dtype, device="meta")

    x, wide = ones(4, 8), torch.float64
    ends, bytes_ = ones(1, dtype=torch.int32), ones(8, dtype=torch.int8)
    for call, message in [
        (lambda: QUANTIZE(x.double(), ones(8), None, torch.qint8, 1), "npu_quantize: argument self: .* got float64"),
        (lambda: QUANTIZE(x, ones(8, dtype=wide), None, torch.qint8, 1), "argument scales: .* got float64"),
        (lambda: QUANTIZE(x, ones(8), ones(8, dtype=wide), torch.qint8, 1), "argument zero_points: .* got float64"),
        (lambda: GROUP_QUANT(x.double(), ones(1, 8), ends), "npu_group_quant: argument x: .* got float64"),
        (lambda: GROUP_QUANT(x, ones(1, 8, dtype=wide), ends), "argument scale: .* got float64"),
        (lambda: GROUP_QUANT(x, ones(1, 8), ends.float()), "argument group_index: .* got float32"),
        (lambda: GROUP_QUANT(x, ones(1, 8), ends, offset=ones(1, dtype=wide)), "argument offset: .* got float64"),
        (lambda: ANTI_QUANT(bytes_, ones(1, dtype=wide)), "npu_anti_quant: argument scale: .* got float64"),
        (lambda: ANTI_QUANT(bytes_, ones(1), offset=ones(1).half()), r"offset: .* float32 \(as scale\), got float16"),
        (lambda: PACK(ones(1).half()), "npu_trans_quant_param: argument scale: expected dtype float32, got float16"),
        (lambda: PACK(ones(1), ones(1).half()), "argument offset: expected dtype float32, got float16"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_results_do_not_depend_on_threads() -> None:
    x, scale = torch.randn(301, 1000) * 40, torch.rand(3, 1000)
    ends, codes = torch.tensor([100, 100, 301]), torch.randint(-128, 127, (301, 1000), dtype=torch.int8)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(
                (
                    QUANTIZE(x, scale[0], None, torch.qint8, 1),
                    QUANTIZE(x, scale[0].repeat(2)[:301], None, torch.qint32, 0),
                    QUANTIZE(x, scale[0], None, torch.quint4x2, -1, False),
                    GROUP_QUANT(x, scale, ends),
                    ANTI_QUANT(codes, scale[0], offset=scale[1]),
                    PACK(x.flatten()),
                )
            )
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# ---- npu_anti_quant ---------------------------------------------------------------------------------------------


def dequantized(values: Tensor, scale: Tensor, offset: Tensor | None, dtype: torch.dtype) -> Tensor:
    shifted = values.float() if offset is None else values.float() + offset.cpu().float()
    return (shifted * scale.cpu().float()).to(dtype)


@pytest.mark.parametrize("scale_dtype", FLOATS)
@pytest.mark.parametrize("shape", [(7,), (3, 40), (2, 3, 131), (2, 1, 4, 9)])
def test_anti_quant(shape: tuple[int, ...], scale_dtype: torch.dtype, device: str) -> None:
    x = torch.randint(-128, 128, shape, dtype=torch.int8)
    for length in (shape[-1], 1):
        scale, offset = torch.rand(length).to(scale_dtype).to(device), torch.randn(length).to(scale_dtype).to(device)
        for dst, shift in [(None, None), (None, offset), *((dtype, offset) for dtype in FLOATS)]:
            y = ANTI_QUANT(x.to(device), scale, offset=shift, dst_dtype=dst, src_dtype=torch.int8)
            assert y.device.type == device and y.shape == shape
            assert torch.equal(y.cpu(), dequantized(x, scale, shift, dst or torch.float16))
            for float8 in FLOAT8:
                y = ANTI_QUANT(x.float().to(float8).to(device), scale, offset=shift, dst_dtype=dst)
                assert torch.equal(y.cpu(), dequantized(x.float().to(float8), scale, shift, dst or torch.float16))


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 17)])
def test_anti_quant_of_int4(shape: tuple[int, ...], device: str) -> None:
    x = torch.randint(-(2**31), 2**31, shape, dtype=torch.int32)
    scale, offset = torch.rand(shape[-1] * 8, device=device), torch.randn(shape[-1] * 8, device=device)
    for src in (None, torch.quint4x2, 285):
        y = ANTI_QUANT(x.to(device), scale, offset=offset, src_dtype=src)
        assert y.shape == (*shape[:-1], shape[-1] * 8)
        assert torch.equal(y.cpu(), dequantized(unpack(x), scale, offset, torch.float16))


def test_anti_quant_example_views_empty(device: str) -> None:
    x = torch.tensor([1, 2, 3, 4], dtype=torch.int8, device=device)
    two = torch.tensor([2.0], device=device)
    y = ANTI_QUANT(x, two, offset=two)
    assert y.dtype == torch.float16 and y.cpu().tolist() == [6.0, 8.0, 10.0, 12.0]
    grid = torch.randint(-128, 128, (6, 40), dtype=torch.int8)
    scale = torch.rand(12, device=device)[::2]
    assert torch.equal(ANTI_QUANT(grid.to(device).t(), scale).cpu(), dequantized(grid.t(), scale, None, torch.float16))
    for shape in ((0,), (0, 8), (3, 0)):
        assert ANTI_QUANT(torch.empty(shape, dtype=torch.int8, device=device), two).shape == shape
        packed = torch.empty(shape, dtype=torch.int32, device=device)
        assert ANTI_QUANT(packed, two).shape == (*shape[:-1], shape[-1] * 8)


@given(values=st.lists(st.integers(-8, 7), min_size=8, max_size=64), scale=st.sampled_from([0.5, 1.0, 4.0]))
@properties
def test_int4_comes_back(values: list[int], scale: float, isa: str) -> None:
    x = torch.tensor(values[: len(values) // 8 * 8], dtype=torch.float32) * scale
    packed = QUANTIZE(x, torch.tensor([1 / scale]), None, torch.quint4x2, -1, False)
    assert torch.equal(ANTI_QUANT(packed, torch.tensor([scale]), dst_dtype=torch.float32), x)


def test_anti_quant_errors(device: str) -> None:
    x, packed = torch.ones(4, 8, dtype=torch.int8, device=device), torch.ones(4, 1, dtype=torch.int32, device=device)
    scale = torch.ones(8, device=device)
    for args, kwargs, message in [
        ((x.short(), scale), {}, "Input x must be int8, int32, .* got int16"),
        ((x.view(torch.uint8), scale), {}, "Input x must be int8, int32, .* not supported on this device"),
        ((packed, scale), {"src_dtype": torch.int8}, "src_dtype must be int4"),
        ((x, scale), {"src_dtype": torch.quint4x2}, "must match src_dtype"),
        ((packed[0, 0], scale), {}, "argument x: expected at least one dim"),
        ((x, scale), {"dst_dtype": torch.int8}, "Input dst_type must be valid, but got UNKNOWN_SCALAR"),
        ((x, scale[:7]), {}, r"argument scale: expected shape \[8\]"),
        ((x, scale[None]), {}, r"argument scale: expected shape \[8\]"),
        ((packed[:, :0], scale), {}, r"argument scale: expected shape \[0\]"),
        ((x, scale), {"offset": scale.half()}, r"argument offset: expected dtype float32 \(as scale\), got float16"),
        ((x, scale), {"offset": scale[:1]}, r"argument offset: expected shape \[8\]"),
    ]:
        with pytest.raises(RuntimeError, match=f"npu_anti_quant: .*{message}"):
            ANTI_QUANT(*args, **kwargs)


# ---- npu_trans_quant_param --------------------------------------------------------------------------------------


def packed_reference(scale: float, offset: float | None, round_mode: int) -> int:
    (word,) = struct.unpack("<I", struct.pack("<f", scale))
    exponent = word >> 23 & 0xFF
    if round_mode == 0 or exponent == 255:
        high = word & 0xFFFFE000
    elif exponent == 0:
        high = word & 0x80000000
    else:
        mantissa = (word & 0x7FFFFF) / 2**13
        high = (word & 0xFF800000) + (round(mantissa) << 13)  # Python rounds half to even
    packed = high & 0xFFFFFFFF | 1 << 46
    if offset is not None:
        packed |= (min(max(round(offset), -256), 255) & 0x1FF) << 37
    return packed


def test_trans_quant_param_examples(device: str) -> None:
    def pack(scale: float, offset: float | None = None) -> int:
        on_device = None if offset is None else torch.tensor([float(offset)], device=device)
        return PACK(torch.tensor([scale], device=device), on_device).item()

    assert pack(1.0) == 0x40003F800000
    assert pack(0.1) == 0x40003DCCC000
    assert pack(2.5, 3) == 0x406040200000
    assert pack(2.5, -3) == 0x7FA040200000
    assert pack(2.5, 2.5) == 0x404040200000
    assert pack(2.5, 300) == 0x5FE040200000


@pytest.mark.parametrize("round_mode", [None, 0, 1])
def test_trans_quant_param(round_mode: int | None, device: str) -> None:
    scale = torch.cat([torch.rand(100), torch.randn(33) * 1e-3, torch.tensor([0.0, -0.0, 1e-40, 3.4e38, float("inf")])])
    offset = torch.randn(len(scale)) * 200
    for n in (1, 7, len(scale)):
        packed = PACK(scale[:n].to(device), offset[:n].to(device), round_mode)
        assert packed.dtype == torch.int64 and packed.device.type == device
        pairs = zip(scale[:n].tolist(), offset[:n].tolist(), strict=True)
        assert packed.cpu().tolist() == [packed_reference(s, o, round_mode or 0) for s, o in pairs]
    without = PACK(scale.to(device), None, round_mode).cpu().tolist()
    assert without == [packed_reference(s, None, round_mode or 0) for s in scale.tolist()]


@given(
    bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20),
    offset=st.floats(-600, 600, width=32),
    round_mode=st.sampled_from([0, 1]),
)
@properties
def test_any_bits_are_packed(bits: list[int], offset: float, round_mode: int, isa: str) -> None:
    scale = torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)
    scale = scale[~scale.isnan()]
    packed = PACK(scale, torch.tensor([offset]), round_mode).tolist()
    assert packed == [packed_reference(s, offset, round_mode) for s in scale.tolist()]


def test_trans_quant_param_shapes(device: str) -> None:
    def ones(*shape: int) -> Tensor:
        return torch.ones(shape, device=device)

    for scale, offset, expected in [
        (ones(5), None, (5,)),
        (ones(1, 5), None, (1, 5)),
        (ones(3, 1), None, (3, 1)),
        (ones(5), ones(1), (5,)),
        (ones(1), ones(5), (5,)),
        (ones(1, 5), ones(1, 5), (1, 5)),
        (ones(0), ones(1), (0,)),
        (torch.rand(5, 3, device=device).t(), torch.rand(5, 3, device=device).t(), (3, 5)),
    ]:
        packed = PACK(scale, offset)
        assert packed.shape == expected and packed.is_contiguous()
        pairs = zip(
            scale.cpu().broadcast_to(expected).flatten().tolist(),
            [None] * packed.numel() if offset is None else offset.cpu().broadcast_to(expected).flatten().tolist(),
            strict=True,
        )
        assert packed.cpu().flatten().tolist() == [packed_reference(s, o, 0) for s, o in pairs]


def test_trans_quant_param_errors(device: str) -> None:
    def ones(*shape: int) -> Tensor:
        return torch.ones(shape, device=device)

    cases: list[tuple[tuple[Any, ...], str]] = [
        ((ones(3), None, 2), "round_mode must be 0 or 1, got 2"),
        ((ones(3), ones(4)), "argument offset: expected the length of scale, 3"),
        ((ones(1, 3), ones(3)), r"argument offset: expected shape \[1, 3\]"),
        ((ones(3), ones(1, 3)), "argument offset: expected one dim"),
        ((ones(1, 1, 3),), "argument scale: expected one or two dims"),
        ((ones(3).half(),), "argument scale: expected dtype float32, got float16"),
        ((ones(3), ones(3).half()), "argument offset: expected dtype float32, got float16"),
    ]
    for args, message in cases:
        with pytest.raises(RuntimeError, match=f"npu_trans_quant_param: .*{message}"):
            PACK(*args)
