"""torch.compile on npu with the backends that interpret the graph: results, gradients, tracing of torch.npu."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import torch_npu

BACKENDS = ("eager", "aot_eager", "aot_eager_decomp_partition")


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm(x))


def test_forward_and_backward(backend):
    torch.manual_seed(0)
    model = Block().double().npu()
    compiled = torch.compile(copy.deepcopy(model), backend=backend, fullgraph=True)
    x = torch.randn(2, 5, 8, dtype=torch.float64, device="npu", requires_grad=True)
    y = x.detach().clone().requires_grad_()
    expected, result = model(x), compiled(y)
    torch.testing.assert_close(result, expected)
    expected.square().sum().backward()
    result.square().sum().backward()
    torch.testing.assert_close(y.grad, x.grad)
    for ours, theirs in zip(compiled.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_dynamic_shapes_compile_once(backend):
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(lambda x: (x * x.shape[0]).softmax(-1).sum(0), backend=counter, dynamic=True)
    for rows, columns in ((3, 5), (7, 5), (4, 9)):
        x = torch.randn(rows, columns, device="npu")
        torch.testing.assert_close(compiled(x), (x * rows).softmax(-1).sum(0))
    assert counter.frame_count == 1


def test_graph_break_and_branch_on_data(backend):
    def function(x):
        y = x.sin()
        torch._dynamo.graph_break()
        return y + 1 if y.sum() > 0 else y - 1

    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(function, backend=counter)
    for x in (torch.ones(4, device="npu"), -torch.ones(4, device="npu")):
        torch.testing.assert_close(compiled(x), function(x))
    assert counter.frame_count >= 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("context", [torch.autocast, torch.npu.amp.autocast], ids=["torch", "npu.amp"])
def test_autocast(backend, dtype, context):
    def function(x):
        with context("npu", dtype=dtype) if context is torch.autocast else context(dtype=dtype):
            return x @ x, x.softmax(-1)

    x = torch.linspace(-1, 1, 64, device="npu").reshape(8, 8)
    product, probabilities = torch.compile(function, backend=backend, fullgraph=True)(x)
    assert product.dtype == dtype and probabilities.dtype == torch.float32
    torch.testing.assert_close((product, probabilities), function(x))


def test_random_operators_follow_the_seed(backend):
    def function(x):
        return nn.functional.dropout(x, 0.5), torch.rand_like(x), torch.randint(1 << 30, (64,), device=x.device)

    x = torch.ones(64, 4, device="npu")
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    torch.manual_seed(3)
    first = compiled(x)
    second = compiled(x)
    torch.manual_seed(3)
    again = compiled(x)
    torch.manual_seed(3)
    eager = function(x)
    for a, b, c, d in zip(first, second, again, eager, strict=True):
        assert torch.equal(a, c) and not torch.equal(a, b)
        assert a.shape == d.shape and (backend == "aot_eager_decomp_partition" or torch.equal(a, d))


def test_in_place_changes_reach_the_arguments(backend):
    def function(x, buffer):
        buffer.add_(x.sum(0))
        x[1:].mul_(2)
        view = x.t()
        view.sub_(1)
        return view.contiguous()

    arguments = [torch.arange(6.0, device="npu").reshape(3, 2), torch.zeros(2, device="npu")]
    others = [t.clone() for t in arguments]
    result = torch.compile(function, backend=backend, fullgraph=True)(*arguments)
    torch.testing.assert_close(result, function(*others))
    torch.testing.assert_close(arguments, others)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_training_steps(backend, optimizer):
    torch.manual_seed(1)
    models = [Block().double().npu()]
    models.append(copy.deepcopy(models[0]))
    optimizers = [optimizer(model.parameters(), lr=0.01) for model in models]
    forward = torch.compile(models[1], backend=backend)
    step = torch.compile(optimizers[1].step, backend=backend)
    x = torch.randn(2, 5, 8, dtype=torch.float64, device="npu")
    for _ in range(3):
        for run, update, owner in ((models[0], optimizers[0].step, 0), (forward, step, 1)):
            optimizers[owner].zero_grad()
            run(x).square().mean().backward()
            update()
    # A compiled AdamW computes its bias correction from the float32 tensor `step`, the eager one from Python numbers.
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if optimizer is torch.optim.AdamW else {}
    for ours, theirs in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_copies_between_devices(backend):
    def function(x):
        return x.cpu().add(1).npu() * torch.tensor(2.0), x.to("npu:1") + torch.ones(3, device="npu:1")

    x = torch.arange(3.0, device="npu:0")
    on_first, on_second = torch.compile(function, backend=backend, fullgraph=True)(x)
    assert on_first.tolist() == [2, 4, 6] and on_first.device == torch.device("npu:0")
    assert on_second.tolist() == [1, 2, 3] and on_second.device == torch.device("npu:1")


# ---- torch.npu inside compiled code -----------------------------------------------------------------------------


def test_questions_about_the_device_are_constants(backend):
    def function(x):
        assert torch.npu.is_available() and torch.npu.is_bf16_supported()
        return x * torch.npu.device_count()

    compiled = torch.compile(function, backend=backend, fullgraph=True)
    assert compiled(torch.ones(1, device="npu")).item() == torch.npu.device_count()


def test_current_device_is_guarded(backend):
    compiled = torch.compile(lambda x: x + torch.npu.current_device(), backend=backend, fullgraph=True)
    x = torch.zeros(1)
    assert compiled(x).item() == 0
    with torch.npu.device(1):
        assert compiled(x).item() == 1
    assert compiled(x).item() == 0


def test_device_context(backend):
    def function():
        with torch.npu.device(1):
            inside = torch.ones(2, device="npu") + torch.npu.current_device()
        return inside, torch.ones(2, device="npu")

    inside, outside = torch.compile(function, backend=backend)()
    assert inside.device == torch.device("npu:1") and inside.tolist() == [2, 2]
    assert outside.device == torch.device("npu:0")


def test_streams_and_events(backend):
    side = torch.npu.Stream()

    def function(x):
        ready = torch.npu.Event()
        ready.record()
        with torch.npu.stream(side):
            ready.wait()
            y = x.cos()
        torch.npu.current_stream().wait_stream(side)
        torch.npu.synchronize()
        return y + x

    x = torch.linspace(0, 1, 1000, device="npu")
    before = torch.npu.current_stream()
    result = torch.compile(function, backend=backend, fullgraph=True)(x)
    torch.testing.assert_close(result, x.cos() + x)
    assert torch.npu.current_stream() == before


def test_synchronize_waits(backend):
    from npu_core import _C

    def function(x):
        y = x + 1
        torch.npu.synchronize()
        return y

    compiled = torch.compile(function, backend=backend, fullgraph=True)
    x = torch.ones(4, device="npu")
    compiled(x)
    try:
        _C._inject_fault(0, _C._FAULT_DELAY_TASK, match="add", count=-1, delay_ns=20_000_000)
        compiled(x)
        assert torch.npu.current_stream().query()
    finally:
        _C._inject_fault(0, _C._FAULT_NONE)


def test_what_cannot_be_traced_breaks_the_graph(backend):
    def function(x):
        return x + 1, torch.npu.memory_allocated() > 0

    x = torch.ones(3, device="npu")
    result, allocated = torch.compile(function, backend=backend)(x)
    assert result.tolist() == [2, 2, 2] and allocated
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(function, backend=backend, fullgraph=True)(x)


def test_operators_of_npu_ops_llm(backend):
    pytest.importorskip("npu_ops_llm")

    def function(x, gamma):
        return torch_npu.npu_rms_norm(x.tanh(), gamma)[0]

    x = torch.randn(4, 8, device="npu", requires_grad=True)
    gamma = torch.ones(8, device="npu", requires_grad=True)
    result = torch.compile(function, backend=backend, fullgraph=True)(x, gamma)
    torch.testing.assert_close(result, function(x, gamma))
    ours = torch.autograd.grad(result.square().sum(), (x, gamma))
    torch.testing.assert_close(ours, torch.autograd.grad(function(x, gamma).square().sum(), (x, gamma)))


# ---- what Dynamo knows of the device ----------------------------------------------------------------------------


def test_import_loads_no_compiler(run_python):
    done = run_python(
        """
        import sys, torch, torch_npu
        print([name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules])
        import torch._dynamo.device_interface as interfaces
        print(interfaces.get_interface_for_device("npu").__name__, torch.npu.is_initialized())
        """
    )
    assert done.stdout.split("\n")[:2] == ["[]", "NpuInterface False"]


def test_interface_answers():
    from torch._dynamo.device_interface import get_interface_for_device

    interface = get_interface_for_device("npu:1")
    assert interface is get_interface_for_device("npu") and interface.is_available()
    assert interface.Worker.get_device_properties("npu:1").name == torch.npu.get_device_name(1)
    assert interface.get_device_properties().total_memory == torch.npu.get_device_properties().total_memory
    with torch.npu.device(1):
        assert interface.current_device() == interface.Worker.current_device() == 1
        assert interface.get_raw_stream(1) == torch.npu.current_stream().npu_stream
    assert not interface.is_triton_capable()
