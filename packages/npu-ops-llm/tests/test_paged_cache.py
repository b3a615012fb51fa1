"""Writers of paged caches against a loop over tokens."""

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

SCATTER = torch.ops.npu.npu_scatter_pa_kv_cache
FUNCTIONAL = torch.ops.npu.npu_scatter_pa_kv_cache_functional
RESHAPE = torch.ops.atb._npu_reshape_and_cache
PROPERTY = settings(
    deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
BLOCKS, SIZE = 5, 6


def looped(tokens: Tensor, cache: Tensor, slots: Tensor, nz: bool) -> Tensor:
    """The definition, one token and element after the other."""
    cache = cache.clone()
    size, c = cache.shape[2 if nz else 1], cache.shape[3]
    for token, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        block, row = divmod(slot, size)
        if nz:
            for h, element in enumerate(tokens[token].reshape(-1)):
                cache[block, h // c, row, h % c] = element
        else:
            cache[block, row] = tokens[token]
    return cache


def tokens_and_cache(count: int, heads: int, width: int, c: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values that differ; `c` makes the cache of the NZ layout."""
    tokens = torch.randint(-100, 100, (count, heads, width)).to(dtype)
    shape = (BLOCKS, SIZE, heads, width) if c is None else (BLOCKS, heads * width // c, SIZE, c)
    return tokens, torch.randint(0, 100, shape).to(dtype)


def same(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype and torch.equal(actual.cpu(), expected)


def on(device: str, *tensors: Tensor) -> list[Tensor]:
    """Copies with the same strides."""
    return [
        torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device).copy_(t) if t.numel() else t.to(device)
        for t in tensors
    ]


def every_writer(
    key: Tensor, value: Tensor, caches: tuple[Tensor, Tensor], slots: Tensor, nz: bool, device: str
) -> None:
    """All three operators; the in-place ones write what the functional one returns."""
    expected = [looped(t, cache, slots, nz) for t, cache in zip((key, value), caches, strict=True)]
    modes = ["PA_NZ"] if nz else ["Norm", None]
    k, v, s = on(device, key, value, slots)
    for mode in modes:
        placed = on(device, *caches)
        results = FUNCTIONAL(k, v, *placed, s, cache_mode=mode)
        for result, cache, before, wanted in zip(results, placed, caches, expected, strict=True):
            same(result, wanted)
            same(cache, before)
        assert SCATTER(k, v, *placed, s, cache_mode=mode) is None
        for cache, wanted in zip(placed, expected, strict=True):
            same(cache, wanted)
    placed = on(device, *caches)
    assert RESHAPE(k, v, *placed, s) is None
    for cache, wanted in zip(placed, expected, strict=True):
        same(cache, wanted)


SLOTS = [[0], [29, 7, 13], [3, -1, 3, 4, -7, 0, 29], [5, 6, 7, 8, 9], [-1, -1], []]


@pytest.mark.parametrize("nz", [False, True], ids=["norm", "nz"])
@pytest.mark.parametrize("slot_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("slots", SLOTS)
def test_writers(slots: list[int], slot_dtype: torch.dtype, nz: bool, device: str) -> None:
    key, key_cache = tokens_and_cache(len(slots), 2, 32, 16 if nz else None, torch.bfloat16)
    value, value_cache = tokens_and_cache(len(slots), 4, 8, 16 if nz else None, torch.bfloat16)
    every_writer(key, value, (key_cache, value_cache), torch.tensor(slots, dtype=slot_dtype), nz, device)


@pytest.mark.parametrize("nz", [False, True], ids=["norm", "nz"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.int8, torch.float32, torch.bfloat16])
def test_keys_and_values_of_different_dtypes(dtype: torch.dtype, nz: bool, device: str) -> None:
    slots = torch.tensor([17, 2, 2, 28])
    key, key_cache = tokens_and_cache(4, 2, 64, 32 if nz else None, torch.int8)
    value, value_cache = tokens_and_cache(4, 3, 48, 16 if nz else None, torch.float32)
    value, value_cache = value.to(dtype), value_cache.to(dtype)
    every_writer(key, value, (key_cache, value_cache), slots, nz, device)


def test_default_mode_is_nz(device: str) -> None:
    key, cache = tokens_and_cache(2, 2, 16, 16, torch.float16)
    slots = torch.tensor([8, 1])
    k, c, d, s = on(device, key, cache, cache, slots)
    SCATTER(k, k, c, d, s)
    same(c, looped(key, cache, slots, True))
    same(d, looped(key, cache, slots, True))


def test_heads_that_parts_of_c_elements_cross(device: str) -> None:
    """Heads of 24 elements in parts of 16: the third part holds 8 of each head."""
    key, key_cache = tokens_and_cache(3, 4, 24, 16, torch.float16)
    value, value_cache = tokens_and_cache(3, 2, 8, 16, torch.float16)
    every_writer(key, value, (key_cache, value_cache), torch.tensor([4, 29, 11]), True, device)
    strided = key.transpose(1, 2).contiguous().transpose(1, 2)
    every_writer(strided, value, (key_cache, value_cache), torch.tensor([4, 29, 11]), True, device)


@pytest.mark.parametrize("nz", [False, True], ids=["norm", "nz"])
def test_views(nz: bool, device: str) -> None:
    """Keys and values are parts of one projection, caches are parts of one store; its other half stays."""
    c = 16 if nz else None
    slots = torch.tensor([17, -1, 2, 2, 28])
    projection = torch.randint(-99, 99, (5, 2 * 32 + 2 * 32)).float()
    shape = (2, 32) if not nz else (4, 16)
    store = torch.zeros(BLOCKS, 2, SIZE, *shape) if not nz else torch.zeros(BLOCKS, 4, 2, SIZE, 16)
    source, placed, s = on(device, projection, store, slots)
    key, value = (part.unflatten(1, (2, 32)) for part in source.chunk(2, 1))
    caches = placed.unbind(1) if not nz else placed.unbind(2)
    assert not any(t.is_contiguous() for t in (key, value, *caches))
    (SCATTER if nz else RESHAPE)(key, value, *caches, s)
    tokens = [part.unflatten(1, (2, 32)) for part in projection.chunk(2, 1)]
    for token, cache in zip(tokens, caches, strict=True):
        empty = tokens_and_cache(0, 2, 32, c, torch.float32)[1].zero_()
        same(cache, looped(token, empty, slots, nz))
    results = FUNCTIONAL(key, value, *[t.zero_() for t in caches], s, cache_mode="PA_NZ" if nz else "Norm")
    for token, result in zip(tokens, results, strict=True):
        same(result, looped(token, tokens_and_cache(0, 2, 32, c, torch.float32)[1].zero_(), slots, nz))


def test_tokens_may_be_parts_of_the_caches(device: str) -> None:
    cache = torch.arange(BLOCKS * SIZE * 2.0).reshape(BLOCKS, SIZE, 1, 2)
    slots = torch.tensor([3, 0, 4, 1, 2, 5])
    expected_key = looped(cache[0].clone(), cache, slots, False)
    expected_value = looped(cache[0].clone(), -cache, slots, False)
    keys, values, s = on(device, cache, -cache, slots)
    SCATTER(keys[0], keys[0], keys, values, s, cache_mode="Norm")
    same(keys, expected_key)
    same(values, expected_value)


def test_of_caches_that_fit_both_layouts_the_plain_one_is_meant(device: str) -> None:
    """Heads of 16 elements and blocks of as many tokens as there are heads; the other cache may settle it."""
    key = torch.randn(2, 3, 16)
    slots = torch.tensor([4, 0])
    cache = torch.zeros(BLOCKS, 3, 3, 16)
    k, c, d, s = on(device, key, cache, cache, slots)
    RESHAPE(k, k, c, d, s)
    same(c, looped(key, cache, slots, False))
    value, value_cache = torch.randn(2, 4, 16), torch.zeros(BLOCKS, 4, 3, 16)
    k, v, c, d, s = on(device, key, value, cache, value_cache, slots)
    RESHAPE(k, v, c, d, s)
    same(c, looped(key, cache, slots, True))
    same(d, looped(value, value_cache, slots, True))


@PROPERTY
@given(data=st.data())
def test_of_equal_slots_the_last_wins(data: st.DataObject, device: str) -> None:
    nz = data.draw(st.booleans())
    heads, parts = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    slots = data.draw(st.lists(st.integers(-2, BLOCKS * SIZE - 1), min_size=1, max_size=12))
    key, key_cache = tokens_and_cache(len(slots), heads, 4 * parts, 4 if nz else None, torch.float32)
    value, value_cache = tokens_and_cache(len(slots), 1, 4, 4 if nz else None, torch.float32)
    modes: dict[str, Any] = {"cache_mode": "PA_NZ" if nz else "Norm"}
    index = torch.tensor(slots)
    k, v, c, d, s = on(device, key, value, key_cache, value_cache, index)
    SCATTER(k, v, c, d, s, **modes)
    same(c, looped(key, key_cache, index, nz))
    same(d, looped(value, value_cache, index, nz))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("distinct", [False, True])
def test_many_tokens_with_every_number_of_threads(threads: int, distinct: bool) -> None:
    """Token t holds the number t, so of all that came to a slot the greatest must stay."""
    count, blocks = 4000, 400
    slots = torch.arange(1, count + 1) if distinct else torch.randint(-1, 300, (count,))
    key = torch.arange(count).float()[:, None, None].expand(count, 2, 32)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        plain, _ = FUNCTIONAL(
            key, key, torch.full((blocks, 16, 2, 32), -1.0), torch.zeros(blocks, 16, 2, 32), slots, cache_mode="Norm"
        )
        _, blocked = FUNCTIONAL(key, key, torch.zeros(blocks, 4, 16, 16), torch.full((blocks, 4, 16, 16), -1.0), slots)
    finally:
        torch.set_num_threads(before)
    seen = slots >= 0
    last = torch.full((blocks * 16,), -1.0)
    last.scatter_reduce_(0, slots[seen], torch.arange(count).float()[seen], "amax")
    assert torch.equal(plain, last.view(blocks, 16, 1, 1).expand_as(plain))
    assert torch.equal(blocked, last.view(blocks, 1, 16, 1).expand_as(blocked))


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [BLOCKS * SIZE, 2**31 - 1])
def test_slots_out_of_range_change_nothing(bad: int, device: str) -> None:
    key, key_cache = tokens_and_cache(3, 2, 4, None, torch.float32)
    slots = torch.tensor([1, -5, bad])
    k, c, d, s = on(device, key, key_cache, key_cache, slots)
    calls: list[tuple[str, Callable[[], object]]] = [
        ("npu::npu_scatter_pa_kv_cache", lambda: SCATTER(k, k, c, d, s, cache_mode="Norm")),
        ("npu::npu_scatter_pa_kv_cache_functional", lambda: FUNCTIONAL(k, k, c, d, s, cache_mode="Norm")),
        ("atb::_npu_reshape_and_cache", lambda: RESHAPE(k, k, c, d, s)),
    ]
    for name, call in calls:
        message = rf"{name}: slot {bad} of token 2 is out of range: expected slot < 30, 5 blocks of 6 tokens"
        with pytest.raises(IndexError, match=message):
            call()
            torch.npu.synchronize()
        torch.npu.synchronize()
        same(c, key_cache)
        same(d, key_cache)


def test_errors_name_operator_and_argument(device: str) -> None:
    def zeros(*shape: int, dtype: torch.dtype = torch.float32, where: str = device) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=where)

    key, cache, blocked = zeros(3, 2, 8), zeros(5, 6, 2, 8), zeros(5, 1, 6, 16)
    slots = zeros(3, dtype=torch.int32)
    mode = {"cache_mode": "Norm"}
    half = torch.float16
    for call, message in [
        (lambda: SCATTER(key, key, cache, cache, slots), "npu_scatter_pa_kv_cache: argument key_cache: expected shape"),
        (
            lambda: SCATTER(key, key, blocked, cache, slots),
            r"argument value_cache: .* 16 elements of a token on dims 1",
        ),
        (lambda: SCATTER(key, key, blocked, blocked, slots, **mode), r"key_cache: expected shape \(blocks, block size"),
        (
            lambda: SCATTER(key, key, cache, cache, slots, cache_mode="ND"),
            "argument cache_mode: expected 'PA_NZ', 'Norm'",
        ),
        (lambda: SCATTER(key, key[0], cache, cache, slots, **mode), r"argument value: expected shape \(3, heads, head"),
        (lambda: SCATTER(key[0], key, cache, cache, slots, **mode), "not supported on this device; expected key of"),
        (lambda: SCATTER(key, key, cache, cache, slots, seq_lens=slots), "compressed heads .* not supported on this"),
        (lambda: SCATTER(key[None], key, cache, cache, slots), "argument key: compressed heads"),
        (lambda: SCATTER(key, key, cache, cache, slots[:2], **mode), r"argument slot_mapping: expected shape \[3\]"),
        (lambda: SCATTER(key, key, cache, cache, slots.float(), **mode), "argument slot_mapping: expected dtype int32"),
        (
            lambda: SCATTER(key, key, cache, cache.half(), slots, **mode),
            "value_cache: expected dtype float32 .* float16",
        ),
        (lambda: SCATTER(key, key, cache, cache[:4], slots, **mode), "argument value_cache: expected 5 blocks of 6"),
        (
            lambda: SCATTER(key, key, cache[:1].expand(5, 6, 2, 8), cache, slots, **mode),
            "argument key_cache: more than one element refers to a single memory",
        ),
        (lambda: FUNCTIONAL(key, key, cache, cache, slots), "npu_scatter_pa_kv_cache_functional: argument key_cache: "),
        (
            lambda: RESHAPE(key, key, cache, blocked, slots),
            "_npu_reshape_and_cache: argument value_cache: expected shape",
        ),
        (lambda: RESHAPE(key, key, cache, cache, slots[:1]), r"argument slot_indices: expected shape \[3\]"),
        (lambda: RESHAPE(key[0], key, cache, cache, slots), r"argument key: expected shape \(tokens, heads, head size"),
        (lambda: RESHAPE(key.to(half), key, cache, cache, slots), "argument key_cache: expected dtype float16"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()
    key, cache, blocked, slots = (t.to("meta") for t in (key, cache, blocked, slots))
    for call, message in [
        (lambda: SCATTER(key, key, cache, cache, slots), "npu_scatter_pa_kv_cache: argument key_cache: expected shape"),
        (lambda: SCATTER(key, key, cache, cache, slots, cache_mode="ND"), "argument cache_mode: expected"),
        (lambda: FUNCTIONAL(key, key, cache, cache[:4], slots, **mode), "argument value_cache: expected 5 blocks of 6"),
        (lambda: RESHAPE(key, key, cache, blocked, slots), "argument value_cache: expected shape"),
        (lambda: RESHAPE(key, key, cache, cache, slots[:1]), r"argument slot_indices: expected shape \[3\]"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_devices_must_agree() -> None:
    import torch_npu

    key, cache, slots = torch.zeros(3, 2, 8), torch.zeros(5, 6, 2, 8), torch.zeros(3, dtype=torch.long)
    message = "^Expected all tensors to be on the same device, but found at least two devices, "
    with pytest.raises(RuntimeError, match=message + "npu:0 and cpu! .* argument value_cache"):
        RESHAPE(key.npu(), key.npu(), cache.npu(), cache, slots.npu())
    with pytest.raises(RuntimeError, match=message + "cpu and npu:0! .* argument slot_indices"):
        torch_npu._npu_reshape_and_cache(key, key, cache, cache, slots.npu())


def test_compiled_step(device: str) -> None:
    def step(qkv: Tensor, cache: Tensor, slots: Tensor) -> Tensor:
        key, value = (part.unflatten(1, (2, 8)) * 2 for part in qkv.chunk(2, 1))
        RESHAPE(key, value, cache[0], cache[1], slots)
        return cache.sum((1, 2, 3))

    qkv, cache, slots = on(device, torch.randn(3, 32), torch.zeros(2, 5, 6, 2, 8), torch.tensor([7, 2, 29]))
    eager, compiled = cache.clone(), cache.clone()
    expected = step(qkv, eager, slots)
    torch._dynamo.reset()
    actual = torch.compile(step, backend="aot_eager", fullgraph=True)(qkv, compiled, slots)
    torch.testing.assert_close(actual, expected)
    same(compiled, eager.cpu())


@pytest.mark.parametrize("first", [0, 3])
def test_large_blocked_caches_of_neighbouring_slots(first: int, device: str) -> None:
    """Large outputs are written past the caches, groups of slots at once; a slot that repeats keeps its last token."""
    key, value = torch.randn(2100, 8, 128).bfloat16(), torch.randn(2100, 8, 128).bfloat16()
    slots = torch.cat([torch.arange(1100) + 1200 + first, torch.arange(900) + first, torch.arange(100) + 1250])
    caches = [torch.zeros(20, 64, 128, 16, dtype=torch.bfloat16) for _ in range(2)]
    expected = [cache.clone() for cache in caches]
    for cache, tokens in zip(expected, (key, value), strict=True):
        for token, slot in zip(tokens, slots.tolist(), strict=True):
            cache[slot // 128, :, slot % 128] = token.view(64, 16)
    placed = [cache.to(device) for cache in caches]
    torch.ops.npu.npu_scatter_pa_kv_cache(key.to(device), value.to(device), *placed, slots.to(device))
    for cache, wanted in zip(placed, expected, strict=True):
        assert torch.equal(cache.cpu(), wanted)
