"""Errors of scatter_update, npu_quant_scatter, npu_scatter_nd_update and their in-place forms."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

NPU = torch.ops.npu


def on(device: str, *tensors: Tensor) -> list[Tensor]:
    return [t.to(device, copy=True) for t in tensors]


def raises_index_error(call: Callable[[], object], message: str, device: str) -> None:
    """On npu the error comes with the next synchronisation, and the one after that is quiet."""
    with pytest.raises(IndexError, match=message):
        call()
        torch.npu.synchronize()
    if device == "npu":
        torch.npu.synchronize()


@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1, -(2**31)])
def test_indices_out_of_range_change_nothing(bad: int, device: str) -> None:
    cache = torch.randn(3, 5, 8)
    for name, indices, updates, options, message in [
        ("scatter_update_", [0, bad, 1], torch.randn(3, 2, 8), (1,), rf"index {bad} in element \[1\]"),
        (
            "scatter_update_",
            [[0, 0], [1, 1], [2, bad]],
            torch.randn(3, 2, 8),
            (1,),
            rf"index {bad} in element \[2, 1\]",
        ),
        (
            "scatter_update_",
            [[0, 0], [bad, 1], [2, 0]],
            torch.randn(3, 2, 8),
            (1,),
            rf"index {bad} in element \[1, 0\]",
        ),
        ("npu_scatter_nd_update_", [[0], [2], [bad]], torch.randn(3, 5, 8), (), rf"index {bad} in element \[2, 0\]"),
        (
            "npu_scatter_nd_update_",
            [[0, 1], [2, bad * 2]],
            torch.randn(2, 8),
            (),
            rf"index {bad * 2} in element \[1, 1\]",
        ),
    ]:
        placed, index, source = on(device, cache, torch.tensor(indices), updates)
        message = f"npu::{name}: argument indices: {message} .*out of range: expected 0 <= index"
        raises_index_error(lambda: getattr(NPU, name)(placed, index, source, *options), message, device)  # noqa: B023
        assert torch.equal(placed.cpu(), cache)
    x, scales = on(device, torch.randn(2, 2, 8).half(), torch.ones(8))
    quant, index = on(device, torch.zeros(3, 5, 8, dtype=torch.int8), torch.tensor([0, bad]))
    message = rf"npu::npu_quant_scatter_: argument indices: index {bad} in element \[1\] .* 0 <= index <= 3, because"
    raises_index_error(lambda: NPU.npu_quant_scatter_(quant, index, x, scales), message, device)
    assert not quant.any()
    raises_index_error(lambda: NPU.npu_quant_scatter(quant, index, x, scales), "index .* out of range", device)


def test_the_first_of_many_bad_indices_is_named(device: str) -> None:
    index = torch.zeros(50_000, 1, dtype=torch.long)
    index[[30_001, 40_000, 49_999]] = 7
    cache, updates = torch.zeros(7, device=device), torch.ones(50_000, device=device)
    message = r"npu_scatter_nd_update_: .*index 7 in element \[30001, 0\] .* expected 0 <= index < 7, .* on dim 0"
    raises_index_error(lambda: NPU.npu_scatter_nd_update_(cache, index.to(device), updates), message, device)
    assert not cache.any()


@pytest.mark.parametrize("suffix", ["", "_"], ids=["functional", "in_place"])
def test_errors_name_operator_and_argument(suffix: str, device: str) -> None:
    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    def index(*numbers: Any) -> Tensor:
        return torch.tensor(numbers, device=device)

    cache, one = zeros(3, 4, 5), zeros(1, 1, 5)
    quant, half = zeros(3, 4, 5, dtype=torch.int8), zeros(1, 1, 5, dtype=torch.float16)
    scales = zeros(5)
    long = torch.int64
    update, scatter = getattr(NPU, "scatter_update" + suffix), getattr(NPU, "npu_scatter_nd_update" + suffix)
    quantise = getattr(NPU, "npu_quant_scatter" + suffix)
    for call, message in [
        (lambda: update(cache, index(0), one, 0), "scatter_update_?: argument axis: dim 0 is the batch"),
        (lambda: update(cache, index(0), one, -3), "argument axis: dim 0 is the batch"),
        (lambda: update(cache, index(0), one, 3), "argument axis: expected -3 <= axis < 3, got 3"),
        (lambda: update(zeros(3), index(0), zeros(1), 0), "argument self: expected 2 to 8 dims"),
        (lambda: update(cache, index(0), zeros(1, 1), 1), "argument updates: expected as many dims as self"),
        (lambda: update(cache, index([0]), one, 1), r"argument indices: expected shape \(updates, 2\)"),
        (lambda: update(cache, index([[0]]), one, 1), "argument indices: expected at most 2 dims"),
        (lambda: update(cache, index(0, 1), one, 1), "argument updates: expected size 2 on dim 0"),
        (
            lambda: update(cache, index(0, 1, 0, 1), zeros(4, 1, 5), 1),
            "argument updates: expected at most 3 on dim",
        ),
        (lambda: update(cache, index(0), zeros(1, 5, 5), 1), "argument updates: expected at most size 4 on dim 1"),
        (lambda: update(cache, index(0), zeros(1, 1, 4), 1), "argument updates: expected size 5 on dim 2"),
        (lambda: update(cache, index(0), half, 1), "argument updates: expected dtype float32 .* got float16"),
        (lambda: update(cache, zeros(1), one, 1), "argument indices: expected dtype int32 or int64, got float32"),
        (lambda: scatter(cache, index(0), one), "npu_scatter_nd_update_?: argument indices: expected at least 2"),
        (lambda: scatter(cache, zeros(2, 4, dtype=long), one), "argument indices: expected at most 3"),
        (
            lambda: scatter(cache, index([0]), one),
            r"argument updates: expected shape \[1, 4, 5\] .* got \[1, 1, 5\]",
        ),
        (lambda: scatter(zeros(), index([0]), one), "argument self: expected 1 to 8 dims"),
        (lambda: scatter(cache, zeros(1, 1), zeros(1, 4, 5)), "argument indices: expected dtype int32 or int64"),
        (
            lambda: scatter(cache, index([0]), zeros(1, 4, 5, dtype=long)),
            "argument updates: expected dtype float32",
        ),
        (lambda: quantise(zeros(3, 5, dtype=torch.int8), index(0), half, scales), "argument self: expected 3 to 8"),
        (lambda: quantise(quant, index(0), half, scales, axis=0), "npu_quant_scatter_?: argument axis: dim 0"),
        (
            lambda: quantise(quant, index(0), zeros(1, 4, 5, dtype=torch.half), scales, axis=-1),
            "argument axis: expected neither",
        ),
        (lambda: quantise(quant, index(0), half, scales, quant_axis=1), "argument quant_axis: expected the last"),
        (lambda: quantise(quant, index(0), half, scales, reduce="add"), "argument reduce: expected 'update', got"),
        (
            lambda: quantise(quant, index(0), half, scales, round_mode="floor"),
            "round_mode: .* 'floor', which is not",
        ),
        (
            lambda: quantise(quant, index(0), half, scales, dst_type=torch.float8_e4m3fn),
            "argument dst_type: expected one of int8, got float8_e4m3fn",
        ),
        (lambda: quantise(quant, index(0), half, scales, dst_type=290), "hifloat8, which is not supported on this"),
        (lambda: quantise(cache, index(0), half, scales), "argument self: expected dtype int8, got float32"),
        (lambda: quantise(quant, index(0), one, scales), "argument updates: expected dtype float16 or bfloat16"),
        (
            lambda: quantise(quant, index(0), half, zeros(4)),
            r"argument quant_scales: expected 5 elements, .* \[4\]",
        ),
        (
            lambda: quantise(quant, index(0), half, scales.half()),
            "argument quant_scales: expected dtype float32 or",
        ),
        (
            lambda: quantise(quant, index(0), half, scales, scales),
            "argument quant_zero_points: expected dtype int32",
        ),
        (
            lambda: quantise(quant, index(0), half, scales, zeros(6, dtype=torch.int32)),
            "argument quant_zero_points: expected 5 elements",
        ),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_expanded_tensors_are_not_written(device: str) -> None:
    cache = torch.zeros(1, 4, 5, device=device).expand(3, 4, 5)
    index, updates = torch.tensor([0], device=device), torch.ones(1, 1, 5, device=device)
    for call in (
        lambda: NPU.scatter_update_(cache, index, updates, 1),
        lambda: NPU.npu_scatter_nd_update_(cache, index[:, None], torch.ones(1, 4, 5, device=device)),
        lambda: NPU.npu_quant_scatter_(cache.char()[:1].expand(3, 4, 5), index, updates.half(), updates),
    ):
        with pytest.raises(RuntimeError, match="argument self: more than one element refers to a single memory"):
            call()
    result = NPU.scatter_update(cache, index, updates, 1)  # a copy has room
    assert result.sum() == 5


def test_devices_must_agree() -> None:
    import torch_npu  # noqa: F401

    cache, index, updates = torch.zeros(3, 4, 5), torch.tensor([0]), torch.zeros(1, 1, 5)
    message = "^Expected all tensors to be on the same device, but found at least two devices, "
    for call, argument in [
        (lambda: NPU.scatter_update(cache.npu(), index, updates.npu(), 1), "npu:0 and cpu! .* argument indices"),
        (lambda: NPU.scatter_update_(cache, index, updates.npu(), 1), "cpu and npu:0! .* argument updates"),
        (lambda: NPU.npu_scatter_nd_update_(cache, index[:, None].npu(), cache[:1]), "argument indices"),
        (
            lambda: NPU.npu_quant_scatter(cache.char().npu(), index.npu(), updates.half().npu(), torch.ones(5)),
            "argument quant_scales",
        ),
    ]:
        with pytest.raises(RuntimeError, match=message + ".*" + argument):
            call()


def test_meta_tensors_fail_with_the_same_texts() -> None:
    cache = torch.empty(3, 4, 5, device="meta")
    index = torch.empty(1, dtype=torch.long, device="meta")

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    for call, message in [
        (lambda: NPU.scatter_update(cache, index, empty(1, 1, 4), 1), "argument updates: expected size 5 on dim 2"),
        (lambda: NPU.scatter_update_(cache, index, empty(1, 1, 5), 0), "scatter_update_: argument axis: dim 0"),
        (lambda: NPU.npu_scatter_nd_update(cache, index, empty(1, 4, 5)), "argument indices: expected at least 2"),
        (lambda: NPU.npu_scatter_nd_update_(cache, index[:, None], empty(1, 4)), "argument updates: expected shape"),
        (lambda: NPU.npu_quant_scatter(cache, index, empty(1, 1, 5), empty(4)), "argument quant_scales: expected 5"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()
