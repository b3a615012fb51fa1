"""Ranges around DataLoader iteration and torch.save."""

from __future__ import annotations

import io
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from npu_profiler import builtin_markers
from npu_profiler.profiler import ProfilerLevel, _ExperimentalConfig, profile


@pytest.fixture(autouse=True)
def save_is_wrapped():
    builtin_markers.install_save()


def use(workers=0):
    batches = [batch for (batch,) in DataLoader(TensorDataset(torch.arange(6)), batch_size=2, num_workers=workers)]
    torch.save({"x": 1}, io.BytesIO())
    return batches


@pytest.mark.parametrize("workers", [0, 2])
def test_dataloader_and_save_are_ranges_while_markers_are_kept(events_of, workers):
    config = _ExperimentalConfig(profiler_level=ProfilerLevel.Level_none, mstx=True)
    with profile(experimental_config=config) as prof:
        batches = use(workers)
    use()
    assert torch.cat(batches).tolist() == list(range(6))
    names = [event["name"] for event in events_of(prof) if event.get("cat") == "mstx"]
    # Three batches and the call that ends the iteration.
    assert names == ["dataloader"] * 4 + ["save_checkpoint"]


def test_save_stays_itself():
    assert torch.save is torch.serialization.save
    assert torch.save.__name__ == "save"
    assert pickle.loads(pickle.dumps(torch.save)) is torch.save
    before = torch.save
    builtin_markers.install_save()
    assert torch.save is before
    buffer = io.BytesIO()
    torch.save(torch.ones(2), buffer)
    buffer.seek(0)
    assert torch.load(buffer).tolist() == [1, 1]
