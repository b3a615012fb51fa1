"""Copies between host and device in stream order."""

import pytest
import torch

from npu_core import _C


@pytest.mark.parametrize("count", [1, 16, 1000, 100_000])
def test_pinned_source_is_read_in_stream_order(count: int):
    host = torch.zeros(count).pin_memory()
    value = torch.full((count,), 7.0, device="npu")
    _C._inject_fault(0, _C._FAULT_DELAY_TASK, match="copy", count=1, delay_ns=20_000_000)
    try:
        host.copy_(value, non_blocking=True)
        back = host.to("npu", non_blocking=True)
        assert (back == 7).all()
    finally:
        _C._inject_fault(0, _C._FAULT_NONE)


@pytest.mark.parametrize("count", [1, 1000, 100_000])
def test_pageable_source_may_change_after_the_call(count: int):
    host = torch.zeros(count)
    _C._inject_fault(0, _C._FAULT_DELAY_TASK, match="copy", count=1, delay_ns=20_000_000)
    try:
        device = host.to("npu", non_blocking=True)
        host.fill_(9.0)
        assert (device == 0).all()
    finally:
        _C._inject_fault(0, _C._FAULT_NONE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32, torch.bool])
def test_strided_and_converting_copies(dtype: torch.dtype):
    source = torch.arange(24.0).reshape(4, 6).t()
    target = torch.zeros(4, 6, device="npu", dtype=dtype).t()
    target.copy_(source)
    assert torch.equal(target.cpu(), source.to(dtype))
    assert torch.equal(source.npu()[::2, 1:].cpu(), source[::2, 1:])
