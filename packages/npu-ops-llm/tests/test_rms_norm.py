"""npu_rms_norm, its gradient and npu_gemma_rms_norm against the formula in float64."""

import pytest
import torch
from torch import Tensor

RMS_NORM = torch.ops.npu.npu_rms_norm
BACKWARD = torch.ops.npu.npu_rms_norm_backward
GEMMA = torch.ops.npu.npu_gemma_rms_norm

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Half a unit in the last place of the result, plus float32 sums for all.
RTOL = {torch.float32: 4e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
ATOL = {torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 2**-24}

SHAPES = [
    # (shape of self, dims of gamma)
    ((4,), 1),
    ((3, 1), 1),
    ((2, 7), 1),
    ((5, 64), 1),
    ((3, 2, 129), 1),
    ((4, 5, 6, 7), 2),
    ((4, 5, 6, 7), 4),
    ((2, 3), 0),
    ((), 0),
    ((1, 4099), 1),
    ((257, 1031), 1),
    ((2, 20011), 1),
    ((130, 2048), 1),
]


def reference(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """The formula of the specification in float64, with the norm over gamma's dims."""
    x, gamma = x.double(), gamma.double()
    leading = x.dim() - gamma.dim()
    flat = x.reshape([*x.shape[:leading], -1])
    rstd = 1 / (flat.square().mean(-1) + epsilon).sqrt()
    rstd = rstd.reshape([*x.shape[:leading], *[1] * gamma.dim()])
    return x * rstd * gamma, rstd


def reference_backward(dy: Tensor, x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Gradients that autograd finds for the reference."""
    x, gamma = x.detach().double().requires_grad_(), gamma.detach().double().requires_grad_()
    y, _ = reference(x, gamma, epsilon)
    return torch.autograd.grad(y, (x, gamma), dy.double(), materialize_grads=True)


def inputs(shape: tuple[int, ...], gamma_dim: int, dtype: torch.dtype, mixed: bool, device: str) -> list[Tensor]:
    x = torch.randn(shape) * 3
    gamma = torch.randn(shape[len(shape) - gamma_dim :])
    return [x.to(dtype).to(device), gamma.to(torch.float32 if mixed else dtype).to(device)]


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype, scale: float = 1.0) -> None:
    torch.testing.assert_close(
        actual.cpu().double(), expected.cpu(), rtol=RTOL[dtype] * scale, atol=ATOL[dtype] * scale, equal_nan=True
    )


@pytest.mark.parametrize("mixed", [False, True], ids=["same", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "gamma_dim"), SHAPES)
def test_forward(shape: tuple[int, ...], gamma_dim: int, dtype: torch.dtype, mixed: bool, device: str) -> None:
    x, gamma = inputs(shape, gamma_dim, dtype, mixed, device)
    y, rstd = RMS_NORM(x, gamma, 1e-5)
    expected_y, expected_rstd = reference(x.cpu(), gamma.cpu(), 1e-5)
    assert y.dtype == dtype and y.shape == x.shape and y.device == x.device and y.is_contiguous()
    assert rstd.dtype == torch.float32 and rstd.device == x.device
    assert rstd.shape == expected_rstd.shape
    assert_near(y, expected_y, dtype)
    assert_near(rstd, expected_rstd, torch.float32)


@pytest.mark.parametrize("mixed", [False, True], ids=["same", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "gamma_dim"), SHAPES)
def test_backward(shape: tuple[int, ...], gamma_dim: int, dtype: torch.dtype, mixed: bool, device: str) -> None:
    x, gamma = inputs(shape, gamma_dim, dtype, mixed, device)
    dy = torch.randn(shape).to(dtype).to(device)
    _, rstd = RMS_NORM(x, gamma)
    dx, dgamma = BACKWARD(dy, x, gamma, rstd)
    expected_dx, expected_dgamma = reference_backward(dy.cpu(), x.cpu(), gamma.cpu())
    assert dx.dtype == dtype and dx.shape == x.shape and dx.device == x.device
    assert dgamma.dtype == torch.float32 and dgamma.shape == gamma.shape and dgamma.device == x.device
    # dx is a difference of terms of size dy * gamma * rstd: its error is relative to those.
    size = float((dy.cpu().double() * gamma.cpu().double()).abs().max() * rstd.max()) if dy.numel() else 1.0
    torch.testing.assert_close(
        dx.cpu().double(), expected_dx, rtol=RTOL[dtype], atol=4e-6 * max(size, 1.0) + ATOL[dtype]
    )
    rows = rstd.numel()
    torch.testing.assert_close(dgamma.cpu().double(), expected_dgamma, rtol=2e-5, atol=2e-6 * max(rows, 1) ** 0.5)


def test_specification_example(device: str) -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], device=device)
    gamma = torch.tensor([1.0, 0.5, 2.0, 1.0], device=device)
    y, rstd = RMS_NORM(x, gamma)
    torch.testing.assert_close(rstd.cpu(), torch.tensor([0.365148]), rtol=0, atol=1e-6)
    torch.testing.assert_close(y.cpu(), torch.tensor([0.365148, 0.365148, 2.190890, 1.460593]), rtol=0, atol=1e-6)


def test_default_epsilon_counts(device: str) -> None:
    x = torch.zeros(2, 3, device=device)
    _, rstd = RMS_NORM(x, torch.ones(3, device=device))
    torch.testing.assert_close(rstd.cpu(), torch.full((2, 1), 1000.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_non_contiguous(dtype: torch.dtype, device: str) -> None:
    x = torch.randn(48, 33).to(dtype).to(device).t()
    gamma = torch.randn(96).to(dtype).to(device)[::2]
    dy = torch.randn(48).to(dtype).to(device).expand(33, 48)
    assert not (x.is_contiguous() or gamma.is_contiguous() or dy.is_contiguous())
    y, rstd = RMS_NORM(x, gamma)
    dx, dgamma = BACKWARD(dy, x, gamma, rstd)
    packed = [t.contiguous() for t in (x, gamma, dy)]
    packed_y, packed_rstd = RMS_NORM(packed[0], packed[1])
    packed_dx, packed_dgamma = BACKWARD(packed[2], packed[0], packed[1], packed_rstd)
    for actual, expected in [(y, packed_y), (rstd, packed_rstd), (dx, packed_dx), (dgamma, packed_dgamma)]:
        assert torch.equal(actual.cpu(), expected.cpu())
    assert_near(y, reference(x.cpu(), gamma.cpu())[0], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unaligned_storage(dtype: torch.dtype, device: str) -> None:
    x = torch.randn(1 + 5 * 37).to(dtype).to(device)[1:].view(5, 37)
    gamma = torch.randn(38).to(dtype).to(device)[1:]
    assert_near(RMS_NORM(x, gamma)[0], reference(x.cpu(), gamma.cpu())[0], dtype)


def test_no_rows(device: str) -> None:
    x = torch.empty(0, 3, 8, device=device)
    gamma = torch.ones(8, device=device)
    y, rstd = RMS_NORM(x, gamma)
    assert y.shape == (0, 3, 8) and rstd.shape == (0, 3, 1)
    dx, dgamma = BACKWARD(x, x, gamma, rstd)
    assert dx.shape == (0, 3, 8)
    assert torch.equal(dgamma.cpu(), torch.zeros(8))


def test_no_columns(device: str) -> None:
    x = torch.empty(3, 0, device=device)
    gamma = torch.ones(0, device=device)
    y, rstd = RMS_NORM(x, gamma)
    assert y.shape == (3, 0)
    assert rstd.shape == (3, 1) and rstd.isnan().all()  # the mean of nothing, as torch has it
    dx, dgamma = BACKWARD(x, x, gamma, rstd)
    assert dx.shape == (3, 0) and dgamma.shape == (0,)


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_and_nan(dtype: torch.dtype, device: str) -> None:
    x = torch.tensor([[1.0, float("inf"), 2.0], [1.0, float("nan"), 2.0], [1.0, 2.0, 3.0]]).to(dtype).to(device)
    gamma = torch.ones(3, dtype=dtype, device=device)
    y, rstd = RMS_NORM(x, gamma)
    expected_y, expected_rstd = reference(x.cpu(), gamma.cpu())
    assert_near(rstd, expected_rstd, torch.float32)
    assert_near(y, expected_y, dtype)


def test_large_float16_values_do_not_overflow(device: str) -> None:
    x = torch.full((2, 64), 60000.0, dtype=torch.float16, device=device)
    y, _ = RMS_NORM(x, torch.ones(64, dtype=torch.float16, device=device))
    torch.testing.assert_close(y.cpu(), torch.ones(2, 64, dtype=torch.float16))


def test_long_rows_keep_float32_accuracy(device: str) -> None:
    x = torch.rand(1, 3_000_017) + 1
    _, rstd = RMS_NORM(x.to(device), torch.ones(3_000_017, device=device))
    torch.testing.assert_close(rstd.cpu().double(), reference(x, torch.ones(3_000_017))[1], rtol=3e-7, atol=0)


# ---- npu_gemma_rms_norm -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixed", [False, True], ids=["same", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "gamma_dim"), SHAPES)
def test_gemma(shape: tuple[int, ...], gamma_dim: int, dtype: torch.dtype, mixed: bool, device: str) -> None:
    x, gamma = inputs(shape, gamma_dim, dtype, mixed, device)
    y, rstd = GEMMA(x, gamma, 1e-5)
    expected_y, expected_rstd = reference(x.cpu(), 1 + gamma.cpu().double(), 1e-5)
    assert y.dtype == dtype and y.shape == x.shape and y.device == x.device and y.is_contiguous()
    assert rstd.dtype == torch.float32 and rstd.shape == expected_rstd.shape
    # gamma near -1 cancels in 1 + gamma: there the error is one of gamma's own size.
    torch.testing.assert_close(y.cpu().double(), expected_y, rtol=RTOL[dtype], atol=ATOL[dtype] * 4)
    assert torch.equal(rstd.cpu(), RMS_NORM(x, gamma, 1e-5)[1].cpu())


def test_gemma_specification_example(device: str) -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], device=device)
    y, _ = GEMMA(x, torch.tensor([1.0, 0.5, 2.0, 1.0], device=device))
    torch.testing.assert_close(y.cpu(), torch.tensor([0.730297, 1.095445, 3.286335, 2.921187]), rtol=0, atol=1e-6)


def test_gemma_is_the_norm_with_gamma_plus_one(isa: str) -> None:
    for dtype in DTYPES:
        x, gamma = inputs((7, 77), 1, dtype, True, "cpu")
        assert torch.equal(GEMMA(x.t().contiguous().t(), gamma)[0], RMS_NORM(x, gamma + 1)[0])


def test_gemma_errors(device: str) -> None:
    x = torch.ones(2, 3, device=device)
    for gamma, message in [
        (torch.ones(4, device=device), r"npu_gemma_rms_norm: argument gamma: .* self has shape \[2, 3\]"),
        (torch.ones(1, 2, 3, device=device), "npu_gemma_rms_norm: argument gamma: The gamma shape should not be big"),
        (torch.ones(3, device=device).half(), "npu_gemma_rms_norm: argument gamma: expected dtype float32"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            GEMMA(x, gamma)


# ---- autograd ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixed", [False, True], ids=["same", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_autograd(dtype: torch.dtype, mixed: bool, device: str) -> None:
    x, gamma = inputs((6, 5, 40), 2, dtype, mixed, device)
    x.requires_grad_(), gamma.requires_grad_()
    y, rstd = RMS_NORM(x, gamma)
    assert y.requires_grad and not rstd.requires_grad
    dy = torch.randn(6, 5, 40).to(dtype).to(device)
    y.backward(dy)
    expected_dx, expected_dgamma = reference_backward(dy.cpu(), x.cpu(), gamma.cpu())
    assert x.grad is not None and x.grad.dtype == dtype
    assert gamma.grad is not None and gamma.grad.dtype == gamma.dtype
    torch.testing.assert_close(x.grad.cpu().double(), expected_dx, rtol=RTOL[dtype], atol=1e-5)
    torch.testing.assert_close(gamma.grad.cpu().double(), expected_dgamma, rtol=RTOL[gamma.dtype] * 8, atol=1e-4)


@pytest.mark.parametrize("wanted", ["self", "gamma"])
def test_autograd_of_one_argument(wanted: str, device: str) -> None:
    x, gamma = inputs((3, 8), 1, torch.float32, False, device)
    (x if wanted == "self" else gamma).requires_grad_()
    RMS_NORM(x, gamma)[0].sum().backward()
    assert (x.grad is not None) == (wanted == "self")
    assert (gamma.grad is not None) == (wanted == "gamma")


def test_gradient_is_the_limit_of_differences(device: str) -> None:
    """A check that does not lean on autograd's idea of the formula."""
    x, gamma = inputs((2, 5), 1, torch.float32, False, device)
    dy = torch.randn(2, 5)
    dx, dgamma = BACKWARD(dy.to(device), x, gamma, RMS_NORM(x, gamma)[1])
    step = 1e-6
    for argument, gradient in ((0, dx), (1, dgamma)):
        for i in range(gradient.numel()):
            ends = []
            for sign in (1, -1):
                moved = [x.cpu().double(), gamma.cpu().double()]
                moved[argument].view(-1)[i] += sign * step
                ends.append((reference(*moved)[0] * dy).sum())
            slope = (ends[0] - ends[1]) / (2 * step)
            torch.testing.assert_close(gradient.cpu().double().view(-1)[i], slope, rtol=1e-4, atol=1e-5)


def test_second_derivative_is_refused(device: str) -> None:
    x, gamma = (t.requires_grad_() for t in inputs((3, 8), 1, torch.float32, False, device))
    (dx,) = torch.autograd.grad(RMS_NORM(x, gamma)[0].square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="npu_rms_norm has no second derivative"):
        dx.sum().backward()


def test_gradient_of_gamma_does_not_depend_on_threads() -> None:
    x, gamma = inputs((700, 1000), 1, torch.bfloat16, False, "cpu")
    dy = torch.randn(700, 1000).to(torch.bfloat16)
    rstd = RMS_NORM(x, gamma)[1]
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(BACKWARD(dy, x, gamma, rstd))
    finally:
        torch.set_num_threads(threads)
    for dx, dgamma in results[1:]:
        assert torch.equal(dx, results[0][0]) and torch.equal(dgamma, results[0][1])


# ---- instruction sets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixed", [False, True], ids=["same", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kernel_table(isa: str, dtype: torch.dtype, mixed: bool) -> None:
    for columns in (*range(1, 20), 63, 64, 65, 8192, 8193 + 17):
        x, gamma = inputs((3, columns), 1, dtype, mixed, "cpu")
        dy = torch.randn(3, columns).to(dtype)
        y, rstd = RMS_NORM(x, gamma)
        expected_y, expected_rstd = reference(x, gamma)
        assert_near(y, expected_y, dtype)
        assert_near(rstd, expected_rstd, torch.float32)
        dx, dgamma = BACKWARD(dy, x, gamma, rstd)
        expected_dx, expected_dgamma = reference_backward(dy, x, gamma)
        size = float((dy.double() * gamma.double()).abs().max() * rstd.max())
        torch.testing.assert_close(dx.double(), expected_dx, rtol=RTOL[dtype], atol=4e-6 * max(size, 1.0) + ATOL[dtype])
        torch.testing.assert_close(dgamma.double(), expected_dgamma, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 0.75, 1.0 + 2**-9, 1.0 + 2**-11, 2.0**-13])
def test_every_16_bit_value_is_converted_exactly(isa: str, scale: float, dtype: torch.dtype) -> None:
    """With self = 0 and rstd = 1, dx is dy * gamma rounded once: denormals, halfway cases, overflow."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    dy = every[every.isfinite()].contiguous()[:, None]
    zero = torch.zeros_like(dy)
    gamma = torch.tensor([scale])
    _, rstd = RMS_NORM(zero, gamma, 1.0)
    assert torch.equal(rstd, torch.ones(len(dy), 1))
    dx, _ = BACKWARD(dy, zero, gamma, rstd)
    # == does not tell -0 from 0: dy * gamma - 0 * mean is +0 or -0 by the sign of the mean.
    assert torch.equal(dx, (dy.float() * scale).to(dtype))


# ---- torch.compile and friends ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mixed", [False, True], ids=["same", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype, mixed: bool, device: str) -> None:
    tests = ["test_schema", "test_faketensor", "test_aot_dispatch_dynamic"]
    if device == "cpu":  # torch has this one for CPU, CUDA and XPU only
        tests.append("test_autograd_registration")
    x, gamma = inputs((4, 3, 16), 1, dtype, mixed, device)
    rstd = RMS_NORM(x, gamma)[1]
    trained = (x.clone().requires_grad_(), gamma.clone().requires_grad_())
    torch.library.opcheck(RMS_NORM.default, (x, gamma, 1e-5), test_utils=tests)
    torch.library.opcheck(RMS_NORM.default, trained, test_utils=tests)
    torch.library.opcheck(BACKWARD.default, (torch.randn_like(x), x, gamma, rstd), test_utils=tests)


def test_compiled(device: str) -> None:
    x, gamma = (t.requires_grad_() for t in inputs((6, 24), 1, torch.float32, False, device))

    def model(x: Tensor, gamma: Tensor) -> Tensor:
        return (RMS_NORM(x * 2, gamma)[0] + 1).square().sum()

    expected = torch.autograd.grad(model(x, gamma), (x, gamma))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for actual, wanted in zip(torch.autograd.grad(compiled(x, gamma), (x, gamma)), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_compiled_with_dynamic_shapes(device: str) -> None:
    compiled = torch.compile(lambda x, g: RMS_NORM(x, g), backend="aot_eager", fullgraph=True, dynamic=True)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows, columns in ((4, 16), (7, 24), (5, 40)):
            x, gamma = inputs((rows, columns), 1, torch.float32, False, device)
            for actual, wanted in zip(compiled(x, gamma), RMS_NORM(x, gamma), strict=True):
                torch.testing.assert_close(actual, wanted)


def test_meta_tensors_have_the_right_shapes() -> None:
    x = torch.empty(2, 3, 4, 5, dtype=torch.float16, device="meta")
    y, rstd = RMS_NORM(x, torch.empty(4, 5, dtype=torch.float16, device="meta"))
    assert y.shape == x.shape and y.dtype == torch.float16
    assert rstd.shape == (2, 3, 1, 1) and rstd.dtype == torch.float32
    with pytest.raises(RuntimeError, match="npu_rms_norm: argument gamma: expected the shape of self's last dims"):
        RMS_NORM(x, torch.empty(5, 5, dtype=torch.float16, device="meta"))
    with pytest.raises(RuntimeError, match="The gamma shape should not be bigger than self shape"):
        RMS_NORM(x, torch.empty(1, 2, 3, 4, 5, dtype=torch.float16, device="meta"))


# ---- errors -----------------------------------------------------------------------------------------------------


def test_errors_name_operator_and_argument(device: str) -> None:
    def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    x, gamma, rstd = ones(2, 3), ones(3), ones(2, 1)
    half, double = torch.float16, torch.float64
    for call, message in [
        (lambda: RMS_NORM(x, ones(1, 2, 3)), "npu_rms_norm: argument gamma: The gamma shape should not be bigger"),
        (lambda: RMS_NORM(x, ones(4)), r"npu_rms_norm: argument gamma: .* self has shape \[2, 3\], gamma has shape"),
        (lambda: RMS_NORM(ones(2, 3, dtype=double), gamma), "npu_rms_norm: argument self: .* got float64"),
        (lambda: RMS_NORM(x, ones(3, dtype=half)), "npu_rms_norm: argument gamma: expected dtype float32"),
        (
            lambda: RMS_NORM(ones(2, 3, dtype=half), ones(3, dtype=torch.bfloat16)),
            r"npu_rms_norm: argument gamma: expected dtype float16 \(as self\) or float32, got bfloat16",
        ),
        (lambda: BACKWARD(ones(2, 4), x, gamma, rstd), r"npu_rms_norm_backward: argument dy: expected shape \[2, 3\]"),
        (lambda: BACKWARD(ones(2, 3, dtype=half), x, gamma, rstd), "argument dy: expected dtype float32 .* float16"),
        (lambda: BACKWARD(x, x, gamma, ones(2)), r"argument rstd: expected shape \[2, 1\], got \[2\]"),
        (lambda: BACKWARD(x, x, gamma, ones(2, 1, dtype=half)), "argument rstd: expected dtype float32, got float16"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_errors_carry_the_code_of_operator_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_NPU_COMPACT_ERROR_OUTPUT", raising=False)
    pattern = r"\n\[ERROR\] [0-9\-\:]* \(PID:\d*, Device:\-?\d*, RankID:\-?\d*\) ERR01001 OPS invalid parameter"
    with pytest.raises(RuntimeError, match=pattern):
        RMS_NORM(torch.ones(2, 3), torch.ones(4))


def test_devices_must_agree() -> None:
    import torch_npu  # noqa: F401

    x, gamma = torch.ones(2, 3), torch.ones(3)
    message = "^Expected all tensors to be on the same device, but found at least two devices, "
    with pytest.raises(RuntimeError, match=message + r"npu:0 and cpu! \(when checking argument gamma"):
        RMS_NORM(x.npu(), gamma)
    with pytest.raises(RuntimeError, match=message + "cpu and npu:0!"):
        RMS_NORM(x, gamma.npu())
    with pytest.raises(RuntimeError, match=message + r"npu:0 and cpu! \(when checking argument rstd"):
        BACKWARD(x.npu(), x.npu(), gamma.npu(), torch.ones(2, 1))
