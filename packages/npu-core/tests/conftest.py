"""Fixtures of npu-core's tests."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

# Read when the device is first used; several tests need a second device.
os.environ.setdefault("NPU_HOST_DEVICE_COUNT", "2")

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_python() -> RunPython:
    """Run a snippet in a fresh interpreter; `environment` adds variables, a None value removes one."""

    def run(
        code: str, *, check: bool = True, timeout: float = 120, **environment: str | None
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
