"""tools/inspect_wheels.py refuses wheels that break a promise."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent

GOOD = 'extern "C" int answer() { return 42; }'
BAD = "namespace c10 { void warn(); } void f() { c10::warn(); }"


@pytest.fixture(scope="module")
def inspector() -> ModuleType:
    specification = importlib.util.spec_from_file_location("inspect_wheels", ROOT / "tools/inspect_wheels.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules["inspect_wheels"] = module
    specification.loader.exec_module(module)
    return module


def wheel(folder: Path, name: str, sources: dict[str, str]) -> Path:
    """A wheel with one library per source."""
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x-1.dist-info/METADATA", "Name: x\nRequires-Dist: torch>=2.11\n")
        for library, source in sources.items():
            command = ["c++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(folder / library)]
            subprocess.run(command, input=source, text=True, check=True)
            archive.write(folder / library, f"x/{library}")
    return path


@pytest.mark.parametrize(
    ("name", "sources", "problem"),
    [
        ("npu_ops_llm-1-py3-none-linux_x86_64.whl", {"libops.so": GOOD}, None),
        ("npu_ops_llm-1-py3-none-linux_x86_64.whl", {"libops.so": BAD}, "c10::warn"),
        ("npu_ops_llm-1-py3-none-linux_x86_64.whl", {}, "no shared library"),
        ("npu_ops_llm-1-cp311-cp311-linux_x86_64.whl", {"libops.so": GOOD}, "tag cp311-cp311-linux_x86_64"),
        ("npu_core-1-cp311-cp311-linux_x86_64.whl", {"libcore.so": BAD}, None),
        ("npu_core-1-cp311-cp311-linux_x86_64.whl", {"libtorch_cpu.so": GOOD}, "carries x/libtorch_cpu.so"),
    ],
)
def test_promises(
    inspector: ModuleType, tmp_path: Path, name: str, sources: dict[str, str], problem: str | None
) -> None:
    found = inspector.inspect(wheel(tmp_path, name, sources)).problems()
    assert (found == []) if problem is None else any(problem in text for text in found)
    assert inspector.inspect(tmp_path / name).requires == ["torch>=2.11"]
