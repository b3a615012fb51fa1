"""torch.compile with its default backend: generated C++ kernels run as tasks of npu streams.

Every test compiles C++, which takes seconds; so each compiles one function that exercises many things.
"""

from __future__ import annotations

import copy
import os
import shutil

import pytest
import torch
from torch import nn
from torch._inductor.utils import fresh_cache, run_and_get_code

from npu_core import _C

pytestmark = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="Inductor needs a C++ compiler"
)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    with fresh_cache():
        yield
    torch._dynamo.reset()


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.features(x).mean((2, 3)))).log_softmax(-1)


def test_training_equals_eager_training():
    torch.manual_seed(0)
    models = [Network().double().npu()]
    models.append(copy.deepcopy(models[0]))
    forwards = (models[0], torch.compile(models[1], fullgraph=True))
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64, device="npu")
    for _ in range(2):
        losses = []
        for model, forward in zip(models, forwards, strict=True):
            loss = forward(images)[:, 1].square().mean()
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
            losses.append(loss)
        torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(models[1].state_dict(), models[0].state_dict())


def test_operators_and_layouts():
    scalar = torch.tensor(3.0)

    def function(x, index):
        masked = x.clone()
        masked[1:3].mul_(2)
        return {
            "cpu scalar first": scalar * x,
            "in place": masked,
            "transposed argmax": x.t().argmax(),
            "argmin of view": x[:, 1:].argmin(),
            "argmax of dim": x.t().argmax(0),
            "reductions": (x.sum(0), x.amax(1), x.var(), x.logsumexp(-1), (x > 0).any(1)),
            "index": (x[index], x.index_add(0, index, x[:3]), x.scatter(0, index[:, None], 1.0)),
            "cumsum": x.cumsum(0),
            "sort": x.sort(-1).values,
            "cat": torch.cat([x, x + 1], 1),
            "pad": nn.functional.pad(x, (1, 2)),
            "attention": nn.functional.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]),
            "integers": (x * 10).int() // 3 % 5,
            "half": (x.half(), x.bfloat16()),
            "empty": x[:0].sin(),
            "host": x.cpu() + 1,
        }

    x = torch.linspace(-2, 2, 63, device="npu").sin().reshape(7, 9).t().contiguous().t()
    index = torch.tensor([2, 0, 5], device="npu")
    result = torch.compile(function, fullgraph=True)(x, index)
    torch.testing.assert_close(result, function(x, index))


def test_dynamic_shapes_in_place_and_other_devices():
    def function(x, total):
        total.add_(x.sum(0))
        return (x * x.shape[0]).softmax(-1)

    compiled = torch.compile(function, dynamic=True, fullgraph=True)
    for device, rows in (("npu:1", 3), ("npu:1", 8)):
        x = torch.linspace(-1, 1, rows * 4, device=device).reshape(rows, 4)
        totals = torch.ones(4, device=device), torch.ones(4, device=device)
        result = compiled(x, totals[0])
        assert result.device == torch.device(device)
        torch.testing.assert_close(result, function(x, totals[1]))
        torch.testing.assert_close(totals[0], totals[1])


def test_random_operators_follow_the_seed():
    def function(x):
        return nn.functional.dropout(x, 0.5), torch.rand_like(x), torch.bernoulli(torch.full_like(x, 0.25))

    compiled = torch.compile(function, fullgraph=True)
    x = torch.ones(1000, 10, device="npu")
    torch.manual_seed(3)
    first, second = compiled(x), compiled(x)
    torch.manual_seed(3)
    again = compiled(x)
    for a, b, c in zip(first, second, again, strict=True):
        assert torch.equal(a, c) and not torch.equal(a, b)
    dropped, uniform, drawn = first
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert dropped.mean().item() == pytest.approx(1, abs=0.06)  # six standard deviations
    assert uniform.min() >= 0 and uniform.max() < 1 and uniform.mean().item() == pytest.approx(0.5, abs=0.018)
    assert drawn.mean().item() == pytest.approx(0.25, abs=0.026)


def test_kernels_are_tasks_of_the_current_stream():
    compiled = torch.compile(lambda x: (x + 1).cos() * 2, fullgraph=True)
    x = torch.zeros(1000, device="npu")
    result, (code,) = run_and_get_code(compiled, x)
    assert "compile_npu_kernel(" in code
    torch.testing.assert_close(result, (x + 1).cos() * 2)
    side = torch.npu.Stream()
    torch.npu.synchronize()
    try:
        # 1 s: without the delay the assertion below would race with the engine.
        _C._inject_fault(0, _C._FAULT_DELAY_TASK, match="cpp_fused", count=1, delay_ns=1_000_000_000)
        with torch.npu.stream(side):
            result = compiled(x)
        assert not side.query() and torch.npu.default_stream().query()
    finally:
        _C._inject_fault(0, _C._FAULT_NONE)
    side.synchronize()
    torch.testing.assert_close(result, (x + 1).cos() * 2)
    try:
        _C._inject_fault(0, _C._FAULT_FAIL_TASK, match="cpp_fused", count=1)
        compiled(x)
        with pytest.raises(RuntimeError, match="cpp_fused"):
            torch.npu.synchronize()
    finally:
        _C._inject_fault(0, _C._FAULT_NONE)


def test_streams_and_synchronisation_in_compiled_code():
    side = torch.npu.Stream()

    def function(x):
        y = x * 2
        torch.npu.synchronize()
        main = torch.npu.current_stream()
        with torch.npu.stream(side):
            side.wait_stream(main)
            z = y.cos()
        torch.npu.current_stream().wait_stream(side)
        return y + z

    x = torch.linspace(0, 1, 1000, device="npu")
    torch.testing.assert_close(torch.compile(function, fullgraph=True)(x), function(x))


def test_error_in_a_kernel_is_raised_at_synchronisation():
    compiled = torch.compile(lambda x, y: x // y, fullgraph=True)
    one = torch.ones(4, dtype=torch.int32, device="npu")
    assert compiled(one, one).tolist() == [1] * 4
    compiled(one, one * 0)
    with pytest.raises(RuntimeError, match="(?i)zero"):
        torch.npu.synchronize()
    assert compiled(one, one).tolist() == [1] * 4


def test_without_a_compiler_the_error_names_the_alternative(run_python, tmp_path):
    done = run_python(
        """
        import torch
        try:
            torch.compile(lambda x: x + 1)(torch.ones(3, device="npu"))
        except Exception as error:
            print(error)
        """,
        PATH=str(tmp_path),
        CXX=str(tmp_path / "none"),
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path),
    )
    assert "found no C++ compiler" in done.stdout and 'backend="aot_eager"' in done.stdout


def test_wrapper_in_cpp_is_refused():
    with pytest.raises(Exception, match="cpp_wrapper and AOTInductor are not supported"):
        torch.compile(lambda x: x + 1, options={"cpp_wrapper": True})(torch.ones(3, device="npu"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(1),), "takes 2 arguments, but got 1"),
        ((1, 2), "argument 0 should be a tensor"),
        ((torch.ones(1), 2), "none of its arguments is an npu tensor"),
    ],
)
def test_launcher_checks_its_arguments(arguments, message):
    kernel = _C._CompiledKernel("test", 1, "wi")
    with pytest.raises((TypeError, RuntimeError), match=message):
        kernel(*arguments)
    with pytest.raises(ValueError, match="unknown letter"):
        _C._CompiledKernel("test", 1, "x")
