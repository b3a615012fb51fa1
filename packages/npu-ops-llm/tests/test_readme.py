"""The README: its example runs and prints what it says, and no operator is left out."""

import re
import subprocess
import sys
from pathlib import Path

import npu_ops_llm

README = Path(__file__).parents[1] / "README.md"


def test_example() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    promised = re.findall(r"(?:^|  )# ?(.*)$", code, re.MULTILINE)
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert [line.strip() for line in result.stdout.splitlines()] == [line.strip() for line in promised]


def test_every_operator_is_listed() -> None:
    text = README.read_text()
    derived = ("_backward", "_grad", "_grad_v2")
    public = [name for name in npu_ops_llm.OPERATORS if not name.startswith("_") and not name.endswith(derived)]
    missing = [name for name in public if f"`{name}`" not in text]
    assert not missing
