"""Builds and runs the torch-free tests of transport and collectives."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cmake = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    if cmake is None or shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("needs cmake and a C++ compiler")
    folder = tmp_path_factory.mktemp("native")
    options = ["-DNPU_DISTRIBUTED_NATIVE_TESTS=ON", "-DNPU_DISTRIBUTED_BINDINGS=OFF"]
    subprocess.run([cmake, "-S", PACKAGE, "-B", folder, *options], check=True, capture_output=True, timeout=120)
    subprocess.run([cmake, "--build", folder, "--parallel", "2"], check=True, capture_output=True, timeout=600)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("program", ["reduction_test", "collectives_test", "transfers_test"])
def test_program(build: Path, program: str) -> None:
    result = subprocess.run([build / program], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "FAILED" not in result.stdout
