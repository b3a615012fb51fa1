"""The example of the README runs and prints what it says."""

import re
import subprocess
import sys
from pathlib import Path


def test_example() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    promised = re.findall(r"(?:^|  )# ?(.*)$", code, re.MULTILINE)
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert [line.strip() for line in result.stdout.splitlines()] == [line.strip() for line in promised]
