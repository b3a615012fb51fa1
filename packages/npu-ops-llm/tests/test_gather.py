"""npu_gather_sparse_index and its gradient against indexing and index_add of torch."""

from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

GATHER = torch.ops.npu.npu_gather_sparse_index
BACKWARD = torch.ops.npu.npu_gather_sparse_index_backward
PROPERTY = settings(
    deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
INTEGERS = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool]
COMPLEX = [torch.complex64, torch.complex128]

SHAPES = [
    # shape of input, shape of index
    ((5,), (3,)),
    ((5, 7), (4,)),
    ((5, 7), (2, 3)),
    ((5, 2, 3), ()),
    ((1, 4), (6,)),
    ((300, 129), (1000,)),
    ((3, 40000), (2,)),
    ((9, 4099), (33,)),
    ((4, 2, 2, 2, 2, 2, 2), (2, 3)),
]


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def same(actual: Tensor, expected: Tensor) -> None:
    """Bit for bit."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert torch.equal(bits(actual), bits(expected))


def numbers(*shape: int, dtype: torch.dtype) -> Tensor:
    if dtype in INTEGERS:
        return torch.randint(0, 2 if dtype == torch.bool else 100, shape).to(dtype)
    return torch.randn(shape, dtype=dtype if dtype in COMPLEX else torch.float64).to(dtype)


def indices(rows: int, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(0, rows, shape, dtype=dtype)


def reference_backward(grad: Tensor, sizes: tuple[int, ...], index: Tensor) -> Tensor:
    """The definition, in float64 for 16-bit types."""
    wide = grad.double() if grad.dtype in (torch.float16, torch.bfloat16) else grad
    zeros = torch.zeros(sizes, dtype=wide.dtype)
    return zeros.index_add_(0, index.flatten().long(), wide.reshape(-1, *sizes[1:]))


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("shape", "index_shape"), SHAPES)
def test_forward(shape: tuple[int, ...], index_shape: tuple[int, ...], index_dtype: torch.dtype, device: str) -> None:
    x, index = torch.randn(shape), indices(shape[0], index_shape, index_dtype)
    out = GATHER(x.to(device), index.to(device))
    same(out, x[index.long()])
    assert out.is_contiguous() and out.device.type == device


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, *COMPLEX, torch.float8_e4m3fn])
def test_forward_of_every_dtype(dtype: torch.dtype, device: str) -> None:
    x = numbers(6, 11, dtype=torch.float32).to(dtype)
    index = indices(6, (9,))
    expected = x.view(torch.uint8).reshape(6, -1)[index].reshape(-1)
    assert torch.equal(bits(GATHER(x.to(device), index.to(device))), expected)


def test_input_without_dims_is_the_output(device: str) -> None:
    x = torch.tensor(2.5, device=device, requires_grad=True)
    out = GATHER(x, torch.tensor([0, 0], device=device))
    assert out.shape == () and out.item() == 2.5
    (grad,) = torch.autograd.grad(out, x, torch.tensor(3.0, device=device))
    assert grad.shape == () and grad.item() == 3.0


def test_views(device: str) -> None:
    x = torch.randn(12, 10, 14)
    for view in (x[1:9:2, :, 2:11:3], x.permute(2, 0, 1), x.transpose(0, 1)[:, 3:5], x[:, :1].expand(12, 10, 14)):
        index = indices(view.shape[0], (4, 6))[:, ::2]
        placed = torch.empty_strided(view.shape, view.stride(), device=device)
        if 0 in view.stride():
            placed = view[:, :1].to(device).expand(view.shape)
        else:
            placed.copy_(view)
        same(GATHER(placed, index.to(device)[:, :]), view[index])
        grad = torch.randn(4, 1, *view.shape[1:]).expand(4, 3, *view.shape[1:])
        actual = BACKWARD(grad[:, :1].to(device).expand(grad.shape), list(view.shape), index.to(device))
        torch.testing.assert_close(actual.cpu(), reference_backward(grad, tuple(view.shape), index))


def test_empty(device: str) -> None:
    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    assert GATHER(empty(5, 3), empty(0, dtype=torch.long)).shape == (0, 3)
    assert GATHER(empty(5, 0), empty(2, 3, dtype=torch.long).zero_()).shape == (2, 3, 0)
    assert GATHER(empty(0, 3), empty(0, 2, dtype=torch.long)).shape == (0, 2, 3)
    assert torch.equal(BACKWARD(empty(0, 3), [5, 3], empty(0, dtype=torch.long)).cpu(), torch.zeros(5, 3))
    assert BACKWARD(empty(0, 3), [0, 3], empty(0, dtype=torch.long)).shape == (0, 3)
    assert BACKWARD(empty(2, 0), [5, 0], empty(2, dtype=torch.long).zero_()).shape == (5, 0)


# ---- gradient -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("shape", "index_shape"), SHAPES)
def test_backward(shape: tuple[int, ...], index_shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    index = indices(shape[0], index_shape)
    grad = numbers(*index_shape, *shape[1:], dtype=dtype)
    actual = BACKWARD(grad.to(device), list(shape), index.to(device))
    assert actual.dtype == dtype and actual.shape == shape
    expected = reference_backward(grad, shape, index)
    rtol = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, torch.finfo(dtype).eps / 2)
    torch.testing.assert_close(actual.cpu().double(), expected.double(), rtol=rtol, atol=2e-5)


@pytest.mark.parametrize("dtype", [*INTEGERS, *COMPLEX])
def test_backward_of_other_dtypes(dtype: torch.dtype, device: str) -> None:
    for columns in (1, 13, 2500):
        index = indices(4, (40,), torch.int32)
        grad = numbers(40, columns, dtype=dtype)
        actual = BACKWARD(grad.to(device), [4, columns], index.to(device))
        torch.testing.assert_close(actual.cpu(), reference_backward(grad, (4, columns), index))


def test_sums_of_16_bit_types_are_float32(device: str) -> None:
    """4096 ones and many small values: a sum in bfloat16 stays at 256, one in float16 at 2048."""
    for dtype in (torch.bfloat16, torch.float16):
        grad = torch.ones(4096, 3, dtype=dtype, device=device)
        index = torch.zeros(4096, dtype=torch.long, device=device)
        assert BACKWARD(grad, [2, 3], index).tolist() == [[4096.0] * 3, [0.0] * 3]


def test_rows_are_added_in_order(device: str) -> None:
    """Float32 sums depend on the order: 1e8 + 1 - 1e8 is 0, 1e8 - 1e8 + 1 is 1."""
    grad = torch.tensor([[1e8], [1e8], [1.0], [-1e8], [-1e8], [1.0]], device=device)
    index = torch.tensor([0, 1, 0, 0, 1, 1], device=device)
    assert BACKWARD(grad, [2, 1], index).tolist() == [[0.0], [1.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autograd(dtype: torch.dtype, device: str) -> None:
    x = torch.randn(7, 5, 6).to(dtype).to(device).requires_grad_()
    index = indices(7, (3, 8)).to(device)
    weight = torch.randn(3, 8, 5, 6).to(dtype).to(device)
    (GATHER(x, index) * weight).sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype
    expected = reference_backward(weight.cpu(), (7, 5, 6), index.cpu())
    torch.testing.assert_close(x.grad.cpu().double(), expected.double(), rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_gradients_of_float64_and_complex() -> None:
    index = torch.tensor([[2, 0], [2, 3]])
    for dtype in (torch.float64, torch.complex128):
        x = torch.randn(4, 3, dtype=dtype, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x: GATHER(x, index), (x,))


def test_second_derivative_is_refused(device: str) -> None:
    x = torch.randn(4, 3, device=device, requires_grad=True)
    index = torch.tensor([1, 1], device=device)
    (dx,) = torch.autograd.grad(GATHER(x, index).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="npu_gather_sparse_index has no second derivative"):
        dx.sum().backward()


@PROPERTY
@given(data=st.data())
def test_gradient_is_the_sum_of_a_loop(data: st.DataObject, device: str) -> None:
    rows, columns = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    index = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=30)))
    grad = torch.randint(-9, 9, (index.shape[0], columns)).float()
    expected = torch.zeros(rows, columns)
    for i, row in enumerate(index.tolist()):
        expected[row] += grad[i]
    assert torch.equal(BACKWARD(grad.to(device), [rows, columns], index.to(device)).cpu(), expected)


@pytest.fixture(params=[1, 2, 3, 7])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("rows", "columns", "count", "used"),
    [
        (500, 700, 900, 500),
        (1500, 1001, 700, 1500),
        (1500, 1001, 700, 1),
        (50_000, 4, 30_000, 50_000),
        (10, 3000, 500, 1),
        (400, 200, 2000, 3),
        (3, 1, 90_000, 3),
    ],
)
def test_gradient_with_every_number_of_threads(threads: int, rows: int, columns: int, count: int, used: int) -> None:
    """Sums of small integers are exact, so that every difference is a fault."""
    index = indices(used, (count,))
    grad = torch.randint(-3, 4, (count, columns)).float()
    expected = reference_backward(grad, (rows, columns), index)
    assert torch.equal(BACKWARD(grad, [rows, columns], index), expected)
    half = BACKWARD(grad.bfloat16(), [rows, columns], index)
    assert torch.equal(half, expected.bfloat16())
    assert torch.equal(GATHER(expected, index), expected[index])


def test_rounded_gradients_do_not_depend_on_threads() -> None:
    index, grad = indices(40, (3000,)), torch.randn(3000, 600)
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(BACKWARD(grad, [40, 600], index))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.complex64])
def test_every_kernel_table(isa: str, dtype: torch.dtype) -> None:
    for columns in (*range(1, 20), 63, 64, 65, 2048, 2049, 4099):
        index = torch.tensor([0, 2, 0, 0, 2, 3])
        grad = numbers(6, columns, dtype=torch.int8).to(dtype)
        actual = BACKWARD(grad, [5, columns], index)
        expected = reference_backward(grad, (5, columns), index)
        assert torch.equal(actual, expected.to(dtype))


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1, 5, 2**31 - 1])
def test_indices_out_of_range(bad: int, device: str) -> None:
    x = torch.randn(5, 3, device=device)
    index = torch.tensor([[0, 1], [2, bad], [bad, 0]], device=device)
    grad = torch.randn(3, 2, 3, device=device)
    for name, call in [
        ("npu_gather_sparse_index", lambda: GATHER(x, index)),
        ("npu_gather_sparse_index_backward", lambda: BACKWARD(grad, [5, 3], index)),
    ]:
        message = rf"npu::{name}: argument index: index {bad} in element \[3\] .*out of range: expected 0 <= index < 5"
        with pytest.raises(IndexError, match=message):
            call()
            torch.npu.synchronize()
        torch.npu.synchronize()
        same(GATHER(x, index[:2, :1]), x[index[:2, :1]])  # the device works on


def test_nothing_lies_in_range_of_no_rows(device: str) -> None:
    with pytest.raises(IndexError, match="index 0 in element"):
        GATHER(torch.empty(0, 3, device=device), torch.tensor([0], device=device))
        torch.npu.synchronize()


def test_errors_name_operator_and_argument(device: str) -> None:
    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    index: Any = zeros(2, dtype=torch.long)
    for call, message in [
        (
            lambda: GATHER(zeros(5, 3), zeros(2)),
            "npu_gather_sparse_index: argument index: expected dtype int32 or int64",
        ),
        (lambda: GATHER(zeros(*[1] * 8), index[None]), "argument index: .* must not greater than 8; input has shape"),
        (lambda: BACKWARD(zeros(2, 4), [5, 3], index), r"argument grad: expected shape \[2, 3\] .* got \[2, 4\]"),
        (
            lambda: BACKWARD(zeros(2), [], index),
            r"npu_gather_sparse_index_backward: argument grad: expected shape \[\]",
        ),
        (lambda: BACKWARD(zeros(2, 3), [5, 3], zeros(2)), "argument index: expected dtype int32 or int64, got float32"),
        (
            lambda: BACKWARD(zeros(2, 3, dtype=torch.float8_e5m2), [5, 3], index),
            "argument grad: cannot add values of dtype float8_e5m2",
        ),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()
    with pytest.raises(RuntimeError, match="must not greater than 8"):
        GATHER(zeros(*[1] * 8).to("meta"), index[None].to("meta"))
    with pytest.raises(RuntimeError, match="argument grad: expected shape"):
        BACKWARD(zeros(2, 4).to("meta"), [5, 3], index.to("meta"))


def test_devices_must_agree() -> None:
    import torch_npu  # noqa: F401

    x, index = torch.zeros(5, 3), torch.tensor([0])
    message = "^Expected all tensors to be on the same device, but found at least two devices, "
    with pytest.raises(RuntimeError, match=message + r"npu:0 and cpu! \(when checking argument index"):
        GATHER(x.npu(), index)
    with pytest.raises(RuntimeError, match=message + "cpu and npu:0!"):
        BACKWARD(x[:1], [5, 3], index.npu())
