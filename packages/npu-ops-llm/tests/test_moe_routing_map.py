"""Permutation of tokens by a map of tokens and experts against the formulas in float64."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

PERMUTE = torch.ops.npu.npu_moe_token_permute_with_routing_map
PERMUTE_GRAD = torch.ops.npu.npu_moe_token_permute_with_routing_map_grad
UNPERMUTE = torch.ops.npu.npu_moe_token_unpermute_with_routing_map
INTERNAL_UNPERMUTE = torch.ops.npu._npu_moe_token_unpermute_with_routing_map
UNPERMUTE_GRAD = torch.ops.npu.npu_moe_token_unpermute_with_routing_map_grad

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
#: tokens, experts, K, hidden
SHAPES = [(1, 1, 1, 1), (7, 5, 3, 67), (9, 16, 8, 40), (13, 11, 2, 131), (6, 33, 4, 8)]
derandomized = settings(
    deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def assert_near(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual.cpu().double(), expected.double(), rtol=TOLERANCE[actual.dtype], atol=atol)


def chosen(tokens: int, experts: int, k: int) -> Tensor:
    """A map in which every token has k experts."""
    routing_map = torch.zeros(tokens, experts, dtype=torch.bool)
    for token in range(tokens):
        routing_map[token, torch.randperm(experts)[:k]] = True
    return routing_map


def rows_of_experts(routing_map: Tensor, capacity: int | None = None) -> tuple[Tensor, Tensor]:
    """Token and expert of every row; with a capacity the first tokens of each expert, selected ones first."""
    tokens, experts = [], []
    for expert in range(routing_map.shape[1]):
        selected = routing_map[:, expert] != 0
        order = torch.cat([selected.nonzero()[:, 0], (~selected).nonzero()[:, 0]])
        taken = order[: int(selected.sum()) if capacity is None else capacity]
        tokens.append(taken)
        experts.append(torch.full_like(taken, expert))
    return torch.cat(tokens), torch.cat(experts)


def reference_unpermute(
    rows: Tensor, sorted_indices: Tensor, tokens: int, probs: Tensor | None, routing_map: Tensor | None, padded: bool
) -> Tensor:
    if padded:
        index = sorted_indices.long()
        weights: Tensor | float = 1.0
        if probs is not None:
            experts = torch.arange(len(index)) // (len(index) // probs.shape[1])
            weights = probs.double()[index, experts][:, None]
        return torch.zeros(tokens, rows.shape[1], dtype=torch.float64).index_add(0, index, rows.double() * weights)
    taken = rows.double()[sorted_indices.long()].view(tokens, -1, rows.shape[1])
    if probs is None:
        return taken.sum(1)
    assert routing_map is not None
    return (taken * probs.double()[routing_map != 0].view(tokens, -1, 1)).sum(1)


@pytest.mark.parametrize("map_dtype", [torch.bool, torch.int8, torch.uint8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "experts", "k", "hidden"), SHAPES)
def test_permute(
    tokens: int, experts: int, k: int, hidden: int, dtype: torch.dtype, map_dtype: torch.dtype, device: str
) -> None:
    x, probs, routing_map = (
        torch.randn(tokens, hidden).to(dtype),
        torch.rand(tokens, experts),
        chosen(tokens, experts, k),
    )
    moved = x.to(device), routing_map.to(map_dtype).to(device)
    permuted, permuted_probs, sorted_indices = PERMUTE(*moved, probs=probs.to(device), num_out_tokens=tokens * k)
    token, expert = rows_of_experts(routing_map)
    assert permuted.dtype == dtype and permuted_probs.dtype == torch.float32 and sorted_indices.dtype == torch.int32
    assert torch.equal(permuted.cpu(), x[token])
    assert torch.equal(permuted_probs.cpu(), probs[token, expert])
    assert torch.equal(sorted_indices.cpu().long(), token.argsort(stable=True))
    again = PERMUTE(*moved, num_out_tokens=tokens * k)
    assert again[1] is None and torch.equal(again[0].cpu(), x[token])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "experts", "k", "hidden"), SHAPES)
def test_drop_and_pad(tokens: int, experts: int, k: int, hidden: int, dtype: torch.dtype, device: str) -> None:
    for capacity in {1, (tokens + 1) // 2, tokens}:
        x, probs = torch.randn(tokens, hidden).to(dtype), torch.rand(tokens, experts).to(dtype)
        routing_map = torch.rand(tokens, experts) < k / experts
        permuted, permuted_probs, sorted_indices = PERMUTE(
            x.to(device),
            routing_map.to(device),
            probs=probs.to(device),
            num_out_tokens=capacity * experts,
            drop_and_pad=True,
        )
        token, expert = rows_of_experts(routing_map, capacity)
        assert torch.equal(sorted_indices.cpu().long(), token)
        assert torch.equal(permuted.cpu(), x[token])
        assert torch.equal(permuted_probs.cpu(), probs[token, expert])


def test_specification_example(device: str) -> None:
    x = torch.arange(3.0, device=device)[:, None]
    routing_map = torch.tensor([[0, 1, 1], [1, 1, 0], [1, 0, 1]], dtype=torch.bool, device=device)
    permuted, probs, sorted_indices = PERMUTE(x, routing_map, num_out_tokens=6)
    assert probs is None and permuted.flatten().tolist() == [1, 2, 0, 1, 0, 2]
    assert sorted_indices.tolist() == [2, 4, 0, 3, 1, 5]
    padded = PERMUTE(x, routing_map, num_out_tokens=6, drop_and_pad=True)
    assert padded[2].tolist() == [1, 2, 0, 1, 0, 2]


def test_number_of_rows_is_rounded_down(device: str) -> None:
    x, routing_map = torch.randn(4, 5, device=device), chosen(4, 6, 2).to(device)
    assert PERMUTE(x, routing_map, num_out_tokens=11)[0].shape == (8, 5)
    assert PERMUTE(x, routing_map, num_out_tokens=23, drop_and_pad=True)[0].shape == (18, 5)
    assert PERMUTE(x, chosen(4, 6, 1).to(device))[0].shape == (4, 5)  # one row for each token by default


@pytest.mark.parametrize("padded", [False, True], ids=["exact", "padded"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "experts", "k", "hidden"), SHAPES)
def test_gradient_of_permute(
    tokens: int, experts: int, k: int, hidden: int, dtype: torch.dtype, padded: bool, device: str
) -> None:
    capacity = (tokens + 1) // 2 if padded else None
    routing_map = chosen(tokens, experts, k)
    rows = capacity * experts if capacity else tokens * k
    x, probs = torch.randn(tokens, hidden).to(dtype), torch.rand(tokens, experts)
    ours, weights = x.clone().to(device).requires_grad_(), probs.clone().to(device).requires_grad_()
    permuted, permuted_probs, sorted_indices = PERMUTE(
        ours, routing_map.to(device), probs=weights, num_out_tokens=rows, drop_and_pad=padded
    )
    assert permuted.requires_grad and permuted_probs.requires_grad and not sorted_indices.requires_grad
    grad, grad_probs = torch.randn(rows, hidden).to(dtype), torch.randn(rows)
    torch.autograd.backward((permuted, permuted_probs), (grad.to(device), grad_probs.to(device)))
    token, expert = rows_of_experts(routing_map, capacity)
    expected = torch.zeros(tokens, hidden, dtype=torch.float64).index_add_(0, token, grad.double())
    expected_probs = torch.zeros(tokens, experts)
    expected_probs[token, expert] = grad_probs
    assert ours.grad is not None and weights.grad is not None
    assert_near(ours.grad, expected)
    assert torch.equal(weights.grad.cpu(), expected_probs)
    direct = PERMUTE_GRAD(grad.to(device), None, sorted_indices, routing_map.to(device), experts, tokens, padded)
    assert direct[1] is None and torch.equal(direct[0].cpu(), ours.grad.cpu())


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("padded", [False, True], ids=["exact", "padded"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "experts", "k", "hidden"), SHAPES)
def test_unpermute_and_gradient(
    tokens: int, experts: int, k: int, hidden: int, dtype: torch.dtype, padded: bool, weighted: bool, device: str
) -> None:
    routing_map = chosen(tokens, experts, k)
    count = 2 * experts if padded else tokens * k
    rows = torch.randn(count, hidden).to(dtype)
    probs = torch.rand(tokens, experts) if weighted else None
    if padded:  # an expert may have a token twice
        sorted_indices = torch.randint(tokens, (count,))
    else:
        sorted_indices = torch.randperm(count)
    sorted_indices = sorted_indices.to(torch.int32)
    ours = rows.clone().to(device).requires_grad_()
    weights = None if probs is None else probs.clone().to(device).requires_grad_()
    keywords = {"probs": weights, "routing_map": routing_map.to(device), "drop_and_pad": padded}
    arguments = (ours, sorted_indices.to(device), [tokens, hidden])
    out = UNPERMUTE(*arguments, **keywords)
    wanted = rows.double().requires_grad_()
    expected_weights = None if probs is None else probs.double().requires_grad_()
    expected = reference_unpermute(wanted, sorted_indices, tokens, expected_weights, routing_map, padded)
    assert out.dtype == dtype and out.shape == (tokens, hidden)
    assert_near(out.detach(), expected.detach())
    grad = torch.randn(tokens, hidden).to(dtype)
    out.backward(grad.to(device))
    expected.backward(grad.double())
    assert ours.grad is not None and ours.grad.dtype == dtype
    assert_near(ours.grad, wanted.grad)
    if weights is not None:
        assert expected_weights is not None and weights.grad is not None and weights.grad.dtype == torch.float32
        size = 4 * TOLERANCE[dtype] * hidden**0.5  # the gradient was formed in the dtype of the rows
        torch.testing.assert_close(weights.grad.cpu().double(), expected_weights.grad, rtol=size, atol=size + 1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_one_token_and_expert_add_to_the_gradient(dtype: torch.dtype, device: str) -> None:
    """Also where the rows of a pair are not next to each other, and in float32: 256 + 1 is no bfloat16."""
    rows = torch.tensor([[256.0, 0], [1, 0], [1, 0], [4, 2], [8, 1], [16, 0]]).to(dtype).to(device)
    grad = torch.tensor([[1.0, 1], [1, 10]]).to(dtype).to(device)
    probs, routing_map = torch.ones(2, 2, device=device), torch.ones(2, 2, dtype=torch.bool, device=device)
    for order in ([0, 1, 2, 3, 4, 5], [3, 0, 5, 1, 4, 2]):
        row = torch.tensor(order, dtype=torch.int32, device=device)
        token = torch.tensor([0, 0, 0, 0, 1, 0], dtype=torch.int32, device=device)[row.long()]
        _, grad_probs = UNPERMUTE_GRAD(grad, row, token, routing_map, rows, probs, True, [2, 2])
        assert grad_probs.dtype == dtype and grad_probs.tolist() == [[258, 22], [0, 18]]


@pytest.mark.parametrize("padded", [False, True], ids=["exact", "padded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_that_no_row_had_get_zeros(dtype: torch.dtype, padded: bool, device: str) -> None:
    tokens, experts = 6, 8
    x = torch.randn(tokens, 4, device=device)
    routing_map = torch.full((tokens, experts), padded, dtype=torch.bool, device=device)
    probs = torch.rand(tokens, experts, device=device).to(dtype).requires_grad_()
    permuted, permuted_probs, index = PERMUTE(x, routing_map, probs=probs, num_out_tokens=5, drop_and_pad=padded)
    assert permuted.shape == (0, 4)
    for _ in range(8):
        torch.full((tokens, experts), float("nan"), dtype=dtype, device=device)  # memory that is not zero
        _, grad = PERMUTE_GRAD(permuted, permuted_probs.detach(), index, routing_map, experts, tokens, padded)
        assert torch.equal(grad.cpu(), torch.zeros(tokens, experts, dtype=dtype))
        torch.full((tokens, experts), float("nan"), dtype=dtype, device=device)
        _, grad = UNPERMUTE_GRAD(x, index, index, routing_map, permuted, probs.detach(), padded, [tokens, 4])
        assert torch.equal(grad.cpu(), torch.zeros(tokens, experts))
    permuted_probs.sum().backward()
    assert torch.equal(probs.grad.cpu(), torch.zeros(tokens, experts, dtype=dtype))


def test_tokens_that_no_expert_can_take_are_reported(device: str) -> None:
    x, rows, index = torch.randn(2, 3), torch.randn(4, 3), torch.arange(4, dtype=torch.int32)
    x, rows, index = x.to(device), rows.to(device), index.to(device)
    probs, routing_map = torch.empty(2, 0, device=device), torch.empty(2, 0, dtype=torch.bool, device=device)
    for call in (
        lambda: UNPERMUTE(rows, index, [2, 3], probs=probs, routing_map=routing_map),
        lambda: UNPERMUTE_GRAD(x, index, index, routing_map, rows, probs, False, [2, 3]),
        lambda: PERMUTE_GRAD(rows, rows[:, 0], index, routing_map, 0, 2, False),
    ):
        with pytest.raises(RuntimeError, match="expected 2 experts for every token, got 0 for token 0"):
            call()
            torch.accelerator.synchronize()


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_internal_unpermute_keeps_what_the_gradient_needs(weighted: bool, device: str) -> None:
    tokens, experts, hidden = 5, 4, 9
    routing_map = chosen(tokens, experts, 2)
    probs = torch.rand(tokens, experts)
    keywords = {"probs": probs.to(device) if weighted else None, "routing_map": routing_map.to(device)}
    rows, index = torch.randn(10, hidden), torch.randperm(10).to(torch.int32)
    out, out_index, token, applied = INTERNAL_UNPERMUTE(
        rows.to(device).requires_grad_(), index.to(device), [tokens, hidden], **keywords
    )
    assert out.requires_grad and not applied.requires_grad
    assert torch.equal(out_index.cpu(), torch.full((10,), -1, dtype=torch.int32)) and torch.equal(token, out_index)
    assert torch.equal(applied.cpu(), probs[routing_map] if weighted else torch.ones(10))

    token_of_row, expert = rows_of_experts(routing_map, 3)
    rows, index = torch.randn(12, hidden), token_of_row.to(torch.int32)
    out, out_index, token, applied = INTERNAL_UNPERMUTE(
        rows.to(device), index.to(device), [tokens, hidden], **keywords, drop_and_pad=True
    )
    sorted_tokens, order = index.sort(stable=True)
    assert torch.equal(out_index.cpu().long(), order) and torch.equal(token.cpu(), sorted_tokens)
    assert torch.equal(applied.cpu(), probs[token_of_row, expert] if weighted else torch.ones(12))
    expected = reference_unpermute(rows, index, tokens, probs if weighted else None, routing_map, True)
    assert_near(out, expected)
    # The gradient as the internal operator's outputs give it.
    grad = torch.randn(tokens, hidden)
    grad_rows, grad_probs = UNPERMUTE_GRAD(
        grad.to(device),
        out_index,
        token,
        keywords["routing_map"],
        rows.to(device),
        keywords["probs"],
        True,
        [tokens, hidden],
    )
    weights = probs[token_of_row, expert] if weighted else torch.ones(12)
    assert_near(grad_rows, weights[:, None] * grad[token_of_row])
    if weighted:
        expected_probs = torch.zeros(tokens, experts)
        expected_probs[token_of_row, expert] = (grad[token_of_row] * rows).sum(1)
        assert_near(grad_probs, expected_probs)
    else:
        assert grad_probs is None


@derandomized
@given(data=st.data())
def test_round_trip(data: st.DataObject, device: str) -> None:
    tokens, experts = data.draw(st.integers(0, 20)), data.draw(st.integers(1, 20))
    k, hidden = data.draw(st.integers(1, experts)), data.draw(st.integers(0, 40))
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    x, probs, routing_map = torch.randn(tokens, hidden), torch.rand(tokens, experts), chosen(tokens, experts, k)
    moved = [one.to(device) for one in (x, routing_map, probs)]
    if data.draw(st.booleans()):  # padded, with room for all
        rows = tokens * experts
        permuted, _, index = PERMUTE(moved[0], moved[1], num_out_tokens=rows, drop_and_pad=True)
        weights = (moved[2] * moved[1]).contiguous()  # padding rows count nothing
        out = UNPERMUTE(permuted, index, [tokens, hidden], probs=weights, routing_map=moved[1], drop_and_pad=True)
    else:
        permuted, _, index = PERMUTE(moved[0], moved[1], num_out_tokens=tokens * k)
        out = UNPERMUTE(permuted, index, [tokens, hidden], probs=moved[2], routing_map=moved[1])
    expected = x * (probs * routing_map).sum(1, keepdim=True)
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_every_kernel_table(isa: str) -> None:
    for hidden in (*range(1, 19), 63, 64, 65, 257):
        routing_map = chosen(6, 9, 3)
        x, probs = torch.randn(6, hidden).bfloat16(), torch.rand(6, 9)
        permuted, _, index = PERMUTE(x, routing_map, num_out_tokens=18)
        out = UNPERMUTE(permuted, index, [6, hidden], probs=probs, routing_map=routing_map)
        assert_near(out, reference_unpermute(permuted, index, 6, probs, routing_map, False))


def test_non_contiguous(device: str) -> None:
    x, routing_map = torch.randn(20, 7, device=device).t(), chosen(7, 6, 2).t().contiguous().t().to(device)
    probs = torch.rand(6, 7, device=device).t()
    permuted, permuted_probs, index = PERMUTE(x, routing_map, probs=probs, num_out_tokens=14)
    packed = PERMUTE(x.contiguous(), routing_map.contiguous(), probs=probs.contiguous(), num_out_tokens=14)
    for ours, theirs in zip((permuted, permuted_probs, index), packed, strict=True):
        assert torch.equal(ours.cpu(), theirs.cpu())
    rows = permuted.t().contiguous().t()
    out = UNPERMUTE(rows, index, [7, 20], probs=probs, routing_map=routing_map)
    expected = UNPERMUTE(permuted, index, [7, 20], probs=probs.contiguous(), routing_map=routing_map.contiguous())
    assert torch.equal(out.cpu(), expected.cpu())


def test_empty(device: str) -> None:
    x, routing_map = torch.empty(0, 5, device=device), torch.empty(0, 4, dtype=torch.bool, device=device)
    probs = torch.empty(0, 4, device=device)
    for padded in (False, True):
        permuted, permuted_probs, index = PERMUTE(x, routing_map, probs=probs, num_out_tokens=0, drop_and_pad=padded)
        assert permuted.shape == (0, 5) and permuted_probs.shape == (0,) and index.shape == (0,)
        out = UNPERMUTE(permuted, index, [0, 5], probs=probs, routing_map=routing_map, drop_and_pad=padded)
        assert out.shape == (0, 5)
        grads = PERMUTE_GRAD(permuted, permuted_probs, index, routing_map, 4, 0, padded)
        assert grads[0].shape == (0, 5) and grads[1].shape == (0, 4)
    rows = torch.empty(0, 5, device=device)
    no_index = torch.empty(0, dtype=torch.int32, device=device)
    assert torch.equal(UNPERMUTE(rows, no_index, [3, 5], drop_and_pad=True).cpu(), torch.zeros(3, 5))


def test_results_do_not_depend_on_threads() -> None:
    x, probs, routing_map = torch.randn(500, 260).bfloat16(), torch.rand(500, 64), chosen(500, 64, 6)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            exact = PERMUTE(x, routing_map, probs=probs, num_out_tokens=3000)
            padded = PERMUTE(x, routing_map, probs=probs, num_out_tokens=64 * 50, drop_and_pad=True)
            sums = [
                UNPERMUTE(exact[0], exact[2], [500, 260], probs=probs, routing_map=routing_map),
                UNPERMUTE(padded[0], padded[2], [500, 260], probs=probs, routing_map=routing_map, drop_and_pad=True),
            ]
            results.append([*exact, *padded, *sums])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_compiled_training(weighted: bool, device: str) -> None:
    tokens, experts, k, hidden = 6, 5, 2, 16
    routing_map = chosen(tokens, experts, k).to(device)

    def model(x: Tensor, probs: Tensor | None) -> Tensor:
        permuted, permuted_probs, index = PERMUTE(x * 2, routing_map, probs=probs, num_out_tokens=tokens * k)
        out = UNPERMUTE(permuted + 1, index, [tokens, hidden], probs=probs, routing_map=routing_map)
        return out.square().sum() + (0 if permuted_probs is None else permuted_probs.square().sum())

    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(tokens, hidden).to(device).requires_grad_()
    probs = torch.rand(tokens, experts).to(device).requires_grad_() if weighted else None
    leaves = [x] if probs is None else [x, probs]
    expected = torch.autograd.grad(model(x, probs), leaves)
    for actual, wanted in zip(torch.autograd.grad(compiled(x, probs), leaves), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_second_derivatives_are_refused(device: str) -> None:
    x, routing_map = torch.randn(4, 5, device=device, requires_grad=True), chosen(4, 3, 1).to(device)
    permuted, _, index = PERMUTE(x, routing_map)
    for out, name in ((permuted, "permute"), (UNPERMUTE(x, index, [4, 5]), "unpermute")):
        (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match=f"npu_moe_token_{name}_with_routing_map has no second"):
            grad.sum().backward()


# ---- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["cpu", "npu", "meta"])
def test_errors(where: str) -> None:
    if where == "npu":
        import torch_npu  # noqa: F401

    def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(*shape, dtype=dtype, device=where)

    def bools(*shape: int) -> Tensor:
        return ones(*shape, dtype=torch.bool)

    index = ones(6, dtype=torch.int32)
    rows, shape = ones(6, 4), [3, 4]
    for call, message in [
        (lambda: PERMUTE(ones(3), bools(3, 2)), "with_routing_map: argument tokens: expected 2 dims"),
        (lambda: PERMUTE(ones(3, 4), bools(3)), "argument routing_map: expected 2 dims"),
        (lambda: PERMUTE(ones(3, 4), bools(2, 2)), "argument routing_map: expected 3 rows, one for each token"),
        (lambda: PERMUTE(ones(3, 4), bools(3, 2), probs=ones(3, 3)), r"argument probs: expected shape \[3, 2\]"),
        (lambda: PERMUTE(ones(3, 4), bools(3, 2), num_out_tokens=-1), "argument num_out_tokens: expected a number"),
        (
            lambda: PERMUTE(ones(3, 4), bools(3, 2), num_out_tokens=8, drop_and_pad=True),
            "argument num_out_tokens: expected a capacity of at most 3 tokens for each of 2 experts, got 4",
        ),
        (lambda: UNPERMUTE(rows, index, [3]), "argument restore_shape: expected .tokens, 4., got .3."),
        (lambda: UNPERMUTE(rows, index, shape, probs=ones(3, 2)), "argument routing_map: expected the map"),
        (lambda: UNPERMUTE(rows, index, [4, 4]), "argument permuted_tokens: expected a multiple of 4 rows"),
        (
            lambda: UNPERMUTE(rows, index, shape, routing_map=bools(3, 4), drop_and_pad=True),
            "argument permuted_tokens: expected a multiple of 4 rows",
        ),
        (lambda: UNPERMUTE(rows, index[:5], shape), r"argument sorted_indices: expected shape \[6\]"),
        (
            lambda: PERMUTE_GRAD(rows, None, index, bools(4, 2), 2, 4, False),
            "argument permuted_token_out_grad: expected a multiple of 4 rows",
        ),
        (
            lambda: UNPERMUTE_GRAD(ones(3, 4), index, index, bools(3, 2), None, ones(3, 2), False, shape),
            "argument permuted_tokens: expected the tensor that was unpermuted",
        ),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_errors_of_values_before_the_launch() -> None:
    x, routing_map = torch.ones(3, 4), torch.ones(3, 2, dtype=torch.bool)
    for call, message in [
        (
            lambda: PERMUTE(x, routing_map.float()),
            "argument routing_map: expected dtype bool, int8 or uint8, got float32",
        ),
        (lambda: PERMUTE(x, routing_map, probs=routing_map), "argument probs: expected dtype"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


@pytest.mark.parametrize("count", [1, 3])
def test_tokens_with_another_number_of_experts_are_reported(count: int, device: str) -> None:
    routing_map = chosen(5, 20, 2)
    routing_map[3] = chosen(1, 20, count)[0]
    x, index = torch.randn(5, 4, device=device), torch.arange(10, dtype=torch.int32, device=device)
    rows, probs = torch.randn(10, 4, device=device), torch.rand(5, 20, device=device)
    moved = routing_map.to(device)
    for call in (
        lambda: PERMUTE(x, moved, num_out_tokens=10),
        lambda: UNPERMUTE(rows, index, [5, 4], probs=probs, routing_map=moved),
        lambda: PERMUTE_GRAD(rows, probs.flatten()[:10], index, moved, 20, 5, False),
        lambda: UNPERMUTE_GRAD(x, index, index, moved, rows, probs, False, [5, 4]),
    ):
        with pytest.raises(RuntimeError, match=f"expected 2 experts for every token, got {count} for token 3"):
            call()
            torch.accelerator.synchronize()


@pytest.mark.parametrize("bad", [-1, 10])
def test_indices_out_of_range_are_reported(bad: int, device: str) -> None:
    rows, grad = torch.randn(10, 4, device=device), torch.randn(5, 4, device=device)
    index = torch.arange(10, dtype=torch.int32, device=device)
    wrong = index.clone()
    wrong[7] = bad
    routing_map = chosen(5, 10, 2).to(device)
    for call, name in (
        (lambda: UNPERMUTE(rows, wrong, [5, 4]), "sorted_indices"),
        (lambda: UNPERMUTE(rows, wrong, [5, 4], drop_and_pad=True), "sorted_indices"),
        (lambda: PERMUTE_GRAD(rows, None, wrong, routing_map, 10, 5, False), "sorted_indices"),
        (lambda: PERMUTE_GRAD(rows, None, wrong % 16, routing_map, 10, 5, True), "sorted_indices"),
        (lambda: UNPERMUTE_GRAD(grad, wrong, index, None, None, None, False, [5, 4]), "out_index"),
        (lambda: UNPERMUTE_GRAD(grad, index, wrong, None, None, None, True, [5, 4]), "permuted_token_id"),
    ):
        with pytest.raises(IndexError, match=f"argument {name}: expected values from 0 on and below"):
            call()
            torch.accelerator.synchronize()
