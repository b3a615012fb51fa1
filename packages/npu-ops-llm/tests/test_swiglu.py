"""npu_swiglu and its gradient against the formula in float64.  Quantising forms: test_swiglu_quant.py."""

import pytest
import torch
from torch import Tensor

SWIGLU = torch.ops.npu.npu_swiglu
BACKWARD = torch.ops.npu.npu_swiglu_backward

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Half a unit in the last place of the result and a few of float32.
RTOL = {torch.float32: 2e-6, torch.bfloat16: 2**-8 + 1e-6, torch.float16: 2**-11 + 1e-6}
ATOL = {torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 2**-24 + 1e-6}

CASES = [
    # (shape of self, dim)
    ((4,), 0),
    ((2,), -1),
    ((3, 2), -1),
    ((5, 34), 1),
    ((2, 3, 66), -1),
    ((4, 3, 7), 0),
    ((3, 6, 5), 1),
    ((3, 6, 5), -2),
    ((2, 3, 4, 5, 6), 2),
    ((0, 4), -1),
    ((3, 0), -1),
    ((4, 0), 0),
    ((3, 40022), -1),
    ((2, 70001), 0),
]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def reference(x: Tensor, dim: int = -1) -> Tensor:
    half = x.shape[dim] // 2
    a, b = x.narrow(dim, 0, half), x.narrow(dim, half, half)
    return a / (1 + (-a).exp()) * b


def reference_backward(dy: Tensor, x: Tensor, dim: int = -1) -> Tensor:
    x = x.detach().cpu().double().requires_grad_()
    return torch.autograd.grad(reference(x, dim), x, dy.cpu().double())[0]


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert actual.dtype == dtype and actual.is_contiguous()
    torch.testing.assert_close(actual.cpu().double(), expected.cpu(), rtol=RTOL[dtype], atol=ATOL[dtype])


@every_dtype
@pytest.mark.parametrize(("shape", "dim"), CASES)
def test_forward_and_backward(shape: tuple[int, ...], dim: int, dtype: torch.dtype, device: str) -> None:
    x = (torch.randn(shape) * 2).to(dtype).to(device)
    y = SWIGLU(x, dim)
    assert_near(y, reference(x.cpu().double(), dim), dtype)
    dy = torch.randn(y.shape).to(dtype).to(device)
    assert_near(BACKWARD(dy, x, dim), reference_backward(dy, x, dim), dtype)


def test_default_dim_is_the_last(device: str) -> None:
    x = torch.randn(4, 6, device=device)
    assert torch.equal(SWIGLU(x).cpu(), SWIGLU(x, 1).cpu())
    dy = torch.randn(4, 3, device=device)
    assert torch.equal(BACKWARD(dy, x).cpu(), BACKWARD(dy, x, 1).cpu())


def test_numbers(device: str) -> None:
    x = torch.tensor([1.0, -2.0, 3.0, 0.5], device=device)
    torch.testing.assert_close(SWIGLU(x).cpu(), torch.tensor([2.193176, -0.119203]), rtol=0, atol=1e-6)


def test_strided_inputs(device: str) -> None:
    wide = torch.randn(4, 6, 50, device=device)
    views = [
        (wide[:, :, 7:33], -1),
        (wide.transpose(0, 1), -1),
        (wide.transpose(1, 2), 1),
        (wide[::2], 1),
        (wide[:, :, ::5], -1),
        (wide[:1].expand(6, 6, 50), 2),
        (wide.permute(2, 0, 1), 0),
    ]
    for x, dim in views:
        y = SWIGLU(x, dim)
        assert torch.equal(y.cpu(), SWIGLU(x.contiguous(), dim).cpu())
        dy = torch.randn([*y.shape, 2], device=device)[..., 0].transpose(0, 1).contiguous().transpose(0, 1)
        assert torch.equal(BACKWARD(dy, x, dim).cpu(), BACKWARD(dy.contiguous(), x.contiguous(), dim).cpu())


@every_dtype
def test_every_kernel_table(dtype: torch.dtype, isa: str) -> None:
    for columns in (*range(1, 36), 63, 64, 65, 1000):
        memory = torch.randn(3 * 2 * columns + 1).to(dtype)
        x = memory[1:].view(3, 2 * columns)  # unaligned
        dy = torch.randn(3, columns).to(dtype)
        assert_near(SWIGLU(x), reference(x.double()), dtype)
        assert_near(BACKWARD(dy, x), reference_backward(dy, x), dtype)


def test_results_do_not_depend_on_threads() -> None:
    x, dy = torch.randn(37, 6002), torch.randn(37, 3001)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append((SWIGLU(x), BACKWARD(dy, x)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@every_dtype
@pytest.mark.parametrize("dim", [-1, 0])
def test_autograd(dim: int, dtype: torch.dtype, device: str) -> None:
    x = torch.randn(6, 34).to(dtype).to(device).requires_grad_()
    y = SWIGLU(x, dim)
    dy = torch.randn(y.shape).to(dtype).to(device)
    y.backward(dy)
    assert x.grad is not None
    assert_near(x.grad, reference_backward(dy, x, dim), dtype)


def test_second_derivative_is_refused() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    (dx,) = torch.autograd.grad(SWIGLU(x).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="npu_swiglu has no second derivative"):
        dx.sum().backward()


def test_errors(device: str) -> None:
    x, dy = torch.randn(4, 6, device=device), torch.randn(4, 3, device=device)
    for call, message in [
        (lambda: SWIGLU(x, 2), "npu_swiglu: argument dim: dim out of range"),
        (lambda: SWIGLU(x, -3), "npu_swiglu: argument dim: dim out of range"),
        (lambda: SWIGLU(x[0, 0], 0), "dim out of range"),
        (lambda: SWIGLU(x[:3], 0), r"npu_swiglu: argument self: expected an even size of dim 0, got shape \[3, 6\]"),
        (lambda: SWIGLU(x.double()), "npu_swiglu: argument self: .* got float64"),
        (lambda: BACKWARD(dy, x, 3), "npu_swiglu_backward: argument dim: dim out of range"),
        (lambda: BACKWARD(x, x), r"npu_swiglu_backward: argument grad_output: expected shape \[4, 3\]"),
        (lambda: BACKWARD(dy.half(), x), r"argument grad_output: expected dtype float32 \(as self\), got float16"),
        (lambda: SWIGLU(x.to("meta"), 2), "npu_swiglu: argument dim: dim out of range"),
        (lambda: SWIGLU(x[:3].to("meta"), 0), "npu_swiglu: argument self: expected an even size of dim 0"),
        (lambda: BACKWARD(x.to("meta"), x.to("meta")), "npu_swiglu_backward: argument grad_output: expected shape"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_devices_must_agree() -> None:
    import torch_npu  # noqa: F401

    with pytest.raises(RuntimeError, match="^Expected all tensors to be on the same device.* npu:0 and cpu!"):
        BACKWARD(torch.ones(2, 3), torch.ones(2, 6).npu())


def test_many_dims(device: str) -> None:
    x = torch.randn(*[2] * 9, 6).to(device).permute(8, 6, 4, 2, 0, 7, 5, 3, 1, 9)
    y = torch.ops.npu.npu_swiglu(x)
    assert torch.equal(y.cpu(), torch.ops.npu.npu_swiglu(x.contiguous()).cpu())
    dy = torch.randn(*[2] * 9, 3).to(device).permute(7, 6, 4, 2, 0, 8, 5, 3, 1, 9)
    dx = torch.ops.npu.npu_swiglu_backward(dy, x)
    assert torch.equal(dx.cpu(), torch.ops.npu.npu_swiglu_backward(dy.contiguous(), x.contiguous()).cpu())


def test_fake_kernels_refuse_dtypes() -> None:
    x, y = torch.ones(2, 4, device="meta"), torch.ones(2, 2, device="meta")
    for call, message in (
        (lambda: torch.ops.npu.npu_swiglu(x.double()), "npu_swiglu: argument self: expected dtype .* got float64"),
        (
            lambda: torch.ops.npu.npu_swiglu_backward(y, x.double()),
            "npu_swiglu_backward: argument self: expected dtype",
        ),
        (lambda: torch.ops.npu.npu_swiglu_backward(y.half(), x), "grad_output: expected dtype float32 .as self., got"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
