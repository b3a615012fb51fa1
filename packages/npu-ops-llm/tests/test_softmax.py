"""Scaled masked softmax and softmax of a sum with dropout, against the formulas in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

SOFTMAX = torch.ops.npu.npu_scaled_masked_softmax
SOFTMAX_BACKWARD = torch.ops.npu.npu_scaled_masked_softmax_backward
DROPOUT = torch.ops.npu.npu_dropout_with_add_softmax
DROPOUT_BACKWARD = torch.ops.npu.npu_dropout_with_add_softmax_backward

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Half a unit in the last place of the result, plus float32 exponentials and sums for all.
RTOL = {torch.float32: 4e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
ATOL = {torch.float32: 1e-9, torch.bfloat16: 1e-9, torch.float16: 2**-24}

SHAPES = [
    (1,),
    (7,),
    (3, 16),
    (2, 3, 5, 33),
    (2, 2, 3, 64),
    (1, 2, 4, 1000),
    (3, 4095),
    (2, 4096),
    (2, 4097),
    (2, 9001),
]


def reference(x: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    t = x.double() * scale
    if mask is None:
        height = x.shape[-2] if x.dim() > 1 else 1
        mask = torch.ones(height, x.shape[-1]).triu(1).bool()
        mask = mask if x.dim() > 1 else mask[0]
    return torch.softmax(t.masked_fill(mask, -10000.0), -1)


def reference_backward(dy: Tensor, y: Tensor, mask: Tensor, scale: float) -> Tensor:
    dy, y = dy.double(), y.double()
    return (y * (dy - (dy * y).sum(-1, keepdim=True)) * scale).masked_fill(mask, 0.0)


def near(actual: Tensor, expected: Tensor, dtype: torch.dtype, *, atol: float = 0.0) -> None:
    assert actual.dtype == dtype and actual.shape == expected.shape
    torch.testing.assert_close(
        actual.detach().cpu().double(), expected, rtol=RTOL[dtype], atol=ATOL[dtype] + atol, equal_nan=True
    )


# ---- scaled masked softmax --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    x, mask, dy = torch.randn(shape).mul(4).to(dtype), torch.rand(shape) < 0.4, torch.randn(shape).to(dtype)
    y = SOFTMAX(x.to(device), mask.to(device), 0.7, False)
    near(y, reference(x, mask, 0.7), dtype)
    assert y.device.type == device and y.is_contiguous()
    dx = SOFTMAX_BACKWARD(dy.to(device), y, mask.to(device), 0.7, False)
    # A difference of terms of size y * dy.
    near(dx, reference_backward(dy, y.cpu(), mask, 0.7), dtype, atol=2e-6)
    assert torch.equal(dx.cpu()[mask], torch.zeros(int(mask.sum()), dtype=dtype))


MASKS: list[tuple[str, Callable[[], Tensor]]] = [
    ("full", lambda: torch.rand(2, 3, 5, 37) < 0.5),
    ("heads", lambda: torch.rand(2, 1, 5, 37) < 0.5),
    ("batch", lambda: torch.rand(3, 5, 37) < 0.5),
    ("two dims", lambda: torch.rand(5, 37) < 0.5),
    ("one dim", lambda: torch.rand(37) < 0.5),
    ("none", lambda: torch.tensor(True)),
    ("columns", lambda: torch.rand(2, 3, 5, 1) < 0.5),
    ("one", lambda: torch.zeros(1, 1, 1, 1, dtype=torch.bool)),
    ("inner", lambda: torch.rand(2, 1, 1, 37) < 0.5),
    ("middle", lambda: torch.rand(1, 3, 1, 1) < 0.5),
    ("expanded", lambda: (torch.rand(2, 1, 5, 37) < 0.5).expand(2, 3, 5, 37)),
    ("expanded columns", lambda: (torch.rand(2, 3, 5, 1) < 0.5).expand(2, 3, 5, 37)),
    ("every second", lambda: (torch.rand(2, 3, 5, 74) < 0.5)[..., ::2]),
    ("transposed", lambda: (torch.rand(2, 3, 37, 5) < 0.5).transpose(-1, -2)),
    ("slice", lambda: (torch.rand(4, 5, 9, 50) < 0.5)[1:3, ::2, 2:7, 3:40]),
]


@pytest.mark.parametrize(("name", "make"), MASKS, ids=[name for name, _ in MASKS])
def test_masks_of_every_shape(name: str, make: Callable[[], Tensor], device: str) -> None:
    x, dy, made = torch.randn(2, 3, 5, 37), torch.randn(2, 3, 5, 37), make()
    mask = torch.empty_strided(made.shape, made.stride(), dtype=torch.bool, device=device)
    if name.startswith("expanded"):
        mask = (
            made[..., :1].to(device).expand(made.shape)
            if "columns" in name
            else made[:, :1].to(device).expand(made.shape)
        )
    else:
        mask.copy_(made)
    y = SOFTMAX(x.to(device), mask, 2)
    near(y, reference(x, made, 2), torch.float32)
    dx = SOFTMAX_BACKWARD(dy.to(device), y, mask, 2, False)
    near(dx, reference_backward(dy, y.cpu(), made, 2), torch.float32, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fixed_triangular_mask(dtype: torch.dtype, device: str) -> None:
    for shape in ((2, 3, 17, 40), (1, 1, 40, 17), (20, 20), (9,)):
        x = torch.randn(shape).to(dtype)
        ignored = torch.ones(1, 1, dtype=torch.bool, device=device)
        y = SOFTMAX(x.to(device), ignored, 0.5, True)
        near(y, reference(x, None, 0.5), dtype)
        height = shape[-2] if len(shape) > 1 else 1
        triangle = torch.ones(height, shape[-1]).triu(1).bool()
        dx = SOFTMAX_BACKWARD(torch.ones_like(y), y, ignored, 0.5, True)
        expected = SOFTMAX_BACKWARD(
            torch.ones_like(y), y, (triangle if len(shape) > 1 else triangle[0]).to(device), 0.5, False
        )
        assert torch.equal(dx, expected)


def test_specification_example(device: str) -> None:
    mask = torch.tensor([False, False, True], device=device)
    y = SOFTMAX(torch.tensor([1.0, 2.0, 3.0], device=device), mask, 0.5)
    torch.testing.assert_close(y.cpu(), torch.tensor([0.377541, 0.622459, 0.0]), rtol=0, atol=1e-6)


def test_masked_elements_are_minus_10000_and_not_minus_infinity(device: str) -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0], [-20000.0, -30000.0, -9999.0, -10001.0]], device=device)
    mask = torch.tensor([[True] * 4, [True, False, False, True]], device=device)
    y = SOFTMAX(x, mask).cpu()
    assert torch.equal(y[0], torch.full((4,), 0.25))
    near(y, reference(x.cpu(), mask.cpu(), 1.0), torch.float32)


@pytest.mark.parametrize("scale", [0, 1, -3, 0.125, True])
def test_scales(scale: Any, device: str) -> None:
    x, mask = torch.randn(4, 9), torch.rand(4, 9) < 0.3
    near(SOFTMAX(x.to(device), mask.to(device), scale), reference(x, mask, float(scale)), torch.float32)


def test_infinities_and_nan(device: str) -> None:
    inf, nan = float("inf"), float("nan")
    for width in (3, 5000):
        x = torch.zeros(5, width)
        x[0, 1], x[1, 1], x[2, 1], x[3] = inf, -inf, nan, -inf
        mask = torch.zeros(5, width, dtype=torch.bool)
        mask[4], mask[3, 0] = True, True
        near(SOFTMAX(x.to(device), mask.to(device)), reference(x, mask, 1.0), torch.float32)
        hidden = torch.zeros(1, width, dtype=torch.bool)
        hidden[0, 1] = True
        near(SOFTMAX(x.to(device), hidden.to(device)), reference(x, hidden, 1.0), torch.float32)


def test_empty(device: str) -> None:
    for shape in ((0, 3), (3, 0), (2, 0, 4, 5)):
        x, mask = torch.empty(shape, device=device), torch.empty(shape, dtype=torch.bool, device=device)
        assert SOFTMAX(x, mask).shape == shape
        assert SOFTMAX_BACKWARD(x, x, mask, 1, False).shape == shape


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_input(dtype: torch.dtype, device: str) -> None:
    whole, mask = torch.randn(4, 6, 5, 80).to(dtype).to(device), torch.rand(5, 33, device=device) < 0.4
    for x in (whole.transpose(0, 2)[..., 7:40].transpose(0, 2), whole[::2, 1:4, :, 1:34], whole[..., ::2][..., :33]):
        assert not x.is_contiguous()
        assert torch.equal(SOFTMAX(x, mask, 0.5), SOFTMAX(x.contiguous(), mask, 0.5))
    dy = torch.randn(4, 6, 33, 5).to(dtype).to(device).transpose(-1, -2)
    y = SOFTMAX(whole[..., :33], mask)
    assert torch.equal(
        SOFTMAX_BACKWARD(dy, y, mask, 1, False), SOFTMAX_BACKWARD(dy.contiguous(), y, mask.clone(), 1, False)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_autograd(dtype: torch.dtype, device: str) -> None:
    x, mask, dy = torch.randn(2, 3, 9, 21).to(dtype), torch.rand(2, 1, 9, 21) < 0.3, torch.randn(2, 3, 9, 21).to(dtype)
    on_device, exact = x.clone().to(device).requires_grad_(), x.double().clone().requires_grad_()
    SOFTMAX(on_device, mask.to(device), 3).backward(dy.to(device))
    reference(exact, mask, 3).backward(dy.double())
    rtol = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.004}[dtype]
    assert on_device.grad.dtype == dtype
    torch.testing.assert_close(on_device.grad.cpu().double(), exact.grad, rtol=rtol, atol=rtol)


def test_second_derivatives_are_refused() -> None:
    x, mask = torch.randn(3, 8).requires_grad_(), torch.zeros(8, dtype=torch.bool)
    (dx,) = torch.autograd.grad(SOFTMAX(x, mask).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="npu_scaled_masked_softmax has no second derivative"):
        dx.sum().backward()
    (dx,) = torch.autograd.grad(DROPOUT(x, x.detach(), 1, 0.5, -1)[2].square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="npu_dropout_with_add_softmax has no second derivative"):
        dx.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kernel_table(isa: str, dtype: torch.dtype) -> None:
    for width in (*range(1, 20), 63, 64, 65, 4097):
        x, mask = torch.randn(3, width).mul(6).to(dtype), torch.rand(3, width) < 0.3
        y = SOFTMAX(x, mask, 1.5)
        near(y, reference(x, mask, 1.5), dtype)
        near(SOFTMAX(x, mask, 1.5, True), reference(x, None, 1.5), dtype)
        dy = torch.randn(3, width).to(dtype)
        near(SOFTMAX_BACKWARD(dy, y, mask, 1.5, False), reference_backward(dy, y, mask, 1.5), dtype, atol=4e-6)


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 6), st.integers(1, 90), st.floats(-8, 8), st.integers(0, 2**31), st.floats(0, 1))
def test_rows_are_distributions(rows: int, width: int, scale: float, seed: int, density: float) -> None:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=random) * 10
    mask = torch.rand(rows, width, generator=random) < density
    y = SOFTMAX(x, mask, scale)
    assert (y >= 0).all() and (y <= 1.0000002).all()
    torch.testing.assert_close(y.sum(-1), torch.ones(rows), rtol=1e-5, atol=0)
    near(y, reference(x, mask, scale), torch.float32, atol=1e-6)


def test_compiled(device: str) -> None:
    x, mask = torch.randn(4, 24).to(device).requires_grad_(), (torch.rand(1, 24) < 0.3).to(device)

    def model(x: Tensor) -> Tensor:
        return SOFTMAX(x * 2, mask, 0.5).square().sum()

    torch._dynamo.reset()
    (expected,) = torch.autograd.grad(model(x), x)
    (actual,) = torch.autograd.grad(torch.compile(model, backend="aot_eager", fullgraph=True)(x), x)
    torch.testing.assert_close(actual, expected)


# ---- softmax of a sum, with dropout -----------------------------------------------------------------------------


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)  # torch_npu makes this seed the generators of npu devices, too


def keep_of(mask: Tensor, shape: Any) -> Tensor:
    count = torch.Size(shape).numel()
    return mask.cpu()[:count].view(shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (3, 2, 128, 128)])
def test_dropout_outputs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    a, b = (torch.randn(shape).mul(3).to(dtype) for _ in range(2))
    prob = 0.3
    mask, softmax, out = DROPOUT(a.to(device), b.to(device), 0.5, prob, -1)
    count = a.numel()
    assert mask.dtype == torch.uint8 and mask.shape == ((count + 127) // 128 * 128,)
    assert mask.device == softmax.device == out.device and out.device.type == device
    assert (mask.cpu()[count:] == 0).all() and (mask.cpu() <= 1).all()
    expected = torch.softmax(b.double() + 0.5 * a.double(), -1)
    keep = keep_of(mask, shape)
    near(softmax, expected, dtype)
    near(out, expected * keep / (1 - prob), dtype)

    grad = torch.randn(shape).to(dtype)
    a_grad, b_grad = DROPOUT_BACKWARD(grad.to(device), mask, softmax, 0.5, prob, -1)
    s, h = softmax.cpu().double(), grad.double() * keep / (1 - prob)
    g = s * (h - (h * s).sum(-1, keepdim=True))
    near(b_grad, g, dtype, atol=4e-6)
    near(a_grad, 0.5 * g, dtype, atol=4e-6)


@pytest.mark.parametrize("dim", [0, 1, -3, 2, -1])
def test_other_dims(dim: int, device: str) -> None:
    a, b, grad = (torch.randn(3, 5, 7) for _ in range(3))
    mask, softmax, out = DROPOUT(a.to(device), b.to(device), 2, 0.4, dim)
    expected, keep = torch.softmax(b.double() + 2 * a.double(), dim), keep_of(mask, a.shape)
    assert 0 < keep.sum() < keep.numel() and softmax.is_contiguous() and out.is_contiguous()
    near(softmax, expected, torch.float32)
    near(out, expected * keep / 0.6, torch.float32)
    a_grad, b_grad = DROPOUT_BACKWARD(grad.to(device), mask, softmax, 2, 0.4, dim)
    h = grad.double() * keep / 0.6
    g = expected * (h - (h * expected).sum(dim, keepdim=True))
    near(b_grad, g, torch.float32, atol=1e-6)
    near(a_grad, 2 * g, torch.float32, atol=1e-6)


def test_nothing_dropped(device: str) -> None:
    a, b = torch.randn(4, 50), torch.randn(4, 50)
    mask, softmax, out = DROPOUT(a.to(device), b.to(device), -1, 0.0, -1)
    assert keep_of(mask, a.shape).all() and torch.equal(softmax, out)


@pytest.mark.parametrize("prob", [0.01, 0.1, 0.25, 0.5, 0.9])
def test_rate_and_independence(prob: float, device: str) -> None:
    """Frequencies of a fixed draw, within five standard deviations of what independent draws have."""
    seed_everything(1234)
    rows, width = 200, 1009
    zeros = torch.zeros(rows, width, device=device)
    keep = keep_of(DROPOUT(zeros, zeros, 1, prob, -1)[0], (rows, width)).double()
    again = keep_of(DROPOUT(zeros, zeros, 1, prob, -1)[0], (rows, width)).double()

    def within(sample: Tensor, mean: float) -> None:
        variance = mean * (1 - mean) / sample.numel()
        assert abs(float(sample.mean()) - mean) < 5 * variance**0.5

    p = 1 - prob
    within(keep, p)
    flat = keep.flatten()
    for lag in (1, 2, 4, 15, 16, 17, 63, 64, 65, 128, width):
        # Pairs that overlap are correlated: take every second stretch of `lag`.
        stretches = flat[: flat.numel() // (2 * lag) * 2 * lag].view(-1, 2, lag)
        within(stretches[:, 0] * stretches[:, 1], p * p)
    within(keep * again, p * p)  # one call and the next
    chi_square = ((keep.sum(0) - rows * p) ** 2 / (rows * p * (1 - p))).sum()  # columns
    assert abs(float(chi_square) - width) < 5 * (2 * width) ** 0.5
    chi_square = ((keep.sum(1) - width * p) ** 2 / (width * p * (1 - p))).sum()  # rows
    assert abs(float(chi_square) - rows) < 5 * (2 * rows) ** 0.5


def test_one_seed_gives_one_result(device: str) -> None:
    a = torch.randn(6, 333, device=device)
    results = []
    for seed in (7, 7, 8):
        seed_everything(seed)
        results.append([DROPOUT(a, a, 1, 0.5, -1) for _ in range(2)])
    for first, second in zip(results[0], results[1], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    masks = [calls[i][0].cpu() for calls in (results[0], results[2]) for i in range(2)]
    for i in range(4):
        for j in range(i):
            assert not torch.equal(masks[i], masks[j])


def test_draws_do_not_depend_on_the_shape_of_rows_the_dtype_or_threads(device: str) -> None:
    threads = torch.get_num_threads()
    masks = []
    try:
        for shape, dtype, count in (
            ((60, 1001), torch.float32, 1),
            ((60, 1001), torch.bfloat16, 2),
            ((1001, 60), torch.float32, 3),
            ((1, 60060), torch.float16, 1),
            ((7, 2, 30, 143), torch.float32, 2),
        ):
            torch.set_num_threads(count)
            seed_everything(3)
            x = torch.zeros(shape, dtype=dtype, device=device)
            masks.append(DROPOUT(x, x, 1, 0.5, -1)[0].cpu())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(mask, masks[0]) for mask in masks)


def philox(counter: int, seed: int) -> list[int]:
    """Philox4x32-10 from its definition."""
    c = [counter & 0xFFFFFFFF, counter >> 32, 0, 0]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def test_philox_of_the_test_gives_the_published_words() -> None:
    assert [f"{word:08x}" for word in philox(0, 0)] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200, 1001])
def test_draws_are_philox_words(isa: str, count: int) -> None:
    torch.manual_seed(99)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    torch.manual_seed(99)
    x = torch.zeros(1, count)
    mask = DROPOUT(x, x, 1, 0.3, -1)[0]
    expected = []
    for i in range(count):
        word = philox(i // 64 * 16 + i % 16, seed)[i % 64 // 16]
        expected.append(int(word < round(0.7 * 2**32)))
    assert mask[:count].tolist() == expected


def test_npu_tensors_draw_what_the_other_random_operators_of_npu_draw() -> None:
    import torch_npu  # noqa: F401

    x = torch.zeros(5, 333, device="npu")
    seed_everything(11)
    mask = DROPOUT(x, x, 1, 0.2, -1)[0]
    seed_everything(11)
    theirs = torch.ops.aten.native_dropout(torch.ones_like(x), 0.2, True)[1]
    assert torch.equal(keep_of(mask, x.shape).bool(), theirs.cpu())


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_autograd(dtype: torch.dtype, device: str) -> None:
    a, b, grad = (torch.randn(2, 3, 5, 40).to(dtype) for _ in range(3))
    ours = [t.clone().to(device).requires_grad_() for t in (a, b)]
    mask, softmax, out = DROPOUT(*ours, 2, 0.3, -1)
    assert not mask.requires_grad and not softmax.requires_grad
    out.backward(grad.to(device))
    exact = [t.double().clone().requires_grad_() for t in (a, b)]
    expected = torch.softmax(exact[1] + 2 * exact[0], -1) * keep_of(mask, a.shape) / 0.7
    expected.backward(grad.double())
    rtol = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.004}[dtype]
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad.dtype == dtype
        torch.testing.assert_close(mine.grad.cpu().double(), theirs.grad, rtol=rtol, atol=rtol)


def test_dropout_of_nothing_and_of_views(device: str) -> None:
    for shape in ((0, 4), (4, 0)):
        x = torch.empty(shape, device=device)
        mask, softmax, out = DROPOUT(x, x, 1, 0.5, -1)
        assert mask.shape == (0,) and softmax.shape == out.shape == shape
        assert [t.shape for t in DROPOUT_BACKWARD(x, mask, x, 1, 0.5, -1)] == [shape, shape]
    a, b = torch.randn(30, 8).to(device).t(), torch.randn(8, 60).to(device)[:, ::2]
    results = []
    for one, other in ((a, b), (a.contiguous(), b.contiguous())):
        seed_everything(5)
        results.append(DROPOUT(one, other, 1, 0.5, -1))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_dropout_compiled(device: str) -> None:
    """Compiled and eager calls draw the same numbers; the backward pass has those of the forward pass."""
    x = torch.randn(4, 200, device=device).requires_grad_()

    def model(x: Tensor) -> Tensor:
        return DROPOUT(x, x * 2, 0.5, 0.5, -1)[2] - DROPOUT(x, x * 3, 0.5, 0.5, -1)[2]

    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    gradients = []
    for function in (model, compiled):
        seed_everything(2)
        y = function(x)
        gradients.append((y.detach(), *torch.autograd.grad(y.square().sum(), x)))
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_the_operator_says_that_it_is_random() -> None:
    assert torch.Tag.nondeterministic_seeded in DROPOUT.default.tags


# ---- errors -----------------------------------------------------------------------------------------------------


def test_errors_name_operator_and_argument(device: str) -> None:
    x, mask = torch.zeros(2, 3, device=device), torch.zeros(2, 3, dtype=torch.bool, device=device)
    keep = torch.zeros(128, dtype=torch.uint8, device=device)
    half = x.half()
    for call, message in [
        (
            lambda: SOFTMAX(x, mask, 1j),
            "npu_scaled_masked_softmax: argument scale: expected an int or a float, got .*1j",
        ),
        (lambda: SOFTMAX(x.double(), mask), "npu_scaled_masked_softmax: argument x: expected dtype .*, got float64"),
        (lambda: SOFTMAX(x[0, 0], mask), "npu_scaled_masked_softmax: argument x: expected at least 1 dim"),
        (lambda: SOFTMAX(x, mask.int()), "argument mask: expected dtype bool, got int32"),
        (lambda: SOFTMAX(x, mask[:, :2]), r"argument mask: expected a shape that broadcasts to \[2, 3\] .*\[2, 2\]"),
        (lambda: SOFTMAX(x, mask[None]), r"argument mask: expected a shape that broadcasts to \[2, 3\] .*\[1, 2, 3\]"),
        (lambda: SOFTMAX(x[:1], mask), r"argument mask: expected a shape that broadcasts to \[1, 3\]"),
        (lambda: SOFTMAX_BACKWARD(x, half, mask, 1, False), "_backward: argument y: expected dtype float32 .*float16"),
        (lambda: SOFTMAX_BACKWARD(x, x[:1], mask, 1, False), r"argument y: expected shape \[2, 3\] \(as y_grad\)"),
        (lambda: SOFTMAX_BACKWARD(x, x, mask, 1j, False), "_backward: argument scale: expected an int or a float"),
        (
            lambda: DROPOUT(x, x, 1j, 0.5, -1),
            "npu_dropout_with_add_softmax: argument alpha: expected an int or a float",
        ),
        (lambda: DROPOUT(x, x, 1, 1.0, -1), r"argument prob: expected a probability of dropping in \[0, 1\), got 1"),
        (
            lambda: DROPOUT(x, x, 1, -0.5, -1),
            r"argument prob: expected a probability of dropping in \[0, 1\), got -0.5",
        ),
        (lambda: DROPOUT(x, x, 1, float("nan"), -1), "argument prob: expected a probability of dropping"),
        (lambda: DROPOUT(x, half, 1, 0.5, -1), "argument x1: expected dtype float32 .as self., got float16"),
        (lambda: DROPOUT(x, x[:1], 1, 0.5, 0), r"argument x1: expected shape \[2, 3\] \(as self\), got \[1, 3\]"),
        (lambda: DROPOUT(x.double(), x, 1, 0.5, -1), "argument self: expected dtype .*, got float64"),
        (lambda: DROPOUT_BACKWARD(x, keep[:6], x, 1, 0.5, 0), r"argument mask: expected shape \[128\] .* got \[6\]"),
        (lambda: DROPOUT_BACKWARD(x, keep.bool(), x, 1, 0.5, -1), "argument mask: expected dtype uint8, got bool"),
        (lambda: DROPOUT_BACKWARD(x, keep, half, 1, 0.5, -1), "argument softmax_out: expected dtype float32"),
        (lambda: DROPOUT_BACKWARD(x, keep, x, 1, 1.5, -1), r"argument prob: expected a probability .* got 1.5"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()
    for dim in (2, -3):
        with pytest.raises(IndexError, match=f"npu_dropout_with_add_softmax: argument dim: .* 2 dims, got {dim}"):
            DROPOUT(x, x, 1, 0.5, dim)
        with pytest.raises(IndexError, match=f"npu_dropout_with_add_softmax_backward: argument dim: .* got {dim}"):
            DROPOUT_BACKWARD(x, keep, x, 1, 0.5, dim)


def test_devices_must_agree() -> None:
    import torch_npu  # noqa: F401

    x, mask = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)
    message = "^Expected all tensors to be on the same device, but found at least two devices, "
    with pytest.raises(RuntimeError, match=message + "npu:0 and cpu! .when checking argument mask"):
        SOFTMAX(x.npu(), mask)
    with pytest.raises(RuntimeError, match=message + "cpu and npu:0! .when checking argument x1"):
        DROPOUT(x, x.npu(), 1, 0.5, -1)


def test_meta_errors() -> None:
    x, mask = torch.empty(2, 3, device="meta"), torch.empty(2, 2, dtype=torch.bool, device="meta")
    with pytest.raises(
        RuntimeError, match="npu_scaled_masked_softmax: argument mask: expected a shape that broadcasts"
    ):
        SOFTMAX(x, mask)
    with pytest.raises(RuntimeError, match="npu_dropout_with_add_softmax: argument prob: expected a probability"):
        DROPOUT(x, x, 1, 1.0, -1)
    with pytest.raises(RuntimeError, match=r"argument x1: expected shape \[2, 3\] \(as self\), got \[2\]"):
        DROPOUT(x, x[:, 0], 1, 0.5, -1)


def test_many_dims(device: str) -> None:
    x = torch.randn(*[2] * 10, 5).to(device).permute(9, 7, 5, 3, 1, 8, 6, 4, 2, 0, 10)
    mask = (torch.rand(*[2, 1] * 5, 5) < 0.4).to(device)
    grad = torch.randn(x.shape, device=device)
    packed, whole = x.contiguous(), mask.expand(x.shape).contiguous()
    y = SOFTMAX(x, mask, 0.5)
    assert torch.equal(y.cpu(), SOFTMAX(packed.view(-1, 5), whole.view(-1, 5), 0.5).view(x.shape).cpu())
    dx = torch.ops.npu.npu_scaled_masked_softmax_backward(grad, y, mask, 0.5, False)
    flat = torch.ops.npu.npu_scaled_masked_softmax_backward(
        grad.view(-1, 5), y.view(-1, 5), whole.view(-1, 5), 0.5, False
    )
    assert torch.equal(dx.cpu(), flat.view(x.shape).cpu())
    upper = SOFTMAX(x, mask, 0.5, True)
    assert torch.equal(upper.cpu(), SOFTMAX(packed.view(-1, 2, 5), whole.view(-1, 2, 5), 0.5, True).view(x.shape).cpu())


def test_fake_kernels_refuse_dtypes() -> None:
    x, mask = torch.ones(2, 3, device="meta"), torch.ones(2, 3, device="meta", dtype=torch.bool)
    keep = torch.ones(128, device="meta", dtype=torch.uint8)
    ops = torch.ops.npu
    for call, message in (
        (
            lambda: SOFTMAX(x, mask.float()),
            "npu_scaled_masked_softmax: argument mask: expected dtype bool, got float32",
        ),
        (lambda: SOFTMAX(x.double(), mask), "argument x: expected dtype float16, bfloat16 or float32, got float64"),
        (lambda: ops.npu_scaled_masked_softmax_backward(x.double(), x, mask, 1, False), "argument y_grad: .* float64"),
        (lambda: ops.npu_scaled_masked_softmax_backward(x, x.half(), mask, 1, False), "argument y: .* got float16"),
        (lambda: ops.npu_scaled_masked_softmax_backward(x, x, x, 1, False), "argument mask: .* got float32"),
        (lambda: ops.npu_dropout_with_add_softmax(x.double(), x, 1, 0.5, -1), "argument self: .* got float64"),
        (lambda: ops.npu_dropout_with_add_softmax(x, x.half(), 1, 0.5, -1), "argument x1: .* got float16"),
        (
            lambda: ops.npu_dropout_with_add_softmax_backward(x.double(), keep, x, 1, 0.5, -1),
            "argument grad: .* float64",
        ),
        (lambda: ops.npu_dropout_with_add_softmax_backward(x, keep, x.half(), 1, 0.5, -1), "softmax_out: .* float16"),
        (
            lambda: ops.npu_dropout_with_add_softmax_backward(x, keep.char(), x, 1, 0.5, -1),
            "argument mask: .* got int8",
        ),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
