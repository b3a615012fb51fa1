"""A Llama-style model written with the fused operators: its gradients, and that it trains."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "tiny_llama.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_llama", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loss_and_gradients(
    example: ModuleType, ops: type, device: str, dtype: torch.dtype
) -> tuple[Tensor, dict[str, Tensor]]:
    """Of one batch, for weights that depend on nothing but the seed."""
    torch.manual_seed(3)
    model = example.TinyLlama(50, ops)
    tokens, targets = torch.randint(50, (2, 4, 33))
    # What bfloat16 holds, so that every run starts from the same weights.
    model.to(torch.bfloat16).to(device, dtype)
    loss = ops.cross_entropy(model(tokens.to(device)).flatten(0, 1), targets.to(device).flatten())
    loss.backward()
    return loss.detach().cpu().double(), {name: p.grad.cpu().double() for name, p in model.named_parameters()}


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_gradients_match_stock_operators_in_float32(example: ModuleType, device: str) -> None:
    expected_loss, expected = loss_and_gradients(example, example.PlainOps, "cpu", torch.float32)
    loss, gradients = loss_and_gradients(example, example.FusedOps, device, torch.float32)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    for name, gradient in gradients.items():
        assert distance(gradient, expected[name]) < 1e-5, name


def test_gradients_match_within_bfloat16(example: ModuleType, device: str) -> None:
    """Fused operators round less often than the composition: they must not be further from float32 than it is."""
    exact_loss, exact = loss_and_gradients(example, example.PlainOps, "cpu", torch.float32)
    plain_loss, plain = loss_and_gradients(example, example.PlainOps, "cpu", torch.bfloat16)
    loss, gradients = loss_and_gradients(example, example.FusedOps, device, torch.bfloat16)
    unit = 2.0**-8
    assert abs(loss - exact_loss) <= abs(plain_loss - exact_loss) + unit * exact_loss
    for name, gradient in gradients.items():
        assert distance(gradient, exact[name]) <= 1.2 * distance(plain[name], exact[name]) + unit, name


def test_learns_a_text_by_heart() -> None:
    command = [sys.executable, str(EXAMPLE), "--steps", "100"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert "Beautiful is better than ugly." in result.stdout
