"""Ranges and reproducibility of random fills."""

import pytest
import torch

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_uniform_excludes_the_upper_bound(dtype: torch.dtype):
    unit = torch.rand(1 << 20, device="npu", dtype=dtype)
    wide = torch.empty(1 << 20, device="npu", dtype=dtype).uniform_(0, 3)
    assert unit.min() >= 0 and unit.max() < 1 and wide.min() >= 0 and wide.max() < 3
    assert abs(unit.double().mean().item() - 0.5) < 4e-3 and abs(wide.double().mean().item() - 1.5) < 1e-2


@pytest.mark.parametrize("dtype", DTYPES)
def test_normal_moments(dtype: torch.dtype):
    values = torch.randn(1 << 20, device="npu", dtype=dtype).double()
    assert abs(values.mean().item()) < 5e-3 and abs(values.std().item() - 1) < 5e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_exponential_is_finite(dtype: torch.dtype):
    values = torch.empty(1 << 20, device="npu", dtype=dtype).exponential_(2.0).double()
    assert torch.isfinite(values).all() and (values >= 0).all() and abs(values.mean().item() - 0.5) < 1e-2


def test_bernoulli_refuses_what_is_no_probability():
    with pytest.raises(RuntimeError, match="p_in >= 0"):
        torch.bernoulli(torch.tensor([2.0], device="npu"))
        torch.npu.synchronize()


def test_same_seed_same_values_for_any_thread_count():
    def draw(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        torch.manual_seed(3)
        return torch.randn(100_003, device="npu").cpu()

    before = torch.get_num_threads()
    try:
        assert torch.equal(draw(1), draw(2))
    finally:
        torch.set_num_threads(before)
