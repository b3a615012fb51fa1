"""Fixtures of the profiler's tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def events_of(tmp_path: Path) -> Callable[[Any], list[dict]]:
    """Export a profile and return the events, with times as whole nanoseconds in ``begin`` and ``end``."""

    def export(prof: Any) -> list[dict]:
        path = tmp_path / "trace.json"
        prof.export_chrome_trace(str(path))
        events = json.loads(path.read_text())
        for event in events:
            if "ts" in event:
                whole, fraction = event["ts"].split(".")
                event["begin"] = int(whole) * 1000 + int(fraction)
                event["end"] = event["begin"] + round(event.get("dur", 0) * 1000)
        return events

    return export


@pytest.fixture
def npu() -> Any:
    """torch.npu of an installed npu-core, initialised so that traces hold no start-up work."""
    pytest.importorskip("torch_npu", reason="needs npu-core")
    import torch

    torch.zeros(1, device="npu")
    torch.npu.synchronize()
    return torch.npu
