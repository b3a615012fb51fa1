"""The rotary embeddings against the formulas in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

MUL = torch.ops.npu.npu_rotary_mul
BACKWARD = torch.ops.npu.npu_rotary_mul_backward
INTERLEAVE = torch.ops.npu.npu_interleave_rope
APPLY = torch.ops.npu.npu_apply_rotary_pos_emb

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Half a unit in the last place of the result, and float32 rounding of the two products.
RTOL = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
ATOL = {torch.float32: 4e-6, torch.bfloat16: 4e-6, torch.float16: 4e-6}

# (shape of x, shape of the factors): any subset of dims may broadcast.
SHAPES = [
    ((4,), (4,)),
    ((3, 2), (1, 2)),
    ((2, 5, 6), (2, 1, 6)),
    ((7, 3, 34), (7, 1, 34)),
    ((7, 3, 34), (1, 1, 34)),
    ((2, 5, 3, 64), (2, 5, 3, 64)),
    ((2, 5, 3, 64), (1, 5, 1, 64)),
    ((2, 5, 3, 128), (2, 1, 3, 128)),
    ((2, 3, 5, 66), (1, 1, 5, 66)),
    ((5, 2, 3, 10), (5, 1, 1, 10)),
    ((3, 67, 5, 30), (1, 1, 1, 30)),
    ((1, 1, 1, 896), (1, 1, 1, 896)),
]


def rot(x: Tensor, mode: str) -> Tensor:
    """The formulas of the specification."""
    if mode == "interleave":
        return torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2)
    if mode == "quarter":
        a, b, c, d = x.chunk(4, -1)
        return torch.cat([-b, a, -d, c], -1)
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def reference(x: Tensor, cos: Tensor, sin: Tensor, mode: str) -> Tensor:
    x, cos, sin = x.double(), cos.double(), sin.double()
    return x * cos + rot(x, mode) * sin


def random(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(shape).to(dtype).to(device)


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype, scale: float = 1) -> None:
    torch.testing.assert_close(
        actual.detach().cpu().double(), expected.detach().cpu().double(), rtol=RTOL[dtype], atol=ATOL[dtype] * scale
    )


# ---- npu_rotary_mul ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["half", "interleave"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "factor"), SHAPES)
def test_rotary_mul(
    shape: tuple[int, ...], factor: tuple[int, ...], dtype: torch.dtype, mode: str, device: str
) -> None:
    x = random(*shape, dtype=dtype, device=device)
    cos, sin = (random(*factor, dtype=dtype, device=device) for _ in range(2))
    y = MUL(x, cos, sin, mode)
    assert y.dtype == dtype and y.shape == x.shape and y.device == x.device and y.is_contiguous()
    assert_near(y, reference(x.cpu(), cos.cpu(), sin.cpu(), mode), dtype)


@pytest.mark.parametrize(
    ("mode", "expected"), [("half", [-1.9, -1.6, 2.3, 3.8]), ("interleave", [-1.1, 1.9, -1.7, 4.5])]
)
def test_specification_example(mode: str, expected: list[float], device: str) -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], device=device)
    cos, sin = torch.tensor([[0.5, 0.6, 0.5, 0.6], [0.8, 0.7, 0.8, 0.7]], device=device)
    torch.testing.assert_close(MUL(x, cos, sin, mode).cpu(), torch.tensor(expected))
    torch.testing.assert_close(MUL(self=x, r1=cos, r2=sin, rotary_mode=mode).cpu(), torch.tensor(expected))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_matrix(dtype: torch.dtype, device: str) -> None:
    x = random(2, 5, 3, 8, dtype=dtype, device=device).transpose(1, 2)
    cos, sin = (random(2, 1, 5, 8, dtype=dtype, device=device) for _ in range(2))
    half = torch.zeros(8, 8)
    half[:4, 4:], half[4:, :4] = torch.eye(4), -torch.eye(4)
    y = MUL(x, cos, sin, "half", half.to(dtype).to(device))
    assert torch.equal(y.cpu(), MUL(x, cos, sin, "half").cpu())
    matrix = torch.randint(-2, 3, (8, 8)).to(dtype)
    y = MUL(x, cos, sin, rotate=matrix.to(device))
    turned = (x.cpu().double() @ matrix.double()).to(dtype).double()
    expected = x.cpu().double() * cos.cpu().double() + turned * sin.cpu().double()
    # The product is rounded to the dtype; float32 sums may round it the other way than float64.
    slack = float(turned.abs().max() * sin.cpu().abs().max()) * RTOL[dtype] * 2
    torch.testing.assert_close(y.cpu().double(), expected, rtol=RTOL[dtype], atol=slack + ATOL[dtype])


@pytest.mark.parametrize("mode", ["half", "interleave"])
def test_factors_are_converted_to_the_dtype_of_self(mode: str, device: str) -> None:
    x = random(2, 5, 3, 16, dtype=torch.bfloat16, device=device)
    cos, sin = (random(1, 5, 1, 16, device=device) for _ in range(2))
    expected = MUL(x, cos.bfloat16(), sin.bfloat16(), mode)
    assert torch.equal(MUL(x, cos, sin, mode).cpu(), expected.cpu())


def slice_of_fused(x: Tensor) -> Tensor:
    wide = torch.zeros(*x.shape[:-1], 3 * x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    return wide[..., x.shape[-1] : 2 * x.shape[-1]].copy_(x)


def heads_first(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def rows_apart(x: Tensor) -> Tensor:
    return torch.stack([x, x], -1)[..., 0]


VIEWS = [slice_of_fused, heads_first, rows_apart]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_views_are_read_as_they_lie(dtype: torch.dtype, view: Callable[[Tensor], Tensor], device: str) -> None:
    x, grad = (random(2, 5, 3, 34, dtype=dtype, device=device) for _ in range(2))
    cos, sin = (random(2, 5, 1, 34, dtype=dtype, device=device) for _ in range(2))
    assert not view(x).is_contiguous()
    for mode in ("half", "interleave"):
        expected = MUL(x, cos, sin, mode)
        actual = MUL(view(x), view(cos), view(sin), mode)
        assert actual.is_contiguous() and torch.equal(actual.cpu(), expected.cpu())
        assert torch.equal(MUL(x, cos.expand_as(x), sin.expand_as(x), mode).cpu(), expected.cpu())
        actual = BACKWARD(view(grad), view(x), view(cos), view(sin), mode)
        for ours, theirs in zip(actual, BACKWARD(grad, x, cos, sin, mode), strict=True):
            assert torch.equal(ours.cpu(), theirs.cpu())
    cos, sin = (t.transpose(1, 2) for t in (cos, sin))
    x = x.transpose(1, 2)
    expected = INTERLEAVE(x.contiguous(), cos.contiguous(), sin.contiguous())
    assert torch.equal(INTERLEAVE(view(x), view(cos), view(sin)).cpu(), expected.cpu())


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 2, 0)])
def test_empty(shape: tuple[int, ...], device: str) -> None:
    x, cos = random(*shape, device=device), random(1, 1, shape[-1], device=device)
    assert MUL(x, cos, cos).shape == shape
    dx, dcos, dsin = BACKWARD(x, x, cos, cos)
    assert dx.shape == shape
    assert torch.equal(dcos.cpu(), torch.zeros(1, 1, shape[-1])) and torch.equal(dsin.cpu(), dcos.cpu())


# ---- gradients --------------------------------------------------------------------------------------------------


def gradients(grad: Tensor, x: Tensor, cos: Tensor, sin: Tensor, mode: str) -> tuple[Tensor, ...]:
    """What autograd finds for the reference in float64."""
    leaves = [t.detach().cpu().double().requires_grad_() for t in (x, cos, sin)]
    return torch.autograd.grad(reference(*leaves, mode), leaves, grad.cpu().double())


@pytest.mark.parametrize("mode", ["half", "interleave"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "factor"), [*SHAPES, ((2, 3000, 1, 4), (1, 1, 1, 4))])
def test_backward(shape: tuple[int, ...], factor: tuple[int, ...], dtype: torch.dtype, mode: str, device: str) -> None:
    x, grad = (random(*shape, dtype=dtype, device=device) for _ in range(2))
    cos, sin = (random(*factor, dtype=dtype, device=device) for _ in range(2))
    actual = BACKWARD(grad, x, cos, sin, mode)
    terms = x.numel() / cos.numel()
    for ours, theirs, scale in zip(actual, gradients(grad, x, cos, sin, mode), (1, terms, terms), strict=True):
        assert ours.dtype == dtype and ours.shape == theirs.shape and ours.is_contiguous()
        assert_near(ours, theirs, dtype, max(scale, 1.0))


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (1, 0, 1)])
@pytest.mark.parametrize("mode", ["half", "interleave"])
def test_autograd(mode: str, wanted: tuple[int, int, int], device: str) -> None:
    leaves = [random(2, 5, 3, 16, device=device), *(random(1, 5, 1, 16, device=device) for _ in range(2))]
    for leaf, needed in zip(leaves, wanted, strict=True):
        leaf.requires_grad_(bool(needed))
    grad = random(2, 5, 3, 16, device=device)
    MUL(*leaves, mode).backward(grad)
    for leaf, needed, expected in zip(leaves, wanted, gradients(grad, *leaves, mode), strict=True):
        assert (leaf.grad is not None) == bool(needed)
        if needed:
            assert_near(leaf.grad, expected, torch.float32, 10)


def test_autograd_of_factors_of_another_dtype(device: str) -> None:
    x = random(2, 5, 3, 16, dtype=torch.bfloat16, device=device).requires_grad_()
    cos, sin = (random(1, 5, 1, 16, device=device).requires_grad_() for _ in range(2))
    MUL(x, cos, sin).float().sum().backward()
    assert x.grad.dtype == torch.bfloat16 and cos.grad.dtype == sin.grad.dtype == torch.float32
    ones = torch.ones(2, 5, 3, 16)
    for leaf, expected in zip((x, cos, sin), gradients(ones, x, cos.bfloat16(), sin.bfloat16(), "half"), strict=True):
        assert_near(leaf.grad, expected, torch.bfloat16, 10)


def test_only_what_the_gradient_needs_is_kept(device: str) -> None:
    x = random(2, 5, 3, 16, device=device).requires_grad_()
    cos, sin = (random(1, 5, 1, 16, device=device) for _ in range(2))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        MUL(x * 2, cos, sin)
        without = set(kept)
        MUL(x, cos.requires_grad_(), sin)
    assert {cos.data_ptr(), sin.data_ptr()} <= without and x.data_ptr() not in without
    assert x.data_ptr() in kept


def test_second_derivative_and_rotation_matrix_are_refused(device: str) -> None:
    x = random(3, 4, device=device).requires_grad_()
    cos, sin = (random(3, 4, device=device).requires_grad_() for _ in range(2))
    for leaves in ((x, cos.detach()), (x, cos)):
        (dx,) = torch.autograd.grad(MUL(*leaves, sin.detach()).square().sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match="npu_rotary_mul has no second derivative"):
            dx.sum().backward()
    y = MUL(x, cos, sin, rotate=torch.eye(4, device=device))
    with pytest.raises(
        RuntimeError, match="npu_rotary_mul: argument rotate: there is no gradient with a rotation matrix"
    ):
        y.sum().backward()


def test_gradients_do_not_depend_on_threads() -> None:
    x, grad = (random(2, 700, 4, 64, dtype=torch.bfloat16) for _ in range(2))
    for factor in ((1, 1, 1, 64), (1, 700, 1, 64), (2, 1, 4, 64)):
        cos, sin = (random(*factor, dtype=torch.bfloat16) for _ in range(2))
        threads = torch.get_num_threads()
        try:
            results = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(BACKWARD(grad, x, cos, sin))
        finally:
            torch.set_num_threads(threads)
        for result in results[1:]:
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(result, results[0], strict=True))


# ---- npu_interleave_rope ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [2, 6, 64, 98])
@pytest.mark.parametrize("steps", [1, 5])
def test_interleave_rope(steps: int, columns: int, dtype: torch.dtype, device: str) -> None:
    x = random(2, 3, 5, columns, dtype=dtype, device=device)
    cos, sin = (random(2, 1, steps, columns, dtype=dtype, device=device) for _ in range(2))
    y = INTERLEAVE(x, cos, sin)
    assert y.dtype == dtype and y.shape == x.shape and y.is_contiguous()
    apart = torch.cat([x.cpu()[..., 0::2], x.cpu()[..., 1::2]], -1)
    assert_near(y, reference(apart, cos.cpu(), sin.cpu(), "half"), dtype)


def test_interleave_rope_example(device: str) -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], device=device).view(1, 1, 1, 4)
    cos = torch.tensor([0.5, 0.6, 0.5, 0.6], device=device).view(1, 1, 1, 4)
    sin = torch.tensor([0.8, 0.7, 0.8, 0.7], device=device).view(1, 1, 1, 4)
    torch.testing.assert_close(INTERLEAVE(x, cos, sin).cpu().flatten(), torch.tensor([-1.1, -1.0, 1.8, 4.5]))
    assert INTERLEAVE(x[:0], cos[:0], sin[:0]).shape == (0, 1, 1, 4)


# ---- npu_apply_rotary_pos_emb -----------------------------------------------------------------------------------

LAYOUTS = {
    # query, key, cos
    "BSND": ((2, 5, 4, 24), (2, 5, 3, 24), (2, 5, 1, 24)),
    "SBND": ((5, 2, 4, 24), (5, 2, 1, 24), (5, 1, 1, 24)),
    "BNSD": ((2, 4, 5, 24), (2, 1, 5, 24), (1, 1, 5, 24)),
    "TND": ((7, 4, 24), (7, 2, 24), (7, 1, 24)),
    "something": ((2, 5, 4, 24), (2, 5, 3, 24), (2, 5, 1, 24)),
}


@pytest.mark.parametrize("mode", ["half", "interleave", "quarter"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_apply(dtype: torch.dtype, layout: str, mode: str, device: str) -> None:
    query, key, cos, sin = (random(*s, dtype=dtype, device=device) for s in (*LAYOUTS[layout], LAYOUTS[layout][2]))
    expected = [reference(t.cpu(), cos.cpu(), sin.cpu(), mode) for t in (query, key)]
    outputs = APPLY(query, key, cos, sin, layout, mode)
    assert outputs[0] is query and outputs[1] is key
    for actual, wanted in zip(outputs, expected, strict=True):
        assert_near(actual, wanted, dtype)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("mode", ["half", "interleave", "quarter"])
def test_apply_writes_through_views(mode: str, view: Callable[[Tensor], Tensor], device: str) -> None:
    query, key, cos, sin = (
        random(*s, dtype=torch.bfloat16, device=device) for s in (*LAYOUTS["BSND"], LAYOUTS["BSND"][2])
    )
    views = view(query), view(key)
    bases = [one._base.clone() for one in views]
    APPLY(*views, view(cos), view(sin), rotary_mode=mode)
    APPLY(query, key, cos, sin, rotary_mode=mode)
    for one, base, expected in zip(views, bases, (query, key), strict=True):
        assert torch.equal(one.cpu(), expected.cpu())
        one.copy_(torch.as_strided(base, one.shape, one.stride(), one.storage_offset()))
        assert torch.equal(one._base.cpu(), base.cpu()), "memory outside the view was written"


def test_apply_to_slices_of_one_projection(device: str) -> None:
    fused = random(6, 4 + 2 + 2, 16, dtype=torch.bfloat16, device=device)
    before = fused.cpu().clone()
    cos, sin = (random(6, 1, 16, dtype=torch.bfloat16, device=device) for _ in range(2))
    query, key, value = fused.split([4, 2, 2], 1)
    APPLY(query, key, cos, sin, "TND")
    assert_near(fused[:, :6], reference(before[:, :6], cos.cpu(), sin.cpu(), "half"), torch.bfloat16)
    assert torch.equal(value.cpu(), before[:, 6:])


@pytest.mark.parametrize("mode", ["half", "interleave", "quarter"])
def test_apply_leaves_columns_beyond_the_angles(mode: str, device: str) -> None:
    query, key = (random(2, 5, n, 40, device=device) for n in (3, 1))
    cos, sin = (random(2, 5, 1, 24, device=device) for _ in range(2))
    before = [t.cpu().clone() for t in (query, key)]
    APPLY(query, key, cos, sin, rotary_mode=mode)
    for actual, old in zip((query, key), before, strict=True):
        assert_near(actual[..., :24], reference(old[..., :24], cos.cpu(), sin.cpu(), mode), torch.float32)
        assert torch.equal(actual[..., 24:].cpu(), old[..., 24:])


def test_apply_to_nothing(device: str) -> None:
    query, key, cos = (random(*shape, device=device) for shape in ((0, 3, 8), (0, 1, 8), (0, 1, 8)))
    assert APPLY(query, key, cos, cos, "TND")[0].shape == (0, 3, 8)
    query, key, cos = (random(*shape, device=device) for shape in ((4, 0, 8), (4, 1, 8), (4, 1, 8)))
    expected = reference(key.cpu(), cos.cpu(), cos.cpu(), "half")
    assert_near(APPLY(query, key, cos, cos, "TND")[1], expected, torch.float32)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_graphs_keep_the_writes_of_apply_in_order(dynamic: bool, device: str) -> None:
    cos, sin = (random(7, 1, 8, device=device) for _ in range(2))

    def step(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        before = query.sum()
        APPLY(query, key, cos, sin, "TND")  # the results go unused
        after = query.sum()
        turned, _ = APPLY(query[:, :1], key * 2, cos, sin, "TND", "interleave")
        return before, after, turned + 1

    ours, theirs = [random(7, 3, 8, device=device), random(7, 1, 8, device=device)], []
    theirs = [t.clone() for t in ours]
    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for actual, expected in zip(compiled(*ours), step(*theirs), strict=True):
        torch.testing.assert_close(actual, expected)
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected)


# ---- instruction sets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kernel_table(isa: str, dtype: torch.dtype) -> None:
    for columns in (*range(2, 72, 2), 128, 192):
        x, grad = (random(3, 2, columns, dtype=dtype) for _ in range(2))
        cos, sin = (random(3, 1, columns, dtype=dtype) for _ in range(2))
        for mode in ("half", "interleave"):
            assert_near(MUL(x, cos, sin, mode), reference(x, cos, sin, mode), dtype)
            expected = gradients(grad, x, cos, sin, mode)
            for ours, theirs in zip(BACKWARD(grad, x, cos, sin, mode), expected, strict=True):
                assert_near(ours, theirs, dtype, 4)
            leaf = x.clone().requires_grad_()
            MUL(leaf, cos, sin, mode).backward(grad)
            assert_near(leaf.grad, expected[0], dtype)
        apart = torch.cat([x[..., 0::2], x[..., 1::2]], -1)
        y = INTERLEAVE(x[None].transpose(1, 2), cos[None].transpose(1, 2), sin[None].transpose(1, 2))
        assert_near(y[0].transpose(0, 1), reference(apart, cos, sin, "half"), dtype)
        if columns % 4 == 0:
            expected = reference(x, cos, sin, "quarter")
            assert_near(APPLY(x, grad, cos, sin, "TND", "quarter")[0], expected, dtype)
        matrix = torch.eye(columns).flip(0).to(dtype)
        x = random(3, 2, columns, dtype=dtype)
        y = MUL(x, cos, sin, rotate=matrix)
        assert_near(y, x.double() * cos.double() + x.double().flip(-1) * sin.double(), dtype)


def test_values_that_round_to_even(isa: str) -> None:
    """cos = 1, sin = 0 gives every 16-bit value back, in both layouts of pairs."""
    for dtype in (torch.bfloat16, torch.float16):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        x = every[every.isfinite()].contiguous().view(-1, 2, 16)
        one, zero = torch.ones(1, 1, 16, dtype=dtype), torch.zeros(1, 1, 16, dtype=dtype)
        for mode in ("half", "interleave"):
            assert torch.equal(MUL(x, one, zero, mode), x)


# ---- errors -----------------------------------------------------------------------------------------------------


def test_errors_name_operator_and_argument(device: str) -> None:
    def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    x, r = ones(2, 3, 4), ones(2, 1, 4)
    mode = "The rotary_mode of npu_rotary_mul should be half or interleave, but got quarter"
    double, half = torch.float64, torch.float16
    four, apply = (ones(2, 5, 3, 8), ones(2, 1, 3, 8)), (ones(2, 5, 3, 8), ones(2, 5, 1, 8), ones(2, 5, 1, 8))
    for call, message in [
        (lambda: MUL(x, r, r, "quarter"), mode),
        (lambda: BACKWARD(x, x, r, r, "quarter"), mode),
        (lambda: MUL(x, ones(2, 2, 4), ones(2, 2, 4)), r"npu_rotary_mul: argument r1: .* self has shape \[2, 3, 4\]"),
        (lambda: MUL(x, ones(1, 4), ones(1, 4)), "npu_rotary_mul: argument r1: expected as many dims as self"),
        (lambda: MUL(x, ones(2, 1, 1), ones(2, 1, 1)), "argument r1: expected as many dims as self and the same last"),
        (lambda: MUL(x, r, ones(1, 1, 4)), r"npu_rotary_mul: argument r2: expected shape \[2, 1, 4\] \(as r1\)"),
        (lambda: MUL(ones(2, 3), ones(2, 3), ones(2, 3)), "argument self: expected at least one dim and an even last"),
        (lambda: MUL(ones(2, 4, dtype=double), r, r), "argument self: expected dtype .* got float64"),
        (lambda: MUL(x, ones(2, 1, 4, dtype=double), r), "argument r1: expected dtype .* got float64"),
        (lambda: MUL(x, r, r, rotate=ones(4, 3)), r"argument rotate: expected shape \[4, 4\] .*, got \[4, 3\]"),
        (lambda: MUL(x, r, r, rotate=ones(4, 4, dtype=half)), "argument rotate: expected dtype float32, got float16"),
        (
            lambda: BACKWARD(ones(2, 3, 2), x, r, r),
            r"npu_rotary_mul_backward: argument grad: expected shape \[2, 3, 4\]",
        ),
        (lambda: BACKWARD(ones(2, 3, 4, dtype=half), x, r, r), "argument grad: expected dtype float32, got float16"),
        (lambda: INTERLEAVE(x, r, r), r"npu_interleave_rope: argument x: expected 4 dims \(B, N, S, D\)"),
        (lambda: INTERLEAVE(four[0], four[0], four[0]), r"argument cos: expected shape \(B, 1, S, D\)"),
        (lambda: INTERLEAVE(four[0], ones(2, 1, 2, 8), four[1]), r"argument cos: expected shape \(B, 1, S, D\)"),
        (lambda: INTERLEAVE(four[0], four[1], ones(2, 1, 1, 8)), r"argument sin: expected shape \[2, 1, 3, 8\]"),
        (lambda: INTERLEAVE(four[0], four[1].half(), four[1]), "argument cos: expected dtype float32, got float16"),
        (lambda: APPLY(four[0], *apply, rotary_mode="x"), "The layout should be half/quarter/interleave"),
        (lambda: APPLY(four[0], *apply, "TND"), "argument query: expected 3 dims for layout TND, got 4"),
        (lambda: APPLY(x, x, r, r), "argument query: expected 4 dims for layout BSND, got 3"),
        (lambda: APPLY(x, ones(2, 3, 5), r, r, "TND"), "argument key: expected query's shape except for the number"),
        (lambda: APPLY(x, x, x, x, "TND"), "argument cos: expected query's shape with 1 for the heads"),
        (
            lambda: APPLY(x, x, ones(2, 1, 6), ones(2, 1, 6), "TND"),
            "argument cos: expected a last dim .* at most query",
        ),
        (
            lambda: APPLY(x, x, ones(2, 1, 3), ones(2, 1, 3), "TND"),
            "argument cos: expected a last dim .* multiple of 2",
        ),
        (lambda: APPLY(x, x, ones(2, 1, 2), ones(2, 1, 2), "TND", "quarter"), "argument cos: .* multiple of 4"),
        (lambda: APPLY(x, x, r, ones(2, 1, 2), "TND"), r"argument sin: expected shape \[2, 1, 4\] \(as cos\)"),
        (lambda: APPLY(x, x.half(), r, r, "TND"), "npu_apply_rotary_pos_emb: argument key: expected dtype float32"),
        (
            lambda: APPLY(x[:, :1].expand(2, 3, 4), x, r, r, "TND"),
            "argument query: more than one element refers to a single memory",
        ),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_meta_tensors_are_checked() -> None:
    def meta(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    bad: list[tuple[Callable[[], Any], str]] = [
        (lambda: MUL(meta(2, 3, 4), meta(2, 2, 4), meta(2, 2, 4)), "argument r1: expected a shape that broadcasts"),
        (lambda: MUL(meta(2, 4), meta(2, 4), meta(2, 4), "x"), "should be half or interleave, but got x"),
        (lambda: INTERLEAVE(meta(2, 3, 5, 8), meta(2, 3, 5, 8), meta(2, 3, 5, 8)), "argument cos: expected shape"),
        (lambda: APPLY(meta(2, 3, 4), meta(2, 3, 4), meta(2, 3, 4), meta(2, 3, 4), "TND"), "argument cos: expected"),
    ]
    for call, message in bad:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_devices_must_agree() -> None:
    import torch_npu  # noqa: F401

    x, r = torch.ones(2, 3, 4), torch.ones(2, 1, 4)
    message = "^Expected all tensors to be on the same device, but found at least two devices, npu:0 and cpu! "
    with pytest.raises(RuntimeError, match=message + r"\(when checking argument r2 of npu_rotary_mul"):
        MUL(x.npu(), r.npu(), r)
    with pytest.raises(RuntimeError, match=message + r"\(when checking argument grad"):
        BACKWARD(x, x.npu(), r.npu(), r.npu())
    with pytest.raises(RuntimeError, match=r"npu:0 and cpu! \(when checking argument key"):
        APPLY(x.npu(), x, r.npu(), r.npu(), "TND")
