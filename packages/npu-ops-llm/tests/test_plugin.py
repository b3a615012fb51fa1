"""How torch_npu sees this package."""

import os
import subprocess
import sys

import pytest

ATTRIBUTES = """
import torch, torch_npu, npu_ops_llm
for name in npu_ops_llm.OPERATORS:
    assert getattr(torch_npu, name) is getattr(torch.ops.npu, name), name
for name in npu_ops_llm.ATB_OPERATORS:
    assert getattr(torch_npu, name) is getattr(torch.ops.atb, name), name
"""


@pytest.mark.parametrize("first", ["torch", "torch_npu", "npu_ops_llm", "npu_ops_llm.plugin"])
def test_operators_are_attributes_of_torch_npu_in_every_order_of_imports(first: str) -> None:
    command = [sys.executable, "-W", "error::UserWarning", "-c", f"import {first}\n{ATTRIBUTES}"]
    environment = {name: value for name, value in os.environ.items() if name != "TORCH_DEVICE_BACKEND_AUTOLOAD"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr


def test_plugin_names_every_operator() -> None:
    import npu_ops_llm
    from npu_ops_llm.plugin import plugin

    assert plugin.name == "npu-ops-llm"
    assert plugin.version == npu_ops_llm.__version__
    assert plugin.attributes == (*npu_ops_llm.OPERATORS, *npu_ops_llm.ATB_OPERATORS)
