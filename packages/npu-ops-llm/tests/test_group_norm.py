"""npu_group_norm_silu, npu_group_norm_swish and its gradient against the formulas in float64."""

import math

import pytest
import torch
from torch import Tensor

SILU = torch.ops.npu.npu_group_norm_silu
SWISH = torch.ops.npu.npu_group_norm_swish
GRAD = torch.ops.npu.npu_group_norm_swish_grad

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Half a unit in the last place of the result, plus float32 arithmetic for all.
RTOL = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}
ATOL = {torch.float32: 4e-6, torch.bfloat16: 4e-6, torch.float16: 4e-6}

SHAPES = [
    # (shape of input, groups)
    ((2, 6), 3),
    ((1, 1), 1),
    ((3, 38), 2),
    ((5, 14), 14),
    ((2, 6, 5), 2),
    ((2, 8, 4, 4), 4),
    ((3, 6, 7, 11), 6),
    ((1, 64, 16, 16), 32),
    ((2, 4, 97, 61), 2),
    ((1, 3, 130, 70), 1),
    ((2, 4, 2, 3, 2, 1, 2, 3), 2),
]


def reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float = 1e-5, swish_scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The formula of the specification in float64."""
    x = x.double()
    grouped = x.reshape(x.shape[0], groups, -1)
    mean = grouped.mean(-1)
    rstd = 1 / ((grouped - mean[..., None]).square().mean(-1) + eps).sqrt()
    normalised = ((grouped - mean[..., None]) * rstd[..., None]).reshape(x.shape)
    channels = [1, -1, *[1] * (x.dim() - 2)]
    z = normalised * (1.0 if weight is None else weight.double().reshape(channels))
    z = z + (0.0 if bias is None else bias.double().reshape(channels))
    return z / (1 + (-swish_scale * z).exp()), mean, rstd


def inputs(shape: tuple[int, ...], dtype: torch.dtype, mixed: bool, device: str = "cpu") -> list[Tensor]:
    made = [torch.randn(shape) * 2 + 1, torch.randn(shape[1]) + 0.5, torch.randn(shape[1])]
    parameter_dtype = torch.float32 if mixed else dtype
    return [made[0].to(dtype).to(device), *(one.to(parameter_dtype).to(device) for one in made[1:])]


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(
        actual.cpu().double(), expected.cpu(), rtol=RTOL[dtype], atol=ATOL[dtype], equal_nan=True
    )


# ---- forward ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixed", [False, True], ids=["same", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_forward(shape: tuple[int, ...], groups: int, dtype: torch.dtype, mixed: bool, device: str) -> None:
    x, weight, bias = inputs(shape, dtype, mixed, device)
    on_cpu = [t.cpu() for t in (x, weight, bias)]
    for found, statistic_dtype, expected in (
        (SILU(x, weight, bias, groups, 1e-4), dtype, reference(*on_cpu, groups, 1e-4)),
        (SWISH(x, groups, weight, bias, 1e-4, 1.7), weight.dtype, reference(*on_cpu, groups, 1e-4, 1.7)),
    ):
        assert all(t.device == x.device and t.is_contiguous() for t in found)
        assert found[0].shape == x.shape and found[0].dtype == dtype
        assert_near(found[0], expected[0], dtype)
        for actual, wanted in zip(found[1:], expected[1:], strict=True):
            assert actual.shape == (shape[0], groups) and actual.dtype == statistic_dtype
            assert_near(actual, wanted, statistic_dtype)


def test_specification_example(device: str) -> None:
    # Groups {1, 3} and {5, 5}: normalised to -1, 1 and 0, 0 (up to eps).
    x = torch.tensor([[1.0, 3.0, 5.0, 5.0]], device=device)
    out, mean, rstd = SILU(x, None, None, 2, 1e-12)
    expected = [-1 / (1 + math.e), 1 / (1 + math.exp(-1)), 0.0, 0.0]
    torch.testing.assert_close(out.cpu(), torch.tensor([expected]), rtol=1e-6, atol=0)
    torch.testing.assert_close(mean.cpu(), torch.tensor([[2.0, 5.0]]))
    torch.testing.assert_close(rstd.cpu(), torch.tensor([[1.0, 1e6]]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_missing_weight_and_bias(dtype: torch.dtype, device: str) -> None:
    x, weight, bias = inputs((2, 6, 5, 7), dtype, False, device)
    for one, other in ((None, None), (weight, None), (None, bias)):
        expected = reference(x.cpu(), *(t if t is None else t.cpu() for t in (one, other)), 3)
        assert_near(SILU(x, one, other, 3)[0], expected[0], dtype)


def test_defaults_of_swish(device: str) -> None:
    x, weight, bias = inputs((2, 6, 5), torch.float32, False, device)
    silu = SILU(x, weight, bias, 3)
    for found in (SWISH(x, 3, weight, bias), SWISH(x, 3, weight, bias, None, None)):
        assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(found, silu, strict=True))


@pytest.mark.parametrize("swish_scale", [0.0, -1.0, 1.702, 50.0])
def test_swish_scale(swish_scale: float, device: str) -> None:
    x, weight, bias = inputs((2, 6, 5, 7), torch.float32, False, device)
    expected = reference(x.cpu(), weight.cpu(), bias.cpu(), 3, 1e-5, swish_scale)[0]
    assert_near(SWISH(x, 3, weight, bias, swish_scale=swish_scale)[0], expected, torch.float32)


def test_large_arguments_of_the_sigmoid(device: str) -> None:
    x = torch.tensor([[[-1.0, 1.0]]], device=device)
    out, _, _ = SILU(x, torch.full((1,), 1000.0, device=device), None, 1)
    torch.testing.assert_close(out.cpu(), torch.tensor([[[0.0, 1000.0]]]), rtol=1e-4, atol=1e-30)


def test_a_large_mean_costs_no_accuracy(device: str) -> None:
    x = torch.randn(1, 4, 90, 91) + 3000
    out, mean, rstd = SILU(x.to(device), None, None, 2)
    expected = reference(x, None, None, 2)
    torch.testing.assert_close(mean.cpu().double(), expected[1], rtol=2e-7, atol=0)
    torch.testing.assert_close(rstd.cpu().double(), expected[2], rtol=1e-5, atol=0)
    # The rounding of the mean to float32 is 1e-4 of a standard deviation here.
    torch.testing.assert_close(out.cpu().double(), expected[0], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_views(dtype: torch.dtype, device: str) -> None:
    x = torch.randn(2, 6, 5, 7).to(dtype).to(device).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, 12).to(dtype).to(device)[:, ::2]
    dy = torch.randn(6).to(dtype).to(device)[None, :, None, None].expand(2, 6, 5, 7)
    packed = [t.contiguous() for t in (x, weight, bias, dy)]
    for actual, expected in zip(SILU(x, weight, bias, 3), SILU(*packed[:3], 3), strict=True):
        assert actual.is_contiguous() and torch.equal(actual.cpu(), expected.cpu())
    _, mean, rstd = SWISH(x, 3, weight, bias)
    statistics = mean.t().contiguous().t(), rstd.t().contiguous().t()
    found = GRAD(dy, x, 3, weight, bias, *statistics, [True, True, True])
    expected = GRAD(packed[3], packed[0], 3, packed[1], packed[2], mean, rstd, [True, True, True])
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(found, expected, strict=True))


def test_unaligned_storage(device: str) -> None:
    x = torch.randn(1 + 2 * 6 * 35).bfloat16().to(device)[1:].view(2, 6, 35)
    weight, bias = torch.randn(7).bfloat16().to(device)[1:], torch.randn(7).bfloat16().to(device)[1:]
    expected = reference(x.cpu(), weight.cpu(), bias.cpu(), 3)
    assert_near(SILU(x, weight, bias, 3)[0], expected[0], torch.bfloat16)


def test_empty(device: str) -> None:
    weight = torch.ones(6, device=device)
    for shape in ((0, 6, 5), (2, 6, 0)):
        x = torch.empty(shape, device=device)
        out, mean, rstd = SWISH(x, 3, weight, weight)
        assert out.shape == shape and mean.shape == rstd.shape == (shape[0], 3)
        assert mean.isnan().all() and rstd.isnan().all()  # the mean of nothing
        dx, dweight, dbias = GRAD(x, x, 3, weight, weight, mean, rstd, [True, True, True])
        assert dx.shape == shape
        assert torch.equal(dweight.cpu(), torch.zeros(6)) and torch.equal(dbias.cpu(), torch.zeros(6))


# ---- gradient -----------------------------------------------------------------------------------------------------


def reference_gradients(
    dy: Tensor, x: Tensor, groups: int, weight: Tensor, bias: Tensor, c: float
) -> tuple[Tensor, ...]:
    """Gradients that autograd finds for the reference."""
    trained = [t.detach().cpu().double().requires_grad_() for t in (x, weight, bias)]
    out, _, _ = reference(*trained, groups, swish_scale=c)
    return torch.autograd.grad(out, trained, dy.cpu().double())


@pytest.mark.parametrize("mixed", [False, True], ids=["same", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_gradient(shape: tuple[int, ...], groups: int, dtype: torch.dtype, mixed: bool, device: str) -> None:
    x, weight, bias = inputs(shape, dtype, mixed, device)
    dy = torch.randn(shape).to(dtype).to(device)
    # Statistics in float32, so that the tolerances are those of the formula.
    _, mean, rstd = (t.float().to(device) for t in reference(x.cpu(), weight.cpu(), bias.cpu(), groups))
    found = GRAD(dy, x, groups, weight, bias, mean, rstd, [True, True, True], 1.3)
    expected = reference_gradients(dy, x, groups, weight, bias, 1.3)
    sizes = [float(rstd.max()) * 4, math.prod(shape) ** 0.5, math.prod(shape) ** 0.5]
    for actual, wanted, like, size in zip(found, expected, (x, weight, bias), sizes, strict=True):
        assert actual.shape == like.shape and actual.dtype == like.dtype and actual.device == like.device
        tolerance = {"rtol": RTOL[like.dtype], "atol": 1e-5 * max(size, 1)}
        torch.testing.assert_close(actual.cpu().double(), wanted, **tolerance)


@pytest.mark.parametrize("mask", [[True, True, False], [True, False, True], [False, False, False]])
def test_gradient_mask(mask: list[bool], device: str) -> None:
    x, weight, bias = inputs((3, 6, 5), torch.float32, False, device)
    dy = torch.randn(3, 6, 5, device=device)
    _, mean, rstd = SWISH(x, 2, weight, bias)
    every = GRAD(dy, x, 2, weight, bias, mean, rstd, [True, True, True])
    found = GRAD(dy, x, 2, weight, bias, mean, rstd, mask)
    assert torch.equal(found[0].cpu(), every[0].cpu())
    for actual, whole, wanted in zip(found[1:], every[1:], mask[1:], strict=True):
        assert torch.equal(actual.cpu(), whole.cpu() if wanted else torch.zeros(6))


@pytest.mark.parametrize("mixed", [False, True], ids=["same", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_autograd(dtype: torch.dtype, mixed: bool, device: str) -> None:
    arguments = [t.requires_grad_() for t in inputs((3, 8, 6, 5), dtype, mixed, device)]
    x, weight, bias = arguments
    out, mean, rstd = SWISH(x, 2, weight, bias, swish_scale=0.8)
    assert out.requires_grad and not mean.requires_grad and not rstd.requires_grad
    dy = torch.randn(3, 8, 6, 5).to(dtype).to(device)
    out.backward(dy)
    expected = reference_gradients(dy, x, 2, weight, bias, 0.8)
    # mean and rstd are saved in the dtype of the weight, as the operator returns them.
    exact = weight.dtype == torch.float32
    for argument, wanted in zip(arguments, expected, strict=True):
        assert argument.grad is not None and argument.grad.dtype == argument.dtype
        rtol = RTOL[argument.dtype] if exact else 4 * RTOL[dtype]
        atol = 1e-4 if exact else 4 * RTOL[dtype] * float(wanted.abs().max())
        torch.testing.assert_close(argument.grad.cpu().double(), wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_autograd_of_one_argument(wanted: int, device: str) -> None:
    arguments = inputs((3, 8, 5), torch.float32, False, device)
    arguments[wanted].requires_grad_()
    SWISH(arguments[0], 2, *arguments[1:])[0].sum().backward()
    assert [t.grad is not None for t in arguments] == [i == wanted for i in range(3)]


def test_second_derivative_is_refused(device: str) -> None:
    x, weight, bias = inputs((3, 8, 5), torch.float32, False, device)
    x.requires_grad_()
    (dx,) = torch.autograd.grad(SWISH(x, 2, weight, bias)[0].square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="npu_group_norm_swish has no second derivative"):
        dx.sum().backward()


def test_gradient_is_the_limit_of_differences(device: str) -> None:
    """A check that does not lean on autograd's idea of the formula."""
    arguments = inputs((2, 4, 3), torch.float32, False, device)
    dy = torch.randn(2, 4, 3)
    x, weight, bias = arguments
    _, mean, rstd = SWISH(x, 2, weight, bias)
    found = GRAD(dy.to(device), x, 2, weight, bias, mean, rstd, [True, True, True], 1.0)
    step = 1e-6
    for argument, gradient in enumerate(found):
        for i in range(gradient.numel()):
            ends = []
            for sign in (1, -1):
                moved = [t.cpu().double() for t in arguments]
                moved[argument].view(-1)[i] += sign * step
                ends.append((reference(*moved, 2)[0] * dy).sum())
            slope = (ends[0] - ends[1]) / (2 * step)
            torch.testing.assert_close(gradient.cpu().double().view(-1)[i], slope, rtol=1e-4, atol=2e-5)


# ---- instruction sets, threads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kernel_table(isa: str, dtype: torch.dtype) -> None:
    shapes = [*((2, 6, spatial) for spatial in (*range(1, 20), 63, 64, 65, 1399)), *((2, 2 * c) for c in range(1, 36))]
    for shape in (*shapes, (1, 2, 9001)):
        x, weight, bias = inputs(shape, dtype, False)
        dy = torch.randn(shape).to(dtype)
        out, mean, rstd = SWISH(x, 2, weight, bias, swish_scale=1.3)
        expected = reference(x, weight, bias, 2, swish_scale=1.3)
        for actual, wanted in zip((out, mean, rstd), expected, strict=True):
            torch.testing.assert_close(actual.double(), wanted, rtol=RTOL[dtype], atol=1e-5)
        statistics = [t.float() for t in expected[1:]]
        found = GRAD(dy, x, 2, weight, bias, *statistics, [True, True, True], 1.3)
        for actual, wanted in zip(found, reference_gradients(dy, x, 2, weight, bias, 1.3), strict=True):
            size = max(1.0, float(wanted.abs().max()), float(statistics[1].max()))
            torch.testing.assert_close(actual.double(), wanted, rtol=RTOL[dtype], atol=2e-5 * size)


def test_results_do_not_depend_on_threads() -> None:
    x, weight, bias = inputs((3, 32, 50, 51), torch.bfloat16, False)
    dy = torch.randn(3, 32, 50, 51).bfloat16()
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found = SWISH(x, 8, weight, bias)
            results.append([*found, *GRAD(dy, x, 8, weight, bias, *found[1:], [True, True, True])])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# ---- errors -------------------------------------------------------------------------------------------------------


def test_errors_name_operator_and_argument(device: str) -> None:
    def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    x, w, s = ones(2, 6, 5), ones(6), ones(2, 3)
    half, mask = torch.float16, [True, True, True]
    for call, message in [
        (
            lambda: SILU(ones(6), w, w, 3),
            r"npu_group_norm_silu: argument input: expected 2 to 8 dims .* got shape \[6\]",
        ),
        (lambda: SILU(ones(*[1] * 9), None, None, 1), "argument input: expected 2 to 8 dims"),
        (lambda: SILU(x.double(), w, w, 3), "argument input: expected dtype float16, bfloat16 or float32, got float64"),
        (lambda: SILU(x, w, w, 4), r"argument group: expected a divisor of the channels; input has shape \[2, 6, 5\]"),
        (lambda: SILU(x, w, w, 0), "argument group: expected a positive number of groups, got 0"),
        (lambda: SILU(x, w, w, 3, 0.0), "argument eps: expected a positive number, got 0"),
        (lambda: SILU(x, ones(5), w, 3), r"argument weight: expected shape \[6\] \(the channels\), got \[5\]"),
        (lambda: SILU(x, w, ones(6, 1), 3), r"argument bias: expected shape \[6\]"),
        (lambda: SILU(x, w.half(), w.half(), 3), "argument weight: expected dtype float32 .* got float16"),
        (lambda: SILU(x.half(), w.half(), w, 3), r"argument bias: expected dtype float16 \(as weight\), got float32"),
        (lambda: SWISH(x, 4, w, w), "npu_group_norm_swish: argument num_groups: expected a divisor"),
        (lambda: SWISH(x, 3, w, w, -1.0), "npu_group_norm_swish: argument eps: expected a positive number"),
        (lambda: GRAD(x.half(), x, 3, w, w, s, s, mask), "npu_group_norm_swish_grad: argument grad: expected dtype"),
        (lambda: GRAD(ones(2, 6, 4), x, 3, w, w, s, s, mask), r"argument grad: expected shape \[2, 6, 5\]"),
        (lambda: GRAD(x, x, 3, w, w, ones(2, 2), s, mask), r"argument mean: expected shape \[2, 3\] \(N, num_groups\)"),
        (lambda: GRAD(x, x, 3, w, w, s, ones(3, 2), mask), "argument rstd: expected shape"),
        (lambda: GRAD(x, x, 3, w, w, s, ones(2, 3, dtype=half), mask), "argument rstd: expected dtype float32"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_meta_tensors_raise_the_same_errors() -> None:
    x, w, s = (torch.ones(shape, device="meta") for shape in ((2, 6, 5), (6,), (2, 3)))
    for call, message in [
        (lambda: SILU(w, w, w, 3), "npu_group_norm_silu: argument input: expected 2 to 8 dims"),
        (lambda: SILU(x, w, w, 4), "argument group: expected a divisor of the channels"),
        (lambda: SILU(x, w, w, 0), "argument group: expected a positive number of groups"),
        (lambda: SILU(x, w, w, 3, -1.0), "argument eps: expected a positive number"),
        (lambda: SWISH(x, 3, w, s), "npu_group_norm_swish: argument bias: expected shape"),
        (lambda: GRAD(x, x, 4, w, w, s, s, [True, True, True]), "npu_group_norm_swish_grad: argument num_groups"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_devices_must_agree() -> None:
    import torch_npu  # noqa: F401

    x, w = torch.ones(2, 6, 5), torch.ones(6)
    message = "^Expected all tensors to be on the same device, but found at least two devices, "
    with pytest.raises(RuntimeError, match=message + r"npu:0 and cpu! \(when checking argument weight"):
        SILU(x.npu(), w, w.npu(), 3)
    with pytest.raises(RuntimeError, match=message + r"cpu and npu:0! \(when checking argument bias"):
        SWISH(x, 3, w, w.npu())
