"""How much longer ``import torch`` takes once the plugin is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from ..harness import Case, Settings, Target

PROGRAM = "import time; begin = time.perf_counter(); import torch; print(time.perf_counter() - begin)"


def import_torch(autoload: str) -> float:
    """Seconds of ``import torch`` in a fresh interpreter."""
    environment = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": autoload}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, check=True, capture_output=True, text=True
    )
    return float(result.stdout.split()[-1])


def cases(settings: Settings) -> Iterator[Case]:
    """With and without TORCH_DEVICE_BACKEND_AUTOLOAD=0, alternating."""
    yield Case(
        name="import torch, autoload on against off",
        subject=partial(import_torch, "1"),
        baseline=partial(import_torch, "0"),
        self_timed=True,
        samples=7,
        allocators=("default",),
        target=Target("extra_ms", 150.0, allocator="default"),
    )
