"""Runs every case of the driver conformance suite as one test.

``NPU_DRIVER_CONFORMANCE`` names the suite's program (tests/driver/); ``nox -s tests`` builds it and sets the variable.
``NPU_DRIVER_UNDER_TEST`` names another driver library than the host driver.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

CASE_TIMEOUT_S = 300
SKIPPED = 77
DRIVER = os.environ.get("NPU_DRIVER_UNDER_TEST", "host")


def find_suite() -> Path | None:
    """Return the path of ``npu_driver_conformance``, or None when nobody built it."""
    named = os.environ.get("NPU_DRIVER_CONFORMANCE")
    return Path(named) if named else None


def run_suite(*arguments: str) -> subprocess.CompletedProcess[str]:
    suite = find_suite()
    if suite is None:
        pytest.fail(
            "NPU_DRIVER_CONFORMANCE is not set: run `nox -s tests`, or build the suite with "
            "`cmake -S packages/npu-core/csrc/driver -B build -G Ninja && cmake --build build` and set "
            "NPU_DRIVER_CONFORMANCE to its path"
        )
    if not os.access(suite, os.X_OK):
        pytest.fail(f"{suite} is not an executable file (NPU_DRIVER_CONFORMANCE, or a damaged installation)")
    # The suite chooses the number and the memory of its devices itself.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NPU_HOST_")}
    return subprocess.run(
        [str(suite), "--driver", DRIVER, *arguments],
        capture_output=True,
        text=True,
        timeout=CASE_TIMEOUT_S,
        env=environment,
        check=False,
    )


def list_cases() -> list[str]:
    """Return the names of all cases; empty when the suite cannot be run (a test then reports why)."""
    suite = find_suite()
    if suite is None or not os.access(suite, os.X_OK):
        return []
    return subprocess.run([str(suite), "--list"], capture_output=True, text=True, timeout=60, check=True).stdout.split()


CASES = list_cases()


def test_suite_is_complete() -> None:
    result = run_suite("--list")
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) >= 80
    assert result.stdout.split() == CASES


@pytest.mark.parametrize("case", CASES)
def test_driver(case: str) -> None:
    result = run_suite(case)
    if result.returncode == SKIPPED:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, f"{result.stdout}{result.stderr}"
