"""npu_swiglu_quant and npu_dequant_swiglu_quant against their formulas in float64."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

Floats64 = npt.NDArray[np.float64]
SWIGLU_QUANT = torch.ops.npu.npu_swiglu_quant
DEQUANT = torch.ops.npu.npu_dequant_swiglu_quant
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
properties = settings(
    deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def spread(parameter: Tensor | None, rows: list[int], columns: int, default: float) -> Tensor:
    """A parameter's values for every row, whose groups `rows` names, and column."""
    if parameter is None:
        return torch.full((len(rows), columns), default, dtype=torch.float64)
    parameter = parameter.cpu().double()
    if parameter.dim() == 1 and parameter.numel() == columns and max(rows, default=0) == 0:
        parameter = parameter[None]
    if parameter.numel() == 1:
        parameter = parameter.reshape(1, 1).expand(max(rows, default=0) + 1, 1)
    return parameter.reshape(parameter.shape[0], -1)[rows].expand(len(rows), columns)


def row_groups(counts: list[int] | None, rows: int) -> list[int]:
    """Group of each row that has one."""
    return [0] * rows if counts is None else [g for g, count in enumerate(counts) for _ in range(count)]


def assert_quantised(y: Tensor, exact: Tensor, low: int, high: int) -> None:
    """`exact` rounded to even and clipped; one less or more where float32 may have rounded the other way."""
    wanted = exact.round().clamp(low, high)
    found = y.cpu().double()
    off = found != wanted
    assert ((found - wanted).abs() <= 1).all()
    # Only near the middle of two integers.
    assert ((exact - exact.floor() - 0.5).abs()[off] < 1e-4 * exact.abs()[off].clamp(min=1)).all()


def unpacked(y: Tensor) -> Tensor:
    """The int4 values of bytes, the low nibble first."""
    nibbles = torch.stack((y.cpu().to(torch.int32) << 28 >> 28, y.cpu().to(torch.int32) << 24 >> 28), dim=-1)
    return nibbles.flatten(-2)


@pytest.mark.parametrize("x_dtype", FLOATS)
@pytest.mark.parametrize("packed", [False, True], ids=["int8", "int4"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("list_type", [None, 0, 1], ids=["one", "ends", "counts"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["per_tensor", "per_channel"])
def test_swiglu_quant(
    x_dtype: torch.dtype, packed: bool, dynamic: bool, list_type: int | None, per_channel: bool, device: str
) -> None:
    for columns in (2, 14, 66, 1000):
        rows, counts = 11, None if list_type is None else [3, 0, 5]
        groups = 1 if counts is None else 3
        x = torch.randn(rows, 2 * columns).to(x_dtype)
        smooth = torch.rand(groups, columns) if per_channel else torch.rand(groups)
        smooth = smooth * (1 if dynamic else 8)
        offsets = torch.randn_like(smooth)
        group_index = None
        if counts is not None:
            numbers = torch.tensor(counts, dtype=torch.int32)
            group_index = (numbers if list_type == 1 else numbers.cumsum(0).int()).to(device)
        activate_left = columns % 4 == 2
        y, scale = SWIGLU_QUANT(
            x.to(device),
            smooth_scales=smooth.to(device),
            offsets=offsets.to(device),
            group_index=group_index,
            activate_left=activate_left,
            quant_mode=int(dynamic),
            group_list_type=list_type or 0,
            dst_type=torch.quint4x2 if packed else None,
        )
        assert y.dtype == torch.int8 and y.shape == (rows, columns // 2 if packed else columns)
        assert scale.dtype == torch.float32 and scale.shape == (rows,)
        values = unpacked(y) if packed else y.cpu()
        members = row_groups(counts, rows)
        left, right = x.double()[: len(members)].chunk(2, dim=-1)
        s = silu(left) * right if activate_left else left * silu(right)
        v = s * spread(smooth, members, columns, 1.0)
        low, high = (-8, 7) if packed else (-128, 127)
        if dynamic:
            multiplier = high / v.abs().amax(-1)
            torch.testing.assert_close(scale.cpu().double()[: len(members)], multiplier, rtol=1e-5, atol=0)
            assert_quantised(values[: len(members)], v * multiplier[:, None], low, high)
        else:
            assert_quantised(values[: len(members)], v + spread(offsets, members, columns, 0.0), low, high)
        assert (values[len(members) :] == 0).all()


def test_swiglu_quant_examples(device: str) -> None:
    x = torch.tensor([[1.0, -2.0, 3.0, 0.5]], device=device)
    for left, y, scale in ((True, [127, -7], 57.9069), (False, [127, -28], 44.4410)):
        actual_y, actual_scale = SWIGLU_QUANT(x, quant_mode=1, activate_left=left)
        assert actual_y.cpu().tolist() == [y]
        torch.testing.assert_close(actual_scale.cpu(), torch.tensor([scale]), rtol=1e-5, atol=0)


def dequant_reference(x: Tensor, members: list[int], **arguments: Any) -> tuple[Tensor, Tensor]:
    """s of the specification's step 2 and the value to be rounded in static mode."""
    count, columns = len(members), x.shape[-1] // 2
    r = x[:count].double()
    if x.dtype == torch.int32:
        bias, row_scale = arguments.get("bias"), arguments.get("activation_scale")
        if bias is not None and bias.dtype == torch.int32:
            r = r + spread(bias, members, 2 * columns, 0.0)
        r = r * spread(arguments["weight_scale"], members, 2 * columns, 1.0)
        if row_scale is not None:
            r = r * row_scale.double().reshape(-1, 1)[:count]
        if bias is not None and bias.dtype != torch.int32:
            r = r + spread(bias, members, 2 * columns, 0.0)
    mode = arguments.get("swiglu_mode", 0)
    left, right = r.chunk(2, dim=-1)
    u, w = (left, right) if arguments.get("activate_left") else (right, left)
    if mode == 1:
        u, w = r[:, 0::2], r[:, 1::2]
    if mode == 0:
        return silu(u) * w, r
    limit = arguments.get("clamp_limit", 7.0)
    u, w = u.clamp(max=limit), w.clamp(-limit, limit)
    s = u * torch.sigmoid(arguments.get("glu_alpha", 1.702) * u) * (w + arguments.get("glu_bias", 1.0))
    return s, r


def check_dequant(x: Tensor, counts: list[int] | None, dynamic: bool, device: str, **arguments: Any) -> None:
    columns, members = x.shape[-1] // 2, row_groups(counts, x.shape[0])
    on_device = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    index = None if counts is None else torch.tensor(counts, device=device)
    y, scale = DEQUANT(x.to(device), group_index=index, quant_mode=int(dynamic), **on_device)
    assert y.dtype == torch.int8 and y.shape == (x.shape[0], columns)
    assert scale.dtype == torch.float32 and scale.shape == x.shape[:1]
    s, _ = dequant_reference(x, members, **arguments)
    factor = spread(arguments.get("quant_scale"), members, columns, 1.0)
    if dynamic:
        largest = (s * factor).abs().amax(-1)
        torch.testing.assert_close(scale.cpu().double()[: len(members)], largest / 127, rtol=1e-5, atol=0)
        assert_quantised(y[: len(members)], s * factor * (127 / largest)[:, None], -128, 127)
    else:
        exact = s / factor + spread(arguments.get("quant_offset"), members, columns, 0.0)
        assert_quantised(y[: len(members)], exact, -128, 127)
    assert (y[len(members) :].cpu() == 0).all()


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("bias_dtype", [None, torch.int32, *FLOATS])
@pytest.mark.parametrize("counts", [None, [2, 0, 4, 3]], ids=["one", "groups"])
def test_dequant_of_int32(
    mode: int, dynamic: bool, bias_dtype: torch.dtype | None, counts: list[int] | None, device: str
) -> None:
    groups = 1 if counts is None else len(counts)
    for columns in (1, 13, 32, 333):
        x = torch.randint(-3000, 3000, (11, 2 * columns), dtype=torch.int32)
        arguments: dict[str, Any] = {"weight_scale": torch.rand(groups, 2 * columns) / 500, "swiglu_mode": mode}
        if columns != 13:
            arguments["activation_scale"] = torch.rand(11, 1) if columns == 1 else torch.rand(11)
        if bias_dtype == torch.int32:
            arguments["bias"] = torch.randint(-500, 500, (groups, 2 * columns), dtype=torch.int32)
        elif bias_dtype is not None:
            arguments["bias"] = torch.randn(groups, 2 * columns).to(bias_dtype)
        arguments["quant_scale"] = torch.rand(groups, columns) + 0.05
        if not dynamic:
            arguments["quant_offset"] = torch.randn(groups, columns) * 3
        check_dequant(x, counts, dynamic, device, activate_left=columns == 32, **arguments)


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("x_dtype", [*FLOATS, torch.int32])
def test_dequant_with_every_kernel_table(mode: int, x_dtype: torch.dtype, isa: str) -> None:
    for columns in (*range(1, 20), 31, 32, 33, 64, 65):
        x = (torch.randn(3, 2 * columns) * (1000 if x_dtype == torch.int32 else 3)).to(x_dtype)
        scale = {"weight_scale": torch.rand(2 * columns) / 100} if x_dtype == torch.int32 else {}
        for dynamic in (False, True):
            check_dequant(x, None, dynamic, "cpu", swiglu_mode=mode, clamp_limit=2.5, glu_alpha=1.1, **scale)


@pytest.mark.parametrize("parameter_dtype", FLOATS)
@pytest.mark.parametrize("shape", ["one", "groups", "channels"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_dequant_parameter_shapes(parameter_dtype: torch.dtype, shape: str, dynamic: bool, device: str) -> None:
    counts, columns = [4, 1, 3], 20
    sizes = {"one": (1,), "groups": (3,), "channels": (3, columns)}[shape]
    arguments = {"quant_scale": (torch.rand(sizes) + 0.1).to(parameter_dtype)}
    if not dynamic:
        arguments["quant_offset"] = torch.randn(sizes).to(parameter_dtype)
    check_dequant(torch.randn(9, 2 * columns), counts, dynamic, device, **arguments)


def test_dequant_example(device: str) -> None:
    """s = [-0.845796, 2.903488], seen through a static scale of a hundredth."""
    x = torch.tensor([[1.0, -2.0, 3.0, 0.5]], device=device)
    y, scale = DEQUANT(x, quant_scale=torch.tensor([0.025], device=device), swiglu_mode=1, clamp_limit=2.0)
    assert y.cpu().tolist() == [[-34, 116]] and scale.cpu().tolist() == [0.0]
    y, scale = DEQUANT(x, quant_mode=1, swiglu_mode=1, clamp_limit=2.0)
    assert y.cpu().tolist() == [[-37, 127]]
    torch.testing.assert_close(scale.cpu(), torch.tensor([2.903488 / 127]))


def test_rounding_modes(isa: str) -> None:
    """With w = 1 and a huge alpha s is u, so that ties are exact."""
    u = torch.tensor([0.5, 1.5, 2.5, 0.25, 0.75, 3.0, 6.5, 5.5])
    x = torch.stack((u, torch.zeros(8)), dim=-1).reshape(1, 16)
    offset = torch.tensor([-4.0])
    exact = u - 4.0
    expected = {
        None: exact.round(),
        0: exact.round(),
        1: exact.sign() * (exact.abs() + 0.5).floor(),
        2: exact.floor(),
        3: exact.ceil(),
        4: exact.trunc(),
    }
    for mode, wanted in expected.items():
        y, _ = DEQUANT(x, quant_offset=offset, swiglu_mode=1, glu_alpha=1000.0, round_mode=mode)
        assert y[0].tolist() == wanted.tolist(), mode


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_dequant_to_float8(dtype: torch.dtype, device: str) -> None:
    x = torch.randn(5, 68)
    y, scale = DEQUANT(x.to(device), quant_mode=1, dst_type=dtype)
    assert y.dtype == dtype
    left, right = x.double().chunk(2, dim=-1)
    s = silu(right) * left
    largest = torch.finfo(dtype).max
    torch.testing.assert_close(scale.cpu().double(), s.abs().amax(-1) / largest, rtol=1e-5, atol=0)
    back = y.cpu().double() * scale.cpu().double()[:, None]
    step = 2.0**-3 if dtype == torch.float8_e4m3fn else 2.0**-2
    assert ((back - s).abs() <= step / 2 * s.abs() * 1.001 + scale.cpu().double()[:, None] * 2**-9).all()


def test_rows_of_zeros(device: str) -> None:
    x = torch.zeros(3, 8, device=device)
    x[1] = 1
    y, scale = DEQUANT(x, quant_mode=1)
    assert y.cpu().tolist() == [[0] * 4, [127] * 4, [0] * 4]
    assert scale.cpu()[0] == 0 and scale.cpu()[2] == 0
    y, scale = SWIGLU_QUANT(x, quant_mode=1)
    assert y.cpu().tolist() == [[0] * 4, [127] * 4, [0] * 4]
    assert (1 / scale.cpu())[0] == 0 and (1 / scale.cpu())[2] == 0


@pytest.mark.parametrize("width", [12288, 12289, 20001])
def test_rows_too_long_to_wait_on_the_stack(width: int) -> None:
    check_dequant(torch.randn(2, 2 * width), None, True, "cpu", swiglu_mode=1)


def test_empty_and_many_dims(device: str) -> None:
    for shape in ((0, 8), (2, 0, 8), (3, 0)):
        for y, scale in (
            SWIGLU_QUANT(torch.empty(shape, device=device), quant_mode=1),
            DEQUANT(torch.empty(shape, device=device)),
        ):
            assert y.shape == (*shape[:-1], shape[-1] // 2) and scale.shape == shape[:-1]
    x = torch.randn(2, 3, 4, 20, device=device)
    y, scale = SWIGLU_QUANT(x, quant_mode=1)
    flat_y, flat_scale = SWIGLU_QUANT(x.reshape(24, 20), quant_mode=1)
    assert y.shape == (2, 3, 4, 10) and scale.shape == (2, 3, 4)
    assert torch.equal(y.cpu().reshape(24, 10), flat_y.cpu())
    assert torch.equal(scale.cpu().reshape(24), flat_scale.cpu())


def test_strided_inputs(device: str) -> None:
    wide = torch.randn(6, 4, 60, device=device)
    for x in (wide[:, :, 3:43], wide.transpose(0, 1), wide[:, :, ::3], wide[:1].expand(3, 4, 60)):
        for op in (SWIGLU_QUANT, DEQUANT):
            for actual, expected in zip(op(x, quant_mode=1), op(x.contiguous(), quant_mode=1), strict=True):
                assert torch.equal(actual.cpu(), expected.cpu())
    smooth = torch.rand(20, 2, device=device)[:, 0]
    y, _ = SWIGLU_QUANT(wide[0, :, :40], quant_mode=1, smooth_scales=smooth)
    assert torch.equal(y.cpu(), SWIGLU_QUANT(wide[0, :, :40], quant_mode=1, smooth_scales=smooth.contiguous())[0].cpu())


def test_results_do_not_depend_on_threads() -> None:
    x = torch.randint(-3000, 3000, (300, 400), dtype=torch.int32)
    counts = torch.tensor([100, 0, 57, 140])
    scales = torch.rand(4, 400) / 500
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(DEQUANT(x, weight_scale=scales, group_index=counts, quant_mode=1))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


# ---- rounding and saturation ----------------------------------------------------------------------------------------


def gated(left: Floats64, right: Floats64) -> Floats64:
    with np.errstate(over="ignore"):
        return left * right / (1 + np.exp(-right))


def assert_rounded(y: Tensor, exact: Floats64, low: int, high: int) -> None:
    """Half to even and saturated, other integers only where float32 may see another side of a half."""
    wanted = np.clip(np.rint(exact), low, high)
    found = y.double().numpy()
    near_half = np.abs(np.abs(exact - np.rint(exact)) - 0.5) <= 2e-6 * np.maximum(np.abs(exact), 1)
    assert (np.abs(found - wanted) <= near_half).all(), (found, exact)


numbers = st.floats(-30, 30, width=32)
quantised = st.sampled_from([torch.int8, torch.quint4x2])


@properties
@given(
    quarters=st.lists(st.integers(-600, 600), min_size=1, max_size=12),
    halves=st.integers(-20, 20),
    dst=quantised,
    activate_left=st.booleans(),
)
def test_static_halves_go_to_even(
    quarters: list[int], halves: int, dst: torch.dtype, activate_left: bool, isa: str
) -> None:
    """silu(64) is 64 in float32 too, so that v is exactly a number of halves."""
    low, high = (-128, 127) if dst == torch.int8 else (-8, 7)
    linear = torch.tensor(quarters * 4) / 256
    gate = torch.full_like(linear, 64)
    x = torch.cat((gate, linear) if activate_left else (linear, gate))[None]
    y, scale = SWIGLU_QUANT(
        x,
        smooth_scales=torch.tensor([2.0]),
        offsets=torch.tensor([halves / 2]),
        activate_left=activate_left,
        dst_type=dst,
    )
    y = unpacked(y) if dst == torch.quint4x2 else y
    exact = np.array(quarters * 4) / 2 + halves / 2
    assert y[0].tolist() == np.clip(np.rint(exact), low, high).tolist()
    assert scale.tolist() == [0.0]


@properties
@given(quarters=st.lists(st.integers(-508, 508), min_size=1, max_size=12), sign=st.sampled_from([1, -1]))
def test_dynamic_halves_go_to_even(quarters: list[int], sign: int, isa: str) -> None:
    """The largest magnitude is 127, so that the row is multiplied with exactly 1."""
    linear = torch.tensor([sign * 508, *quarters]) / 256
    x = torch.cat((linear, torch.full_like(linear, 64)))[None]
    for op in (SWIGLU_QUANT, DEQUANT):
        y, scale = op(x, quant_mode=1)
        assert scale.tolist() == [1.0]
        assert y[0].tolist() == np.rint(np.array([sign * 508, *quarters]) / 4).tolist()


@properties
@given(
    rows=st.integers(1, 9).flatmap(
        lambda n: st.lists(st.lists(numbers, min_size=8 * n, max_size=8 * n), min_size=1, max_size=3)
    ),
    factor=st.sampled_from([1.0, 0.37, 5.0, 900.0]),
    offset=st.floats(-8, 8, width=32),
    dst=quantised,
)
def test_any_floats_are_rounded_and_saturated(
    rows: list[list[float]], factor: float, offset: float, dst: torch.dtype, isa: str
) -> None:
    low, high = (-128, 127) if dst == torch.int8 else (-8, 7)
    x = torch.tensor(rows)
    smooth = torch.tensor([factor])
    left, right = np.split(x.double().numpy(), 2, axis=-1)
    v = gated(left, right) * smooth.double().item()
    y, _ = SWIGLU_QUANT(x, smooth_scales=smooth, offsets=torch.tensor([offset]), dst_type=dst)
    assert_rounded(unpacked(y) if dst == torch.quint4x2 else y, v + offset, low, high)
    y, scale = SWIGLU_QUANT(x, smooth_scales=smooth, quant_mode=1, dst_type=dst)
    y = unpacked(y) if dst == torch.quint4x2 else y
    largest = np.abs(v).max(axis=-1, keepdims=True)
    usable = (largest > 1e-30)[:, 0]
    multiplier = high / np.where(usable[:, None], largest, 1)
    assert_rounded(y[torch.from_numpy(usable)], (v * multiplier)[usable], -high, high)
    np.testing.assert_allclose(scale.numpy()[usable], multiplier[usable, 0], rtol=2e-6)
    assert (y.abs() <= high).all()


@pytest.mark.parametrize("dst", [torch.int8, torch.quint4x2])
def test_tiny_rows_do_not_overflow(dst: torch.dtype, isa: str) -> None:
    """Where 127 / m is above the range of float32, its greatest number stands for it."""
    most = torch.finfo(torch.float32).max
    linear = torch.tensor([1.0, -1.0, 0.0, 0.5, -0.5, 0.25, 0.0, 1.0] * 3)
    x = torch.cat((linear, torch.full_like(linear, 64)))[None]
    high = 127 if dst == torch.int8 else 7
    factor = torch.tensor([high / most / 2.2 / 64])
    wanted = ((linear * 64) * factor).double().mul(most).round().tolist()
    y, scale = SWIGLU_QUANT(x, smooth_scales=factor, quant_mode=1, dst_type=dst)
    assert (unpacked(y) if dst == torch.quint4x2 else y)[0].tolist() == wanted
    assert scale.tolist() == [most]
    if dst == torch.int8:
        y, scale = DEQUANT(x, quant_scale=factor, quant_mode=1)
        assert y[0].tolist() == wanted
        torch.testing.assert_close(scale.double(), factor.double() * 64 / 127, rtol=0, atol=2.0**-149)
        y, _ = DEQUANT(x, quant_scale=factor, quant_mode=1, round_mode=4)
        assert y[0].tolist() == ((linear * 64) * factor).double().mul(most).trunc().tolist()


def test_rms_norm_of_tiny_rows_does_not_overflow(isa: str) -> None:
    """As above: y of the norm is 2 / sqrt(3) or 0."""
    x = torch.tensor([[0.5, -0.5, 0.0, 0.5] * 9])
    smooth = torch.full((36,), 127 / torch.finfo(torch.float32).max / 2.2)
    y = torch.ops.npu.npu_add_rms_norm_dynamic_quant(x, x, torch.ones(36), smooth_scale1=smooth)[0]
    assert y.tolist() == [[67, -67, 0, 67] * 9]


def test_many_dims(device: str) -> None:
    x = torch.randn(*[2] * 10, 8).to(device).permute(9, 7, 5, 3, 1, 8, 6, 4, 2, 0, 10)
    for op in (SWIGLU_QUANT, DEQUANT):
        for actual, expected in zip(op(x, quant_mode=1), op(x.contiguous(), quant_mode=1), strict=True):
            assert torch.equal(actual.cpu(), expected.cpu())


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "groups", "list_type"),
    [("ends", [3, 2], 0), ("ends", [3, 9], 0), ("ends", [-1], 0), ("counts", [-1, 5], 1), ("counts", [3, 6], 1)],
)
def test_group_lists_that_do_not_fit(op: str, groups: list[int], list_type: int, device: str) -> None:
    x = torch.randn(8, 8, device=device)

    def check(call: Any) -> None:
        with pytest.raises(ValueError, match="npu_.*swiglu_quant: argument group_index: group"):
            call()
            if device == "npu":
                torch.npu.synchronize()

    index = torch.tensor(groups, dtype=torch.int32, device=device)
    check(lambda: SWIGLU_QUANT(x, group_index=index, quant_mode=1, group_list_type=list_type))
    if op == "counts":
        check(lambda: DEQUANT(x, group_index=index.long(), quant_mode=1))


def test_errors(device: str) -> None:
    x = torch.randn(4, 8, device=device)
    whole = torch.ones(4, 8, dtype=torch.int32, device=device)
    one, nan = torch.ones(1, device=device), float("nan")
    weight = torch.ones(8, device=device)
    for call, message in [
        (lambda: SWIGLU_QUANT(x, quant_mode=2), "npu_swiglu_quant: argument quant_mode: .* got 2"),
        (lambda: SWIGLU_QUANT(x, quant_mode=1, group_list_type=2), "argument group_list_type: .* got 2"),
        (
            lambda: SWIGLU_QUANT(x, quant_mode=1, dst_type=torch.int32),
            "argument dst_type: expected None, torch.int8 or",
        ),
        (lambda: SWIGLU_QUANT(x), "argument smooth_scales: static quantisation needs it"),
        (lambda: SWIGLU_QUANT(x, smooth_scales=one), "argument offsets: static quantisation needs it"),
        (lambda: SWIGLU_QUANT(x, smooth_scales=one, offsets=weight), "argument offsets: expected the shape of smooth"),
        (
            lambda: SWIGLU_QUANT(x, smooth_scales=weight, quant_mode=1),
            r"argument smooth_scales: expected shape \[1, 4\]",
        ),
        (lambda: SWIGLU_QUANT(x, smooth_scales=one.half(), quant_mode=1), "argument smooth_scales: .* got float16"),
        (lambda: SWIGLU_QUANT(x[:, :5], quant_mode=1), "argument x: x last dim should be even"),
        (lambda: SWIGLU_QUANT(x[:, :6], quant_mode=1, dst_type=torch.quint4x2), "argument x: .* multiple of 4"),
        (lambda: SWIGLU_QUANT(x[0], quant_mode=1), "argument x: x dim should larger than 1"),
        (lambda: SWIGLU_QUANT(whole, quant_mode=1), "argument x: .* got int32"),
        (lambda: SWIGLU_QUANT(x, quant_mode=1, group_index=one), "argument group_index: .* got float32"),
        (lambda: DEQUANT(x[0]), "npu_dequant_swiglu_quant: argument x: x dim should larger than 1"),
        (lambda: DEQUANT(x[:, :5]), "argument x: x last dim should be even"),
        (lambda: DEQUANT(x, quant_mode=-1), "argument quant_mode: .* got -1"),
        (lambda: DEQUANT(x, swiglu_mode=3), "argument swiglu_mode: .* got 3"),
        (lambda: DEQUANT(x, clamp_limit=0.0), "argument clamp_limit: clamp_limit should be positive finite, got 0"),
        (lambda: DEQUANT(x, clamp_limit=nan), "argument clamp_limit: clamp_limit should be positive finite"),
        (lambda: DEQUANT(x, glu_alpha=nan), "argument glu_alpha"),
        (lambda: DEQUANT(x, glu_bias=float("inf")), "argument glu_bias"),
        (lambda: DEQUANT(x, round_mode=5), "argument round_mode: .* got 5"),
        (lambda: DEQUANT(x, activate_dim=0), r"argument activate_dim: .*\(0\) is not supported on this device"),
        (lambda: DEQUANT(x, dst_type=torch.int32), "argument dst_type: expected one of int8, .* got int32"),
        (lambda: DEQUANT(x, dst_type=290), "argument dst_type: .* not supported on this device"),
        (lambda: DEQUANT(whole), "argument weight_scale: x of dtype int32 needs it"),
        (lambda: DEQUANT(whole, weight_scale=weight[:7]), r"argument weight_scale: expected shape \[1, 8\]"),
        (lambda: DEQUANT(whole, weight_scale=weight, activation_scale=weight), "argument activation_scale: expected 4"),
        (lambda: DEQUANT(whole, weight_scale=weight, bias=one.double()), "argument bias: .* got float64"),
        (lambda: DEQUANT(x, quant_scale=weight), r"argument quant_scale: expected shape \[1, 4\]"),
        (
            lambda: DEQUANT(x.to("meta"), clamp_limit=-1.0),
            "argument clamp_limit: clamp_limit should be positive finite",
        ),
        (lambda: DEQUANT(x.to("meta"), round_mode=9), "argument round_mode: .* got 9"),
        (lambda: DEQUANT(x[0].to("meta")), "argument x: x dim should larger than 1"),
        (lambda: SWIGLU_QUANT(x[:, :5].to("meta"), quant_mode=1), "argument x: x last dim should be even"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_devices_must_agree() -> None:
    import torch_npu  # noqa: F401

    x, one = torch.ones(2, 8), torch.ones(1)
    for call in (
        lambda: SWIGLU_QUANT(x.npu(), smooth_scales=one, quant_mode=1),
        lambda: DEQUANT(x.npu(), quant_scale=one),
    ):
        with pytest.raises(RuntimeError, match="^Expected all tensors to be on the same device.* npu:0 and cpu!"):
            call()


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_the_number_of_int4_is_explained(where: str) -> None:
    import torch_npu

    with pytest.raises(RuntimeError, match="argument dst_type: .*; for int4 pass torch.quint4x2"):
        SWIGLU_QUANT(torch.ones(2, 8, device=where), quant_mode=1, dst_type=torch_npu.int4)


def test_fake_kernels_refuse_dtypes() -> None:
    x, one = torch.ones(2, 8, device="meta"), torch.ones(1, device="meta")
    whole, wide = torch.ones(2, 8, dtype=torch.int32, device="meta"), torch.ones(1, dtype=torch.double, device="meta")
    for call, message in (
        (lambda: SWIGLU_QUANT(whole, quant_mode=1), "npu_swiglu_quant: argument x: .* got int32"),
        (lambda: SWIGLU_QUANT(x, quant_mode=1, smooth_scales=one.half()), "argument smooth_scales: .* got float16"),
        (lambda: SWIGLU_QUANT(x, smooth_scales=one, offsets=wide), "argument offsets: .* got float64"),
        (lambda: SWIGLU_QUANT(x, quant_mode=1, group_index=one), "argument group_index: .* got float32"),
        (lambda: DEQUANT(x.double()), "npu_dequant_swiglu_quant: argument x: .* got float64"),
        (lambda: DEQUANT(whole, weight_scale=wide), "argument weight_scale: .* got float64"),
        (lambda: DEQUANT(whole, weight_scale=one, activation_scale=wide), "argument activation_scale: .* got float64"),
        (lambda: DEQUANT(whole, weight_scale=one, bias=wide), "argument bias: .* got float64"),
        (lambda: DEQUANT(x, quant_scale=wide), "argument quant_scale: .* got float64"),
        (lambda: DEQUANT(x, quant_offset=wide), "argument quant_offset: .* got float64"),
        (lambda: DEQUANT(x, group_index=one), "argument group_index: .* got float32"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
