"""A short run of the random stress program; ``nox -s stress -- --minutes 10`` is the long one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

STRESS = Path(__file__).with_name("stress.py")


def test_random_programs_compute_what_they_must():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NPU_HOST_")}
    done = subprocess.run(
        [sys.executable, str(STRESS), "--seconds", "6"],
        capture_output=True,
        text=True,
        timeout=280,
        env=environment | {"OMP_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stderr == ""
    counts = {name: int(count) for count, name in re.findall(r"^ *(\d+) (.+)$", done.stdout, re.MULTILINE)}
    assert counts["values checked"] > 0
