"""Fixtures of npu-core's tests."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import pytest

# Read when the device is first used; several tests need a second device.
os.environ.setdefault("NPU_HOST_DEVICE_COUNT", "2")

HOUR_NS = 3600 * 10**9

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_python() -> RunPython:
    """Run a snippet in a fresh interpreter; `environment` adds variables, a None value removes one."""

    def run(
        code: str, *, check: bool = True, timeout: float = 280, **environment: str | None
    ) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "OMP_NUM_THREADS": "2"}
        for name, value in environment.items():
            variables.pop(name, None)
            if value is not None:
                variables[name] = value
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env=variables,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check:
            assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


class Hold:
    """Makes the next task of a device wait until `release`: what is queued behind it is queued for sure."""

    def __call__(self, device: int = 0, match: str = "") -> None:
        from npu_core import _C

        _C._inject_fault(device, _C._FAULT_DELAY_TASK, match=match, count=1, delay_ns=HOUR_NS)

    def release(self) -> None:
        import torch

        from npu_core import _C

        for device in range(torch.npu.device_count()):
            _C._inject_fault(device, _C._FAULT_NONE)


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Hold a task; released at the latest when the test ends."""
    import torch

    torch.npu.init()
    holder = Hold()
    yield holder
    holder.release()
    for device in range(torch.npu.device_count()):
        torch.npu.synchronize(device)
