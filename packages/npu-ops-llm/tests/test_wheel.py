"""The compiled library keeps the rules that let one wheel serve every torch from 2.11 on."""

import importlib.util
import math
import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch

from npu_ops_llm import library

CHECKER = Path(__file__).parents[2] / "npu-core" / "cmake" / "check_op_library.py"
TORCH = Path(torch.__file__).parent


def test_library_keeps_the_rules_of_the_stable_abi() -> None:
    command = [sys.executable, str(CHECKER), str(library.PATH), str(TORCH / "include")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


def test_checker_finds_what_it_looks_for() -> None:
    spec = importlib.util.spec_from_file_location("check_op_library", CHECKER)
    assert spec is not None and spec.loader is not None
    checker = importlib.util.module_from_spec(spec)
    sys.modules["check_op_library"] = checker  # dataclasses look their module up
    spec.loader.exec_module(checker)
    torch_python = checker.read_shared_library(TORCH / "lib" / "libtorch_python.so")
    text = "\n".join(checker.broken_rules(torch_python, TORCH / "include"))
    for rule in ("needs other libraries", "uses C++ symbols of torch", "exports more than", "has a run path"):
        assert rule in text
    newer = checker.Symbol("torch_exception_get_what_without_backtrace", defined=False, weak=False)
    problems = checker.broken_rules(checker.SharedLibrary(["libtorch_cpu.so"], [], [newer]), TORCH / "include")
    assert problems == [f"uses functions that torch 2.11 lacks (declare them weak): {newer.name}"]


def test_wheel_tag_fits_every_python() -> None:
    text = distribution("npu-ops-llm").read_text("WHEEL")
    assert text is not None
    assert re.findall(r"^Tag: (.*)$", text, re.MULTILINE) == ["py3-none-linux_x86_64"]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("limit", ["base", "avx2", "avx512", "avx512_bf16", "amx"])
def test_environment_limits_the_instruction_set(limit: str) -> None:
    in_force = library.kernel_isa()
    expected = library.kernel_isa(limit)
    library.kernel_isa(in_force)
    code = "from npu_ops_llm import library; print(library.kernel_isa())"
    assert run_python(code, NPU_CPU_ISA=limit).stdout.strip() == expected


def test_unknown_instruction_set_is_an_error() -> None:
    code = "import torch, npu_ops_llm; torch.ops.npu.npu_rms_norm(torch.ones(2), torch.ones(2))"
    result = run_python(code, NPU_CPU_ISA="avx1024")
    assert result.returncode != 0
    assert 'RuntimeError: NPU_CPU_ISA should be one of base, avx2, avx512, avx512_bf16, amx, but got "avx1024"' in (
        result.stderr
    )
    with pytest.raises(ValueError, match="avx1024"):
        library.kernel_isa("avx1024")


def test_works_without_npu_core() -> None:
    code = (
        "import sys; sys.modules['npu_core'] = sys.modules['torch_npu'] = None\n"
        "import torch, npu_ops_llm, npu_ops_llm.plugin\n"
        "print(torch.ops.npu.npu_rms_norm(torch.tensor([3.0]), torch.ones(1))[0].item())"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) == pytest.approx(1.0)


def test_works_with_npu_core_as_the_only_other_wheel(tmp_path: Path) -> None:
    """An interpreter that sees this environment without the other wheels of the repository."""
    others = ("npu_ops_vision", "npu_distributed", "npu_profiler")
    for entry in (path for folder in sys.path if folder.endswith("site-packages") for path in Path(folder).iterdir()):
        if not entry.name.startswith(others) and not (tmp_path / entry.name).exists():
            (tmp_path / entry.name).symlink_to(entry)
    code = (
        "import torch, torch_npu, npu_core.plugins\n"
        "states = {one.name: one.state for one in npu_core.plugins.statuses()}\n"
        "assert states == {'npu-ops-llm': 'loaded'}, states\n"
        "x = torch.tensor([3.0, 4.0], device='npu')\n"
        "print(torch_npu.npu_swiglu(torch_npu.npu_rms_norm(x, torch.ones_like(x))[0]).item())"
    )
    command = [sys.executable, "-S", "-c", code]  # -S: no site-packages but this one
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    rms = 12.5**0.5
    gate, value = 3 / rms, 4 / rms
    assert float(result.stdout) == pytest.approx(gate / (1 + math.exp(-gate)) * value, rel=1e-5)
