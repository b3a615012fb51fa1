"""Errors that tasks meet after the call that queued them has returned."""

import pytest
import torch


def gather_out_of_range() -> torch.Tensor:
    return torch.gather(torch.randn(4, 3, device="npu"), 0, torch.full((1, 3), 77, device="npu"))


def usable() -> bool:
    return (torch.ones(3, device="npu") + 1).tolist() == [2.0, 2.0, 2.0]


def test_raised_by_synchronize_with_the_name_of_the_op():
    gather_out_of_range()
    with pytest.raises(RuntimeError, match="aten::gather.*index 77 is out of bounds"):
        torch.npu.synchronize()
    assert usable()


def test_raised_by_an_event_behind_the_failure():
    event = torch.npu.Event()
    gather_out_of_range()
    event.record()
    with pytest.raises(RuntimeError, match="index 77 is out of bounds"):
        event.synchronize()
    assert usable()


def test_raised_by_reading_the_result():
    with pytest.raises(RuntimeError, match="index 77 is out of bounds"):
        gather_out_of_range().tolist()
    assert usable()


def test_indices_on_the_host_are_refused():
    with pytest.raises(RuntimeError, match="same device"):
        torch.randn(4, 3, device="npu").index_select(0, torch.tensor([0]))
    assert usable()
