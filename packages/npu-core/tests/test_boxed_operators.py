"""Operators without a kernel of their own: asynchronous when the shape of their results is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import torch_npu  # noqa: F401

OPERATORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1, 0),
    "isnan": torch.isnan,
    "fft": lambda x: torch.fft.fft(x).abs(),
    "var": lambda x: x.var(dim=1),
    "median": lambda x: x.median(dim=1).values,
    "logcumsumexp": lambda x: x.logcumsumexp(0),
    "cummax": lambda x: x.cummax(0).values,
    "grid_sample": lambda x: torch.nn.functional.grid_sample(
        x[None, None], torch.zeros_like(x)[None, :, :2, None].expand(-1, -1, -1, 2), align_corners=False
    ),
    "histogram": lambda x: torch.histc(x, 10),
    "svd": lambda x: torch.linalg.svdvals(x),
    "qr": lambda x: torch.linalg.qr(x).R.abs(),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_returns_before_its_input_exists(name: str, hold) -> None:
    operator = OPERATORS[name]
    operator(torch.ones(8, 8, device="npu"))  # whatever is set up once
    torch.npu.synchronize()
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(3))
    hold(match="copy")
    result = operator(x.pin_memory().to("npu", non_blocking=True))
    assert not torch.npu.current_stream().query()
    hold.release()
    torch.testing.assert_close(result.cpu(), operator(x))


def test_shapes_follow_the_arguments() -> None:
    for end in (3, 7.5, 3, 12):
        assert torch.equal(torch.arange(end, device="npu").cpu(), torch.arange(end))
    x = torch.rand(20, generator=torch.Generator().manual_seed(1))
    for bins in (5, 9, 5):
        assert torch.equal(torch.histc(x.npu(), bins, 0, 1).cpu(), torch.histc(x, bins, 0, 1))
    for value in (2, 2.5, 2 + 1j, True):
        ours, theirs = torch.linspace(0, 1, 4, device="npu") * value, torch.linspace(0, 1, 4) * value
        assert ours.dtype == theirs.dtype and torch.equal(ours.cpu(), theirs)


def test_default_dtype_counts() -> None:
    x = torch.arange(4, device="npu")
    assert torch.fft.fft(x).dtype == torch.complex64
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.fft.fft(x).dtype == torch.complex128
    finally:
        torch.set_default_dtype(torch.float32)


def test_out_is_resized() -> None:
    x = torch.randn(4, 5)
    out = torch.empty(0, dtype=torch.bool, device="npu")
    assert torch.logical_not(x.npu(), out=out) is out
    assert out.shape == (4, 5) and torch.equal(out.cpu(), torch.logical_not(x))
    wrong = torch.empty(3, dtype=torch.bool, device="npu")
    with pytest.warns(UserWarning, match="An output with one or more elements was resized"):
        torch.logical_not(x.npu(), out=wrong)
    assert wrong.shape == (4, 5)


def test_under_a_default_device() -> None:
    with torch.device("npu"):
        assert torch.isnan(torch.ones(3)).tolist() == [False] * 3
        assert torch.roll(torch.arange(3), 1).tolist() == [2, 0, 1]


def test_bool_lists_arrive_whole() -> None:
    x, grid = torch.rand(1, 1, 3, 3), torch.rand(1, 2, 2, 2) - 0.5
    for mask in ([True, True], [True, False], [False, True]):
        ours = torch.ops.aten.grid_sampler_2d_backward(
            torch.ones(1, 1, 2, 2, device="npu"), x.npu(), grid.npu(), 0, 0, False, mask
        )
        theirs = torch.ops.aten.grid_sampler_2d_backward(torch.ones(1, 1, 2, 2), x, grid, 0, 0, False, mask)
        for wanted, a, b in zip(mask, ours, theirs, strict=True):
            if wanted:
                torch.testing.assert_close(a.cpu(), b)


def test_a_failing_kernel_is_reported_and_forgotten() -> None:
    torch.cholesky(-torch.eye(3, device="npu"))
    with pytest.raises(RuntimeError, match="aten::cholesky"):
        torch.npu.synchronize()
    assert torch.ones(2, device="npu").flip(0).sum().item() == 2


def test_operands_of_two_devices() -> None:
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.dot(torch.ones(3, device="npu"), torch.ones(3))


def test_sync_debug_mode_refuses_before_anything_is_queued() -> None:
    """The task of a refused call would refer to memory of a caller that is gone."""
    x = torch.arange(1000.0).npu()
    torch.npu.synchronize()
    torch.npu.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            for refused in (lambda: x.nonzero(), lambda: x.cpu(), lambda: torch.ones(300_000).npu()):
                with pytest.raises(RuntimeError, match="called a synchronizing NPU operation"):
                    refused()
    finally:
        torch.npu.set_sync_debug_mode("default")
    assert torch.equal(x.cpu(), torch.arange(1000.0))


def test_triangular_solve_from_the_right_with_adjoint() -> None:
    """The CPU kernel marks its result as conjugated instead of conjugating it."""
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(3, 3, dtype=torch.complex64, generator=generator) for _ in range(2))
    lu, pivots = torch.linalg.lu_factor(a)
    ours = torch.linalg.lu_solve(lu.npu(), pivots.npu(), b.npu(), left=False, adjoint=True)
    torch.testing.assert_close(
        ours.cpu().resolve_conj(), torch.linalg.lu_solve(lu, pivots, b, left=False, adjoint=True).resolve_conj()
    )


NARROW = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_float8(dtype: torch.dtype) -> None:
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(4)) + 0.5
    ours, theirs = x.npu().to(dtype), x.to(dtype)
    for a, b in ((ours, theirs), (theirs.npu(), theirs), (ours.t().contiguous(), theirs.t().contiguous())):
        assert a.dtype == dtype and torch.equal(a.cpu().float(), b.float())
    assert torch.equal(torch.cat([ours, ours]).cpu().float(), torch.cat([theirs, theirs]).float())
    assert torch.equal(ours.float().cpu(), theirs.float())


@pytest.mark.parametrize("dtype", [torch.int16, torch.int8, torch.uint16, torch.uint32, torch.uint64], ids=str)
def test_integer_conversions(dtype: torch.dtype) -> None:
    x = torch.tensor([[0, 1, 5], [100, 7, 3]])
    assert torch.equal(x.npu().to(dtype).cpu(), x.to(dtype))
    assert torch.equal(x.to(dtype).npu().to(torch.int64).cpu(), x)


def test_the_fallback_can_be_forbidden(run_python: Callable) -> None:
    """What runs as a task of the stream is no fallback."""
    done = run_python(
        """
        import torch
        x = torch.arange(3.0, device="npu")
        print(x.flip(0).tolist())
        try:
            x.nonzero()
        except RuntimeError as error:
            print("nonzero" in str(error) and "TORCH_NPU_FALLBACK_CPU_DISABLE" in str(error))
        """,
        TORCH_NPU_FALLBACK_CPU_DISABLE="1",
    )
    assert done.stdout.split("\n")[:2] == ["[2.0, 1.0, 0.0]", "True"]
