"""Every generated kernel against torch's CPU kernel.

The calls are real ones: op_db's samples run forward and backward on the CPU while a dispatch mode records which
structured overloads they reach, with which arguments.  Each recorded call is then replayed on npu as the functional,
the out= and the in-place overload, and with operands whose values arrive late.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import torch_npu  # noqa: F401  (registers the device)
from npu_core import _C

pytest.importorskip("yaml", reason="torchgen, which lists the structured ops, needs PyYAML (a build requirement)")

sys.path.insert(0, str(Path(__file__).parents[1] / "codegen"))
try:
    from structured.groups import functional_name, structured_groups
finally:
    sys.path.pop(0)

DEVICE = torch.device("npu", 0)
SAMPLES_PER_ENTRY = 4
CALLS_PER_OP = 6

NO_FAULT, DELAY_TASK = 0, 2  # npu_fault_kind

# Contiguous on npu and CUDA; the CPU kernel alone chooses channels-last.
OTHER_STRIDES = {"slow_conv_transpose2d"}

GROUPS = {functional_name(group): group for group in structured_groups()}


@dataclass
class Call:
    """One recorded call of a functional overload, with private copies of its tensors."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Recording:
    """Calls by functional overload, at most CALLS_PER_OP of different kind each."""

    calls: dict[str, list[Call]] = field(default_factory=dict)
    _kinds: dict[str, set[str]] = field(default_factory=dict)

    def add(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kinds = self._kinds.setdefault(name, set())
        kind = repr(tree_map(describe, (args, kwargs)))
        if len(kinds) < CALLS_PER_OP and kind not in kinds:
            kinds.add(kind)
            args, kwargs = tree_map(
                lambda leaf: copy_of(leaf) if isinstance(leaf, torch.Tensor) else leaf, (args, kwargs)
            )
            self.calls.setdefault(name, []).append(Call(args, kwargs))


def describe(leaf: Any) -> Any:
    """What makes two calls different: shapes, strides, dtypes and plain values."""
    if isinstance(leaf, torch.Tensor):
        return (leaf.dtype, tuple(leaf.shape), leaf.stride(), leaf.is_conj())
    return leaf


def copy_of(tensor: torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
    """Copy with the same strides, also overlapping ones, and the same conj and neg bits."""
    if tensor.is_conj():
        return copy_of(tensor.conj(), device).conj()
    if tensor.is_neg():
        return copy_of(tensor._neg_view(), device)._neg_view()
    storage = tensor.detach().untyped_storage()
    elements = storage.nbytes() // tensor.element_size()
    flat = torch.empty(0, dtype=tensor.dtype).set_(storage, 0, (elements,), (1,)).clone()
    return flat.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


class Recorder(TorchDispatchMode):
    """Keeps the functional calls of structured ops."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if func._schema.overload_name:
            name += f".{func._schema.overload_name}"
        if name in GROUPS:
            self._recording.add(name, args, kwargs)
        return func(*args, **kwargs)


def record_op_db(recording: Recording) -> None:
    for entry in op_db:
        if entry.name.startswith("jiterator"):
            continue  # CUDA only
        for dtype in (torch.float32, torch.int64):
            if dtype not in entry.dtypes:
                continue
            differentiable = dtype.is_floating_point and entry.supports_autograd
            samples = entry.sample_inputs("cpu", dtype, requires_grad=differentiable)
            for sample in itertools.islice(samples, SAMPLES_PER_ENTRY):
                try:
                    with Recorder(recording):
                        result = entry(sample.input, *sample.args, **sample.kwargs)
                        if differentiable:
                            backward(result)
                except RuntimeError:
                    continue  # some samples need a device or a build option that is absent; not our subject


def backward(result: Any) -> None:
    losses = [t.abs().sum() for t in tree_leaves(result) if isinstance(t, torch.Tensor) and t.requires_grad]
    if losses:
        torch.stack([loss.double() for loss in losses]).sum().backward()


def record_rare_ops(recording: Recording) -> None:
    """Calls of the ops that no op_db sample reaches."""
    aten = torch.ops.aten
    x, image, volume = torch.randn(4, 5), torch.randn(2, 3, 6, 7), torch.randn(2, 3, 4, 5, 6)
    with Recorder(recording):
        aten.lerp.Tensor(x, x.flip(0), torch.rand(4, 5))
        aten.clamp_max(x, 0.25)
        aten.clamp_max(torch.arange(6), 2.5)
        aten.isin.Tensor_Scalar(torch.arange(6), 3)
        aten.isin.Scalar_Tensor(3, torch.arange(6))
        aten.norm.ScalarOpt_dim_dtype(x, 2, [1], True, dtype=torch.float64)
        aten._addmm_activation(torch.randn(3), x, torch.randn(5, 3))
        aten._addmm_activation(torch.randn(3), x, torch.randn(5, 3), use_gelu=True)
        aten.scatter.value_reduce(x, 1, torch.tensor([[0, 1], [2, 2]]), 3.0, reduce="multiply")
        aten._convert_indices_from_coo_to_csr(torch.tensor([0, 0, 2, 3]), 5)
        aten._convert_indices_from_csr_to_coo(torch.tensor([0, 2, 3, 3]), torch.tensor([0, 1, 2]), out_int32=True)
        for pad in (aten.reflection_pad3d, aten.replication_pad3d):
            pad(volume, [1, 2, 1, 1, 0, 1])
        aten.reflection_pad3d_backward(torch.randn(2, 3, 5, 7, 9), volume, [1, 2, 1, 1, 0, 1])
        aten.slow_conv_transpose2d(image, torch.randn(3, 4, 2, 2), [2, 2], torch.randn(4), [2, 1])
        for resize in (aten._upsample_bicubic2d_aa, aten._upsample_lanczos2d_aa):
            resize(image, [4, 9], False)
        for resize in (aten._upsample_bicubic2d_aa_backward, aten._upsample_lanczos2d_aa_backward):
            resize(torch.randn(2, 3, 4, 9), [4, 9], [2, 3, 6, 7], False)
        for resize in (aten.upsample_nearest2d, aten._upsample_nearest_exact2d):
            resize(image, [4, 9])
            resize(image.contiguous(memory_format=torch.channels_last), [12, 14], 2.0, 2.0)
        for resize in (aten.upsample_nearest2d_backward, aten._upsample_nearest_exact2d_backward):
            resize(torch.randn(2, 3, 4, 9), [4, 9], [2, 3, 6, 7])
        for resize in (aten.upsample_nearest3d, aten._upsample_nearest_exact3d):
            resize(volume, [3, 6, 9])
        for resize in (aten.upsample_nearest3d_backward, aten._upsample_nearest_exact3d_backward):
            resize(torch.randn(2, 3, 3, 6, 9), [3, 6, 9], [2, 3, 4, 5, 6])


@pytest.fixture(scope="module")
def recording() -> Recording:
    random.seed(20)  # op_db shuffles some of its samples
    torch.manual_seed(20)
    result = Recording()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record_op_db(result)
        record_rare_ops(result)
    return result


# ---- replaying ---------------------------------------------------------------------------------------------------


def overload(name: str) -> Any:
    packet, _, variant = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), variant or "default")


def move(tree: Any, to: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return tree_map(lambda leaf: to(leaf) if isinstance(leaf, torch.Tensor) else leaf, tree)


def outcome(run: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = run()
            torch.npu.synchronize()
    except (RuntimeError, IndexError, ValueError, NotImplementedError) as error:
        return None, error
    return result, None


def compare(actual: Callable[[], Any], expected: Callable[[], Any], label: str) -> None:
    """Both give the same tensors, with the same strides, or both refuse."""
    want, want_error = outcome(expected)
    got, got_error = outcome(actual)
    if want_error is not None:
        assert type(got_error) is type(want_error), f"{label}: CPU raises {want_error!r}, npu {got_error!r}"
        return
    assert got_error is None, f"{label}: npu raises {got_error!r}"
    for a, b in zip(tree_leaves(got), tree_leaves(want), strict=True):
        assert a.device == DEVICE, f"{label}: result on {a.device}"
        assert a.dtype == b.dtype and a.shape == b.shape, f"{label}: {a.dtype}{a.shape}, CPU {b.dtype}{b.shape}"
        same_strides = a.numel() == 0 or a.stride() == b.stride() or label.split()[0] in OTHER_STRIDES
        assert same_strides, f"{label}: strides {a.stride()}, CPU {b.stride()}"
        torch.testing.assert_close(a.cpu(), b, equal_nan=True, msg=lambda m, label=label: f"{label}: {m}")


def to_npu(tensor: torch.Tensor) -> torch.Tensor:
    return copy_of(tensor, DEVICE)


def calls_of(recording: Recording, name: str) -> Iterator[Call]:
    calls = recording.calls.get(name, [])
    assert calls, f"no call of {name} was recorded: add one to record_rare_ops"
    yield from calls


@pytest.mark.parametrize("name", GROUPS)
def test_functional(name: str, recording: Recording) -> None:
    op = overload(name)
    for i, call in enumerate(calls_of(recording, name)):
        args, kwargs = move((call.args, call.kwargs), to_npu)
        compare(partial(op, *args, **kwargs), partial(op, *call.args, **call.kwargs), f"{name} call {i}")


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats[tensor.dim()]) if tensor.dim() in formats else tensor


def column_major(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1) if tensor.dim() > 1 else tensor


@pytest.mark.parametrize("layout", [channels_last, column_major])
@pytest.mark.parametrize("name", GROUPS)
def test_functional_in_other_layouts(name: str, layout: Callable, recording: Recording) -> None:
    op = overload(name)
    for i, call in enumerate(itertools.islice(calls_of(recording, name), 3)):
        cpu_args, cpu_kwargs = move((call.args, call.kwargs), layout)
        args, kwargs = move((cpu_args, cpu_kwargs), to_npu)
        label = f"{name} {layout.__name__}, call {i}"
        compare(partial(op, *args, **kwargs), partial(op, *cpu_args, **cpu_kwargs), label)


@pytest.mark.parametrize("name", GROUPS)
def test_out(name: str, recording: Recording) -> None:
    op, out_op = overload(name), overload(str(GROUPS[name].out.func.name))
    outputs = [argument.name for argument in GROUPS[name].out.func.arguments.out]
    for i, call in enumerate(calls_of(recording, name)):
        want, error = outcome(partial(op, *call.args, **call.kwargs))
        if error is not None:
            continue
        results = tree_leaves(want)
        for form, shape_out in OUT_FORMS.items():
            cpu = {n: shape_out(r, "cpu") for n, r in zip(outputs, results, strict=True)}
            npu = {n: shape_out(r, DEVICE) for n, r in zip(outputs, results, strict=True)}
            args, kwargs = move((call.args, call.kwargs), to_npu)
            compare(
                partial(out_op, *args, **kwargs, **npu),
                partial(out_op, *call.args, **call.kwargs, **cpu),
                f"{name} out= {form}, call {i}",
            )
            given, _ = outcome(partial(out_op, *args, **kwargs, **npu))
            if given is not None:
                assert all(a is b for a, b in zip(tree_leaves(given), npu.values(), strict=True)), form


def _empty(result: torch.Tensor, device: Any) -> torch.Tensor:
    return torch.empty(0, dtype=result.dtype, device=device)


def _sized(result: torch.Tensor, device: Any) -> torch.Tensor:
    return torch.zeros(result.shape, dtype=result.dtype, device=device)


def _strided(result: torch.Tensor, device: Any) -> torch.Tensor:
    doubled = [*result.shape[:-1], 2 * result.shape[-1]] if result.dim() else []
    wide = torch.zeros(doubled, dtype=result.dtype, device=device)
    return wide[..., ::2] if result.dim() else wide


OUT_FORMS: dict[str, Callable[[torch.Tensor, Any], torch.Tensor]] = {
    "empty": _empty,
    "sized": _sized,
    "strided": _strided,
}


@pytest.mark.parametrize("name", [name for name, group in GROUPS.items() if group.inplace is not None])
def test_in_place(name: str, recording: Recording) -> None:
    op = overload(str(GROUPS[name].inplace.func.name))
    for i, call in enumerate(calls_of(recording, name)):
        if not isinstance(call.args[0], torch.Tensor):
            continue
        args, kwargs = move((call.args, call.kwargs), to_npu)
        cpu_args, cpu_kwargs = move((call.args, call.kwargs), copy_of)
        compare(partial(op, *args, **kwargs), partial(op, *cpu_args, **cpu_kwargs), f"{name} in place, call {i}")


@contextlib.contextmanager
def first_copy_delayed() -> Iterator[None]:
    """Everything queued after the next copy waits for 5 ms."""
    _C._inject_fault(0, DELAY_TASK, match="aten::copy_", count=1, delay_ns=5_000_000, status=0)
    try:
        yield
    finally:
        _C._inject_fault(0, NO_FAULT)


def late_arguments(call: Call) -> tuple[Any, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Arguments that hold zeros, and the copies (to, from) that give them their values."""
    copies = []

    def late(tensor: torch.Tensor) -> torch.Tensor:
        there = to_npu(tensor)
        if there.is_conj() or there.is_neg() or there.numel() == 0:
            return there
        storage = there.untyped_storage()
        size = (storage.nbytes() // there.element_size(),)
        values = torch.empty(0, dtype=there.dtype, device=DEVICE).set_(storage, 0, size, (1,))
        target = torch.zeros_like(values)
        copies.append((target, values))
        return target.as_strided(there.shape, there.stride(), there.storage_offset())

    return move((call.args, call.kwargs), late), copies


@pytest.mark.parametrize("name", GROUPS)
def test_operands_that_arrive_late(name: str, recording: Recording) -> None:
    """The kernel is queued while its operands still hold zeros: nothing may look at them on the dispatching thread."""
    op = overload(name)
    for i, call in enumerate(itertools.islice(calls_of(recording, name), 2)):
        (args, kwargs), copies = late_arguments(call)
        torch.npu.synchronize()

        def run(args: Any = args, kwargs: Any = kwargs, copies: Any = copies) -> Any:
            with first_copy_delayed():
                for target, values in copies:
                    target.copy_(values)
                return op(*args, **kwargs)

        compare(run, partial(op, *call.args, **call.kwargs), f"{name} call {i}, late operands")


# ---- rules that recorded calls do not reach ------------------------------------------------------------------------

DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)


def both(run: Callable[..., Any], *operands: Any, label: str) -> None:
    """``run`` on npu copies of the operands against ``run`` on CPU copies."""
    npu = [to_npu(o) if isinstance(o, torch.Tensor) else o for o in operands]
    cpu = [copy_of(o) if isinstance(o, torch.Tensor) else o for o in operands]
    compare(lambda: run(*npu), lambda: run(*cpu), label)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "eq", "lt", "bitwise_and", "maximum", "pow", "remainder"])
def test_binary_promotion(name: str, dtype: torch.dtype) -> None:
    op = getattr(torch, name)
    x = torch.arange(1, 7).reshape(2, 3).to(dtype)
    for other in (x, x.to(torch.float32), x.to(torch.int64), x[0], x.t().contiguous().t(), torch.tensor(2).to(dtype)):
        both(op, x, other, label=f"{name} {dtype} with {other.dtype}{tuple(other.shape)}")
    for number in (2, 1.5, True, 1j) if name != "maximum" else ():
        both(op, x, number, label=f"{name} {dtype} with {number!r}")
        both(op, x[0, 0], number, label=f"{name} 0-dim {dtype} with {number!r}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["add_", "mul_", "div_", "lt_", "bitwise_or_", "neg_", "exp_", "clamp_min_"])
def test_in_place_promotion(name: str, dtype: torch.dtype) -> None:
    x = torch.arange(1, 7).reshape(2, 3).to(dtype)
    op = getattr(torch.Tensor, name)
    if name in ("neg_", "exp_"):
        both(op, x, label=f"{name} {dtype}")
        return
    for other in (1, 2.5) if name == "clamp_min_" else (x, x.float(), x[0], 2, 1.5, True):
        both(op, x, other, label=f"{name} {dtype} with {other!r}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_scalar_arguments_that_break_a_rule(dtype: torch.dtype) -> None:
    x = torch.arange(1, 7).to(dtype)
    for alpha in (2, 1.5, True, 1j):
        both(lambda a, s: torch.add(a, a, alpha=s), x, alpha, label=f"add alpha={alpha!r} {dtype}")
        both(lambda a, s: torch.addcmul(a, a, a, value=s), x, alpha, label=f"addcmul value={alpha!r} {dtype}")
    both(lambda a: torch.nn.functional.softshrink(a, -1.0), x, label="softshrink")
    both(lambda a: torch.clamp(a, None, None), x, label="clamp")
    both(lambda a: torch.ops.aten.leaky_relu_backward(a, a, -0.1, True), x, label="leaky_relu_backward")
    both(lambda a: torch.ops.aten.elu_backward(a, -1.0, 1, 1, True, a), x, label="elu_backward")


def test_number_tensors_on_the_cpu() -> None:
    x = torch.randn(3, 4)
    number = torch.tensor(2.5, dtype=torch.float64)  # stays on the CPU
    for op in (torch.add, torch.mul, torch.div, torch.lt):
        compare(partial(op, x.npu(), number), partial(op, x, number), op.__name__)
        compare(partial(op, number, x.npu()), partial(op, number, x), op.__name__)
    changed = number.clone()
    with first_copy_delayed():
        late = torch.zeros(3, 4, device=DEVICE).copy_(x.npu())
        result = late + changed
        changed.fill_(100)  # read when the op was called
    torch.testing.assert_close(result.cpu(), x + 2.5)


def test_layouts() -> None:
    x = torch.randn(2, 3, 4, 5)
    last = x.contiguous(memory_format=torch.channels_last)
    for a, b in itertools.product((x, last, x.permute(1, 0, 3, 2), x[:, :1].expand(2, 3, 4, 5)), repeat=2):
        if a.shape == b.shape:
            both(torch.mul, a, b, label=f"mul {a.stride()} {b.stride()}")
    for a in (last, x[..., ::2], x.t() if x.dim() == 2 else x.transpose(0, 3), x[:0], x[0, 0, 0, 0]):
        both(torch.exp, a, label=f"exp {a.stride()}")
        both(torch.exp_, a, label=f"exp_ {a.stride()}")


def test_views_of_one_storage() -> None:
    def disjoint(base: torch.Tensor) -> torch.Tensor:
        base[:4].add_(base[4:8])
        return base

    def overlapping(base: torch.Tensor) -> torch.Tensor:
        return base[:4].add_(base[2:6])

    base = torch.arange(8.0)
    both(disjoint, base, label="disjoint views")
    both(overlapping, base, label="overlapping views")
    both(lambda b: torch.add(b[:4], b[:4], out=b[:4]), base, label="out is the input")
    both(lambda b: b[:4].mul_(b[:4]), base, label="two views of the same elements")


def test_masks_and_integer_indices() -> None:
    x = torch.randn(4, 5, 6)
    mask, index = torch.rand(4, 5) > 0.5, torch.tensor([3, 0, -1])
    both(lambda a, m: a[m], x, mask, label="mask")
    both(lambda a, i: a[:, i, i], x, index, label="two indices")
    both(lambda a, i: a[i, :, i.int()], x, index, label="int32 index")
    both(lambda a, m: a[torch.zeros_like(m)], x, mask, label="empty mask")
    both(lambda a, m: a[m], x, torch.rand(4, 6) > 0.5, label="mask of a wrong shape")
    compare(lambda: x.npu()[:, index], lambda: x[:, index], "index on the CPU")
    compare(lambda: x.npu()[mask], lambda: x[mask], "mask on the CPU")

    late = torch.zeros(4, 5, dtype=torch.bool, device=DEVICE)
    values = x.npu()
    source = mask.npu()
    with first_copy_delayed():
        late.copy_(source)
        result = values[late]
    torch.testing.assert_close(result.cpu(), x[mask])


@pytest.mark.parametrize("loss", ["mse_loss", "smooth_l1_loss"])
def test_losses_keep_no_memory_of_the_unreduced_size(loss: str) -> None:
    op = getattr(torch.nn.functional, loss)
    x, y = torch.randn(64, 64), torch.randn(64, 64)
    for reduction in ("none", "mean", "sum"):
        both(lambda a, b, r=reduction: op(a, b, reduction=r), x, y, label=f"{loss} {reduction}")
    assert op(x.npu(), y.npu()).untyped_storage().nbytes() == 4


def test_meta_errors_are_raised_at_the_call_with_torchs_text() -> None:
    x, y = torch.randn(3, 4).npu(), torch.randn(3, 5).npu()
    with pytest.raises(RuntimeError, match=r"The size of tensor a \(4\) must match the size of tensor b \(5\)"):
        torch.add(x, y)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        torch.mm(x, y)
    with pytest.raises(RuntimeError, match="Bad in-place call: input tensor size"):
        torch.zeros(3, device=DEVICE).addmm_(x, torch.randn(4, 3).npu())
    with pytest.raises(RuntimeError, match="result type Float can't be cast to the desired output type Long"):
        torch.zeros(3, 4, dtype=torch.int64, device=DEVICE).add_(x)
    with pytest.raises(RuntimeError, match="Expected out tensor to have dtype float, but got long"):
        torch.mm(x, x.t(), out=torch.zeros(3, 3, dtype=torch.int64, device=DEVICE))
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.mm(x, torch.randn(4, 3))
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.add(x, torch.randn(3, 4))
    torch.npu.synchronize()  # nothing was queued that fails later


def test_resizing_a_given_output_warns_as_torch_does() -> None:
    x = torch.randn(3, 4).npu()
    with pytest.warns(UserWarning, match="An output with one or more elements was resized"):
        out = torch.add(x, x, out=torch.zeros(2, device=DEVICE))
    torch.testing.assert_close(out.cpu(), (x + x).cpu())


def test_kernel_errors_name_the_op_at_the_next_synchronisation() -> None:
    scores = torch.randn(2, 3, device=DEVICE)
    target = torch.tensor([0, 7], device=DEVICE)
    torch.npu.synchronize()
    torch.nn.functional.nll_loss(scores, target)
    with pytest.raises(IndexError, match=r"(?s)nll_loss_forward.*Target 7 is out of bounds|Target 7 is out of bounds"):
        torch.npu.synchronize()
    torch.npu.synchronize()
