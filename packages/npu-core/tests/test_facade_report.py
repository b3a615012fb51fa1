"""python -m npu_core, npu-info and the registry of environment variables."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from npu_core import environment, info, report

SOURCES = Path(__file__).parents[1]


def npu_info(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "npu_core", *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_json_names_devices_plugins_and_environment():
    done = npu_info("--json", NPU_HOST_DEVICE_COUNT="2", NPU_HOST_MEMORY="1GiB", TASK_QUEUE_ENABLE="2")
    found = json.loads(done.stdout)
    assert [device["total_memory"] for device in found["devices"]] == [1 << 30] * 2
    assert all(device["is_emulated"] and device["name"].startswith("Ascend") for device in found["devices"])
    settings = {entry["name"]: entry for entry in found["environment"]}
    assert settings["NPU_HOST_MEMORY"]["effective"] and not settings["TASK_QUEUE_ENABLE"]["effective"]
    assert found["driver"].startswith("host") and found["torch"] and found["torch_npu"]
    assert done.returncode == (1 if found["problems"] else 0)


def test_text_says_that_the_device_is_emulated():
    text = npu_info(NPU_HOST_DEVICE_COUNT="1").stdout
    assert "npu:0  Ascend910B1" in text and "(emulated by this machine's CPU)" in text
    assert "NPU_HOST_DEVICE_COUNT=1  devices the host driver emulates" in text


def test_the_script_is_installed():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="npu-info")
    assert script.load() is info.main


def test_problems_come_with_a_remedy():
    done = npu_info("--json", ASCEND_RT_VISIBLE_DEVICES="1,0", NPU_HOST_DEVICES="2", ASCEND_LAUNCH_BLOCKING="0")
    found = json.loads(done.stdout)
    problems = {problem["what"]: problem["remedy"] for problem in found["problems"]}
    assert done.returncode == 1
    assert "ASCEND_RT_VISIBLE_DEVICES is '1,0'" in problems["no npu device is visible"]
    assert "spelling" in problems["NPU_HOST_DEVICES is set, but npu-core knows no such variable"]
    assert npu_info(ASCEND_RT_VISIBLE_DEVICES="1,0").stdout.count("    do: ") >= 1


def test_a_device_that_does_not_start_is_a_problem_not_a_crash():
    done = npu_info("--json", NPU_HOST_SOC="Ascend1")
    found = json.loads(done.stdout)
    assert any("NPU_HOST_SOC" in problem["what"] for problem in found["problems"])


def test_bad_values_are_reported():
    settings = environment.in_force({"STREAMS_PER_DEVICE": "16", "NPU_HOST_MEMORY": "4GiB", "OTHER": "1"})
    assert [(entry.variable.name, entry.problem) for entry in settings] == [
        ("NPU_HOST_MEMORY", ""),
        ("STREAMS_PER_DEVICE", "STREAMS_PER_DEVICE should be 8 or 32, but got '16'"),
    ]


def test_rendering_is_complete():
    full = report.Report(problems=[report.Problem("it broke", "mend it")])
    text = report.render(full)
    assert "  - it broke\n    do: mend it" in text and "nothing set, all defaults" in text


def test_every_variable_the_code_reads_is_registered():
    pattern = re.compile(
        r"""(?:getenv|env_flag|variable|read_number|read_size|environ\.get|getenv)\(\s*"([A-Z][A-Z_0-9]+)\""""
    )
    texts = [
        path.read_text()
        for folder in ("csrc", "src")
        for path in (SOURCES / folder).rglob("*")
        if path.suffix in {".cpp", ".h", ".py"}
    ]
    if not texts:
        pytest.skip("needs the source tree")
    read = {name for text in texts for name in pattern.findall(text)}
    assert "NPU_HOST_MEMORY" in read and "STREAMS_PER_DEVICE" in read
    assert read - set(environment.VARIABLES) - {"RANK"} == set()
