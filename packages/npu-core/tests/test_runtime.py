"""Runs every case of the runtime's C++ tests as one test.

``NPU_RUNTIME_TESTS`` names the program (tests/runtime/); ``nox -s tests`` builds it and sets the variable.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

CASE_TIMEOUT_S = 300


def find_program() -> Path | None:
    """Return the path of ``npu_runtime_tests``, or None when nobody built it."""
    named = os.environ.get("NPU_RUNTIME_TESTS")
    return Path(named) if named else None


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = find_program()
    if program is None:
        pytest.fail(
            "NPU_RUNTIME_TESTS is not set: run `nox -s tests`, or build the program with "
            "`cmake -G Ninja -S packages/npu-core/tests/runtime -B build && cmake --build build` and set "
            "NPU_RUNTIME_TESTS to its path"
        )
    return subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, timeout=CASE_TIMEOUT_S, check=False
    )


def list_cases() -> list[str]:
    """Return the names of all cases; empty without the program (a test then reports why)."""
    return run("--list").stdout.split() if find_program() is not None else []


def test_there_are_cases():
    done = run("--list")
    assert done.returncode == 0 and len(done.stdout.split()) > 50, done.stderr


@pytest.mark.parametrize("case", list_cases())
def test_runtime(case: str):
    done = run(case)
    assert done.returncode == 0, done.stdout + done.stderr
