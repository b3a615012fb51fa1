"""scatter_update, npu_quant_scatter, npu_scatter_nd_update and their in-place forms against plain loops."""

from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

NPU = torch.ops.npu
PROPERTY = settings(
    deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
]


def values(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers that every dtype holds and that differ between neighbours."""
    numbers = torch.randint(0, 120, shape)
    return numbers.bool() if dtype == torch.bool else numbers.to(torch.float32).to(dtype)


def same(actual: Tensor, expected: Tensor) -> None:
    """Bit for bit."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    a, b = (t.detach().cpu().contiguous().reshape(-1) for t in (actual, expected))
    assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def looped_update(self: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
    """The definition, one slice after the other."""
    self = self.clone()
    length = updates.shape[axis]
    for i, where in enumerate(indices.reshape(1).tolist() if indices.dim() == 0 else indices.tolist()):
        batch, start = where if isinstance(where, list) else (i, where)
        self[batch].movedim(axis - 1 if axis > 0 else axis, 0)[start : start + length] = updates[i].movedim(
            axis - 1 if axis > 0 else axis, 0
        )
    return self


def looped_scatter(self: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    self = self.clone()
    depth = indices.shape[-1]
    rows = updates.reshape(-1, *self.shape[depth:])
    for place, row in zip(indices.reshape(rows.shape[0], depth).tolist(), rows, strict=True):
        self[tuple(place)] = row
    return self


def quantised(updates: Tensor, scales: Tensor, points: Tensor | None) -> Tensor:
    q = updates.float() / scales.float().reshape(-1)
    if points is not None:
        q = q + points.float().reshape(-1)
    return q.round().clamp(-128, 127).to(torch.int8)


def both_forms(name: str, expected: Tensor, self: Tensor, *arguments: Any, device: str = "cpu", **options: Any) -> None:
    """Compare the functional and the in-place operator; `self` may have any strides."""

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device).copy_(value)

    placed, rest = place(self), [place(a) for a in arguments]
    before = placed.clone()
    result = getattr(NPU, name)(placed, *rest, **options)
    same(result, expected)
    same(placed, before)
    assert result.is_contiguous() and result.device == placed.device
    returned = getattr(NPU, name + "_")(placed, *rest, **options)
    same(placed, expected)
    assert returned is placed


# ---- scatter_update -------------------------------------------------------------------------------------------------

UPDATES = [
    # shape of self, indices, size of updates on axis, axis
    ((1, 1, 2, 8), [1], 1, -2),
    ((3, 4, 6, 8), [4, 0, 2], 2, -2),
    ((3, 4, 6, 8), [4, 0, 2], 2, 2),
    ((4, 2, 7, 5), [3, 2], 1, 3),
    ((2, 9), [8, 0], 1, 1),
    ((3, 5, 33), [4, 0, 2], 1, 1),
    ((3, 5, 2, 3), [0, 0, 0], 5, 1),
    ((3, 4, 6, 8), [[2, 1], [2, 2], [0, 0]], 3, 2),
    ((2, 3, 40, 16), [[0, 5], [1, 5]], 17, 2),
    ((2, 3, 40, 16), [[1, 5], [1, 6], [1, 4], [0, 0], [1, 5]], 4, 2),
    ((1, 1, 50, 3), [[0, 7], [0, 7], [0, 8]], 1, 2),
    ((2, 3, 5), [[1, 1], [0, 2]], 2, -1),
    ((2, 2, 2, 2, 2, 2, 6, 3), [1, 5], 1, 6),
]


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("shape", "indices", "length", "axis"), UPDATES)
def test_update(
    shape: tuple[int, ...], indices: list[Any], length: int, axis: int, index_dtype: torch.dtype, device: str
) -> None:
    index = torch.tensor(indices, dtype=index_dtype)
    sizes = list(shape)
    sizes[0], sizes[axis] = len(indices), length
    self, updates = values(*shape), values(*sizes) + 200
    both_forms("scatter_update", looped_update(self, index, updates, axis), self, index, updates, axis, device=device)


@pytest.mark.parametrize("dtype", DTYPES)
def test_update_of_every_dtype(dtype: torch.dtype, device: str) -> None:
    self, updates, index = values(3, 2, 5, 7, dtype=dtype), values(3, 2, 2, 7, dtype=dtype), torch.tensor([3, 0, 1])
    both_forms("scatter_update", looped_update(self, index, updates, -2), self, index, updates, -2, device=device)


def test_specification_example(device: str) -> None:
    data = torch.tensor([[[[1] * 8, [2] * 8]]], dtype=torch.float32, device=device)
    updates = torch.full((1, 1, 1, 8), 3.0, device=device)
    result = NPU.scatter_update(data, torch.tensor([1], device=device), updates, -2)
    assert result.tolist() == [[[[1.0] * 8, [3.0] * 8]]]
    NPU.scatter_update_(data, torch.tensor([1], device=device), updates, axis=-2)
    assert data.tolist() == [[[[1.0] * 8, [3.0] * 8]]]


def test_an_index_without_dims_is_one_index(device: str) -> None:
    self, updates = values(3, 4, 5), values(1, 1, 5)
    index = torch.tensor(2)
    both_forms("scatter_update", looped_update(self, index, updates, 1), self, index, updates, 1, device=device)


@pytest.mark.parametrize("pairs", [False, True])
def test_update_through_views(pairs: bool, device: str) -> None:
    """The cache is a transposed slice of a larger one, and the rest of that stays as it is."""
    for permutation in ((0, 1, 2, 3), (0, 2, 1, 3), (3, 1, 0, 2), (1, 3, 2, 0)):
        store = values(9, 8, 10, 12)
        view = store[1:8:2, :, 2:9, 1:11:3].permute(permutation)
        batches, outer, length, inner = view.shape
        index = (
            torch.tensor([[0, 1], [0, 2], [batches - 1, length - 2], [0, 1]]) if pairs else torch.arange(batches) % 2
        )
        updates = (values(2, index.shape[0], inner, outer, 2)[1] + 200).permute(0, 2, 3, 1)
        expected = store.clone()
        expected[1:8:2, :, 2:9, 1:11:3].permute(permutation).copy_(looped_update(view, index, updates, 2))
        placed = store.to(device, copy=True)
        NPU.scatter_update_(
            placed[1:8:2, :, 2:9, 1:11:3].permute(permutation),
            index.to(device),
            updates.to(device).contiguous().expand_as(updates),
            2,
        )
        same(placed, expected)
        both_forms("scatter_update", looped_update(view, index, updates, 2), view, index, updates, 2, device=device)


def test_expanded_updates(device: str) -> None:
    self, index = values(3, 4, 5), torch.tensor([1, 2, 3])
    updates = values(1, 1, 5).expand(3, 1, 5)
    expected = looped_update(self, index, updates, 1)
    placed = self.to(device, copy=True)
    NPU.scatter_update_(placed, index.to(device), updates.to(device).expand(3, 1, 5), 1)
    same(placed, expected)


def test_updates_and_indices_may_be_parts_of_self(device: str) -> None:
    """They are read as they were before the call."""
    self = torch.arange(24).reshape(2, 12)
    expected = looped_update(self, torch.tensor([4, 1]), self[:, :6].clone(), 1)
    placed = self.to(device, copy=True)
    NPU.scatter_update_(placed, torch.tensor([4, 1]).to(device), placed[:, :6], 1)
    same(placed, expected)
    placed, index = self.to(device, copy=True), self[:, 1].clone() % 7
    placed[:, 0] = index.to(device)
    expected = looped_update(placed.cpu(), index, torch.full((2, 3), 99), 1)
    NPU.scatter_update_(placed, placed[:, 0], torch.full((2, 3), 99).to(device), 1)
    same(placed, expected)


def test_empty_updates(device: str) -> None:
    self = values(3, 4, 5)
    for index, updates in (
        (torch.empty(0, dtype=torch.long), torch.empty(0, 1, 5)),
        (torch.empty(0, 2, dtype=torch.long), torch.empty(0, 1, 5)),
        (torch.tensor([0, 1, 2]), torch.empty(3, 0, 5)),
    ):
        both_forms("scatter_update", self, self, index, updates, 1, device=device)
    empty = torch.empty(3, 4, 0)
    both_forms("scatter_update", empty, empty, torch.tensor([0]), torch.empty(1, 2, 0), 1, device=device)


@PROPERTY
@given(data=st.data())
def test_overlapping_slices_are_written_in_order(data: st.DataObject, device: str) -> None:
    batches, outer, size, inner = (data.draw(st.integers(1, n)) for n in (3, 3, 9, 4))
    length = data.draw(st.integers(1, size))
    places = st.tuples(st.integers(0, batches - 1), st.integers(0, size - length))
    index = torch.tensor(data.draw(st.lists(places, min_size=1, max_size=12)))
    self = torch.full((batches, outer, size, inner), -1)
    updates = torch.arange(index.shape[0] * outer * length * inner).reshape(-1, outer, length, inner)
    both_forms("scatter_update", looped_update(self, index, updates, 2), self, index, updates, 2, device=device)


# ---- npu_quant_scatter ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [None, torch.int32, torch.bfloat16])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_quant(dtype: torch.dtype, scale_dtype: torch.dtype, points: torch.dtype | None, device: str) -> None:
    for columns in (1, 5, 16, 33, 130):
        self = torch.randint(-128, 128, (3, 2, 6, columns), dtype=torch.int8)
        updates = (torch.randn(2, 2, 3, columns) * 20).to(dtype)
        scales = (torch.rand(1, 1, columns) + 0.2).to(scale_dtype)
        zero_points = None if points is None else torch.randint(-20, 20, (columns,)).to(points)
        index = torch.tensor([3, 1])
        expected = looped_update(self, index, quantised(updates, scales, zero_points), -2)
        both_forms("npu_quant_scatter", expected, self, index, updates, scales, zero_points, device=device)


def test_quant_rounds_half_to_even_and_saturates(device: str) -> None:
    x = torch.tensor([[[0.5, 1.5, 2.5, -0.5, -1.5, 127.5, 200.0, -200.0, float("inf"), -float("inf"), float("nan")]]])
    cache = torch.zeros(1, 2, 11, dtype=torch.int8, device=device)
    arguments = (torch.tensor([0], device=device), x.half().to(device), torch.ones(11, device=device))
    result = NPU.npu_quant_scatter(cache, *arguments)
    assert result[0, 0].tolist() == [0, 2, 2, 0, -2, 127, 127, -128, 127, -128, 0]
    assert result[0, 1].tolist() == [0] * 11
    # Rounding comes after the zero point.
    shifted = NPU.npu_quant_scatter(cache, *arguments, torch.ones(11, dtype=torch.int32, device=device))
    assert shifted[0, 0].tolist()[:5] == [2, 2, 4, 0, 0]


def test_quant_is_quantize_and_update(device: str) -> None:
    self = torch.zeros(3, 4, 8, dtype=torch.int8)
    updates, scales = torch.randn(5, 1, 8).half(), torch.rand(8) * 0.02 + 0.01
    index = torch.tensor([[0, 1], [2, 3], [0, 1], [1, 0], [0, 2]])
    expected = looped_update(self, index, quantised(updates, scales, None), 1)
    for options in ({}, {"dst_type": torch.int8, "round_mode": None}, {"dst_type": torch.qint8, "quant_axis": 2}):
        both_forms("npu_quant_scatter", expected, self, index, updates, scales, None, 1, device=device, **options)


def test_quant_through_views(device: str) -> None:
    for permutation in ((0, 1, 2, 3), (0, 2, 1, 3), (3, 1, 0, 2)):
        view = torch.zeros(9, 8, 10, 12, dtype=torch.int8)[1:8:2, :, 2:9, 1:11:3].permute(permutation)
        batches, outer, length, inner = view.shape
        index = torch.tensor([[0, 1], [0, 2], [batches - 1, length - 2], [0, 1]])
        updates = (torch.randn(4, inner, outer, 2) * 30).half().permute(0, 2, 3, 1)
        scales = torch.rand(2 * inner)[::2] + 0.5
        points = torch.randint(-5, 5, (inner,), dtype=torch.int32)
        expected = looped_update(view, index, quantised(updates, scales, points), 2)
        both_forms("npu_quant_scatter", expected, view, index, updates, scales, points, device=device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_quant_with_every_kernel_table(isa: str, dtype: torch.dtype) -> None:
    for columns in (*range(1, 36), 63, 64, 65, 1000):
        self = torch.zeros(2, 3, columns, dtype=torch.int8)
        updates = (torch.randn(2, 2, columns) * 40).to(dtype)
        scales, points = torch.rand(columns) + 0.2, torch.randint(-20, 20, (columns,), dtype=torch.int32)
        index = torch.tensor([1, 0])
        expected = looped_update(self, index, quantised(updates, scales, points), 1)
        same(NPU.npu_quant_scatter(self, index, updates, scales, points), expected)


# ---- npu_scatter_nd_update ------------------------------------------------------------------------------------------

SCATTERS = [
    # shape of self, leading sizes of indices, indexed dims
    ((9,), (5,), 1),
    ((3, 2), (2,), 2),
    ((4, 5, 6), (3,), 2),
    ((4, 5, 6), (2, 3), 1),
    ((4, 5, 6), (2, 1, 3), 3),
    ((4, 5, 6), (2,), 0),
    ((7, 3, 129), (11,), 1),
    ((2, 2, 2, 2, 2, 2, 2, 3), (4,), 6),
    ((3, 40000), (4,), 1),
]


def places(shape: tuple[int, ...], leading: tuple[int, ...], depth: int) -> Tensor:
    columns = [torch.randint(0, size, leading) for size in shape[:depth]]
    return torch.stack(columns, -1) if columns else torch.empty(*leading, 0, dtype=torch.long)


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("shape", "leading", "depth"), SCATTERS)
def test_scatter(
    shape: tuple[int, ...], leading: tuple[int, ...], depth: int, index_dtype: torch.dtype, device: str
) -> None:
    index = places(shape, leading, depth).to(index_dtype)
    self, updates = values(*shape), values(*leading, *shape[depth:]) + 200
    both_forms("npu_scatter_nd_update", looped_scatter(self, index, updates), self, index, updates, device=device)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scatter_of_every_dtype(dtype: torch.dtype, device: str) -> None:
    self, updates, index = values(5, 3, dtype=dtype), values(4, 3, dtype=dtype), torch.tensor([[3], [0], [3], [4]])
    both_forms("npu_scatter_nd_update", looped_scatter(self, index, updates), self, index, updates, device=device)


def test_specification_example_of_scatter(device: str) -> None:
    index, updates = torch.tensor([[0, 0], [1, 1]], device=device), torch.tensor([10.0, 20.0], device=device)
    result = NPU.npu_scatter_nd_update(torch.zeros(3, 2, device=device), index, updates)
    assert result.tolist() == [[10.0, 0.0], [0.0, 20.0], [0.0, 0.0]]


def test_scatter_through_views(device: str) -> None:
    for permutation in ((0, 1, 2), (2, 0, 1), (1, 0, 2)):
        store = values(8, 10, 12)
        view = store[1:8:2, 2:9, 1:11:3].permute(permutation)
        for depth in (1, 2, 3):
            index = places(view.shape, (3, 4), depth)
            updates = (values(*view.shape[depth:], 4, 3) + 200).movedim((-1, -2), (0, 1))
            expected = store.clone()
            expected[1:8:2, 2:9, 1:11:3].permute(permutation).copy_(looped_scatter(view, index, updates))
            placed = store.to(device, copy=True)
            NPU.npu_scatter_nd_update_(
                placed[1:8:2, 2:9, 1:11:3].permute(permutation), index.to(device), updates.to(device)
            )
            same(placed, expected)


def test_scatter_of_parts_of_self(device: str) -> None:
    self = torch.arange(20).reshape(10, 2) % 10
    expected = looped_scatter(self, self[:, :1].clone(), self.flip(0).clone())
    placed = self.to(device, copy=True)
    NPU.npu_scatter_nd_update_(placed, placed[:, :1], self.flip(0).to(device))
    same(placed, expected)
    index = torch.arange(1, 10)[:, None]
    placed = self.to(device, copy=True)
    NPU.npu_scatter_nd_update_(placed, index.to(device), placed[:9])
    same(placed, looped_scatter(self, index, self[:9].clone()))


def test_scatter_with_leading_dims_of_one_and_odd_strides(device: str) -> None:
    self, index = values(6, 5), torch.tensor([[[4]], [[0]], [[4]]])
    updates = torch.empty_strided((3, 1, 5), (5, 999, 1)).copy_(values(3, 1, 5))
    both_forms("npu_scatter_nd_update", looped_scatter(self, index, updates), self, index, updates, device=device)


def test_empty_scatter(device: str) -> None:
    self = values(3, 4)
    for index, updates in (
        (torch.empty(0, 1, dtype=torch.long), torch.empty(0, 4)),
        (torch.empty(2, 0, 2, dtype=torch.long), torch.empty(2, 0)),
    ):
        both_forms("npu_scatter_nd_update", self, self, index, updates, device=device)
    empty = torch.empty(3, 0)
    both_forms("npu_scatter_nd_update", empty, empty, torch.tensor([[1]]), torch.empty(1, 0), device=device)


@PROPERTY
@given(data=st.data())
def test_of_equal_places_the_last_wins(data: st.DataObject, device: str) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    depth = data.draw(st.integers(0, len(shape)))
    place = st.tuples(*(st.integers(0, size - 1) for size in shape[:depth]))
    index = torch.tensor(data.draw(st.lists(place, min_size=1, max_size=20)), dtype=torch.long)
    self = torch.full(shape, -1)
    updates = torch.arange(index.shape[0] * self[(0,) * depth].numel()).reshape(-1, *shape[depth:])
    both_forms("npu_scatter_nd_update", looped_scatter(self, index, updates), self, index, updates, device=device)


# ---- threads --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[1, 2, 3, 7])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("rows", "columns", "writers"), [(50, 700, 4000), (3, 300_000, 12), (1, 1, 100_000), (1000, 3, 60_000)]
)
def test_last_wins_with_every_number_of_threads(threads: int, rows: int, columns: int, writers: int) -> None:
    """Writer i writes the number i, so of all that wrote a place the greatest must stay."""
    index = torch.randint(0, rows, (writers, 1))
    updates = torch.arange(writers, dtype=torch.int32)[:, None].expand(writers, columns)
    last = torch.full((rows,), -1).scatter_reduce_(0, index[:, 0], torch.arange(writers), "amax")
    result = NPU.npu_scatter_nd_update(torch.full((rows, columns), -1, dtype=torch.int32), index, updates)
    assert torch.equal(result, last.int()[:, None].expand(rows, columns))


def test_sorted_places_with_every_number_of_threads(threads: int) -> None:
    index = torch.arange(0, 60_000, 2)[:, None]
    updates = torch.randn(30_000, 16)
    expected = torch.zeros(60_000, 16)
    expected[::2] = updates
    same(NPU.npu_scatter_nd_update(torch.zeros(60_000, 16), index, updates), expected)
    index[20_000:] = index[10_000:20_000]  # sorted in parts, and with repeats
    expected[40_000:] = 0
    expected[20_000:40_000:2] = updates[20_000:]
    same(NPU.npu_scatter_nd_update(torch.zeros(60_000, 16), index, updates), expected)


def test_overlapping_slices_with_every_number_of_threads(threads: int) -> None:
    writers, length = 60, 50
    index = torch.stack([torch.zeros(writers, dtype=torch.long), torch.randint(0, 150, (writers,))], 1)
    updates = torch.arange(writers)[:, None, None, None].expand(writers, 4, length, 64)
    expected = looped_update(torch.full((1, 4, 200, 64), -1), index, updates, 2)
    same(NPU.scatter_update(torch.full((1, 4, 200, 64), -1), index, updates, 2), expected)


def test_long_slices_of_apart_batches_with_every_number_of_threads(threads: int) -> None:
    for index in (torch.tensor([3, 9]), torch.tensor([[0, 3], [1, 9]])):
        self, updates = torch.randn(2, 3, 300, 64), torch.randn(2, 3, 257, 64)
        same(NPU.scatter_update(self, index, updates, 2), looped_update(self, index, updates, 2))
        x, scales = (updates * 9).bfloat16(), torch.rand(64) + 0.2
        q = torch.zeros(2, 3, 300, 64, dtype=torch.int8)
        expected = looped_update(q, index, quantised(x, scales, None), 2)
        same(NPU.npu_quant_scatter(q, index, x, scales), expected)


def test_large_unaligned_rows(device: str) -> None:
    """Large outputs are written past the caches, in aligned pieces."""
    store = torch.zeros(1 + 3000 * 1031, dtype=torch.int16)
    index, updates = torch.randint(0, 3000, (2500, 1)), torch.randint(-999, 999, (2500, 1031), dtype=torch.int16)
    expected = torch.zeros(3000, 1031, dtype=torch.int16)
    for place, row in zip(index[:, 0].tolist(), updates, strict=True):
        expected[place] = row
    placed, where, source = (one.to(device, copy=True) for one in (store, index, updates))
    view = placed[1:].view(3000, 1031)
    same(NPU.npu_scatter_nd_update(view, where, source), expected)
    assert not view.any()
    NPU.npu_scatter_nd_update_(view, where, source)
    same(view, expected)
    assert placed[0] == 0


# ---- compilation ----------------------------------------------------------------------------------------------------


def test_in_place_writes_survive_compilation(device: str) -> None:
    """Functionalisation turns the write into a copy and back."""

    def step(cache: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        view = cache.transpose(1, 2)
        NPU.scatter_update_(view, index, updates * 2, 2)
        return view.sum(1) + cache.sum(2)

    tensors = (torch.randn(2, 6, 3, 4), torch.tensor([5, 1]), torch.randn(2, 3, 1, 4))
    cache, index, updates = (one.to(device) for one in tensors)
    eager, compiled = cache.clone(), cache.clone()
    expected = step(eager, index, updates)
    torch._dynamo.reset()
    actual = torch.compile(step, backend="aot_eager", fullgraph=True)(compiled, index, updates)
    torch.testing.assert_close(actual, expected)
    same(compiled, eager)
