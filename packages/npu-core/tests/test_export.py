"""torch.export of modules on npu: the program computes what the module computes, also after saving and loading."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.export import Dim, export


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embedding(tokens))
        return x + self.attention(x, x, x, need_weights=False)[0]


class Branching(nn.Module):
    """Creates tensors, changes a buffer, mixes devices."""

    counter: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor, scale: float) -> dict[str, torch.Tensor]:
        self.counter.add_(1)
        positions = torch.arange(x.shape[0], device=x.device)[:, None]
        return {"sum": x * scale + positions, "host": x.cpu() + torch.tensor(2.0), "count": self.counter.clone()}


def _modules() -> dict[str, tuple[nn.Module, tuple, tuple]]:
    torch.manual_seed(0)
    tokens = torch.arange(6).remainder(11).reshape(2, 3)
    return {
        "convolutional": (Convolutional(), (torch.randn(2, 3, 8, 8),), (torch.randn(5, 3, 8, 8),)),
        "attention": (Attention(), (tokens,), (tokens.repeat(3, 2),)),
        "branching": (Branching(), (torch.randn(3, 4), 0.5), (torch.randn(7, 4), 0.5)),
    }


_NAMES = ("convolutional", "attention", "branching")
_DYNAMIC = {
    "convolutional": ({0: Dim("batch", min=2)},),
    "attention": ({0: Dim("batch", min=2), 1: Dim("length", min=2)},),
    "branching": ({0: Dim("batch", min=2)}, None),
}


def _npu(arguments: tuple) -> tuple:
    return tuple(a.npu() if isinstance(a, torch.Tensor) else a for a in arguments)


@pytest.mark.parametrize("name", _NAMES)
def test_program_equals_the_module_on_cpu(name):
    module, arguments, other = _modules()[name]
    module.eval()
    expected = export(copy.deepcopy(module), arguments).module()(*arguments)
    program = export(module.npu(), _npu(arguments))
    torch.testing.assert_close(program.module()(*_npu(arguments)), expected, check_device=False)
    with pytest.raises(AssertionError):  # the shape is fixed
        program.module()(*_npu(other))


@pytest.mark.parametrize("name", _NAMES)
def test_dynamic_shapes_and_decompositions(name):
    module, arguments, other = _modules()[name]
    module.eval()
    expected = export(copy.deepcopy(module), arguments, dynamic_shapes=_DYNAMIC[name]).module()(*other)
    for decompose in (False, True):
        program = export(copy.deepcopy(module).npu(), _npu(arguments), dynamic_shapes=_DYNAMIC[name])
        decomposed = program.run_decompositions() if decompose else program
        torch.testing.assert_close(decomposed.module()(*_npu(other)), expected, check_device=False)
    operators = {str(node.target) for node in decomposed.graph.nodes}
    assert not operators & {"aten.linear.default", "aten.conv2d.default"}


@pytest.mark.parametrize("name", _NAMES)
def test_saved_program_runs(name):
    module, arguments, _ = _modules()[name]
    module.eval().npu()
    program = export(module, _npu(arguments))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    assert all(t.device == torch.device("npu:0") for t in loaded.state_dict.values())
    torch.testing.assert_close(loaded.module()(*_npu(arguments)), program.module()(*_npu(arguments)))


def test_training_program_gives_the_gradients_of_the_module():
    module, arguments, _ = _modules()["convolutional"]
    module.npu().train()
    program = export(module, _npu(arguments)).module()
    program(*_npu(arguments)).square().sum().backward()
    module(*_npu(arguments)).square().sum().backward()
    ours = dict(program.named_parameters())
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(ours[name].grad, parameter.grad, msg=name)


def test_constants_on_npu_travel_with_the_program():
    weight = torch.arange(3.0, device="npu")

    class Module(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * weight

    program = export(Module(), (torch.ones(2, 3, device="npu"),))
    (constant,) = program.constants.values()
    assert constant.device == torch.device("npu:0")
    assert program.module()(torch.ones(2, 3, device="npu")).tolist() == [[0, 1, 2]] * 2


def test_device_mismatch_is_found_while_exporting():
    class Module(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.ones(3)

    with pytest.raises(RuntimeError, match="device"):
        export(Module(), (torch.ones(3, device="npu"),))
