"""npu_kv_rmsnorm_rope_cache against the formulas in float64 and the cache layouts element by element."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

WRITE = torch.ops.npu.npu_kv_rmsnorm_rope_cache
MODES = ["Norm", "PA", "PA_BNSD", "PA_NZ", "PA_BLK_BNSD", "PA_BLK_NZ"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Half a unit in the last place, plus what float32 loses.
RTOL = {torch.float32: 4e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
EPSILON = 1e-3


def norm(x: Tensor, gamma: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt() * gamma


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.cat([first, second], -1) * cos + torch.cat([-second, first], -1) * sin


def values(kv: Tensor, gamma: Tensor, cos: Tensor, sin: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
    """What goes to k_cache and ckv_cache, in float64: (B, S, columns)."""
    kv, gamma, cos, sin = (t.cpu().double() for t in (kv, gamma, cos, sin))
    turned = cos.shape[-1]
    if v is None:
        k, y = rope(kv[..., -turned:], cos, sin), norm(kv[..., :-turned], gamma)
    else:
        whole = norm(kv, gamma)
        k = torch.cat([rope(whole[..., :turned], cos, sin), whole[..., turned:]], -1)
        y = v.cpu().double()
    return k[:, 0], y[:, 0]


def places(index: Tensor, batches: int, length: int, mode: str, size: int) -> list[list[tuple[int, int] | None]]:
    """Block and row of every token, None where it is skipped."""
    out: list[list[tuple[int, int] | None]] = []
    for b in range(batches):
        row: list[tuple[int, int] | None] = []
        for s in range(length):
            if mode == "Norm":
                one = int(index[b, s])
                row.append(None if one < 0 else (b, one))
            elif mode.startswith("PA_BLK"):
                one = int(index[b * -(-length // size) + s // size])
                row.append(None if one < 0 else (one // size, s % size))
            else:
                one = int(index[b * length + s])
                row.append(None if one < 0 else divmod(one, size))
        out.append(row)
    return out


def logical(cache: Tensor, mode: str, quantised: bool) -> Tensor:
    """The cache as (blocks, rows, columns)."""
    if mode == "Norm":
        return cache[:, 0]
    blocks, size, _, columns = cache.shape
    if not mode.endswith("NZ"):
        return cache[:, :, 0]
    chunk = 32 if quantised else 16
    return cache.reshape(blocks, columns // chunk, size, chunk).transpose(1, 2).reshape(blocks, size, columns)


def assert_cache(
    cache: Tensor,
    before: Tensor,
    value: Tensor,
    where: list[Any],
    mode: str,
    scale: Tensor | None,
    offset: Tensor | None,
) -> None:
    """Every written row holds its value, every other row what it held."""
    after, expected = (logical(t.cpu(), mode, scale is not None).double() for t in (cache, before))
    written = set()
    for b, row in enumerate(where):
        for s, place in enumerate(row):
            if place is None:
                continue
            written.add(place)
            wanted = value[b, s]
            if scale is None:
                rtol = RTOL[cache.dtype]
                torch.testing.assert_close(after[place], wanted, rtol=rtol, atol=5e-6)
                continue
            exact = wanted * scale.cpu().double() + (0 if offset is None else offset.cpu().double())
            exact = exact.clamp(-128, 127)
            assert (after[place] - exact).abs().max() <= 0.5 + 1e-4
    for block in range(after.shape[0]):
        for r in range(after.shape[1]):
            if (block, r) not in written:
                assert torch.equal(after[block, r], expected[block, r]), "a row was written that no index names"


def inputs(
    dtype: torch.dtype,
    device: str,
    mode: str,
    *,
    sizes: tuple[int, int, int, int] = (2, 5, 32, 16),
    v: int | None = None,
) -> dict[str, Any]:
    """Arguments with kv a slice of a fused projection; sizes: B, S, Hr, Dr."""
    batches, length, hr, dr = sizes
    columns = hr + dr

    def random(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype).to(device)

    fused = random(batches, length, columns + 7)
    kv = fused[:, :, 3 : 3 + columns].unsqueeze(1)
    size = 4
    if mode == "Norm":
        index = torch.stack([torch.randperm(9)[:length] for _ in range(batches)])
        index[0, 0] = -1
        shape = (batches, 1, 9)
    elif mode.startswith("PA_BLK"):
        pages = batches * -(-length // size)
        index = torch.randperm(pages + 2)[:pages] * size
        index[0] = -5
        shape = (pages + 2, size, 1)
    else:
        blocks = -(-batches * length // size) + 1
        index = torch.randperm(blocks * size)[: batches * length]
        index[1] = -1
        shape = (blocks, size, 1)
    k_columns, ckv_columns = (dr, hr) if v is None else (columns, v)
    return {
        "kv": kv,
        "gamma": random(hr if v is None else columns),
        "cos": random(batches, 1, length, dr),
        "sin": random(batches, 1, length, dr),
        "index": index.to(device),
        "k_cache": random(*shape, k_columns),
        "ckv_cache": random(*shape, ckv_columns),
        "v": None if v is None else random(batches, 1, length, v),
    }


def check_call(arguments: dict[str, Any], mode: str, **options: Any) -> tuple[Tensor, ...]:
    """Call, compare everything with the reference, return the outputs."""
    before = {name: arguments[name].clone() for name in ("k_cache", "ckv_cache")}
    kv, gamma, cos, sin, v = (arguments[name] for name in ("kv", "gamma", "cos", "sin", "v"))
    k, y = values(kv, gamma, cos, sin, v)
    outputs = WRITE(**arguments, **options, epsilon=EPSILON, cache_mode=mode)
    assert outputs[0] is arguments["k_cache"] and outputs[1] is arguments["ckv_cache"]
    size = before["k_cache"].shape[2 if mode == "Norm" else 1]
    where = places(arguments["index"].cpu(), kv.shape[0], kv.shape[2], mode, size)
    for name, value, prefix in (("k_cache", k, "k_rope"), ("ckv_cache", y, "c_kv")):
        scale, offset = options.get(f"{prefix}_scale"), options.get(f"{prefix}_offset")
        assert_cache(arguments[name], before[name], value, where, mode, scale, offset)
    for output, value in ((outputs[2], k), (outputs[3], y)):
        assert output.dtype == kv.dtype and output.shape == (kv.shape[0], 1, *value.shape[1:])
        assert output.device == kv.device and output.is_contiguous()
        if options.get("is_output_kv") and mode != "Norm":
            torch.testing.assert_close(output[:, 0].cpu().double(), value, rtol=RTOL[kv.dtype], atol=5e-6)
        else:
            assert not output.any()
    return outputs


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_modes(dtype: torch.dtype, mode: str, wanted: bool, device: str) -> None:
    check_call(inputs(dtype, device, mode), mode, is_output_kv=wanted)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", ["k", "ckv", "both", "offsets"])
def test_quantised_caches(which: str, mode: str, device: str) -> None:
    arguments = inputs(torch.bfloat16, device, mode, sizes=(2, 5, 64, 32))
    options: dict[str, Any] = {}
    for cache, prefix in (("k_cache", "k_rope"), ("ckv_cache", "c_kv")):
        if which not in ("both", "offsets") and f"{which}_cache" != cache:
            continue
        columns = arguments[cache].shape[-1]
        arguments[cache] = torch.randint(-128, 128, arguments[cache].shape, dtype=torch.int8, device=device)
        options[f"{prefix}_scale"] = (torch.rand(columns) * 60).to(device)  # some values saturate
        if which == "offsets":
            options[f"{prefix}_offset"] = (torch.randn(columns) * 20).to(device)
    check_call(arguments, mode, **options, is_output_kv=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_with_v_the_whole_row_is_normalised(dtype: torch.dtype, mode: str, device: str) -> None:
    check_call(inputs(dtype, device, mode, v=64), mode, is_output_kv=True)


@pytest.mark.parametrize("mode", ["Norm", "PA", "PA_BLK_BNSD"])
@pytest.mark.parametrize(("hr", "dr", "v"), [(1, 2, None), (7, 6, None), (33, 34, None), (5, 8, 3), (513, 66, None)])
def test_odd_widths(hr: int, dr: int, v: int | None, mode: str, device: str) -> None:
    check_call(inputs(torch.float16, device, mode, sizes=(3, 3, hr, dr), v=v), mode, is_output_kv=True)


def test_halves_that_are_no_multiple_of_a_fractal(device: str) -> None:
    """Half of 48 columns is one and a half fractals of 16, so a vector may end in the next one."""
    check_call(inputs(torch.bfloat16, device, "PA_NZ", sizes=(2, 3, 32, 48)), "PA_NZ")
    arguments = inputs(torch.bfloat16, device, "PA_NZ", sizes=(2, 3, 32, 96))
    arguments["k_cache"] = torch.zeros(arguments["k_cache"].shape, dtype=torch.int8, device=device)
    check_call(arguments, "PA_NZ", k_rope_scale=torch.full((96,), 30.0, device=device))


@pytest.mark.parametrize("cache", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_caches_of_another_float_type(dtype: torch.dtype, cache: torch.dtype, device: str) -> None:
    arguments = inputs(dtype, device, "PA")
    arguments["k_cache"] = arguments["k_cache"].to(cache)
    check_call(arguments, "PA")


def test_one_token_per_batch_and_broadcast_angles(device: str) -> None:
    arguments = inputs(torch.bfloat16, device, "PA", sizes=(6, 1, 32, 16))
    check_call(arguments, "PA")
    arguments["cos"], arguments["sin"] = (arguments[name][:1] for name in ("cos", "sin"))
    check_call(arguments, "PA")
    arguments = inputs(torch.bfloat16, device, "Norm")
    arguments["cos"], arguments["sin"] = (arguments[name][:, :, :1] for name in ("cos", "sin"))
    check_call(arguments, "Norm")


def sliced(cache: Tensor) -> Tensor:
    wide = torch.zeros(*cache.shape[:-1], cache.shape[-1] + 5, dtype=cache.dtype, device=cache.device)
    return wide[..., 2:-3].copy_(cache)


def transposed(cache: Tensor) -> Tensor:
    return cache.transpose(0, 3).contiguous().transpose(0, 3)


def every_second_block(cache: Tensor) -> Tensor:
    return cache.repeat_interleave(2, 0)[::2]


@pytest.mark.parametrize("make", [sliced, transposed, every_second_block])
@pytest.mark.parametrize("mode", MODES)
def test_caches_are_written_through_views(mode: str, make: Callable[[Tensor], Tensor], device: str) -> None:
    arguments = inputs(torch.bfloat16, device, mode)
    for name in ("k_cache", "ckv_cache"):
        arguments[name] = make(arguments[name])
        assert not arguments[name].is_contiguous()
    check_call(arguments, mode, is_output_kv=True)


def test_strided_inputs_give_what_contiguous_ones_give(device: str) -> None:
    arguments = inputs(torch.bfloat16, device, "PA", v=24)
    results = []
    for change in (lambda t: t.contiguous(), lambda t: t.transpose(0, -1).contiguous().transpose(0, -1)):
        changed = {name: change(arguments[name]) for name in ("kv", "cos", "sin", "v")}
        gamma = torch.stack([arguments["gamma"]] * 2, 1)[:, 0]
        index = torch.stack([arguments["index"]] * 2, 1)[:, 0]
        caches = {name: arguments[name].clone() for name in ("k_cache", "ckv_cache")}
        results.append(
            WRITE(
                **{**arguments, **changed, **caches, "gamma": gamma, "index": index}, cache_mode="PA", is_output_kv=True
            )
        )
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours.cpu(), theirs.cpu())


def test_specification_example(device: str) -> None:
    kv = torch.tensor([1.0, 1.0, 1.0, 2.0, 3.0, 4.0], device=device).view(1, 1, 1, 6)
    cos = torch.tensor([0.5, 0.6, 0.5, 0.6], device=device).view(1, 1, 1, 4)
    sin = torch.tensor([0.8, 0.7, 0.8, 0.7], device=device).view(1, 1, 1, 4)
    k_cache, ckv_cache = torch.zeros(1, 4, 1, 4, device=device), torch.zeros(1, 4, 1, 2, device=device)
    index = torch.tensor([2], device=device)
    outputs = WRITE(
        kv, torch.ones(2, device=device), cos, sin, index, k_cache, ckv_cache, cache_mode="PA", is_output_kv=True
    )
    expected = torch.tensor([-1.1, -1.0, 1.8, 4.5])
    torch.testing.assert_close(k_cache.cpu()[0, 2, 0], expected)
    torch.testing.assert_close(outputs[2].cpu().flatten(), expected)
    torch.testing.assert_close(ckv_cache.cpu()[0, 2, 0], torch.ones(2), rtol=1e-5, atol=0)
    assert int(k_cache.cpu().count_nonzero()) == 4


@pytest.mark.parametrize("mode", MODES)
def test_no_tokens(mode: str, device: str) -> None:
    for sizes in ((0, 3, 32, 16), (2, 0, 32, 16)):
        batches, length, hr, dr = sizes
        shape = (batches, 1, 9) if mode == "Norm" else (3, 4, 1)
        k_cache, ckv_cache = torch.ones(*shape, dr, device=device), torch.ones(*shape, hr, device=device)
        angles = torch.ones(batches, 1, length, dr, device=device)
        index = torch.empty((batches, length) if mode == "Norm" else (0,), dtype=torch.int64, device=device)
        kv = torch.ones(batches, 1, length, hr + dr, device=device)
        out = WRITE(kv, torch.ones(hr, device=device), angles, angles, index, k_cache, ckv_cache, cache_mode=mode)
        assert out[2].shape == (batches, 1, length, dr) and out[3].shape == (batches, 1, length, hr)
        assert bool((k_cache == 1).all())


def test_every_token_may_be_skipped(device: str) -> None:
    arguments = inputs(torch.bfloat16, device, "PA")
    arguments["index"].fill_(-1)
    arguments["k_cache"], arguments["ckv_cache"] = (arguments[name][:0] for name in ("k_cache", "ckv_cache"))
    check_call(arguments, "PA", is_output_kv=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kernel_table(isa: str, dtype: torch.dtype) -> None:
    for mode in MODES:
        for hr, dr in ((32, 16), (64, 48)):
            check_call(inputs(dtype, "cpu", mode, sizes=(2, 3, hr, dr)), mode, is_output_kv=True)
            check_call(inputs(dtype, "cpu", mode, sizes=(2, 3, hr, dr), v=32), mode, is_output_kv=True)
    for dr in range(2, 40, 2):
        check_call(inputs(dtype, "cpu", "PA", sizes=(1, 2, dr + 1, dr)), "PA", is_output_kv=True)


@settings(deadline=None, derandomize=True, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.floats(-300, 300, width=32), min_size=32, max_size=32),
    st.floats(0, 3, width=32),
    st.floats(-50, 50, width=32),
)
def test_quantiser_rounds_half_to_even_and_saturates(numbers: list[float], scale: float, offset: float) -> None:
    """cos = 1, sin = 0: the rope part goes to the cache as it is."""
    x = torch.tensor(numbers)
    kv = torch.cat([torch.ones(1), x.view(2, 16).t().reshape(-1)]).view(1, 1, 1, 33)
    angles = torch.ones(1, 1, 1, 32), torch.zeros(1, 1, 1, 32)
    cache = torch.zeros(1, 1, 1, 32, dtype=torch.int8)
    scales, offsets = torch.full((32,), scale), torch.full((32,), offset)
    index = torch.zeros(1, dtype=torch.int64)
    options = {"k_rope_scale": scales, "k_rope_offset": offsets, "cache_mode": "PA"}
    WRITE(kv, torch.ones(1), *angles, index, cache, torch.zeros(1, 1, 1, 1), **options)
    exact = x.double() * scale + offset
    expected = exact.round().clamp(-128, 127)
    near_a_tie = ((exact - exact.floor()) - 0.5).abs() < 1e-4  # float32 may see it on the other side
    assert torch.equal(cache.view(-1).double()[~near_a_tie], expected[~near_a_tie])
    assert bool(((cache.view(-1) - exact.clamp(-128, 127)).abs() <= 0.5 + 1e-4).all())


def test_ties_go_to_even() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 127.5, -128.5, float("nan")])
    kv = torch.cat([torch.ones(1), x.view(2, 4).t().reshape(-1)]).view(1, 1, 1, 9)
    cache = torch.zeros(1, 1, 1, 8, dtype=torch.int8)
    index = torch.zeros(1, dtype=torch.int64)
    ones = torch.ones(1, 1, 1, 8)
    WRITE(
        kv,
        torch.ones(1),
        ones,
        0 * ones,
        index,
        cache,
        torch.zeros(1, 1, 1, 1),
        k_rope_scale=ones.view(-1),
        cache_mode="PA",
    )
    # The NaN meets its partner of the pair, -0.5, through sin * NaN.
    assert cache.view(-1).tolist() == [0, 2, 2, 0, -2, 127, -128, 0]


# ---- torch.compile ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["Norm", "PA_NZ"])
def test_compiled_graphs_keep_the_writes_in_order(mode: str, device: str) -> None:
    arguments = inputs(torch.float32, device, mode)

    def step(k_cache: Tensor, ckv_cache: Tensor, kv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = k_cache.sum()
        rest = {name: arguments[name] for name in ("gamma", "cos", "sin", "index")}
        WRITE(kv=kv * 2, k_cache=k_cache, ckv_cache=ckv_cache, cache_mode=mode, **rest)  # the results go unused
        second = k_cache.sum()
        k, _, _, _ = WRITE(kv=kv, k_cache=k_cache, ckv_cache=ckv_cache, cache_mode=mode, **rest)
        return first, second, k + 1

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    ours, theirs = ([arguments[name].clone() for name in ("k_cache", "ckv_cache")] for _ in range(2))
    for actual, expected in zip(compiled(*ours, arguments["kv"]), step(*theirs, arguments["kv"]), strict=True):
        torch.testing.assert_close(actual, expected)
    for actual, expected in zip(ours, theirs, strict=True):
        assert torch.equal(actual.cpu(), expected.cpu())


# ---- errors -----------------------------------------------------------------------------------------------------


def test_an_index_beyond_the_cache_writes_nothing() -> None:
    for mode, bad in (("Norm", 9), ("PA", 16), ("PA_NZ", 2**62), ("PA_BLK_BNSD", 24)):
        arguments = inputs(torch.bfloat16, "cpu", mode)
        arguments["index"].view(-1)[-1] = bad
        before = {name: arguments[name].clone() for name in ("k_cache", "ckv_cache")}
        with pytest.raises(
            IndexError, match=f"npu_kv_rmsnorm_rope_cache: argument index: element .* is {bad}, expected"
        ):
            WRITE(**arguments, cache_mode=mode)
        for name, value in before.items():
            assert torch.equal(arguments[name], value)


def test_an_index_beyond_the_cache_surfaces_at_the_next_synchronisation() -> None:
    import torch_npu

    arguments = inputs(torch.bfloat16, "npu", "PA")
    arguments["index"][3] = 16
    torch_npu.npu.synchronize()
    WRITE(**arguments, cache_mode="PA")
    with pytest.raises(IndexError, match="argument index: element 3 is 16, expected less than 16"):
        torch_npu.npu.synchronize()


def test_errors_name_the_argument(device: str) -> None:
    def change(message: str, mode: str = "PA", **changes: Any) -> None:
        arguments = {**inputs(torch.bfloat16, device, "PA" if mode == "nonsense" else mode), **changes}
        with pytest.raises(RuntimeError, match="npu_kv_rmsnorm_rope_cache: argument " + message):
            WRITE(**arguments, cache_mode=mode)

    def ones(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    change(
        "cache_mode: expected one of Norm, PA, PA_BNSD, PA_NZ, PA_BLK_BNSD, PA_BLK_NZ, got nonsense", mode="nonsense"
    )
    change("kv: expected 4 dims", kv=ones(2, 5, 48))
    change("kv: expected 4 dims", kv=ones(2, 2, 5, 48))
    change(r"kv: expected as many columns .*\(32 \+ 16\), got 49", kv=ones(2, 1, 5, 49))
    change("kv: expected dtype float16, bfloat16 or float32, got float64", kv=ones(2, 1, 5, 48, dtype=torch.float64))
    change("gamma: expected 1 dim", gamma=ones(1, 32))
    change("gamma: expected dtype bfloat16, got float32", gamma=ones(32, dtype=torch.float32))
    change("cos: expected 4 dims", cos=ones(5, 16))
    change("cos: expected 4 dims", cos=ones(2, 1, 4, 16))
    change("cos: expected 4 dims .* even Dr", cos=ones(2, 1, 5, 15))
    change(r"sin: expected shape \[2, 1, 5, 16\]", sin=ones(2, 1, 5, 8))
    change("index: expected dtype int64, got int32", index=ones(10, dtype=torch.int32))
    change(r"index: expected shape \[10\] \(B \* S,\), got \[2, 5\]", index=ones(2, 5, dtype=torch.int64))
    change(r"index: expected shape \[2, 5\] \(B, S\), got \[10\]", mode="Norm", index=ones(10, dtype=torch.int64))
    change(r"index: expected shape \[4\]", mode="PA_BLK_NZ", index=ones(5, dtype=torch.int64))
    change(r"k_cache: expected shape \(blocks, block_size, 1, 16\) for cache_mode PA", k_cache=ones(4, 1, 4, 16))
    change(r"k_cache: expected shape \(B, 1, rows, 16\) for cache_mode Norm", mode="Norm", k_cache=ones(3, 1, 9, 16))
    change("k_cache: expected dtype int8 with k_rope_scale, got bfloat16", k_rope_scale=ones(16, dtype=torch.float32))
    change("k_cache: .* or int8 with k_rope_scale, got int8", k_cache=ones(4, 4, 1, 16, dtype=torch.int8))
    change(
        "k_cache: more than one element refers to a single memory location",
        k_cache=ones(1, 4, 1, 16).expand(4, 4, 1, 16),
    )
    change(r"ckv_cache: expected shape \[4, 4, 1, 32\]", ckv_cache=ones(4, 4, 1, 31))
    change("c_kv_offset: expected c_kv_scale with it", c_kv_offset=ones(32, dtype=torch.float32))
    int8 = ones(4, 4, 1, 32, dtype=torch.int8)
    change("c_kv_scale: expected dtype float32, got bfloat16", ckv_cache=int8, c_kv_scale=ones(32))
    change(r"c_kv_scale: expected shape \[32\]", ckv_cache=int8, c_kv_scale=ones(1, dtype=torch.float32))
    change(r"v: expected shape \(B, 1, S, Dv\)", v=ones(2, 1, 4, 8))
    change("v: expected dtype bfloat16, got float16", v=ones(2, 1, 5, 8, dtype=torch.float16))
    change("gamma: expected as many elements as kv has columns", v=ones(2, 1, 5, 32))
    narrow = inputs(torch.bfloat16, device, "PA_NZ", sizes=(2, 5, 32, 8))
    with pytest.raises(
        RuntimeError, match="argument k_cache: expected a last dim that is a multiple of 16 for cache_mode"
    ):
        WRITE(**narrow, cache_mode="PA_NZ")


def test_devices_must_agree() -> None:
    import torch_npu  # noqa: F401

    arguments = inputs(torch.bfloat16, "npu", "PA")
    arguments["k_cache"] = arguments["k_cache"].cpu()
    message = r"same device, but found at least two devices, npu:0 and cpu! \(when checking argument k_cache"
    with pytest.raises(RuntimeError, match=message):
        WRITE(**arguments, cache_mode="PA")
