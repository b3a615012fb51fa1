"""The example of docs/compile.md runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "compile_model.py"


def test_compiled_training_equals_eager_training() -> None:
    command = [sys.executable, str(SCRIPT), "--backend", "aot_eager", "--steps", "10"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["eager", "compiled"]
