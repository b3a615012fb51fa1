"""What holds for every operator of the package, on the calls that samples/<family>.py lists."""

import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import npu_ops_llm
from npu_ops_llm.names import FAMILIES

Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def _module(family: str) -> ModuleType:
    path = Path(__file__).parent / "samples" / f"{family}.py"
    spec = importlib.util.spec_from_file_location(f"samples_{family}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _calls() -> Iterator[Any]:
    torch.manual_seed(20)
    for family in FAMILIES:
        module = _module(family)
        #: Operators that write arguments their published schema does not mark: torch's own checks refuse those.
        unmarked = getattr(module, "WRITES_UNMARKED_ARGUMENTS", ())
        random = getattr(module, "RANDOM", ())
        for number, (name, args, kwargs) in enumerate(module.samples()):
            yield pytest.param((name, args, kwargs), name in unmarked, name in random, id=f"{name}-{number}")


every_call = pytest.mark.parametrize(("call", "writes_unmarked", "random"), list(_calls()))


def operator(name: str) -> Any:
    for namespace in (torch.ops.npu, torch.ops.atb):
        if hasattr(namespace, name):
            return getattr(namespace, name).default
    raise AssertionError(f"{name} is not registered")


def placed(call: Call, device: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Fresh copies of the arguments on `device`, with their strides."""

    def place(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
        return copy.copy_(value.detach()).requires_grad_(value.requires_grad)

    return pytree.tree_map(place, call[1]), pytree.tree_map(place, call[2])


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def assert_same(actual: Any, expected: Any) -> None:
    """Bit for bit, except that NaN equals NaN."""
    ours, theirs = tensors(actual), tensors(expected)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.detach().cpu(), b.detach().cpu(), rtol=0, atol=0, equal_nan=True)


def test_every_operator_has_a_sample() -> None:
    sampled = {parameter.values[0][0] for parameter in _calls()}
    assert sampled == {*npu_ops_llm.OPERATORS, *npu_ops_llm.ATB_OPERATORS}


def test_every_operator_is_documented() -> None:
    for name in npu_ops_llm.OPERATORS:
        packet = getattr(torch.ops.npu, name)
        for section in ("Parameters\n", "Returns\n", "Raises\n"):
            assert section in (packet.__doc__ or ""), f"{name} has no section {section!r}"


@pytest.mark.abi
@every_call
def test_opcheck(call: Call, writes_unmarked: bool, random: bool, device: str) -> None:
    if writes_unmarked:
        checks = ["test_faketensor"]
    else:
        checks = ["test_schema", "test_faketensor"] + ([] if random else ["test_aot_dispatch_dynamic"])
        if device == "cpu":  # torch has this one for CPU, CUDA and XPU only
            checks.append("test_autograd_registration")
    args, kwargs = placed(call, device)
    torch.library.opcheck(operator(call[0]), args, kwargs, test_utils=checks)


@every_call
def test_npu_equals_cpu(call: Call, writes_unmarked: bool, random: bool) -> None:
    import torch_npu  # noqa: F401

    if random:
        pytest.skip("draws from the generator of its device")
    on_cpu, on_npu = placed(call, "cpu"), placed(call, "npu")
    with torch.no_grad():
        expected = operator(call[0])(*on_cpu[0], **on_cpu[1])
        actual = operator(call[0])(*on_npu[0], **on_npu[1])
    assert all(t.device.type == "npu" for t in tensors(actual))
    assert_same(actual, expected)
    assert_same(on_npu, on_cpu)  # what was written in place, and nothing else


@every_call
def test_returns_before_it_has_run(call: Call, writes_unmarked: bool, random: bool) -> None:
    """The stream is held, so an operator that waits for a value of a tensor does not come back."""
    import torch_npu
    from npu_core import _C

    args, kwargs = placed(call, "npu")
    torch_npu.npu.synchronize()
    gave_up = threading.Event()

    def release() -> None:
        _C._inject_fault(0, _C._FAULT_NONE)

    def give_up() -> None:
        gave_up.set()
        release()

    guard = threading.Timer(60, give_up)
    _C._inject_fault(0, _C._FAULT_DELAY_TASK, count=1, delay_ns=3600 * 10**9)
    guard.start()
    try:
        held = torch.zeros(1, device="npu")
        with torch.no_grad():
            operator(call[0])(*args, **kwargs)
        assert not gave_up.is_set(), "the operator waited for the stream"
        assert not torch_npu.npu.current_stream().query()
    finally:
        guard.cancel()
        release()
    assert held.item() == 0


@pytest.mark.abi
@every_call
def test_compiled_with_symbolic_shapes(call: Call, writes_unmarked: bool, random: bool) -> None:
    if random:
        pytest.skip("draws other numbers when called twice")
    op = operator(call[0])
    torch._dynamo.reset()
    compiled = torch.compile(lambda *args, **kwargs: op(*args, **kwargs), backend="aot_eager", dynamic=True)
    eager_arguments, compiled_arguments = placed(call, "cpu"), placed(call, "cpu")
    with torch.no_grad():
        expected = op(*eager_arguments[0], **eager_arguments[1])
        actual = compiled(*compiled_arguments[0], **compiled_arguments[1])
    assert_same(actual, expected)
    assert_same(compiled_arguments, eager_arguments)


@pytest.mark.abi
@every_call
def test_meta_tensors_have_the_shapes_of_results(call: Call, writes_unmarked: bool, random: bool) -> None:
    on_meta = placed(call, "meta")
    on_cpu = placed(call, "cpu")
    with torch.no_grad():
        expected = tensors(operator(call[0])(*on_cpu[0], **on_cpu[1]))
        actual = tensors(operator(call[0])(*on_meta[0], **on_meta[1]))
    assert [(t.shape, t.dtype) for t in actual] == [(t.shape, t.dtype) for t in expected]
    assert all(t.device.type == "meta" for t in actual)
