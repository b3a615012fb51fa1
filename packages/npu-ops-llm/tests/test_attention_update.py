"""npu_attention_update against the formula in float64."""

import math

import pytest
import torch
from torch import Tensor

UPDATE = torch.ops.npu.npu_attention_update
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RTOL = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
ATOL = {torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 2**-24}


def reference(lse: list[Tensor], local_out: list[Tensor]) -> tuple[Tensor, Tensor]:
    stacked = torch.stack([one.double() for one in lse])
    stacked = stacked.masked_fill(stacked == math.inf, -math.inf)
    combined = torch.logsumexp(stacked, 0)
    weights = (stacked - combined).exp().masked_fill(combined == -math.inf, 0)
    outs = torch.stack([one.double() for one in local_out])
    return (outs * weights[..., None]).nan_to_num(0).sum(0), combined


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=RTOL[dtype], atol=ATOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parts", [1, 2, 17, 64])
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (1, 1), (5, 7), (130, 512), (33, 129)])
def test_values(shape: tuple[int, int], parts: int, dtype: torch.dtype, device: str) -> None:
    lse = [torch.randn(shape[0]) * 5 for _ in range(parts)]
    outs = [torch.randn(shape).to(dtype) for _ in range(parts)]
    out, combined = UPDATE([t.to(device) for t in lse], [t.to(device) for t in outs], 1)
    expected, expected_lse = reference(lse, outs)
    assert out.dtype == dtype and out.shape == shape and combined.dtype == torch.float32
    assert_near(out, expected, dtype)
    assert_near(combined, expected_lse, torch.float32)
    without, nothing = UPDATE([t.to(device) for t in lse], [t.to(device) for t in outs], 0)
    assert torch.equal(without.cpu(), out.cpu()) and nothing.shape == (0,)


def test_specification_example(device: str) -> None:
    lse = [torch.tensor([0.0], device=device), torch.tensor([1.0], device=device)]
    outs = [torch.tensor([[1.0, 1.0]], device=device), torch.tensor([[3.0, 5.0]], device=device)]
    out, combined = UPDATE(lse, outs, 1)
    torch.testing.assert_close(out.cpu(), torch.tensor([[2.462117, 3.924234]]), rtol=0, atol=1e-6)
    torch.testing.assert_close(combined.cpu(), torch.tensor([1.313262]), rtol=0, atol=1e-6)


def test_absent_parts(device: str) -> None:
    inf, nan = math.inf, math.nan
    lse = [torch.tensor([inf, -inf, 2.0]), torch.tensor([1.0, inf, -inf])]
    outs = [torch.tensor([[nan], [nan], [3.0]]), torch.tensor([[5.0], [nan], [nan]])]
    out, combined = UPDATE([t.to(device) for t in lse], [t.to(device) for t in outs], 1)
    assert out.flatten().tolist() == [5.0, 0.0, 3.0]
    assert combined.tolist() == [1.0, -inf, 2.0]


def test_extreme_lse_does_not_overflow(device: str) -> None:
    lse = [torch.tensor([3e38, -3e38], device=device), torch.tensor([3e38, -3e38], device=device)]
    outs = [torch.ones(2, 3, device=device), torch.full((2, 3), 3.0, device=device)]
    out, _ = UPDATE(lse, outs, 0)
    assert out.flatten().tolist() == [2.0] * 6


def test_non_contiguous(device: str) -> None:
    lse = [torch.randn(14, device=device)[::2] for _ in range(2)]
    outs = [torch.randn(9, 7, device=device).t() for _ in range(2)]
    expected, expected_lse = reference([t.cpu() for t in lse], [t.cpu() for t in outs])
    out, combined = UPDATE(lse, outs, 1)
    assert_near(out, expected, torch.float32)
    assert_near(combined, expected_lse, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kernel_table(isa: str, dtype: torch.dtype) -> None:
    for columns in (*range(1, 20), 63, 64, 65):
        lse = [torch.randn(3) for _ in range(4)]
        outs = [torch.randn(3, columns).to(dtype) for _ in range(4)]
        assert_near(UPDATE(lse, outs, 1)[0], reference(lse, outs)[0], dtype)


def test_errors(device: str) -> None:
    lse, out = torch.zeros(2, device=device), torch.zeros(2, 3, device=device)
    for call, message in [
        (lambda: UPDATE([lse], [out], 2), "npu_attention_update: argument update_type: expected 0 or 1, got 2"),
        (lambda: UPDATE([], [], 0), "There were no tensor arguments to this function"),
        (lambda: UPDATE([lse] * 65, [out] * 65, 0), "argument lse: expected 1 to 64 tensors, got 65"),
        (lambda: UPDATE([lse], [out, out], 0), "argument local_out: expected as many tensors as lse has, 1, got 2"),
        (lambda: UPDATE([lse], [out.double()], 0), "argument local_out: expected dtype float16, bfloat16 or float32"),
        (lambda: UPDATE([lse.half()], [out], 0), "argument lse: expected dtype float32, got float16"),
        (lambda: UPDATE([lse, lse], [out, out.half()], 0), "argument local_out: expected dtype float32, got float16"),
        (lambda: UPDATE([lse], [out[0]], 0), r"local_out: expected tensors of shape \(rows, columns\), got \[3\]"),
        (lambda: UPDATE([lse[:1]], [out], 0), r"argument lse: expected shape \[2\] .*, got \[1\]"),
        (
            lambda: UPDATE([lse, lse], [out, out[:1]], 0),
            r"argument local_out: expected shape \[2, 3\] \(as the first\)",
        ),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()
