"""FakeTensor and meta tensors: shapes, dtypes, strides and devices without computing, and without a device."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_leaves, tree_map

FACTORIES = {
    "empty": lambda device: torch.empty(2, 3, device=device),
    "empty_strided": lambda device: torch.empty_strided((2, 3), (1, 2), device=device),
    "empty_permuted": lambda device: torch.empty_permuted((2, 3, 4), (0, 2, 1), device=device),
    "channels_last": lambda device: torch.empty(2, 3, 4, 5, memory_format=torch.channels_last, device=device),
    "zeros": lambda device: torch.zeros(0, 3, device=device, dtype=torch.int8),
    "ones": lambda device: torch.ones((), device=device, dtype=torch.bool),
    "full": lambda device: torch.full((2,), 7, device=device),
    "arange": lambda device: torch.arange(1, 9, 3, device=device),
    "linspace": lambda device: torch.linspace(0, 1, 5, device=device),
    "logspace": lambda device: torch.logspace(0, 1, 5, device=device),
    "eye": lambda device: torch.eye(3, 4, device=device),
    "rand": lambda device: torch.rand(2, 3, device=device, dtype=torch.float16),
    "randn": lambda device: torch.randn(2, 3, device=device, dtype=torch.bfloat16),
    "randint": lambda device: torch.randint(5, (2, 3), device=device),
    "randperm": lambda device: torch.randperm(6, device=device),
    "tril_indices": lambda device: torch.tril_indices(3, 3, device=device),
    "tensor": lambda device: torch.tensor([[1.0, 2.0]], device=device),
    "scalar_tensor": lambda device: torch.scalar_tensor(2, device=device),
    "complex": lambda device: torch.zeros(3, dtype=torch.complex64, device=device),
    "new_zeros": lambda device: torch.empty(1, device=device).new_zeros(4),
    "zeros_like": lambda device: torch.zeros_like(torch.empty_strided((2, 3), (1, 2), device=device)),
}

CONVERSIONS = {
    "cpu": lambda x: x.cpu(),
    "to cpu": lambda x: x.to("cpu", torch.float64),
    "to meta": lambda x: x.to("meta"),
    "npu": lambda x: x.cpu().npu(),
    "to npu:1": lambda x: x.to("npu:1"),
    "non_blocking": lambda x: x.to("cpu", non_blocking=True),
    "copy_ from cpu": lambda x: x.copy_(torch.ones(3)),
    "copy_ to cpu": lambda x: torch.ones(2, 3).copy_(x),
    "like on cpu": lambda x: torch.empty_like(x, device="cpu"),
    "like on npu": lambda x: torch.empty_like(x.cpu(), device="npu:0"),
    "type": lambda x: x.type(torch.int32),
    "half": lambda x: x.half().contiguous(),
    "cpu scalar": lambda x: torch.tensor(2.0) * x,
}


def _metadata(tree: Any) -> list[Any]:
    """What a fake run must get right; Python numbers only by their type."""
    return [
        (v.shape, v.dtype, v.stride(), v.device, v.requires_grad) if isinstance(v, torch.Tensor) else type(v)
        for v in tree_leaves(tree)
    ]


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
@pytest.mark.parametrize("device", ["npu", "npu:1"])
def test_factory(factory, device):
    real = factory(device)
    with FakeTensorMode():
        fake = factory(device)
    assert isinstance(fake, FakeTensor)
    assert _metadata(fake) == _metadata(real)


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
def test_conversion_between_devices(convert):
    real = convert(torch.ones(2, 3, device="npu"))
    with FakeTensorMode():
        fake = convert(torch.ones(2, 3, device="npu"))
    assert _metadata(fake) == _metadata(real)


def test_real_tensor_becomes_fake_with_its_views_and_gradients():
    x = torch.randn(4, 6, device="npu", requires_grad=True)
    view = x.t()[1:4]
    mode = FakeTensorMode()
    fake = mode.from_tensor(view)
    assert _metadata(fake) == _metadata(view)
    assert fake._is_view()
    with mode:
        y = mode.from_tensor(x).sin().sum()
        y.backward()


@pytest.mark.parametrize("other", ["cpu", "npu:1", "meta"])
def test_mixed_devices_are_refused(other):
    with FakeTensorMode():
        with pytest.raises(RuntimeError, match="device"):
            torch.empty(3, device="npu:0") + torch.empty(3, device=other)


def test_module_and_optimizer_step():
    with FakeTensorMode():
        with torch.device("npu"):
            model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
        optimizer = torch.optim.AdamW(model.parameters())
        loss = model(torch.empty(2, 3, 8, 8, device="npu")).sum()
        loss.backward()
        optimizer.step()
    assert loss.device == torch.device("npu:0")
    assert all(p.grad is not None and p.grad.device == p.device for p in model.parameters())


def test_fake_and_meta_tensors_allocate_nothing():
    torch.npu.synchronize()
    before = torch.npu.memory_stats()["allocation.all.allocated"]
    with FakeTensorMode():
        torch.empty(1 << 40, device="npu").cos().sum()
    assert torch.npu.memory_stats()["allocation.all.allocated"] == before


def test_fake_tensors_need_no_initialised_device(run_python):
    done = run_python(
        """
        import torch
        from torch._subclasses.fake_tensor import FakeTensorMode
        with FakeTensorMode():
            x = torch.empty(3, 4, device="npu:0")
            y = torch.nn.functional.layer_norm(x @ x.t(), (3,)).cpu()
        print(x.device, y.device, tuple(y.shape), torch.npu.is_initialized())
        """
    )
    assert done.stdout.split() == ["npu:0", "cpu", "(3,", "3)", "False"]


def test_meta_tensors():
    x = torch.empty(2, 3, device="npu").t().to("meta")
    assert x.is_meta and x.shape == (3, 2)
    y = torch.empty_like(x, device="npu")
    assert y.device.type == "npu" and y.stride() == x.stride()
    module = torch.nn.Linear(3, 4, device="meta").to_empty(device="npu")
    assert module.weight.device == torch.device("npu:0")
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        torch.empty(2, device="meta").to("npu")


# ---- the operator database --------------------------------------------------------------------------------------

# Every fourth entry, and those whose results have unusual strides or dtypes on purpose.
_CHOSEN = {
    "nn.functional.layer_norm", "nn.functional.conv2d", "nn.functional.scaled_dot_product_attention", "sort", "topk",
    "cumsum", "fft.rfft", "linalg.svd", "index_put", "bernoulli", "native_batch_norm", "var_mean", "where", "matmul",
}  # fmt: skip
_EXCEPTIONS = {
    "native_batch_norm": "in evaluation, the saved statistics are empty as on CPU, fake tensors expect those of CUDA",
}


def _entries() -> list[Any]:
    chosen = [op for number, op in enumerate(op_db) if number % 4 == 0 or op.name in _CHOSEN]
    return [
        pytest.param(
            op,
            id=op.formatted_name,
            marks=[pytest.mark.xfail(reason=_EXCEPTIONS[op.name], strict=True)] if op.name in _EXCEPTIONS else [],
        )
        for op in chosen
        if torch.float32 in op.supported_dtypes("cpu") and not op.name.startswith("jiterator")
    ]


def _npu(tree: Any) -> Any:
    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().to("npu")
        if value == torch.device("cpu") or (isinstance(value, str) and value == "cpu"):
            return torch.device("npu")
        return value

    return tree_map(move, tree)


@pytest.mark.parametrize("op", _entries())
def test_operator(op):
    """Four samples of an entry give under FakeTensorMode what they give for real."""
    compared = 0
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for sample in itertools.islice(op.sample_inputs("cpu", torch.float32), 4):
            arguments = (sample.input, tuple(sample.args), dict(sample.kwargs))
            first, args, kwargs = _npu(arguments)
            try:
                real = op(first, *args, **kwargs)
            except (NotImplementedError, RuntimeError):
                continue  # npu does not run it: test_opinfo.py has an opinion about that
            mode = FakeTensorMode()
            first, args, kwargs = tree_map(
                lambda v, mode=mode: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v, _npu(arguments)
            )
            try:
                with mode:
                    fake = op(first, *args, **kwargs)
            except (DataDependentOutputException, DynamicOutputShapeException):
                continue  # the result's shape or value depends on data, which fake tensors do not have
            assert _metadata(fake) == _metadata(real), sample.summary()
            compared += 1
    if compared == 0:
        pytest.skip("no sample whose result has a shape known beforehand")
