"""Operators on npu tensors are queued: they return at once and run in stream order."""

from collections.abc import Iterator

import pytest
import torch

import torch_npu
from npu_core import _C

RMS_NORM = torch.ops.npu.npu_rms_norm
BACKWARD = torch.ops.npu.npu_rms_norm_backward
HOUR_NS = 3600 * 10**9


@pytest.fixture(autouse=True)
def _no_fault_stays() -> Iterator[None]:
    yield
    _C._inject_fault(0, _C._FAULT_NONE)


def hold_next_task() -> None:
    """The next task does not run before `release`."""
    torch_npu.npu.synchronize()
    _C._inject_fault(0, _C._FAULT_DELAY_TASK, count=1, delay_ns=HOUR_NS)


def release() -> None:
    _C._inject_fault(0, _C._FAULT_NONE)


def test_returns_before_its_inputs_exist_and_reads_them_after() -> None:
    x, gamma, dy = torch.randn(64, 256), torch.randn(256), torch.randn(64, 256)
    expected_y, expected_rstd = RMS_NORM(x * 2, gamma)
    expected = (expected_y, *BACKWARD(dy, x * 2, gamma, expected_rstd))
    on_npu = [t.npu() for t in (x, gamma, dy)]
    hold_next_task()
    doubled = on_npu[0] * 2
    y, rstd = RMS_NORM(doubled, on_npu[1])
    dx, dgamma = BACKWARD(on_npu[2], doubled, on_npu[1], rstd)
    assert not torch_npu.npu.current_stream().query()
    release()
    for actual, wanted in zip((y, dx, dgamma), expected, strict=True):
        torch.testing.assert_close(actual.cpu(), wanted, rtol=0, atol=0)


def test_memory_of_dropped_tensors_is_not_reused_too_early() -> None:
    x, gamma = torch.randn(64, 256), torch.randn(256)
    expected = RMS_NORM(x, gamma)[0]
    on_npu, gamma_on_npu = x.npu(), gamma.npu()
    hold_next_task()
    delayed = on_npu + 0
    y, rstd = RMS_NORM(delayed.t().contiguous().t(), gamma_on_npu)  # the op makes a temporary of its own
    del delayed, rstd, gamma_on_npu
    for _ in range(20):
        torch.full((64, 256), float("nan"), device="npu")
    release()
    torch.testing.assert_close(y.cpu(), expected, rtol=0, atol=0)


def test_runs_on_the_current_stream() -> None:
    x, gamma = torch.randn(64, 256).npu(), torch.randn(256).npu()
    stream = torch_npu.npu.Stream()
    hold_next_task()
    with torch_npu.npu.stream(stream):
        y, _ = RMS_NORM(x, gamma)
    assert not stream.query()
    assert torch_npu.npu.default_stream().query()
    release()
    stream.synchronize()
    torch.testing.assert_close(y.cpu(), RMS_NORM(x.cpu(), gamma.cpu())[0], rtol=0, atol=0)


def test_a_failing_task_is_reported_with_the_name_of_the_operator() -> None:
    x, gamma = torch.randn(4, 8).npu(), torch.randn(8).npu()
    torch_npu.npu.synchronize()
    _C._inject_fault(0, _C._FAULT_FAIL_TASK, match="npu_rms_norm", count=1)
    RMS_NORM(x, gamma)
    with pytest.raises(RuntimeError, match="npu::npu_rms_norm"):
        torch_npu.npu.synchronize()
    torch.testing.assert_close(RMS_NORM(x, gamma)[0].cpu(), RMS_NORM(x.cpu(), gamma.cpu())[0])
