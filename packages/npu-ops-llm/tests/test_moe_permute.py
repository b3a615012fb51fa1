"""Permutation of tokens by expert and back against the formulas in float64."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

PERMUTE = torch.ops.npu.npu_moe_token_permute
PERMUTE_GRAD = torch.ops.npu.npu_moe_token_permute_grad
PERMUTE_GRAD_V2 = torch.ops.npu.npu_moe_token_permute_grad_v2
UNPERMUTE = torch.ops.npu.npu_moe_token_unpermute
INTERNAL_UNPERMUTE = torch.ops.npu._npu_moe_token_unpermute
UNPERMUTE_GRAD = torch.ops.npu.npu_moe_token_unpermute_grad
UNPERMUTE_GRAD_V2 = torch.ops.npu.npu_moe_token_unpermute_grad_v2

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float64: 2e-6}
SHAPES = [(1, 1, 1), (7, 3, 67), (5, 8, 256), (13, 2, 131), (33, 4, 40)]
derandomized = settings(
    deadline=None, derandomize=True, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def assert_near(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual.cpu().double(), expected.double(), rtol=TOLERANCE[actual.dtype], atol=atol)


def chosen_experts(tokens: int, k: int, experts: int = 16) -> Tensor:
    return torch.stack([torch.randperm(experts)[:k] for _ in range(tokens)])


def reference_permute(tokens: Tensor, indices: Tensor, limit: int | None = None) -> tuple[Tensor, Tensor]:
    k = indices.shape[1] if indices.dim() == 2 else 1
    order = indices.flatten().argsort(stable=True)
    rows = len(order) if not limit else min(limit, len(order)) if limit > 0 else len(order) + limit
    return tokens[order[:rows] // k], order.argsort().to(torch.int32)


def reference_unpermute(rows: Tensor, sorted_indices: Tensor, probs: Tensor | None) -> Tensor:
    padded = torch.cat([rows.double(), torch.zeros(1, rows.shape[1], dtype=torch.float64)])
    taken = padded[sorted_indices.long().clamp(max=len(rows))]
    if probs is None:
        return taken
    return (taken.view(*probs.shape, -1) * probs.double()[..., None]).sum(1)


# ---- permute ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "k", "hidden"), SHAPES)
def test_permute(tokens: int, k: int, hidden: int, dtype: torch.dtype, index_dtype: torch.dtype, device: str) -> None:
    x, indices = torch.randn(tokens, hidden).to(dtype), chosen_experts(tokens, k).to(index_dtype)
    permuted, sorted_indices = PERMUTE(x.to(device), indices.to(device))
    expected, expected_indices = reference_permute(x, indices)
    assert permuted.dtype == dtype and sorted_indices.dtype == torch.int32
    assert torch.equal(permuted.cpu(), expected) and torch.equal(sorted_indices.cpu(), expected_indices)


@pytest.mark.parametrize("limit", [None, 0, 1, 5, 12, 100, -1, -12])
def test_num_out_tokens(limit: int | None, device: str) -> None:
    x, indices = torch.randn(4, 9), chosen_experts(4, 3)
    permuted, sorted_indices = PERMUTE(x.to(device), indices.to(device), limit)
    expected, expected_indices = reference_permute(x, indices, limit)
    assert torch.equal(permuted.cpu(), expected) and torch.equal(sorted_indices.cpu(), expected_indices)


@pytest.mark.parametrize(
    "keys",
    [
        torch.tensor([3, 1, 3, 0, 1, 3]),
        torch.tensor([2**40, -(2**50), 7, 2**40, -1, 0]),
        torch.tensor([-(2**63), 2**63 - 1, 0, -(2**63), 1, -1]),
        torch.tensor([-5, -5, 2**31 - 1, -(2**31), 0, -5], dtype=torch.int32),
        torch.tensor([4095, 2048, 2047, 0, 2048, 4095], dtype=torch.int32),
    ],
)
def test_expert_numbers_of_any_size(keys: Tensor, device: str) -> None:
    x = torch.randn(6, 5)
    permuted, sorted_indices = PERMUTE(x.to(device), keys.to(device))
    expected, expected_indices = reference_permute(x, keys)
    assert torch.equal(permuted.cpu(), expected) and torch.equal(sorted_indices.cpu(), expected_indices)


def test_specification_example_of_permute(device: str) -> None:
    x = torch.arange(3.0)[:, None]
    permuted, sorted_indices = PERMUTE(x.to(device), torch.tensor([[1, 2], [0, 1], [0, 2]], device=device))
    assert permuted.flatten().tolist() == [1, 2, 0, 1, 0, 2]
    assert sorted_indices.tolist() == [2, 4, 0, 3, 1, 5]


def test_padded_permute_takes_tokens_by_number(device: str) -> None:
    x, taken = torch.randn(4, 6), torch.tensor([[2, 0, 0], [3, 1, 3]])
    permuted, second = PERMUTE(x.to(device), taken.to(device), None, True)
    assert torch.equal(permuted.cpu(), x[taken.flatten()])
    assert second.dtype == torch.int32 and torch.equal(second.cpu().long(), taken)
    grad = torch.randn(6, 6)
    expected = torch.zeros(4, 6, dtype=torch.float64).index_add_(0, taken.flatten(), grad.double())
    for gradient in (
        PERMUTE_GRAD_V2(grad.to(device), second, 4, torch.float32, 1, True),
        PERMUTE_GRAD(x.to(device), grad.to(device), taken.to(device), second, True),
    ):
        assert_near(gradient, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "k", "hidden"), SHAPES)
def test_permute_grad(tokens: int, k: int, hidden: int, dtype: torch.dtype, device: str) -> None:
    x, indices = torch.randn(tokens, hidden).to(dtype), chosen_experts(tokens, k)
    kept = max(1, tokens * k - 2)
    grad, sorted_indices = torch.randn(kept, hidden).to(dtype), reference_permute(x, indices)[1]
    expected = reference_unpermute(grad, sorted_indices, torch.ones(tokens, k))
    arguments = [one.to(device) for one in (x, grad, indices, sorted_indices)]
    gradient = PERMUTE_GRAD(*arguments)
    assert gradient.dtype == dtype and gradient.shape == x.shape
    assert_near(gradient, expected)
    assert torch.equal(PERMUTE_GRAD_V2(arguments[1], arguments[3], tokens, dtype, k).cpu(), gradient.cpu())


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_permute_grad_converts(dtype: torch.dtype, out: torch.dtype, device: str) -> None:
    grad, sorted_indices = torch.randn(12, 70).to(dtype), torch.randperm(12)
    gradient = PERMUTE_GRAD_V2(grad.to(device), sorted_indices.to(device), 4, out, 3)
    assert gradient.dtype == out
    assert_near(gradient, reference_unpermute(grad, sorted_indices, torch.ones(4, 3)))


# ---- unpermute --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probs_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "k", "hidden"), SHAPES)
def test_unpermute_and_gradient(
    tokens: int, k: int, hidden: int, dtype: torch.dtype, probs_dtype: torch.dtype, device: str
) -> None:
    slots = tokens * k
    rows, probs = torch.randn(slots, hidden).to(dtype), torch.rand(tokens, k).to(probs_dtype)
    sorted_indices, grad = torch.randperm(slots).to(torch.int32), torch.randn(tokens, hidden).to(dtype)
    arguments = [one.to(device) for one in (rows, sorted_indices, probs)]
    out = UNPERMUTE(*arguments)
    assert out.dtype == dtype
    assert_near(out, reference_unpermute(rows, sorted_indices, probs))
    both = INTERNAL_UNPERMUTE(*arguments)
    assert torch.equal(both[0].cpu(), out.cpu()) and torch.equal(both[1].cpu(), rows)

    wanted, weights = rows.double().requires_grad_(), probs.double().requires_grad_()
    reference_unpermute(wanted, sorted_indices, weights).backward(grad.double())
    grad_rows, grad_probs = UNPERMUTE_GRAD(arguments[0], grad.to(device), *arguments[1:])
    assert grad_rows.dtype == dtype and grad_probs.dtype == probs_dtype and grad_probs.shape == probs.shape
    assert_near(grad_rows, wanted.grad)
    assert_near(grad_probs, weights.grad, atol=2e-5 * hidden**0.5)
    again = UNPERMUTE_GRAD_V2(grad.to(device), arguments[1], slots, dtype, arguments[2], permuted_tokens=arguments[0])
    assert torch.equal(again[0].cpu(), grad_rows.cpu()) and torch.equal(again[1].cpu(), grad_probs.cpu())


def test_without_probs_every_copy_comes_back(device: str) -> None:
    rows, sorted_indices = torch.randn(12, 33), torch.randperm(12).to(torch.int32)
    out = UNPERMUTE(rows.to(device), sorted_indices.to(device))
    assert torch.equal(out.cpu(), rows[sorted_indices.long()])
    assert INTERNAL_UNPERMUTE(rows.to(device), sorted_indices.to(device))[1] is None
    grad_rows, grad_probs = UNPERMUTE_GRAD_V2(rows.to(device), sorted_indices.to(device), 12, torch.float32)
    expected = torch.empty(12, 33)
    expected[sorted_indices.long()] = rows
    assert torch.equal(grad_rows.cpu(), expected)
    assert grad_probs.shape == () and grad_probs.item() == 0 and grad_probs.device.type == device


def test_indices_that_are_no_row_stand_for_zeros(device: str) -> None:
    rows, probs, grad = torch.randn(4, 21), torch.rand(3, 2), torch.randn(3, 21)
    sorted_indices = torch.tensor([3, 4, 0, 99, 2**31 - 1, 1], dtype=torch.int32)
    out = UNPERMUTE(rows.to(device), sorted_indices.to(device), probs.to(device))
    assert_near(out, reference_unpermute(rows, sorted_indices, probs))
    moved = [one.to(device) for one in (rows, grad, sorted_indices, probs)]
    grad_rows, grad_probs = (one.cpu() for one in UNPERMUTE_GRAD(*moved))
    assert grad_probs[0, 1] == 0 and grad_probs[1, 1] == 0 and grad_probs[2, 0] == 0
    assert torch.equal(grad_rows[2], torch.zeros(21))  # no index names this row
    torch.testing.assert_close(grad_rows[1], probs[2, 1] * grad[2])


def test_rows_that_several_slots_name_get_the_sum(device: str) -> None:
    """Inference clients send dropped slots to a row of another slot with probability 0."""
    rows = torch.randn(5, 19, dtype=torch.float64).requires_grad_()
    probs = torch.rand(4, 2, dtype=torch.float64).requires_grad_()
    sorted_indices = torch.tensor([1, 1, 0, 1, 4, 2, 0, 1])
    grad = torch.randn(4, 19)
    reference_unpermute(rows, sorted_indices, probs).backward(grad.double())
    moved = [one.to(device) for one in (rows.detach().float(), grad, sorted_indices, probs.detach().float())]
    grad_rows, grad_probs = UNPERMUTE_GRAD(*moved)
    assert_near(grad_rows, rows.grad)
    assert_near(grad_probs, probs.grad)


def test_padded_unpermute_adds_to_tokens(device: str) -> None:
    rows, token, probs = torch.randn(6, 11), torch.tensor([[2, 0, 2], [3, 2, 0]]), torch.rand(2, 3)
    for weights in (probs, None):
        moved = [None if one is None else one.to(device) for one in (rows, token, weights)]
        factor = torch.ones(6) if weights is None else weights.flatten()
        expected = torch.zeros(5, 11, dtype=torch.float64)
        expected.index_add_(0, token.flatten(), (rows * factor[:, None]).double())
        assert_near(UNPERMUTE(*moved, True, [5, 11]), expected)
        grad = torch.randn(5, 11)
        grad_rows, grad_probs = UNPERMUTE_GRAD(moved[0], grad.to(device), *moved[1:], True, [5, 11])
        assert_near(grad_rows, grad[token.flatten()] * factor[:, None])
        if weights is not None:
            assert_near(grad_probs, (grad[token.flatten()] * rows).sum(1).view(2, 3))


def test_restore_shape_is_ignored_without_padding(device: str) -> None:
    rows, sorted_indices = torch.randn(4, 3).to(device), torch.randperm(4).to(torch.int32).to(device)
    assert torch.equal(UNPERMUTE(rows, sorted_indices, None, False, [1]).cpu(), UNPERMUTE(rows, sorted_indices).cpu())


# ---- properties -------------------------------------------------------------------------------------------------


@derandomized
@given(data=st.data())
def test_round_trip(data: st.DataObject, device: str) -> None:
    tokens, experts = data.draw(st.integers(0, 20)), data.draw(st.integers(1, 12))
    k, hidden = data.draw(st.integers(1, experts)), data.draw(st.integers(0, 50))
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    x = torch.randn(tokens, hidden)
    indices = chosen_experts(tokens, k, experts) if tokens else torch.empty(0, k, dtype=torch.int64)
    limit = data.draw(st.integers(-tokens * k, tokens * k + 3))
    permuted, sorted_indices = PERMUTE(x.to(device), indices.to(device), limit)
    probs = torch.rand(tokens, k).to(device)
    out = UNPERMUTE(permuted, sorted_indices, probs)
    kept = (sorted_indices < permuted.shape[0]).view(tokens, k)
    torch.testing.assert_close(out.cpu(), x * (probs * kept).sum(1, keepdim=True).cpu(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_probs_of_sum_one_give_the_tokens_back(dtype: torch.dtype, isa: str) -> None:
    x, indices = torch.randn(50, 300).to(dtype), chosen_experts(50, 4)
    permuted, sorted_indices = PERMUTE(x, indices)
    assert torch.equal(UNPERMUTE(permuted, sorted_indices, torch.full((50, 4), 0.25)), x)


def test_outputs_larger_than_the_cache(isa: str) -> None:
    """Written past the cache, with rows that begin anywhere in a line."""
    for hidden in (4096, 4099):
        x, indices = torch.randn(1100, hidden).bfloat16(), chosen_experts(1100, 2)
        permuted, sorted_indices = PERMUTE(x, indices)
        expected, expected_indices = reference_permute(x, indices)
        assert torch.equal(permuted, expected) and torch.equal(sorted_indices, expected_indices)
        grad, _ = UNPERMUTE_GRAD_V2(permuted, sorted_indices, 2200, torch.bfloat16)
        wanted = torch.empty_like(permuted)
        wanted[sorted_indices.long()] = permuted
        assert torch.equal(grad, wanted)


def test_every_kernel_table(isa: str) -> None:
    for hidden in (*range(1, 19), 63, 64, 65, 257):
        for dtype in DTYPES:
            rows, probs = torch.randn(12, hidden).to(dtype), torch.rand(4, 3)
            sorted_indices, grad = torch.randperm(12), torch.randn(4, hidden).to(dtype)
            assert_near(UNPERMUTE(rows, sorted_indices, probs), reference_unpermute(rows, sorted_indices, probs))
            wanted, weights = rows.double().requires_grad_(), probs.double().requires_grad_()
            reference_unpermute(wanted, sorted_indices, weights).backward(grad.double())
            grad_rows, grad_probs = UNPERMUTE_GRAD(rows, grad, sorted_indices, probs)
            assert_near(grad_rows, wanted.grad)
            assert_near(grad_probs, weights.grad, atol=1e-4)
            taken = chosen_experts(4, 3)
            assert torch.equal(PERMUTE(rows[:4], taken)[0], reference_permute(rows[:4], taken)[0])


def test_results_do_not_depend_on_threads() -> None:
    x, indices = torch.randn(600, 300).bfloat16(), chosen_experts(600, 8)
    probs, grad = torch.rand(600, 8), torch.randn(600, 300).bfloat16()
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            permuted, sorted_indices = PERMUTE(x, indices)
            out = UNPERMUTE(permuted, sorted_indices, probs)
            results.append(
                [permuted, sorted_indices, out, *UNPERMUTE_GRAD(permuted, grad, sorted_indices % 900, probs)]
            )
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_non_contiguous_and_unaligned(device: str) -> None:
    x = torch.randn(30, 8).to(device).t()
    indices = chosen_experts(8, 3).to(device).t().contiguous().t()
    permuted, sorted_indices = PERMUTE(x, indices)
    expected, expected_indices = reference_permute(x.cpu(), indices.cpu())
    assert torch.equal(permuted.cpu(), expected) and torch.equal(sorted_indices.cpu(), expected_indices)
    probs = torch.rand(3, 8).to(device).t()
    rows = torch.randn(1 + 24 * 30).to(device)[1:].view(24, 30)
    spread = sorted_indices.repeat_interleave(2)[::2]
    assert not (x.is_contiguous() or indices.is_contiguous() or probs.is_contiguous() or spread.is_contiguous())
    assert_near(UNPERMUTE(rows, spread, probs), reference_unpermute(rows.cpu(), spread.cpu(), probs.cpu()))
    grad = torch.randn(30, 8).to(device).t()
    ours = UNPERMUTE_GRAD(rows, grad, spread, probs)
    packed = UNPERMUTE_GRAD(rows.clone(), grad.contiguous(), spread.contiguous(), probs.contiguous())
    assert torch.equal(ours[0].cpu(), packed[0].cpu()) and torch.equal(ours[1].cpu(), packed[1].cpu())


def test_empty(device: str) -> None:
    none = torch.empty(0, 2, dtype=torch.int64, device=device)
    permuted, sorted_indices = PERMUTE(torch.empty(0, 7, device=device), none)
    assert permuted.shape == (0, 7) and sorted_indices.shape == (0,)
    assert UNPERMUTE(permuted, sorted_indices, torch.empty(0, 2, device=device)).shape == (0, 7)
    grad_rows, grad_probs = UNPERMUTE_GRAD(permuted, permuted, sorted_indices, torch.empty(0, 2, device=device))
    assert grad_rows.shape == (0, 7) and grad_probs.shape == (0, 2)
    permuted, sorted_indices = PERMUTE(torch.empty(3, 0, device=device), chosen_experts(3, 2).to(device))
    assert permuted.shape == (6, 0) and sorted(sorted_indices.tolist()) == list(range(6))
    rows = torch.empty(0, 5, device=device)  # every copy was dropped
    out = UNPERMUTE(rows, torch.arange(4, device=device), torch.ones(2, 2, device=device))
    assert torch.equal(out.cpu(), torch.zeros(2, 5))


# ---- autograd ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_autograd(dtype: torch.dtype, limit: int | None, device: str) -> None:
    x, indices, probs = torch.randn(6, 20).to(dtype), chosen_experts(6, 2), torch.rand(6, 2)
    grad = torch.randn(6, 20).to(dtype)
    ours, weights = x.to(device).requires_grad_(), probs.to(device).requires_grad_()
    permuted, sorted_indices = PERMUTE(ours, indices.to(device), limit)
    assert permuted.requires_grad and not sorted_indices.requires_grad
    UNPERMUTE(permuted * 2, sorted_indices, weights).backward(grad.to(device))
    wanted = x.detach().double().requires_grad_()
    expected_weights = probs.detach().double().requires_grad_()
    expected, order = reference_permute(wanted, indices, limit)
    reference_unpermute(expected * 2, order, expected_weights).backward(grad.double())
    assert ours.grad is not None and ours.grad.dtype == dtype
    assert weights.grad is not None and weights.grad.dtype == torch.float32
    loose = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]  # products of rounded gradients
    torch.testing.assert_close(ours.grad.cpu().double(), wanted.grad, rtol=loose, atol=loose)
    torch.testing.assert_close(weights.grad.cpu().double(), expected_weights.grad, rtol=loose, atol=loose)


@pytest.mark.parametrize("wanted", ["rows", "probs"])
@pytest.mark.parametrize("op", [UNPERMUTE, INTERNAL_UNPERMUTE])
def test_autograd_of_one_argument(op: object, wanted: str, device: str) -> None:
    rows, probs = torch.randn(6, 5, device=device), torch.rand(3, 2, device=device)
    (rows if wanted == "rows" else probs).requires_grad_()
    out = op(rows, torch.randperm(6).to(device), probs)  # type: ignore[operator]
    (out[0] if isinstance(out, tuple) else out).sum().backward()
    assert (rows.grad is not None) == (wanted == "rows")
    assert (probs.grad is not None) == (wanted == "probs")


@pytest.mark.parametrize("op", [UNPERMUTE, INTERNAL_UNPERMUTE])
def test_autograd_without_probs(op: object, device: str) -> None:
    rows = torch.randn(6, 5, device=device, requires_grad=True)
    index, grad = torch.randperm(6), torch.randn(6, 5)
    out = op(rows, index.to(device))  # type: ignore[operator]
    (out[0] if isinstance(out, tuple) else out).backward(grad.to(device))
    assert rows.grad is not None and torch.equal(rows.grad.cpu()[index], grad)


def test_second_derivatives_are_refused(device: str) -> None:
    x = torch.randn(4, 5, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(PERMUTE(x, chosen_experts(4, 2).to(device))[0].square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="npu_moe_token_permute has no second derivative"):
        grad.sum().backward()
    (grad,) = torch.autograd.grad(UNPERMUTE(x, torch.randperm(4).to(device)).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="npu_moe_token_unpermute has no second derivative"):
        grad.sum().backward()


def test_compiled_training_with_dynamic_shapes(device: str) -> None:
    def model(x: Tensor, indices: Tensor, probs: Tensor) -> Tensor:
        permuted, sorted_indices = PERMUTE(x * 2, indices)
        return UNPERMUTE(permuted + 1, sorted_indices, probs).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for tokens, k, hidden in ((4, 2, 16), (7, 3, 24)):
        x, probs = torch.randn(tokens, hidden).to(device), torch.rand(tokens, k).to(device)
        x.requires_grad_(), probs.requires_grad_()
        indices = chosen_experts(tokens, k).to(device)
        expected = torch.autograd.grad(model(x, indices, probs), (x, probs))
        for actual, wanted in zip(torch.autograd.grad(compiled(x, indices, probs), (x, probs)), expected, strict=True):
            torch.testing.assert_close(actual, wanted)


# ---- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["cpu", "npu", "meta"])
def test_errors(where: str) -> None:
    if where == "npu":
        import torch_npu  # noqa: F401

    def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(*shape, dtype=dtype, device=where)

    def index(*shape: int) -> Tensor:
        return ones(*shape, dtype=torch.int32)

    for call, message in [
        (
            lambda: PERMUTE(ones(3), index(3)),
            r"npu_moe_token_permute: argument tokens: expected 2 dims, got shape \[3\]",
        ),
        (lambda: PERMUTE(ones(3, 4), index(3, 1, 1)), "argument indices: expected 1 or 2 dims"),
        (lambda: PERMUTE(ones(3, 4), index(2, 2)), "argument indices: expected 3 rows, one for each token"),
        (lambda: PERMUTE(ones(3, 4), index(3, 2), -7), "argument num_out_tokens: expected at least -6"),
        (lambda: UNPERMUTE(ones(6), index(6)), "argument permuted_tokens: expected 2 dims"),
        (lambda: UNPERMUTE(ones(6, 4), index(6, 1)), "argument sorted_indices: expected 1 dim"),
        (lambda: UNPERMUTE(ones(6, 4), index(6), ones(6)), "argument probs: expected 2 dims"),
        (lambda: UNPERMUTE(ones(6, 4), index(0), ones(3, 0)), "argument probs: expected at least one column"),
        (lambda: UNPERMUTE(ones(6, 4), index(6), ones(2, 2)), "argument probs: expected 6 elements, as sorted_indices"),
        (lambda: UNPERMUTE(ones(6, 4), index(6), None, True), "argument restore_shape: expected .tokens, 4., which"),
        (lambda: UNPERMUTE(ones(6, 4), index(5), None, True, [3, 4]), "argument sorted_indices: expected 6 elements"),
        (
            lambda: UNPERMUTE_GRAD_V2(ones(3, 4), index(6), 6, torch.float32, ones(3, 2)),
            "argument permuted_tokens: expected the tensor that was unpermuted",
        ),
        (
            lambda: UNPERMUTE_GRAD(ones(6, 4), ones(2, 4), index(6), ones(3, 2)),
            "grad_unpermuted_tokens: expected 3 rows",
        ),
        (lambda: PERMUTE_GRAD_V2(ones(6, 4), index(6), 2, torch.float32, 2), "argument sorted_indices: expected 4"),
        (lambda: PERMUTE_GRAD(ones(3, 4), ones(6, 4), index(3, 2), index(5)), "argument sorted_indices: expected 6"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_errors_of_dtypes() -> None:
    x, index = torch.ones(3, 4), torch.zeros(3, dtype=torch.int32)
    for call, message in [
        (lambda: PERMUTE(x.long(), index), "argument tokens: expected dtype float16, bfloat16 or float32, got int64"),
        (lambda: PERMUTE(x, index.short()), "argument indices: expected dtype int32 or int64, got int16"),
        (lambda: UNPERMUTE(x, index.float()), "argument sorted_indices: expected dtype int32 or int64, got float32"),
        (lambda: UNPERMUTE(x, index, x[:, :1].int()), "argument probs: expected dtype"),
        (lambda: PERMUTE_GRAD_V2(x, index, 3, torch.int32, 1), "argument tokens_dtype: expected float16, bfloat16"),
        (
            lambda: UNPERMUTE_GRAD_V2(x, index, 3, torch.half, x[:, :1], permuted_tokens=x),
            "argument permuted_tokens: expected dtype float16, got float32",
        ),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_indices_out_of_range_are_reported(device: str) -> None:
    rows, index = torch.ones(4, 4, device=device), torch.tensor([0, -1, 2, 3], device=device)
    for call, message in [
        (lambda: UNPERMUTE(rows, index), "sorted_indices: expected values from 0 on, got -1 at position 1"),
        (lambda: UNPERMUTE_GRAD(rows, rows, index), "sorted_indices: expected values from 0 on, got -1 at position 1"),
        (lambda: PERMUTE(rows, index, None, True), "indices: expected values from 0 on and below 4, got -1"),
        (lambda: UNPERMUTE(rows, index + 1, None, True, [4, 4]), "sorted_indices: .* below 4, got 4 at position 3"),
    ]:
        with pytest.raises(IndexError, match=message):
            call()
            torch.accelerator.synchronize()


def test_devices_must_agree() -> None:
    import torch_npu  # noqa: F401

    x, index = torch.ones(2, 3), torch.zeros(2, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"npu:0 and cpu! \(when checking argument indices"):
        PERMUTE(x.npu(), index)
    with pytest.raises(RuntimeError, match=r"cpu and npu:0! \(when checking argument probs"):
        UNPERMUTE(x, index, x[:, :1].npu())
