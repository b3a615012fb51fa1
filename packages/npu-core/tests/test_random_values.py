"""Distributions of random ops: fixed seeds, so what passes once passes always."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
WIDE = [torch.float32, torch.float64]
N = 1 << 18
ENOUGH = 1e-4  # p-value below which a seed would be called unlucky


@pytest.fixture(autouse=True)
def seed():
    states = torch.npu.get_rng_state_all()
    torch.npu.manual_seed_all(20261)
    yield
    torch.npu.set_rng_state_all(states)


def empty(dtype: torch.dtype = torch.float32, size: int = N) -> torch.Tensor:
    return torch.empty(size, device="npu", dtype=dtype)


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().to(torch.float64 if tensor.is_floating_point() else torch.int64).numpy()


def follows(values: torch.Tensor, distribution: Any) -> None:
    assert stats.kstest(numbers(values), distribution.cdf).pvalue > ENOUGH


def has_frequencies(values: np.ndarray, probabilities: np.ndarray) -> None:
    """Chi-square of integers 0 ... len - 1; rare ones are put together."""
    counts = np.bincount(values, minlength=len(probabilities))
    assert len(counts) == len(probabilities), "a value beyond the support"
    expected = probabilities / probabilities.sum() * len(values)
    assert (counts[expected == 0] == 0).all()
    rare = expected < 10
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] < 5:  # too few for a cell of their own
        counts[-2] += counts[-1]
        expected[-2] += expected[-1]
        counts, expected = counts[:-1], expected[:-1]
    if len(counts) > 1:
        assert stats.chisquare(counts, expected).pvalue > ENOUGH


def has_pmf(values: torch.Tensor, distribution: Any) -> None:
    drawn = numbers(values).astype(np.int64)
    assert drawn.min() >= 0 and (numbers(values) == drawn).all()
    low, high = int(distribution.ppf(1e-9)), int(distribution.ppf(1 - 1e-9)) + 1
    assert drawn.min() >= low - 5 and drawn.max() <= high + 5
    support = np.arange(max(0, low - 5), high + 6)
    width = max(1, len(support) // 200)
    cells = (support - support[0]) // width
    has_frequencies((drawn - support[0]) // width, np.bincount(cells, weights=distribution.pmf(support)))


# ---- continuous ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize(
    ("fill", "distribution"),
    [
        (lambda t: t.uniform_(), stats.uniform()),
        (lambda t: t.uniform_(-2.5, 7), stats.uniform(-2.5, 9.5)),
        (lambda t: t.normal_(), stats.norm()),
        (lambda t: t.normal_(-3, 0.25), stats.norm(-3, 0.25)),
        (lambda t: t.exponential_(), stats.expon()),
        (lambda t: t.exponential_(4.0), stats.expon(scale=0.25)),
        (lambda t: t.log_normal_(0.5, 0.75), stats.lognorm(0.75, scale=math.exp(0.5))),
        (lambda t: t.cauchy_(2, 3), stats.cauchy(2, 3)),
    ],
    ids=["uniform", "uniform_range", "normal", "normal_moved", "exponential", "exponential_4", "log_normal", "cauchy"],
)
def test_continuous_distributions(dtype: torch.dtype, fill: Any, distribution: Any):
    follows(fill(empty(dtype)), distribution)


@pytest.mark.parametrize("dtype", DTYPES)
def test_uniform_excludes_the_upper_bound(dtype: torch.dtype):
    unit = torch.rand(1 << 20, device="npu", dtype=dtype)
    wide = empty(dtype, 1 << 20).uniform_(0, 3)
    tight = empty(dtype, 1 << 16).uniform_(256, 258)
    assert unit.min() >= 0 and unit.max() < 1 and wide.min() >= 0 and wide.max() < 3
    assert tight.min() >= 256 and tight.max() < 258
    assert abs(unit.double().mean().item() - 0.5) < 4e-3 and abs(wide.double().mean().item() - 1.5) < 1e-2


@pytest.mark.parametrize("dtype", DTYPES)
def test_normal_moments(dtype: torch.dtype):
    values = torch.randn(1 << 20, device="npu", dtype=dtype).double()
    assert abs(values.mean().item()) < 5e-3 and abs(values.std().item() - 1) < 5e-3
    assert abs((values**3).mean().item()) < 2e-2 and abs((values**4).mean().item() - 3) < 5e-2


@pytest.mark.parametrize("dtype", WIDE)
def test_tails_of_the_normal(dtype: torch.dtype):
    values = torch.randn(1 << 22, device="npu", dtype=dtype).abs()
    for bound in (3.0, 4.0, 4.5):
        expected = 2 * stats.norm.sf(bound) * values.numel()
        count = int((values > bound).sum().item())
        assert stats.poisson.ppf(1e-5, expected) <= count <= stats.poisson.ppf(1 - 1e-5, expected), bound


@pytest.mark.parametrize("dtype", DTYPES)
def test_exponential_is_finite_and_positive(dtype: torch.dtype):
    values = empty(dtype, 1 << 20).exponential_(2.0).double()
    assert torch.isfinite(values).all() and (values > 0).all() and abs(values.mean().item() - 0.5) < 1e-2


def test_exponential_reaches_far():
    values = empty(size=1 << 22).exponential_()
    expected = values.numel() * math.exp(-12)
    count = int((values > 12).sum().item())
    assert stats.poisson.ppf(1e-5, expected) <= count <= stats.poisson.ppf(1 - 1e-5, expected)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_normal_and_uniform(dtype: torch.dtype):
    values = torch.randn(N, device="npu", dtype=dtype).cpu().numpy()
    for part in (values.real, values.imag):
        assert stats.kstest(part, stats.norm(0, math.sqrt(0.5)).cdf).pvalue > ENOUGH
    assert abs(np.corrcoef(values.real, values.imag)[0, 1]) < 4 / math.sqrt(N)
    moved = empty(dtype).normal_(2, 0)
    assert torch.equal(moved.cpu(), torch.full((N,), 2 + 2j, dtype=dtype))
    unit = torch.rand(N, device="npu", dtype=dtype).cpu().numpy()
    for part in (unit.real, unit.imag):
        assert stats.kstest(part, stats.uniform().cdf).pvalue > ENOUGH


def test_normal_of_tensors():
    mean = torch.tensor([-100.0, 0.0, 100.0], device="npu").repeat(N // 4, 1)
    std = torch.tensor([1.0, 0.0, 10.0], device="npu")
    for values in (torch.normal(mean, std), torch.normal(mean, std, out=torch.empty(0, device="npu"))):
        follows(values[:, 0], stats.norm(-100, 1))
        assert (values[:, 1] == 0).all()
        follows(values[:, 2], stats.norm(100, 10))
    follows(torch.normal(mean, 2.0)[:, 2], stats.norm(100, 2))
    follows(torch.normal(5.0, std.expand(N // 4, 3))[:, 2], stats.norm(5, 10))
    follows(torch.normal(5.0, 2.0, (N,), device="npu"), stats.norm(5, 2))
    values = torch.normal(torch.full((N,), 1 + 2j, device="npu"), torch.ones(N, device="npu")).cpu().numpy()
    assert stats.kstest(values.imag, stats.norm(2, math.sqrt(0.5)).cdf).pvalue > ENOUGH
    inplace = torch.full((N,), 7.0, device="npu")
    torch.normal(inplace, 1.0, out=inplace)
    follows(inplace, stats.norm(7, 1))


# ---- independence ----------------------------------------------------------------------------------------------------


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return abs(float(np.corrcoef(numbers(a).ravel(), numbers(b).ravel())[0, 1]))


@pytest.mark.parametrize("fill", ["uniform_", "normal_", "exponential_"])
def test_successive_calls_and_lanes_are_independent(fill: str):
    bound = 4.5 / math.sqrt(N)
    first, second = (getattr(empty(), fill)() for _ in range(2))
    assert correlation(first, second) < bound
    for lag in (1, 2, 3, 4, 8, 16, 31, 32, 33, 64, 4096):
        assert correlation(first[:-lag], first[lag:]) < 4.5 / math.sqrt(N - lag), lag
    # Words 16 w + l of a block: same counter, other word; same word, next counter.
    lanes = first.view(-1, 64).cpu().double().numpy()
    matrix = np.corrcoef(lanes.T) - np.eye(64)
    assert np.abs(matrix).max() < 5 / math.sqrt(N / 64)
    squares = first - first.mean()
    assert correlation(squares.view(-1, 64)[:, :32] ** 2, squares.view(-1, 64)[:, 32:] ** 2) < bound * 1.5


def test_neighbouring_seeds_are_independent():
    drawn = []
    for seed in (1, 2, 1 << 32, (1 << 64) - 1):
        torch.npu.manual_seed(seed)
        drawn.append(torch.rand(N, device="npu"))
    for a, b in itertools.combinations(drawn, 2):
        assert correlation(a, b) < 4.5 / math.sqrt(N)


# ---- discrete --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, *DTYPES], ids=str
)
@pytest.mark.parametrize("p", [0.0, 0.001, 0.3, 0.5, 1.0])
def test_bernoulli_frequencies(dtype: torch.dtype, p: float):
    drawn = numbers(empty(dtype).bernoulli_(p)).astype(np.int64)
    has_frequencies(drawn, np.array([1 - p, p]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bernoulli_of_probabilities(dtype: torch.dtype):
    p = torch.tensor([0.0, 0.25, 0.5, 1.0], device="npu", dtype=dtype).repeat(N // 4, 1)
    results = [
        torch.bernoulli(p),
        torch.bernoulli(p, out=torch.empty(0, device="npu", dtype=dtype)),
        torch.empty(N // 4, 4, device="npu", dtype=torch.bool).bernoulli_(p[:1]),
        p.clone().t().contiguous().t().bernoulli_(p),
    ]
    for values in results:
        for column, share in enumerate([0.0, 0.25, 0.5, 1.0]):
            has_frequencies(numbers(values[:, column]).astype(np.int64), np.array([1 - share, share]))


@pytest.mark.parametrize("p", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.float64])
def test_geometric(p: float, dtype: torch.dtype):
    drawn = numbers(empty(dtype).geometric_(p)).astype(np.int64)
    assert drawn.min() >= 1
    has_frequencies(np.minimum(drawn, 900), np.append(stats.geom(p).pmf(np.arange(900)), stats.geom(p).sf(899)))


def test_geometric_stops_at_the_largest_value():
    assert int(empty(torch.uint8, 1000).geometric_(1e-6).min().item()) == 255


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint64])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 2), (3, 10), (0, 64), (0, 100), (0, 255)])
def test_randint_frequencies(dtype: torch.dtype, low: int, high: int):
    drawn = torch.randint(low, high, (N,), device="npu", dtype=dtype).cpu().to(torch.int64).numpy()
    assert drawn.min() >= low
    has_frequencies(drawn - low, np.full(high - low, 1.0))


def test_wide_ranges_of_integers():
    for low, high in [(-(1 << 62), 1 << 62), (-5, 1 << 40), (-(1 << 31), 1 << 31), (0, 3_000_000_000)]:
        drawn = torch.randint(low, high, (N,), device="npu").cpu()
        assert drawn.min() >= low and drawn.max() < high
        unit = (drawn.double().numpy() - low) / (high - low)
        assert stats.kstest(unit, stats.uniform().cdf).pvalue > ENOUGH
    full = torch.empty(N, device="npu", dtype=torch.int64).random_(-(1 << 63), None).double().cpu().numpy()
    assert stats.kstest(full * 2.0**-64 + 0.5, stats.uniform().cdf).pvalue > ENOUGH


@pytest.mark.parametrize(
    ("dtype", "top"),
    [(torch.bool, 1), (torch.uint8, 255), (torch.int8, 127), (torch.bfloat16, 256), (torch.float16, 2048)],
    ids=str,
)
def test_random_without_bounds(dtype: torch.dtype, top: int):
    has_frequencies(numbers(empty(dtype).random_()).astype(np.int64), np.full(top + 1, 1.0))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.float64])
def test_random_without_bounds_covers_the_dtype(dtype: torch.dtype):
    top = {torch.int32: 2**31, torch.int64: 2**63, torch.float32: 2**24, torch.float64: 2**53}[dtype]
    unit = numbers(empty(dtype).random_()).astype(np.float64) / top
    assert unit.min() >= 0 and stats.kstest(unit, stats.uniform().cdf).pvalue > ENOUGH


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(torch.bfloat16, 0, 1000), (torch.bfloat16, 999, 1003), (torch.float16, 0, 4099), (torch.float16, -4099, -4000)],
    ids=str,
)
def test_integers_in_narrow_floats_stay_in_range(dtype: torch.dtype, low: int, high: int):
    drawn = torch.randint(low, high, (N,), device="npu", dtype=dtype).double()
    assert drawn.min().item() >= low and drawn.max().item() < high and (drawn == drawn.round()).all()


@pytest.mark.parametrize("rate", [0.0, 1e-3, 0.7, 4.0, 9.99, 10.0, 12.5, 60.0, 1e4])
@pytest.mark.parametrize("dtype", WIDE)
def test_poisson(rate: float, dtype: torch.dtype):
    values = torch.poisson(torch.full((N // 4,), rate, device="npu", dtype=dtype))
    if rate == 0:
        assert not values.any()
        return
    has_pmf(values, stats.poisson(torch.tensor(rate, dtype=dtype).item()))


@pytest.mark.parametrize("rate", [1e7, 1e12])
def test_poisson_of_large_rates_is_normal(rate: float):
    values = numbers(torch.poisson(torch.full((N // 4,), rate, device="npu", dtype=torch.float64)))
    assert stats.kstest((values - rate) / math.sqrt(rate), stats.norm().cdf).pvalue > ENOUGH


@pytest.mark.parametrize(
    ("count", "p"), [(1, 0.3), (7, 0.5), (20, 0.9), (40, 0.25), (41, 0.75), (1000, 0.002), (1000, 0.5), (10**6, 0.3)]
)
@pytest.mark.parametrize("dtype", WIDE)
def test_binomial(count: int, p: float, dtype: torch.dtype):
    counts = torch.full((N // 4,), float(count), device="npu", dtype=dtype)
    chance = torch.tensor(p, device="npu", dtype=dtype)
    has_pmf(torch.binomial(counts, chance), stats.binom(count, chance.item()))


def test_binomial_of_edges():
    counts = torch.tensor([0.0, -3.0, 5.0, 5.0, 5.5, math.nan, 5.0], device="npu")
    chances = torch.tensor([0.5, 0.5, 0.0, 1.0, 1.0, 0.5, math.nan], device="npu")
    expected = torch.tensor([0.0, 0.0, 0.0, 5.0, 5.0, math.nan, math.nan])
    assert torch.equal(torch.binomial(counts, chances).cpu().nan_to_num(-1), expected.nan_to_num(-1))


@pytest.mark.parametrize("shape", [0.3, 0.5, 1.0, 1.5, 30.0, 1e5])
@pytest.mark.parametrize("dtype", WIDE)
def test_gamma(shape: float, dtype: torch.dtype):
    values = torch._standard_gamma(torch.full((N // 4,), shape, device="npu", dtype=dtype))
    assert (values > 0).all()
    follows(values, stats.gamma(torch.tensor(shape, dtype=dtype).item()))


def test_gamma_of_small_shapes():
    follows(torch._standard_gamma(torch.full((N // 4,), 0.05, device="npu", dtype=torch.float64)), stats.gamma(0.05))
    # In float32 the smallest normal number stands for what is below it.
    values = torch._standard_gamma(torch.full((N // 4,), 1e-3, device="npu"))
    smallest = torch.finfo(torch.float32).tiny
    assert values.min().item() == np.float32(smallest)
    share = stats.gamma(1e-3).cdf(smallest)
    has_frequencies(numbers((values == smallest).to(torch.int64)), np.array([1 - share, share]))


@pytest.mark.parametrize("concentrations", [[1.0, 1.0], [0.5, 2.0, 7.0], [30.0, 0.3, 5.0, 1.0]])
def test_dirichlet(concentrations: list[float]):
    shapes = torch.tensor(concentrations, device="npu").repeat(N // 8, 1)
    values = torch._sample_dirichlet(shapes)
    torch.testing.assert_close(values.sum(-1), torch.ones(N // 8, device="npu"))
    for column, shape in enumerate(concentrations):
        follows(values[:, column], stats.beta(shape, sum(concentrations) - shape))


def test_dirichlet_of_tiny_concentrations():
    values = torch._sample_dirichlet(torch.full((N // 8, 3), 1e-4, device="npu"))
    assert torch.isfinite(values).all() and (values > 0).all()
    has_frequencies(numbers(values.argmax(-1)), np.full(3, 1.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3])
def test_multinomial_with_replacement(dtype: torch.dtype, rows: int):
    weights = torch.tensor([1.0, 0.0, 4.0, 2.0, 0.5, 0.0], dtype=torch.float64)
    p = weights.to("npu", dtype).repeat(rows, 1)
    drawn = torch.multinomial(p, N // 8, replacement=True)
    assert drawn.shape == (rows, N // 8) and drawn.dtype == torch.int64
    for row in drawn:
        has_frequencies(numbers(row), weights.numpy())


def test_multinomial_of_many_categories():
    weights = torch.rand(50_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights[::7] = 0
    drawn = numbers(torch.multinomial(weights.to("npu"), N, replacement=True))
    assert (weights.numpy()[drawn] > 0).all()
    grouped = np.add.reduceat(weights.numpy(), np.arange(0, 50_000, 500))
    has_frequencies(drawn // 500, grouped)


def test_multinomial_without_replacement_draws_one_after_the_other():
    weights = np.array([1.0, 2.0, 0.0, 5.0])
    rows = torch.tensor(weights, device="npu").repeat(N // 4, 1)
    pairs = numbers(torch.multinomial(rows, 2))
    assert (pairs[:, 0] != pairs[:, 1]).all()
    probabilities = np.zeros((4, 4))
    for a, b in itertools.permutations(range(4), 2):
        if weights[a] > 0:
            probabilities[a, b] = weights[a] / 8 * weights[b] / (8 - weights[a])
    has_frequencies(pairs[:, 0] * 4 + pairs[:, 1], probabilities.ravel())
    has_frequencies(numbers(torch.multinomial(rows, 1)).ravel(), weights)
    everything = numbers(torch.multinomial(rows[:5], 3))
    assert (np.sort(everything, axis=1) == [0, 1, 3]).all()


# ---- permutations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 63, 1000, 16_384, 16_385, 100_003, 1 << 20])
def test_randperm_is_a_permutation(n: int):
    drawn = torch.randperm(n, device="npu").cpu()
    assert torch.equal(drawn.sort().values, torch.arange(n))
    if n > 1000:
        # Positions and values are uncorrelated, and few elements stay where they are (1 on average).
        assert abs(np.corrcoef(drawn.numpy(), np.arange(n))[0, 1]) < 4.5 / math.sqrt(n)
        assert int((drawn == torch.arange(n)).sum()) <= 8
        assert stats.kstest(drawn[: n // 3].double().numpy() / n, stats.uniform().cdf).pvalue > ENOUGH


def test_randperm_is_uniform_over_all_permutations_of_four():
    count = 4800
    drawn = Counter(tuple(torch.randperm(4, device="npu").tolist()) for _ in range(count))
    assert len(drawn) == 24 and stats.chisquare(list(drawn.values())).pvalue > ENOUGH


def test_large_randperm_mixes_buckets_evenly():
    n, parts = 1 << 18, 16
    drawn = torch.randperm(n, device="npu").cpu().numpy()
    table = np.zeros((parts, parts))
    np.add.at(table, (np.arange(n) * parts // n, drawn * parts // n), 1)
    assert stats.chi2_contingency(table).pvalue > ENOUGH


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.float16, torch.float32, torch.float64], ids=str)
def test_randperm_of_other_dtypes(dtype: torch.dtype):
    drawn = torch.randperm(1000, device="npu", dtype=dtype)
    assert drawn.dtype == dtype and torch.equal(drawn.cpu().double().sort().values, torch.arange(1000).double())


# ---- dropout, rrelu --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 4097, N])
def test_dropout_values(dtype: torch.dtype, p: float, size: int):
    x = torch.linspace(-3, 3, size, dtype=torch.float64).to(dtype)
    out, mask = torch.native_dropout(x.to("npu"), p, True)
    kept = mask.cpu()
    assert mask.dtype == torch.bool and out.dtype == dtype
    scale = 0.0 if p == 1 else 1 / (1 - p)
    expected = (x.double() * kept * scale).to(dtype)
    torch.testing.assert_close(out.cpu(), expected)
    if size == N:
        has_frequencies(kept.numpy().astype(np.int64), np.array([p, 1 - p]))
    grad = torch.linspace(1, 2, size, dtype=torch.float64).to(dtype)
    back = torch.ops.aten.native_dropout_backward(grad.to("npu"), mask, scale)
    torch.testing.assert_close(back.cpu(), (grad.double() * kept * scale).to(dtype))


def test_dropout_of_nan_stays_nan():
    x = torch.full((1000,), math.nan, device="npu")
    assert torch.nn.functional.dropout(x, 0.5).isnan().all()


def test_dropout_gradient_is_the_mask():
    x = torch.ones(1000, device="npu", requires_grad=True)
    y = torch.nn.functional.dropout(x, 0.25)
    y.backward(torch.full_like(y, 3.0))
    torch.testing.assert_close(x.grad, y.detach() * 3)


def test_fused_dropout_and_its_backward():
    x = torch.linspace(-3, 3, N, device="npu")
    out, mask = torch._fused_dropout(x, 0.75)
    assert mask.dtype == torch.uint8
    torch.testing.assert_close(out, x * mask / 0.75)
    torch.testing.assert_close(torch._masked_scale(x, mask, 1 / 0.75), out)
    has_frequencies(numbers(mask), np.array([0.25, 0.75]))


def test_feature_and_alpha_dropout():
    x = torch.ones(500, 40, 3, 5, device="npu")
    planes = torch.nn.functional.dropout2d(x, 0.3).cpu()
    assert all(len(plane.unique()) == 1 for plane in planes.flatten(0, 1)[:200])
    has_frequencies((planes[:, :, 0, 0] != 0).flatten().numpy().astype(np.int64), np.array([0.3, 0.7]))
    values = torch.nn.functional.alpha_dropout(torch.randn(N, device="npu"), 0.2, training=True)
    assert abs(values.mean().item()) < 2e-2 and abs(values.std().item() - 1) < 2e-2


@pytest.mark.parametrize("dtype", DTYPES)
def test_rrelu(dtype: torch.dtype):
    x = torch.linspace(-2, 2, N, dtype=torch.float64).to("npu", dtype)
    noise = torch.empty_like(x)
    out = torch._C._nn.rrelu_with_noise(x, noise, 0.125, 0.5, True)
    torch.testing.assert_close(out, x * noise)
    assert (noise[x > 0] == 1).all()
    slopes = noise[x <= 0]
    assert slopes.min() >= 0.125 and slopes.max() <= 0.5
    if dtype in WIDE:
        follows(slopes, stats.uniform(0.125, 0.375))
    torch.testing.assert_close(torch.rrelu(x, 0.125, 0.5, False), torch.nn.functional.leaky_relu(x, 0.3125))
    inplace = x.clone()
    torch._C._nn.rrelu_with_noise_(inplace, noise, 0.125, 0.5, True)
    torch.testing.assert_close(inplace, x * noise)
    back = torch.ops.aten.rrelu_with_noise_backward(torch.ones_like(x), x, noise, 0.125, 0.5, True, False)
    torch.testing.assert_close(back, noise)
