"""npu_top_k_top_p against a full sort."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

FILTER = torch.ops.npu.npu_top_k_top_p

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = float("inf"), float("nan")

properties = settings(
    deadline=None, derandomize=True, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def kept(row: Tensor, p: float | None, k: int | None, slack: float = 0.0) -> Tensor:
    """Which logits of a row stay, with 1 - p moved by `slack`."""
    values, order = row.float().sort(stable=True)
    stays = torch.ones(len(row), dtype=torch.bool)
    if k is not None:
        stays = ~(values < values[len(row) - min(max(k, 1), len(row))])
    if p is not None:
        left = values.masked_fill(~stays, -INF)
        probabilities = left.softmax(-1)
        limit = float(1 - torch.tensor(p, dtype=torch.float32)) + slack
        dropped = probabilities.double().cumsum(-1).float() <= limit
        dropped[-1] = False
        stays &= ~dropped
    result = torch.empty_like(stays)
    result[order] = stays
    return result


def check(logits: Tensor, p: Tensor | None, k: Tensor | None) -> None:
    y = FILTER(logits, p, k)
    assert y.shape == logits.shape and y.dtype == logits.dtype and y.device == logits.device and y.is_contiguous()
    x, y = logits.cpu(), y.cpu()
    stays = ~((y == -INF) & (x != -INF))
    # What stays keeps its bits.
    assert torch.equal(torch.where(stays, y, 0).nan_to_num(7.0), torch.where(stays, x, 0).nan_to_num(7.0))
    for row in range(len(x)):
        limits = (None if p is None else p[row].item(), None if k is None else k[row].item())
        expected = kept(x[row], *limits) | (x[row] == -INF)
        if torch.equal(stays[row], expected):
            continue
        # At 1 - p within float32 rounding either answer is right; everything else is not.
        assert p is not None
        most, least = kept(x[row], *limits, slack=-2e-7), kept(x[row], *limits, slack=2e-7)
        assert not (stays[row] & ~most & (x[row] != -INF)).any() and not (least & ~stays[row]).any()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("columns", [1, 2, 7, 64, 65, 1000, 5003, 33000])
def test_values(columns: int, dtype: torch.dtype, device: str) -> None:
    rows = 6
    for spread in (0.5, 3.0, 20.0):
        logits = (torch.randn(rows, columns) * spread).to(dtype).to(device)
        p = torch.tensor([0.0, 0.3, 0.6, 0.9, 0.99, 1.0]).to(dtype).to(device)
        k = torch.tensor([1, 2, 50, columns // 3 + 1, columns, 3 * columns]).to(device)
        check(logits, p, None)
        check(logits, None, k.int())
        check(logits, None, k.flip(0))
        check(logits, p, k.int())
        check(logits, p.flip(0), k.int())
        assert torch.equal(FILTER(logits).cpu(), logits.cpu())


def test_vocabulary(device: str) -> None:
    logits = (torch.randn(3, 152064) * 2).bfloat16().to(device)
    p = torch.tensor([0.95, 0.5, 0.8], dtype=torch.bfloat16, device=device)
    k = torch.tensor([50, 1024, 100000], dtype=torch.int32, device=device)
    for arguments in ((p, k), (p, None), (None, k)):
        check(logits, *arguments)


def test_specification_example(device: str) -> None:
    logits = torch.tensor([[1.0, 2, 3, 4, 3]], device=device)
    p, k = torch.tensor([0.6], device=device), torch.tensor([2], dtype=torch.int32, device=device)
    assert FILTER(logits, p, k).cpu().tolist() == [[-INF, -INF, -INF, 4, 3]]
    assert FILTER(logits, k=k).cpu().tolist() == [[-INF, -INF, 3, 4, 3]]
    assert FILTER(logits, p=p).cpu().tolist() == [[-INF, -INF, -INF, 4, 3]]


def test_ties(isa: str) -> None:
    """Of equal logits top-k keeps all, top-p drops the first ones."""
    for columns in (5, 100, 3000, 20000):
        logits = torch.full((4, columns), 1.5)
        p, k = torch.tensor([0.25, 0.0, 1.0, 0.6]), torch.tensor([1, 2, 3, columns])
        assert torch.equal(FILTER(logits, k=k), logits)
        check(logits, p, k)
        check(logits, p, None)
        assert (FILTER(logits, p)[1, :-1] == -INF).all() and FILTER(logits, p)[1, -1] == 1.5
        few = torch.randint(0, 3, (4, columns)).float()
        check(few, p, k)
        check(few, p, None)


def test_signed_zeros_are_equal(isa: str) -> None:
    logits = torch.tensor([[0.0, -0.0, 0.0, -0.0, -1.0]])
    y = FILTER(logits, k=torch.tensor([1]))
    assert torch.equal(y.signbit(), logits.signbit()) and y.tolist() == [[0, 0, 0, 0, -INF]]
    assert FILTER(logits, p=torch.tensor([0.0])).tolist() == [[-INF, -INF, -INF, 0, -INF]]


def test_infinities_and_nan(device: str) -> None:
    k, p = torch.tensor([2], device=device), torch.tensor([0.5], device=device)

    def filtered(values: list[float], p: Tensor | None, k: Tensor | None) -> list[list[float]]:
        return FILTER(torch.tensor([values], device=device), p, k).cpu().nan_to_num(99.0, INF, -INF).tolist()

    assert filtered([-INF, 1, -INF, 2, 0], p, k) == [[-INF, -INF, -INF, 2, -INF]]
    assert filtered([-INF] * 5, p, k) == [[-INF] * 5]
    assert filtered([1, INF, 2, 3], p, k) == [[-INF, INF, -INF, 3]]
    assert filtered([1, NAN, 2, 3], p, k) == [[-INF, 99, -INF, 3]]
    assert filtered([1, NAN, 2, NAN], None, k) == [[1, 99, 2, 99]]
    assert filtered([1, NAN, 2, 3], p, None) == [[1, 99, 2, 3]]


def test_p_of_one_drops_what_has_no_probability(device: str) -> None:
    logits = torch.tensor([[0.0, -50, -200, -80, -INF]], device=device)
    assert FILTER(logits, p=torch.ones(1, device=device)).cpu().tolist() == [[0, -50, -INF, -80, -INF]]


def test_wide_distributions(isa: str) -> None:
    """Clusters, huge and tiny values: the search for the cut has to end on any of them."""
    n = 9000
    for row in (
        torch.randn(n) * 1e-38,
        torch.randn(n) * 1e38,
        torch.cat([torch.full((n - 1,), 1e-40), torch.tensor([1.0])]),
        torch.cat([torch.full((n // 2,), -1.0), torch.full((n // 2,), -1.0 + 2**-24)]),
        torch.cat([torch.full((n - 4000,), -INF), torch.randn(4000)]),
        torch.randn(n).exp() ** 8,
        -(torch.arange(n) * 0.01),
        torch.arange(n).float(),
    ):
        logits = row[torch.randperm(len(row))][None]
        for p in (0.0, 0.1, 0.9, 1.0):
            check(logits, torch.tensor([p]), None)
            check(logits, torch.tensor([p]), torch.tensor([3000]))
        for k in (1, 100, 2500, 8000, n):
            check(logits, None, torch.tensor([k]))


@given(
    values=st.lists(
        st.one_of(st.floats(-30, 30, width=16), st.sampled_from([0.0, 1.0, -INF])), min_size=1, max_size=200
    ),
    p=st.one_of(st.none(), st.floats(0, 1, width=16)),
    k=st.one_of(st.none(), st.integers(-2, 220)),
)
@properties
def test_any_row(values: list[float], p: float | None, k: int | None, isa: str) -> None:
    ps = None if p is None else torch.tensor([p])
    check(torch.tensor([values]), ps, None if k is None else torch.tensor([k]))


@given(columns=st.integers(1, 9000), kinds=st.integers(1, 40), k=st.integers(1, 9000), p=st.floats(0, 1, width=16))
@settings(properties, max_examples=40)
def test_rows_with_many_ties(columns: int, kinds: int, k: int, p: float, isa: str) -> None:
    logits = torch.randn(kinds)[torch.randint(0, kinds, (1, columns))]
    check(logits, None, torch.tensor([k]))
    check(logits, torch.tensor([p]), torch.tensor([k]))
    check(logits, torch.tensor([p]), None)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_kernel_table(isa: str, dtype: torch.dtype) -> None:
    for columns in (*range(1, 20), 63, 64, 65, 4099):
        logits = (torch.randn(2, columns) * 3).to(dtype)
        p, k = torch.tensor([0.7, 0.95]).to(dtype), torch.tensor([columns // 2 + 1, 5])
        check(logits, p, k)
        check(logits, p, None)
        check(logits, None, k)


def test_views_and_unaligned(device: str) -> None:
    x = torch.randn(8, 500, device=device)
    p, k = torch.rand(16, device=device)[::2], torch.tensor([[5, 0]] * 8, device=device)[:, 0]
    for view in (x[:, 3:401], x.t()[:8], x[:, ::2], x[:1].expand(8, 500), x.flatten()[1:3201].view(8, 400)):
        assert torch.equal(FILTER(view, p, k).cpu(), FILTER(view.contiguous(), p.contiguous(), k.contiguous()).cpu())
        check(view, p, k)


def test_empty(device: str) -> None:
    for shape in ((0, 8), (3, 0), (0, 0)):
        x = torch.empty(shape, device=device)
        p, k = torch.ones(shape[0], device=device), torch.ones(shape[0], dtype=torch.int32, device=device)
        assert FILTER(x, p, k).shape == shape


def test_results_do_not_depend_on_threads() -> None:
    logits = torch.randn(7, 20000)
    p, k = torch.full((7,), 0.9), torch.full((7,), 5000)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(FILTER(logits, p, k))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_errors(device: str) -> None:
    x = torch.randn(3, 5, device=device)
    p, k = torch.ones(3, device=device), torch.ones(3, dtype=torch.int32, device=device)
    for args, message in [
        ((x[0], p, k), r"argument logits: expected shape \[batch, vocabulary\]"),
        ((x.double(), p, k), "argument logits: expected dtype .* got float64"),
        ((x, p[:2], k), r"argument p: expected shape \[3\]"),
        ((x, p[:, None], k), r"argument p: expected shape \[3\]"),
        ((x, k, p), "argument p: expected dtype .* got int32"),
        ((x, p, k[:2]), r"argument k: expected shape \[3\]"),
        ((x, p, p), "argument k: expected dtype int32 or int64, got float32"),
    ]:
        with pytest.raises(RuntimeError, match=f"npu_top_k_top_p: {message}"):
            FILTER(*args)


def test_devices_must_agree() -> None:
    import torch_npu  # noqa: F401

    with pytest.raises(RuntimeError, match=r"npu:0 and cpu! \(when checking argument k"):
        FILTER(torch.ones(2, 3).npu(), k=torch.ones(2, dtype=torch.int32))
