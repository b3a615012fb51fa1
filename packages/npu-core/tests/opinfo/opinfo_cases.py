"""torch's own operator database (`op_db`) run on npu and compared with the CPU.

A *case* is one entry of `op_db` for one dtype in one mode:

forward   every sample's outputs equal the CPU's
backward  the gradients of every differentiable sample equal the CPU's
delayed   forward, with inputs that are written by tasks which start late: an op that reads its inputs before the
          stream has produced them computes with garbage and is caught
unwaited  forward, and the host never waits for the device: any synchronisation inside the op is an error
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from known_exceptions import WAITS
from torch.testing._internal import common_methods_invocations
from torch.testing._internal.common_device_type import toleranceOverride
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import DecorateInfo
from torch.utils._pytree import tree_flatten, tree_map

from npu_core import _C

MODES = ("forward", "backward", "delayed", "unwaited")
DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
)
SAMPLES_PER_CASE = 12
SHORT_DELAY_NS = 500_000
HELD_NS = 3_000_000_000
_DELAY_TASK = 2  # NPU_FAULT_DELAY_TASK
_NO_FAULT = 0


# Entries of random ops reseed the generator inside the op, which would make them look deterministic on one device.
common_methods_invocations.wrapper_set_seed = lambda op, *args, **kwargs: op(*args, **kwargs)

# Arguments that torch wants on the host whatever the device: tensor_split's indices.
_HOST_ARGUMENTS = ("tensor_split",)


class Inapplicable(Exception):
    """The CPU itself cannot run the case."""


@dataclasses.dataclass(frozen=True)
class Case:
    index: int  # into op_db
    dtype: torch.dtype
    mode: str

    @property
    def op(self) -> Any:
        return op_db[self.index]

    @property
    def op_name(self) -> str:
        variant = f".{self.op.variant_test_name}" if self.op.variant_test_name else ""
        return f"{self.op.name}{variant}"

    @property
    def name(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.op_name}-{dtype}-{self.mode}"


def all_cases(dtypes: tuple[torch.dtype, ...], modes: tuple[str, ...] = MODES) -> Iterator[Case]:
    """Every case the CPU claims to support."""
    for (index, op), dtype, mode in itertools.product(enumerate(op_db), dtypes, modes):
        if mode == "backward":
            if op.supports_autograd and dtype in op.supported_backward_dtypes("cpu"):
                yield Case(index, dtype, mode)
        elif dtype in op.supported_dtypes("cpu"):
            yield Case(index, dtype, mode)


def _upload(value: torch.Tensor) -> torch.Tensor:
    # Copies from pinned memory return before they have run; large ones from pageable memory do not.
    return value.detach().pin_memory().to("npu", non_blocking=True) if value.nbytes > 0 else value.detach().to("npu")


def _to_npu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided:
            return value.detach().to("npu").requires_grad_(value.requires_grad)
        moved = _upload(value)
        if moved.stride() != value.stride():
            # Keep gaps and overlaps of the original: copy the whole storage.
            flat = value.detach().as_strided((value.untyped_storage().nbytes() // value.element_size(),), (1,), 0)
            moved = _upload(flat).as_strided(value.size(), value.stride(), value.storage_offset())
        return moved.requires_grad_(value.requires_grad)
    if isinstance(value, torch.device) and value.type == "cpu":
        return torch.device("npu")
    if isinstance(value, str) and value == "cpu":
        return "npu"
    return value


def _move(op: Any, arguments: tuple[Any, tuple, dict]) -> tuple[Any, tuple, dict]:
    if op.name in _HOST_ARGUMENTS:
        return (tree_map(_to_npu, arguments[0]), *arguments[1:])
    return tree_map(_to_npu, arguments)


def _move_late(case: Case, arguments: tuple[Any, tuple, dict]) -> tuple[Any, tuple, dict]:
    """Arguments whose contents arrive late: the first copy is held, the others queue behind it.

    Removing the fault ends the delay, which the caller does once the op has returned; operators that wait would wait
    for all of it, so for those it is short.
    """
    delay = SHORT_DELAY_NS if case.op_name in WAITS else HELD_NS
    for factor in (1, 10, 100):
        _C._inject_fault(0, _DELAY_TASK, match="copy", count=1, delay_ns=factor * delay)
        moved = _move(case.op, arguments)
        if not any(t.numel() > 0 for t in _tensors(moved)) or not torch.npu.current_stream().query():
            return moved
    raise AssertionError("the inputs were ready already: this run would prove nothing")


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def _seeded(function: Callable[[], Any], seed: int = 17) -> Any:
    torch.manual_seed(seed)
    return function()


def _same_metadata(npu: Any, cpu: Any) -> None:
    for ours, theirs in zip(_tensors(npu), _tensors(cpu), strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, (
            f"{ours.dtype} {tuple(ours.shape)} instead of {theirs.dtype} {tuple(theirs.shape)}"
        )


def _tolerance(case: Case) -> dict[str, float]:
    """The operator database's own tolerance for the entry; torch's defaults (empty) when it states none."""
    stated = [
        decorator.d[case.dtype]
        for info in case.op.decorators
        if isinstance(info, DecorateInfo)
        for decorator in info.decorators
        if isinstance(decorator, toleranceOverride) and case.dtype in decorator.d
    ]
    if not stated:
        return {}
    return {"atol": max(t.atol for t in stated), "rtol": max(t.rtol for t in stated)}


def _compare(case: Case, npu: Any, cpu: Any, wide: Callable[[], Any] | None = None) -> None:
    """The values agree with the CPU's.  `wide` computes them in float32: a kernel of reduced precision that rounds
    elsewhere than the CPU's passes when its largest error is not above the CPU's own, or one rounding."""
    try:
        _compare_values(case, npu, cpu)
    except AssertionError:
        if wide is None or case.dtype not in (torch.float16, torch.bfloat16):
            raise
        if not _no_less_exact(_tensors(npu), _tensors(cpu), wide):
            raise


def _no_less_exact(npu: list[torch.Tensor], cpu: list[torch.Tensor], wide: Callable[[], Any]) -> bool:
    def error(value: torch.Tensor, exact: torch.Tensor) -> float:
        difference = (value.detach().cpu().double() - exact.detach().double()).abs()
        return difference[~difference.isnan()].max().item() if difference.numel() > 0 else 0.0

    def rounding(value: torch.Tensor, exact: torch.Tensor) -> float:
        """What storing the largest result in the dtype may cost, once."""
        if exact.numel() == 0 or not value.is_floating_point():
            return 0.0
        return exact.detach().double().abs().nan_to_num(0.0, 0.0).max().item() * torch.finfo(value.dtype).eps / 2

    try:
        exact = _tensors(wide())
    except Exception:  # the op does not take float32 here: nothing to judge by
        return False
    same_shape = all(a.shape == b.shape == c.shape for a, b, c in zip(npu, cpu, exact, strict=True))
    same_nans = all(torch.equal(a.detach().cpu().isnan(), b.isnan()) for a, b in zip(npu, cpu, strict=True))
    return (
        same_shape
        and same_nans
        and all(error(a, c) <= max(error(b, c), rounding(b, c)) for a, b, c in zip(npu, cpu, exact, strict=True))
    )


def _widened(arguments: tuple[Any, tuple, dict], dtype: torch.dtype) -> tuple[Any, tuple, dict]:
    def widen(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.dtype == dtype:
            return value.detach().float().requires_grad_(value.requires_grad)
        return torch.float32 if value is dtype else value

    return tree_map(widen, arguments)


def _compare_values(case: Case, npu: Any, cpu: Any) -> None:
    to_cpu = tree_map(lambda v: v.detach().cpu() if isinstance(v, torch.Tensor) else v, npu)
    plain = tree_map(lambda v: v.detach() if isinstance(v, torch.Tensor) else v, cpu)
    torch.testing.assert_close(
        _tensors(to_cpu), _tensors(plain), equal_nan=True, check_stride=False, **_tolerance(case)
    )
    ours = [v for v in tree_flatten(to_cpu)[0] if isinstance(v, int | float | bool)]
    theirs = [v for v in tree_flatten(plain)[0] if isinstance(v, int | float | bool)]
    assert ours == theirs or torch.allclose(torch.tensor(ours), torch.tensor(theirs), equal_nan=True), (ours, theirs)


def _samples(case: Case) -> Iterator[Any]:
    torch.manual_seed(5)
    requires_grad = case.mode == "backward"
    return itertools.islice(case.op.sample_inputs("cpu", case.dtype, requires_grad=requires_grad), SAMPLES_PER_CASE)


def _clone(sample: Any) -> tuple[Any, tuple, dict]:
    """In-place ops must not see each other's results."""

    def copy(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            if value.requires_grad:
                return value.detach().clone().requires_grad_()
            return value.detach().clone()
        return value

    return tree_map(copy, (sample.input, tuple(sample.args), dict(sample.kwargs)))


def _gradients(
    op: Any, arguments: tuple[Any, tuple, dict], post: Callable[..., Any], seed: int = 17
) -> list[torch.Tensor | None]:
    first, args, kwargs = arguments
    leaves = [t for t in _tensors((first, args, kwargs)) if t.requires_grad and t.is_leaf]
    outputs = post(_seeded(lambda: op(first, *args, **kwargs), seed))
    outputs = [t for t in _tensors(outputs) if t.requires_grad]
    if not leaves or not outputs:
        raise Inapplicable("nothing to differentiate")
    torch.manual_seed(23)
    seeds = [torch.randn(t.shape, dtype=t.dtype).to(t.device) for t in outputs]
    return list(torch.autograd.grad(outputs, leaves, seeds, allow_unused=True))


def _agree(first: torch.Tensor, second: torch.Tensor) -> bool:
    dense = [t if t.layout == torch.strided else t.to_dense() for t in (first, second)]
    return torch.allclose(*dense, equal_nan=True)


def _run_backward(case: Case, sample: Any) -> None:
    arguments = _clone(sample)
    post = sample.output_process_fn_grad
    try:
        first = _gradients(case.op, arguments, post)
        second = _gradients(case.op, arguments, post, seed=18)
    except Inapplicable:
        raise
    except Exception as error:
        raise Inapplicable(str(error)) from error
    on_npu = _move(case.op, arguments)
    wide = _gradients_in_float32(case, arguments, post)
    ours = _gradients(case.op, on_npu, post)
    torch.npu.synchronize()
    assert len(ours) == len(first)
    for index, (npu, cpu, again) in enumerate(zip(ours, first, second, strict=True)):
        assert (npu is None) == (cpu is None)
        if npu is None:
            continue
        if is_random(case.op, sample) or not _agree(cpu, again):
            _same_metadata([npu], [cpu])
        else:
            _compare(case, [npu], [cpu], lambda index=index: [wide()[index]])


def _gradients_in_float32(
    case: Case, arguments: tuple[Any, tuple, dict], post: Callable[..., Any]
) -> Callable[[], list[torch.Tensor | None]]:
    return lambda: _gradients(case.op, _widened(arguments, case.dtype), post)


# Random or uninitialised results: shapes and dtypes are compared, not values.  Anything else whose values change with
# the seed is found by running the CPU twice.
_UNINITIALISED = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "empty_permuted")


# Small samples of these can agree by chance for two seeds; low-rank decompositions do up to signs.
_RANDOM = (
    "bernoulli",
    "nn.functional.rrelu",
    "pca_lowrank",
    "svd_lowrank",
    "nn.functional.fractional_max_pool2d",
    "nn.functional.fractional_max_pool3d",
)


_DROPOUT_OF_MULTI_HEAD = 9  # its position among the arguments behind the query


def is_random(op: Any, sample: Any) -> bool:
    """Whether the result depends on the generator or on uninitialised memory."""
    if sample.kwargs.get("dropout_p", 0.0) > 0.0:
        return True
    if op.name == "nn.functional.multi_head_attention_forward" and sample.args[_DROPOUT_OF_MULTI_HEAD] > 0.0:
        return True
    return op.name.split(".")[-1] in _UNINITIALISED or "dropout" in op.name or op.name in _RANDOM


def _run_forward(case: Case, sample: Any) -> None:
    op = case.op
    first, args, kwargs = _clone(sample)
    try:
        with torch.no_grad():
            expected = _seeded(lambda: op(first, *args, **kwargs), 17)
            f2, a2, k2 = _clone(sample)
            again = _seeded(lambda: op(f2, *a2, **k2), 18)
    except Exception as error:
        raise Inapplicable(str(error)) from error
    random = is_random(op, sample)
    if not random:
        try:
            torch.testing.assert_close(_tensors(expected), _tensors(again), equal_nan=True, check_stride=False)
        except AssertionError:
            random = True
    source = _clone(sample)
    torch.npu.synchronize()
    try:
        first, args, kwargs = _move_late(case, source) if case.mode == "delayed" else _move(op, source)
        torch.manual_seed(17)
        with torch.no_grad(), _no_waiting(case.mode == "unwaited"):
            result = op(first, *args, **kwargs)
        _C._inject_fault(0, _NO_FAULT)
        torch.npu.synchronize()
    finally:
        _C._inject_fault(0, _NO_FAULT)
    if random:
        _same_metadata(result, expected)
    else:
        _compare(case, result, expected, lambda: _in_float32(case, sample))


def _in_float32(case: Case, sample: Any) -> Any:
    first, args, kwargs = _widened(_clone(sample), case.dtype)
    with torch.no_grad():
        return _seeded(lambda: case.op(first, *args, **kwargs), 17)


@contextlib.contextmanager
def _no_waiting(wanted: bool) -> Iterator[None]:
    before = torch.npu.get_sync_debug_mode()
    torch.npu.set_sync_debug_mode("error" if wanted else before)
    try:
        yield
    finally:
        torch.npu.set_sync_debug_mode(before)


def run_case(case: Case) -> int:
    """Run every sample; return how many were compared.  Raises what goes wrong."""
    compared = 0
    reason = "no samples"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for sample in _samples(case):
            try:
                (_run_backward if case.mode == "backward" else _run_forward)(case, sample)
                compared += 1
            except Inapplicable as skip:
                reason = str(skip)
    if compared == 0:
        raise Inapplicable(reason)
    return compared
