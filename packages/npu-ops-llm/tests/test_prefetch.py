"""npu_prefetch: its checks, its place in the stream and in graphs.  There is no result to compare."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

PREFETCH = torch.ops.npu.npu_prefetch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool])
def test_changes_nothing(dtype: torch.dtype, device: str) -> None:
    x = torch.randn(64, 33).to(dtype).to(device)
    before = x.clone()
    assert PREFETCH(x, None, 100) is None
    assert PREFETCH(x, before, 10**15, 33) is None
    assert PREFETCH(x.t()[::3], dependency=None, max_size=1, offset=0) is None
    assert torch.equal(x.cpu(), before.cpu())


def test_errors(device: str) -> None:
    x = torch.randn(4, 5, device=device)
    for call, message in [
        (lambda: PREFETCH(x, None, 0), "max_size should be greater than zero, but got 0"),
        (lambda: PREFETCH(x, None, -3), "max_size should be greater than zero, but got -3"),
        (lambda: PREFETCH(x, None, 1, -1), "offset should not be smaller than zero, but got -1"),
        (lambda: PREFETCH(x, None, 1, 80), "offset out of range of tensor size, tensor size: 80, offset: 80"),
        (lambda: PREFETCH(x[:0], None, 1), "offset out of range of tensor size, tensor size: 0, offset: 0"),
        (
            lambda: PREFETCH(x.to("meta"), None, 1, 80),
            "offset out of range of tensor size, tensor size: 80, offset: 80",
        ),
        (lambda: PREFETCH(x.to("meta"), None, 0), "max_size should be greater than zero, but got 0"),
    ]:
        with pytest.raises(RuntimeError, match=f"npu_prefetch: argument (max_size|offset): {message}"):
            call()
    PREFETCH(x, None, 1, 79)


def model(x: Tensor, weight: Tensor) -> Tensor:
    y = x + 1
    PREFETCH(weight, y, 1024)
    return y * 2


def prefetches(graph: torch.fx.Graph) -> int:
    return sum(PREFETCH.default in (node.target, *node.args) for node in graph.nodes)


def test_dead_code_elimination_keeps_it() -> None:
    traced = make_fx(model)(torch.randn(3), torch.randn(8))
    traced.graph.eliminate_dead_code()
    assert prefetches(traced.graph) == 1


def test_export_keeps_it() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return model(x, weight)

    exported = torch.export.export(Module(), (torch.randn(3), torch.randn(8))).run_decompositions()
    assert prefetches(exported.graph_module.graph) == 1


@pytest.fixture
def failing_prefetch() -> Iterator[None]:
    """The next npu_prefetch on the device fails, which proves that it ran."""
    import torch_npu
    from npu_core import _C

    torch_npu.npu.synchronize()
    _C._inject_fault(0, _C._FAULT_FAIL_TASK, match="npu_prefetch", count=1)
    yield
    _C._inject_fault(0, _C._FAULT_NONE)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_runs_on_the_stream(compiled: bool, failing_prefetch: None) -> None:
    import torch_npu

    torch._dynamo.reset()
    call = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    call(torch.randn(3).npu(), torch.randn(8).npu())
    with pytest.raises(RuntimeError, match="npu::npu_prefetch"):
        torch_npu.npu.synchronize()


def test_compiled_result_is_right(device: str) -> None:
    torch._dynamo.reset()
    x, weight = torch.randn(3, device=device), torch.randn(8, device=device)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, weight).cpu(), model(x, weight).cpu())
