"""The examples for several devices end with the losses of one process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("npu_distributed")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(example: str, processes: int, *arguments: str) -> str:
    """Run an example as a user does, alone or under torchrun; what it printed."""
    command = [sys.executable, str(EXAMPLES / example), *arguments]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    # The job, not the test session, says how many devices there are.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NPU_HOST_")}
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=400, check=False, env=environment | {"OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, f"{' '.join(command)} failed:\n{result.stdout}\n{result.stderr}"
    return result.stdout


def losses(output: str) -> list[float]:
    return [float(value) for value in re.findall(r"loss (\d+\.\d+)", output)]


def test_tensor_parallel() -> None:
    one, two = (run("tensor_parallel.py", processes, "--steps", "20") for processes in (1, 2))
    assert len(losses(one)) == 5 and losses(one)[-1] < 0.7 * losses(one)[0]
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)
    held = [int(count) for count in re.findall(r"holds (\d+) numbers", one + two)]
    # Norms and the biases of rows are on every process, all the rest is split.
    assert held[1] == held[2] and 0.5 * held[0] < held[1] < 0.52 * held[0]


def test_tensor_parallel_refuses_a_count_that_does_not_divide_the_heads() -> None:
    command = [sys.executable, str(EXAMPLES / "tensor_parallel.py")]
    place = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "3"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=os.environ | place)
    assert result.returncode == 2 and "should divide 4, the heads, but is 3" in result.stderr, result.stderr


def test_digits() -> None:
    pytest.importorskip("sklearn")
    one, two = (run("ddp_digits.py", processes, "--epochs", "2") for processes in (1, 2))
    assert "processes: 2, backend hccl" in two and "emulated" in two
    assert len(losses(one)) == 2
    # Both see the same batches, with the mean and variance of the whole batch: rounding, amplified by 44 steps.
    assert losses(two) == pytest.approx(losses(one), rel=1e-2)
