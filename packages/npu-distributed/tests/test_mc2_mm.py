"""Products fused with all_reduce, reduce_scatter and all_gather: every mode against float64, on 1 to 4 ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mc2_reference import (
    assert_close,
    comm_name,
    random_floats,
    random_integers,
    random_scales,
    scale_bits,
)
from torch import Tensor

torch_npu = pytest.importorskip("torch_npu")

SIZES = (1, 2, 3, 4)
FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def on_npu(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: one.npu() if isinstance(one, Tensor) else one for name, one in tensors.items()}


# ---- mm + all_reduce ------------------------------------------------------------------------------------------------


def all_reduce_float(rank: int, size: int, dtype_name: str) -> None:
    dtype = FLOATS[dtype_name]
    name = comm_name(rank)
    shapes = [
        # x1's leading sizes, k, n, transposed, bias, x3
        ([5], 7, 3, False, False, False),
        ([33], 65, 17, True, True, False),
        ([2, 9], 40, 31, False, True, True),
        ([1], 1, 1, False, False, True),
        ([64], 128, 96, False, False, False),
        ([1100], 24, 2048, True, True, False),  # several tiles
        ([130], 1030, 300, False, True, False),  # several blocks of a product in each direction, none of them whole
        ([1050], 1026, 129, True, False, False),
        ([0], 8, 4, False, True, False),
        ([3], 0, 4, False, False, False),
    ]
    for case, (leading, k, n, transposed, has_bias, has_x3) in enumerate(shapes):

        def inputs(
            of: int, case: int = case, leading: list[int] = leading, k: int = k, n: int = n
        ) -> dict[str, Tensor]:
            seed = 1000 * case + 10 * of
            return {
                "x1": random_floats([*leading, k], dtype, seed),
                "x2": random_floats([n, k], dtype, seed + 1).t(),
                "bias": random_floats([n], dtype, seed + 2),
                "x3": random_floats([*leading, n], dtype, seed + 3),
            }

        given = inputs(rank)
        options = {key: given[key].npu() for key, wanted in (("bias", has_bias), ("x3", has_x3)) if wanted}
        weight = given["x2"].npu() if transposed else given["x2"].contiguous().npu()
        actual = torch_npu.npu_mm_all_reduce_base(given["x1"].npu(), weight, name, **options)
        expected = inner = torch.zeros(*leading, n, dtype=torch.float64)
        for peer in range(size):
            theirs = {key: one.double() for key, one in inputs(peer).items()}
            product = theirs["x1"] @ theirs["x2"]
            if has_bias:
                product = product + theirs["bias"]
            if has_x3:
                product = product + theirs["x3"]
            expected = expected + product
            inner = inner + theirs["x1"].abs() @ theirs["x2"].abs() + 4
        assert actual.dtype == dtype and actual.is_contiguous()
        assert_close(actual, expected, inner)


def all_reduce_weight_quant(rank: int, size: int, dtype_name: str) -> None:
    dtype = FLOATS[dtype_name]
    name = comm_name(rank)
    m, k, n = 19, 100, 23
    for case, (shape, group, has_offset, transposed) in enumerate(
        [
            ([1], 0, False, False),
            ([n], 0, True, True),
            ([1, n], 0, True, False),
            ([4, n], 32, True, False),
            ([2, n], 64, False, True),
        ]
    ):

        def inputs(of: int, case: int = case, shape: list[int] = shape) -> dict[str, Tensor]:
            seed = 1000 * case + 10 * of
            return {
                "x1": random_floats([m, k], dtype, seed),
                "x2": random_integers([n, k], torch.int8, seed + 1).t(),
                "scale": random_scales(shape, dtype, seed + 2),
                "offset": random_floats(shape, dtype, seed + 3),
                "bias": random_floats([n], dtype, seed + 4),
            }

        given = on_npu(inputs(rank))
        actual = torch_npu.npu_mm_all_reduce_base(
            given["x1"],
            given["x2"] if transposed else given["x2"].contiguous(),
            name,
            bias=given["bias"],
            antiquant_scale=given["scale"],
            antiquant_offset=given["offset"] if has_offset else None,
            antiquant_group_size=group,
        )
        expected = inner = torch.zeros(m, n, dtype=torch.float64)
        for peer in range(size):
            theirs = {key: one.double() for key, one in inputs(peer).items()}

            def rows(values: Tensor, group: int = group) -> Tensor:
                return values if group == 0 else values[torch.arange(k) // group]

            weight = (theirs["x2"] + (rows(theirs["offset"]) if has_offset else 0)) * rows(theirs["scale"])
            product = theirs["x1"] @ weight + theirs["bias"]
            expected = expected + product
            inner = inner + theirs["x1"].abs() @ weight.abs() + 4
        assert actual.dtype == dtype
        assert_close(actual, expected, inner)


def quantised(m: int, k: int, n: int, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        "x1": random_integers([m, k], torch.int8, seed),
        "x2": random_integers([n, k], torch.int8, seed + 1).t(),
        "bias": random_integers([n], torch.int32, seed + 2, 5000),
        "scale": random_scales([n], torch.float32, seed + 3),
        "rows": random_scales([m], torch.float32, seed + 4),
        "x3": random_floats([m, n], dtype, seed + 5),
    }


def all_reduce_int8(rank: int, size: int) -> None:
    name = comm_name(rank)
    for case, (m, k, n, scale_kind, has_bias, has_rows, has_x3) in enumerate(
        [
            (5, 7, 3, "float32", False, False, False),
            (33, 65, 17, "bfloat16", True, True, True),
            (16, 300, 64, "int64", True, False, False),
            (9, 64, 31, "uint64", False, True, True),
            (7, 33, 5, "one", True, False, False),
            (8, 12, 6, "row", False, False, False),
            (700, 16, 1600, "float32", True, True, False),  # several tiles
            (0, 3, 4, "float32", False, False, False),
        ]
    ):
        dtype = torch.bfloat16 if scale_kind == "bfloat16" else torch.float16

        def inputs(of: int, m: int = m, k: int = k, n: int = n, case: int = case) -> dict[str, Tensor]:
            return quantised(m, k, n, 1000 * case + 10 * of, dtype)  # noqa: B023

        def scale_of(given: dict[str, Tensor], kind: str = scale_kind) -> Tensor:
            if kind == "bfloat16":
                return given["scale"].bfloat16()
            if kind == "one":
                return given["scale"][:1]
            return given["scale"][None] if kind == "row" else given["scale"]

        given = inputs(rank)
        scale = scale_of(given)
        options = {
            "dequant_scale": scale_bits(scale, getattr(torch, scale_kind)) if scale_kind.endswith("int64") else scale,
            "bias": given["bias"] if has_bias else None,
            "pertoken_scale": given["rows"] if has_rows else None,
            "x3": given["x3"] if has_x3 else None,
        }
        actual = torch_npu.npu_mm_all_reduce_base(given["x1"].npu(), given["x2"].npu(), name, **on_npu(options))
        expected = inner = torch.zeros(m, n, dtype=torch.float64)
        for peer in range(size):
            theirs = {key: one.double() for key, one in inputs(peer).items()}
            product = theirs["x1"] @ theirs["x2"] + (theirs["bias"] if has_bias else 0)
            product = product * scale_of(inputs(peer)).double()
            if has_rows:
                product = product * theirs["rows"][:, None]
            inner = inner + product.abs()
            if has_x3:
                product = product + theirs["x3"]
                inner = inner + theirs["x3"].abs()
            expected = expected + product
        assert actual.dtype == dtype
        assert_close(actual, expected, inner)


def int8_sums_are_exact(rank: int, size: int) -> None:
    """Scales that are powers of two leave nothing to round but the result."""
    name = comm_name(rank)
    m, k, n = 30, 1000, 40

    def inputs(of: int) -> tuple[Tensor, Tensor]:
        return random_integers([m, k], torch.int8, 7 + of), random_integers([k, n], torch.int8, 70 + of)

    x1, x2 = inputs(rank)
    actual = torch_npu.npu_mm_all_reduce_base(x1.npu(), x2.npu(), name, dequant_scale=torch.full([1], 2.0**-8).npu())
    expected = sum(a.long() @ b.long() for a, b in (inputs(peer) for peer in range(size))) * 2.0**-8
    assert torch.equal(actual.cpu(), expected.float().half())


def all_reduce_int8_transport(rank: int, size: int) -> None:
    """comm_quant_scale_1 and _2: exactly the formula."""
    name = comm_name(rank)
    for case, (m, k, n, is_bfloat16) in enumerate([(21, 40, 13, False), (1, 9, 8, True), (2300, 8, 2048, False)]):
        dtype = torch.bfloat16 if is_bfloat16 else torch.float16
        s1, s2 = random_scales([n], dtype, 5), random_scales([n], dtype, 6) * size

        def inputs(of: int, m: int = m, k: int = k, n: int = n, case: int = case) -> dict[str, Tensor]:
            given = quantised(m, k, n, 1000 * case + 10 * of, torch.float16)
            given["scale"] = given["scale"].bfloat16() * 2.0**-6
            return given

        given = on_npu(inputs(rank))
        actual = torch_npu.npu_mm_all_reduce_base(
            given["x1"],
            given["x2"],
            name,
            dequant_scale=given["scale"] if is_bfloat16 else given["scale"].float(),
            comm_quant_scale_1=s1[None].npu(),
            comm_quant_scale_2=s2.npu(),
            comm_quant_mode=3,
        )
        total = torch.zeros(m, n)
        for peer in range(size):
            theirs = inputs(peer)
            product = (theirs["x1"].double() @ theirs["x2"].double()).float() * theirs["scale"].float()
            total = total + (product / s1.float()).round().clamp(-128, 127) * s1.float()
        expected = ((total / s2.float()).round().clamp(-128, 127) * s2.float()).to(dtype)
        assert torch.equal(actual.cpu(), expected)


# ---- mm + reduce_scatter, all_gather + mm ---------------------------------------------------------------------------

SCALED_CASES = [
    # rows per rank, k, n, type, bias, x1_scale, x2_scale
    (3, 7, 5, "float16", False, False, ""),
    (17, 33, 9, "bfloat16", True, False, ""),
    (8, 24, 6, "int8", True, True, "float32"),
    (5, 70, 11, "int8", False, False, "int64"),
    (4, 12, 10, "int8", False, True, "float32 to float16"),
    (2, 9, 4, "bfloat16", True, True, "float32"),
    (6, 40, 7, "bfloat16", True, True, "float32 to float32"),
    (6, 40, 7, "float16", True, True, "float32 to float32"),
    (0, 5, 3, "float16", True, False, ""),
    (2, 9, 4, "float16 tall", False, False, ""),
    (2, 9, 4, "int8 tall", True, True, "float32"),
]


def scaled_inputs(seed: int, rows: int, k: int, n: int, kind: str) -> dict[str, Tensor]:
    if kind == "int8":
        x, weight = random_integers([rows, k], torch.int8, seed), random_integers([n, k], torch.int8, seed + 1)
        bias = random_integers([n], torch.int32, seed + 2, 900)
    else:
        x, weight = (random_floats(shape, FLOATS[kind], seed + i) for i, shape in enumerate(([rows, k], [n, k])))
        bias = random_floats([n], FLOATS[kind], seed + 2)
    scales = random_scales([rows, 1], torch.float32, seed + 3), random_scales([1, n], torch.float32, seed + 4)
    return {"x": x, "x2": weight.t(), "bias": bias, "x1_scale": scales[0], "x2_scale": scales[1]}


def scaled_options(given: dict[str, Tensor], bias: bool, x1_scale: bool, x2_scale: str) -> dict[str, Any]:
    options: dict[str, Any] = {"comm_mode": "aiv"}
    if bias:
        options["bias"] = given["bias"].npu()
    if x1_scale:
        options["x1_scale"] = given["x1_scale"].npu()
    if x2_scale == "int64":
        options |= {"x2_scale": scale_bits(given["x2_scale"]).npu(), "output_dtype": torch.bfloat16}  # no effect
    elif x2_scale:
        options["x2_scale"] = given["x2_scale"].npu()
        if " to " in x2_scale:
            options["output_dtype"] = getattr(torch, x2_scale.split(" to ")[1])
    else:
        options["output_dtype"] = torch.float32  # no effect without scales
    return options


def scaled_type(kind: str, x2_scale: str) -> torch.dtype:
    if not x2_scale:
        return FLOATS[kind]
    if " to " in x2_scale:
        return getattr(torch, x2_scale.split(" to ")[1])
    return torch.bfloat16 if x2_scale == "float32" else torch.float16


def reduce_scatter(rank: int, size: int) -> None:
    name = comm_name(rank)
    for case, (rows, k, n, label, bias, x1_scale, x2_scale) in enumerate(SCALED_CASES):
        kind = label.split()[0]
        if "tall" in label:
            rows, k, n = 1200 // size, 5, 2048  # several tiles
        seed = 1000 * case
        given = scaled_inputs(seed + 10 * rank, size * rows, k, n, kind)
        actual = torch_npu.npu_mm_reduce_scatter_base(
            given["x"].npu(), given["x2"].npu(), name, size, **scaled_options(given, bias, x1_scale, x2_scale)
        )
        expected = inner = torch.zeros(rows, n, dtype=torch.float64)
        mine = slice(rank * rows, (rank + 1) * rows)
        for peer in range(size):
            theirs = {
                key: one.double() for key, one in scaled_inputs(seed + 10 * peer, size * rows, k, n, kind).items()
            }
            scale = (theirs["x2_scale"] if x2_scale else 1) * (theirs["x1_scale"][mine] if x1_scale else 1)
            product = (theirs["x"][mine] @ theirs["x2"] + (theirs["bias"] if bias else 0)) * scale
            expected = expected + product
            inner = inner + (theirs["x"][mine].abs() @ theirs["x2"].abs() + theirs["bias"].abs()) * scale
        assert actual.dtype == scaled_type(kind, x2_scale) and actual.is_contiguous()
        assert_close(actual, expected, inner)


def all_gather(rank: int, size: int) -> None:
    name = comm_name(rank)
    for case, (rows, k, n, label, bias, x1_scale, x2_scale) in enumerate(SCALED_CASES):
        kind = label.split()[0]
        if "tall" in label:
            rows, k, n = (1030, 2048, 3) if kind == "int8" else (1030, 1024, 3)  # rank by rank
        seed = 1000 * case
        given = scaled_inputs(seed + 10 * rank, rows, k, n, kind)
        actual, gathered = torch_npu.npu_all_gather_base_mm(
            given["x"].npu(),
            given["x2"].npu(),
            name,
            size,
            gather_output=case % 2 == 0,
            **scaled_options(given, bias, x1_scale, x2_scale),
        )
        all_inputs = [scaled_inputs(seed + 10 * peer, rows, k, n, kind) for peer in range(size)]
        stacked = torch.cat([theirs["x"] for theirs in all_inputs])
        mine = {key: one.double() for key, one in given.items()}
        scale = mine["x2_scale"] if x2_scale else torch.ones(1)
        if x1_scale:
            scale = scale * torch.cat([theirs["x1_scale"] for theirs in all_inputs]).double()
        expected = (stacked.double() @ mine["x2"] + (mine["bias"] if bias else 0)) * scale
        inner = (stacked.double().abs() @ mine["x2"].abs() + mine["bias"].abs()) * scale
        assert actual.dtype == scaled_type(kind, x2_scale) and actual.is_contiguous()
        assert_close(actual, expected, inner)
        assert gathered.dtype == stacked.dtype
        assert torch.equal(gathered.cpu(), stacked) if case % 2 == 0 else gathered.shape == (0,)


def all_gather_of_the_weight(rank: int, size: int) -> None:
    name = comm_name(rank)
    m, k, n = 6, 11, 7
    for kind, bias, x1_scale, x2_scale in (("bfloat16", True, False, ""), ("int8", False, True, "float32")):

        def inputs(of: int, kind: str = kind) -> dict[str, Tensor]:
            given = scaled_inputs(10 * of, m, size * k, n, kind)
            return given | {"x2": given["x2"][:k]}

        given = inputs(rank)
        options = scaled_options(given, bias, x1_scale, x2_scale)
        actual, gathered = torch_npu.npu_all_gather_base_mm(
            given["x"].npu(), given["x2"].npu(), name, size, gather_index=1, **options
        )
        stacked = torch.cat([inputs(peer)["x2"] for peer in range(size)])
        mine = {key: one.double() for key, one in given.items()}
        scale = mine["x2_scale"] * mine["x1_scale"] if x2_scale else torch.ones(1)
        expected = (mine["x"] @ stacked.double() + (mine["bias"] if bias else 0)) * scale
        inner = (mine["x"].abs() @ stacked.double().abs() + mine["bias"].abs()) * scale
        assert actual.shape == (m, n) and torch.equal(gathered.cpu(), stacked)
        assert_close(actual, expected, inner)


def terms_finer_than_the_result(rank: int, size: int) -> None:
    """Terms that the dtype of the result cannot hold; on each pair of ranks they cancel but for one unit."""
    name = comm_name(rank)
    for dtype, large in ((torch.bfloat16, 256.0), (torch.float16, 2048.0)):
        column = torch.tensor([-large, 0.0] if rank % 2 else [large, 1.0], dtype=dtype).npu()
        for leading, n in ((size, 3), (2400, 2048)):  # one tile and several
            x = torch.ones(leading, 2, dtype=dtype).npu()
            weight = column.unsqueeze(1).expand(2, n)
            total = torch.full((leading, n), size / 2, dtype=dtype)
            assert torch.equal(torch_npu.npu_mm_all_reduce_base(x, weight, name).cpu(), total)
            scattered = torch_npu.npu_mm_reduce_scatter_base(x, weight, name, size)
            assert torch.equal(scattered.cpu(), total[: leading // size])
        # The large half in x1 @ x2, the rest in bias and x3.
        weight = torch.tensor([[-large if rank % 2 else large] * 3, [0.0] * 3], dtype=dtype).npu()
        ones = torch.full((size, 3), 1.0 - rank % 2, dtype=dtype).npu()
        x = torch.ones(size, 2, dtype=dtype).npu()
        actual = torch_npu.npu_mm_all_reduce_base(x, weight, name, bias=ones[0], x3=ones)
        assert torch.equal(actual.cpu(), torch.full((size, 3), float(size), dtype=dtype))


def weights_beyond_float16(rank: int, size: int) -> None:
    """Dequantised weights that float16 cannot hold, where the result can."""
    name = comm_name(rank)
    k, n = 64, 5
    for dtype in FLOATS.values():
        for shape, group in (([1], 0), ([n], 0), ([2, n], 32)):
            for offset in (None, 3.5):
                x1 = torch.full((3, k), 2.0**-12, dtype=dtype)
                x2 = torch.full((k, n), 127, dtype=torch.int8)
                actual = torch_npu.npu_mm_all_reduce_base(
                    x1.npu(),
                    x2.npu(),
                    name,
                    antiquant_scale=torch.full(shape, 600.0, dtype=dtype).npu(),
                    antiquant_offset=None if offset is None else torch.full(shape, offset, dtype=dtype).npu(),
                    antiquant_group_size=group,
                )
                expected = torch.full((3, n), size * k * 2.0**-12 * (127 + (offset or 0)) * 600, dtype=torch.float64)
                assert_close(actual, expected, expected)


def terms_beyond_float16(rank: int, size: int) -> None:
    """Terms and products that float16 cannot hold, where the result can."""
    name = comm_name(rank)
    x = torch.ones(size, 2).half().npu()
    weight = torch.full((2, 3), -30000.0 if rank % 2 else 35008.0).half().npu()
    for leading in (size, 2400):  # one tile and several
        rows = torch.ones(leading, 2).half().npu()
        wide = weight if leading == size else weight[:, :1].expand(2, 2048)
        total = torch.full((leading, wide.size(1)), 10016.0 * size / 2).half()
        assert torch.equal(torch_npu.npu_mm_all_reduce_base(rows, wide, name).cpu(), total)
        scattered = torch_npu.npu_mm_reduce_scatter_base(rows, wide, name, size)
        assert torch.equal(scattered.cpu(), total[: leading // size])
    # The terms count with bias and x3: 20032 in all, from each pair of ranks.
    addend = -49984.0 if rank % 2 else 60000.0
    addends = {"bias": torch.full((3,), addend).half().npu(), "x3": torch.full((size, 3), addend).half().npu()}
    actual = torch_npu.npu_mm_all_reduce_base(x, torch.zeros(2, 3).half().npu(), name, **addends)
    assert torch.equal(actual.cpu(), torch.full((size, 3), 20032.0 * size / 2).half())
    scale = torch.full((1, 3), 2.0**-7).npu()
    for output_dtype in (torch.float16, torch.bfloat16, torch.float32):
        big = torch.full((2, 3), 35008.0).half().npu()
        options = {"x2_scale": scale, "output_dtype": output_dtype}
        gathered, _ = torch_npu.npu_all_gather_base_mm(x, big, name, size, **options)
        assert torch.equal(gathered.cpu(), torch.full((size * size, 3), 70016 / 128).to(output_dtype))
        summed = torch_npu.npu_mm_reduce_scatter_base(x, big, name, size, **options)
        torch.testing.assert_close(summed.cpu(), torch.full((1, 3), 70016 / 128 * size).to(output_dtype))


def views_and_empty_sums(rank: int, size: int) -> None:
    """Strided views give what their copies give; an int8 product over no columns is 0."""
    name = comm_name(rank)
    for dtype in (torch.bfloat16, torch.int8):
        make = random_floats if dtype.is_floating_point else random_integers
        x = make([6, 4 * size], dtype, rank).npu().t()
        weight = make([2 * 6, 10], dtype, 50 + rank).npu()[::2, 1::2]
        assert not x.is_contiguous() and not weight.is_contiguous()
        scale = random_scales([1, 5], torch.float32, 60).npu()
        scaled = {} if dtype.is_floating_point else {"x2_scale": scale}
        dequant = {} if dtype.is_floating_point else {"dequant_scale": scale}
        copies = x.contiguous(), weight.contiguous()
        for function in (
            lambda a, b, options=dequant: torch_npu.npu_mm_all_reduce_base(a, b, name, **options),
            lambda a, b, options=scaled: torch_npu.npu_mm_reduce_scatter_base(a, b, name, size, **options),
            lambda a, b, options=scaled: torch_npu.npu_all_gather_base_mm(a, b, name, size, **options)[0],
        ):
            assert torch.equal(function(x, weight), function(*copies))
    nothing = torch.zeros(3, 0, dtype=torch.int8).npu(), torch.zeros(0, 5, dtype=torch.int8).npu()
    assert not torch_npu.npu_mm_all_reduce_base(*nothing, name, dequant_scale=scale).any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_all_reduce_of_floats(ranks, size: int, dtype: str) -> None:
    ranks(size).run(all_reduce_float, dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_all_reduce_with_int8_weights(ranks, size: int, dtype: str) -> None:
    ranks(size).run(all_reduce_weight_quant, dtype)


@pytest.mark.parametrize("size", SIZES)
def test_all_reduce_of_int8(ranks, size: int) -> None:
    ranks(size).run(all_reduce_int8)
    ranks(size).run(int8_sums_are_exact)


@pytest.mark.parametrize("size", SIZES)
def test_all_reduce_with_int8_transport(ranks, size: int) -> None:
    ranks(size).run(all_reduce_int8_transport)


@pytest.mark.parametrize("size", SIZES)
def test_reduce_scatter(ranks, size: int) -> None:
    ranks(size).run(reduce_scatter)


@pytest.mark.parametrize("size", SIZES)
def test_all_gather(ranks, size: int) -> None:
    ranks(size).run(all_gather)
    ranks(size).run(all_gather_of_the_weight)


@pytest.mark.parametrize("size", [2, 4])
def test_terms_beyond_float16(ranks, size: int) -> None:
    ranks(size).run(terms_beyond_float16)


@pytest.mark.parametrize("variables", ({"NPU_CPU_ISA": "avx2"}, {"OMP_NUM_THREADS": "2"}), ids=("avx2", "threads"))
def test_other_ways_to_multiply(fresh_ranks, variables: dict[str, str]) -> None:
    group = fresh_ranks(2, **variables)
    group.run(all_reduce_float, "bfloat16")
    group.run(terms_finer_than_the_result)


@pytest.mark.parametrize("size", (2, 4))
def test_terms_finer_than_the_result(ranks, size: int) -> None:
    ranks(size).run(terms_finer_than_the_result)


@pytest.mark.parametrize("size", (1, 2))
def test_weights_beyond_float16(ranks, size: int) -> None:
    ranks(size).run(weights_beyond_float16)


@pytest.mark.parametrize("size", SIZES)
def test_views_and_empty_sums(ranks, size: int) -> None:
    ranks(size).run(views_and_empty_sums)
