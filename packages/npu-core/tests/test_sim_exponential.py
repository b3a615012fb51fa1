"""npu_sim_exponential_: the exponential distribution by the name of the Ascend extension."""

import math

import pytest
import torch
from scipy import stats

import torch_npu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("device", ["cpu", "npu"])
@pytest.mark.parametrize("lambd", [0.25, 1.0, 3.0])
def test_distribution(lambd: float, device: str) -> None:
    torch.manual_seed(5)
    x = torch.empty(40_000, device=device)
    assert torch_npu.npu_sim_exponential_(x, lambd) is x
    values = x.cpu().double()
    assert (values > 0).all()
    # Rejects one seed in a million; the seed is fixed.
    assert stats.kstest(values.numpy(), stats.expon(scale=1 / lambd).cdf).pvalue > 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5), (2, 1, 2, 1, 2, 1, 2, 3)])
def test_shapes_and_dtypes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.full(shape, -1.0, dtype=dtype, device="npu")
    torch_npu.npu_sim_exponential_(x)
    assert x.shape == shape and x.dtype == dtype
    assert (x > 0).all()


def test_default_rate_is_one_and_the_generator_counts() -> None:
    generator = torch.Generator(device="npu")
    generator.manual_seed(3)
    state = generator.get_state()
    first = torch_npu.npu_sim_exponential_(torch.empty(1000, device="npu"), generator=generator)
    second = torch_npu.npu_sim_exponential_(torch.empty(1000, device="npu"), 1.0, generator=generator)
    assert not torch.equal(first, second)  # the state has advanced
    generator.set_state(state)
    again = torch_npu.npu_sim_exponential_(torch.empty(1000, device="npu"), generator=generator)
    assert torch.equal(first, again)


def test_infinite_rate_is_zero_and_draws_nothing() -> None:
    torch.npu.manual_seed(9)
    before = torch.npu.get_rng_state()
    x = torch_npu.npu_sim_exponential_(torch.ones(5, device="npu"), math.inf)
    assert torch.equal(x.cpu(), torch.zeros(5))
    assert torch.equal(torch.npu.get_rng_state(), before)


@pytest.mark.parametrize("lambd", [0.0, -1.0, math.nan])
def test_rate_must_be_positive(lambd: float) -> None:
    with pytest.raises(RuntimeError, match=r"npu_sim_exponential_ expects lambd > 0.0, but found lambd="):
        torch_npu.npu_sim_exponential_(torch.ones(5, device="npu"), lambd)


def test_integers_are_refused() -> None:
    with pytest.raises(RuntimeError, match="npu_sim_exponential_: argument self: expected a floating-point dtype"):
        torch_npu.npu_sim_exponential_(torch.ones(5, dtype=torch.int32, device="npu"))


def test_views_are_filled_in_place() -> None:
    base = torch.full((4, 6), -1.0, device="npu")
    torch_npu.npu_sim_exponential_(base[:, ::2])
    assert (base[:, ::2] > 0).all() and (base[:, 1::2] == -1).all()


def test_traces_with_aot_autograd() -> None:
    compiled = torch.compile(lambda x: torch_npu.npu_sim_exponential_(x.clone(), 2.0) + 1, backend="aot_eager")
    torch.npu.manual_seed(4)
    expected = torch_npu.npu_sim_exponential_(torch.empty(64, device="npu"), 2.0) + 1
    torch.npu.manual_seed(4)
    assert torch.equal(compiled(torch.empty(64, device="npu")), expected)


@pytest.mark.parametrize("device", ["cpu", "npu"])
@pytest.mark.parametrize(("dtype", "lambd"), [(torch.float16, 1e5), (torch.float32, 1e42), (torch.bfloat16, 1e40)])
def test_no_value_is_rounded_to_zero(dtype: torch.dtype, lambd: float, device: str) -> None:
    x = torch_npu.npu_sim_exponential_(torch.zeros(100_000, dtype=dtype, device=device), lambd)
    assert (x > 0).all()
