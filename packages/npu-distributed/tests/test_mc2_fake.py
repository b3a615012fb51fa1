"""Shapes without a process group: fake tensors, symbolic sizes, compiled functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist

torch_npu = pytest.importorskip("torch_npu")

from torch._subclasses import FakeTensorMode  # noqa: E402

from npu_distributed.fused_operators import FAMILIES  # noqa: E402


def fake(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="npu")


CASES: dict[str, Callable[[], tuple[object, list[tuple[torch.dtype, tuple[int, ...]] | None]]]] = {
    "all_gather": lambda: (
        torch_npu.npu_all_gather_base_mm(fake(3, 4), fake(4, 5), "nobody", 8),
        [(torch.bfloat16, (24, 5)), (torch.bfloat16, (24, 4))],
    ),
    "all_gather, nothing gathered": lambda: (
        torch_npu.npu_all_gather_base_mm(fake(3, 4), fake(4, 5), "nobody", 8, gather_output=False),
        [(torch.bfloat16, (24, 5)), (torch.bfloat16, (0,))],
    ),
    "all_gather of the weight": lambda: (
        torch_npu.npu_all_gather_base_mm(fake(3, 32), fake(4, 5), "nobody", 8, gather_index=1),
        [(torch.bfloat16, (3, 5)), (torch.bfloat16, (32, 5))],
    ),
    "all_gather, int8": lambda: (
        torch_npu.npu_all_gather_base_mm(
            fake(3, 4, dtype=torch.int8),
            fake(4, 5, dtype=torch.int8),
            "nobody",
            2,
            x2_scale=fake(1, 5, dtype=torch.int64),
            output_dtype=torch.bfloat16,
        ),
        [(torch.float16, (6, 5)), (torch.int8, (6, 4))],
    ),
    "reduce_scatter": lambda: (
        torch_npu.npu_mm_reduce_scatter_base(fake(16, 4), fake(4, 5), "nobody", 8),
        [(torch.bfloat16, (2, 5))],
    ),
    "reduce_scatter, int8": lambda: (
        torch_npu.npu_mm_reduce_scatter_base(
            fake(16, 4, dtype=torch.int8),
            fake(4, 5, dtype=torch.int8),
            "nobody",
            8,
            x2_scale=fake(1, 5, dtype=torch.float32),
        ),
        [(torch.bfloat16, (2, 5))],
    ),
    "all_reduce": lambda: (
        torch_npu.npu_mm_all_reduce_base(fake(2, 3, 4), fake(4, 5), "nobody"),
        [(torch.bfloat16, (2, 3, 5))],
    ),
    "all_reduce, int8": lambda: (
        torch_npu.npu_mm_all_reduce_base(
            fake(3, 4, dtype=torch.int8),
            fake(4, 5, dtype=torch.int8),
            "nobody",
            dequant_scale=fake(5, dtype=torch.float32),
        ),
        [(torch.float16, (3, 5))],
    ),
    "all_reduce, int8 to bfloat16": lambda: (
        torch_npu.npu_mm_all_reduce_base(
            fake(3, 4, dtype=torch.int8), fake(4, 5, dtype=torch.int8), "nobody", dequant_scale=fake(5)
        ),
        [(torch.bfloat16, (3, 5))],
    ),
    "alltoallv_gmm": lambda: (
        torch_npu.npu_alltoallv_gmm(
            fake(6, 4),
            fake(2, 5, 4),
            "nobody",
            2,
            [1, 2, 3, 0],
            [2, 2, 2, 3],
            mm_x=fake(7, 3),
            mm_weight=fake(3, 8),
            trans_gmm_weight=True,
            permute_out_flag=True,
        ),
        [(torch.bfloat16, (9, 5)), (torch.bfloat16, (7, 8)), (torch.bfloat16, (9, 4))],
    ),
    "alltoallv_gmm alone": lambda: (
        torch_npu.npu_alltoallv_gmm(fake(6, 4), fake(2, 4, 5), "nobody", 2, [1, 2, 3, 0], [2, 2, 2, 3]),
        [(torch.bfloat16, (9, 5)), None, None],
    ),
    "gmm_alltoallv": lambda: (
        torch_npu.npu_gmm_alltoallv(fake(6, 4), fake(2, 4, 5), "nobody", 2, [1, 2, 3, 0], [2, 2, 2, 3]),
        [(torch.bfloat16, (9, 5)), None],
    ),
    "barrier": lambda: (
        torch_npu._npu_distribute_barrier(fake(6, 4).t(), "nobody", 2),
        [(torch.bfloat16, (4, 6))],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_shapes(case: str) -> None:
    with FakeTensorMode():
        results, expected = CASES[case]()
    results = list(results) if isinstance(results, tuple) else [results]
    facts = [None if one is None else (one.dtype, tuple(one.shape)) for one in results]
    assert facts == expected
    assert all(one is None or (one.is_contiguous() and one.device.type == "npu") for one in results)


def test_mistakes_of_fakes() -> None:
    with FakeTensorMode():
        with pytest.raises(RuntimeError, match="npu_mm_all_reduce_base: argument x2: expected 4 rows"):
            torch_npu.npu_mm_all_reduce_base(fake(3, 4), fake(5, 5), "nobody")
        with pytest.raises(NotImplementedError, match="float8"):
            torch_npu.npu_mm_all_reduce_base(fake(3, 4, dtype=torch.float8_e5m2), fake(4, 5), "nobody")
        with pytest.raises(RuntimeError, match="mm_x and mm_weight belong together"):
            torch_npu.npu_gmm_alltoallv(fake(1, 4), fake(1, 4, 5), "nobody", 1, [1], [1], mm_x=fake(1, 1))
        for operator in (torch_npu.npu_all_gather_base_mm, torch_npu.npu_mm_reduce_scatter_base):
            with pytest.raises(RuntimeError, match="self: expected 2 dims"):
                operator(fake(2, 2, 4), fake(4, 5), "nobody", 2)
        with pytest.raises(RuntimeError, match="self: expected 8 columns"):
            torch_npu.npu_all_gather_base_mm(fake(3, 4), fake(4, 5), "nobody", 2, gather_index=1)
        for x3 in (fake(3, 4), fake(1, 3, 5)):
            with pytest.raises(RuntimeError, match="x3: expected the shape of the output"):
                torch_npu.npu_mm_all_reduce_base(fake(3, 4), fake(4, 5), "nobody", x3=x3)
        for mm_x, mm_weight, text in (
            (fake(1, 2, 3), fake(3, 5), "mm_x: expected 2 dims"),
            (fake(2, 3), fake(1, 3, 5), "mm_weight: expected the shape"),
            (fake(2, 3), fake(4, 5), "mm_weight: expected the shape .* with H2 = 3"),
        ):
            with pytest.raises(RuntimeError, match=text):
                torch_npu.npu_alltoallv_gmm(
                    fake(1, 4), fake(1, 4, 4), "nobody", 1, [1], [1], mm_x=mm_x, mm_weight=mm_weight
                )


@pytest.mark.parametrize("name", FAMILIES["mc2"])
def test_documentation(name: str) -> None:
    operator = getattr(torch_npu, name)
    assert "Returns\n" in inspect.getdoc(operator)
    arguments = [argument.name for argument in operator.default._schema.arguments]
    assert list(inspect.signature(operator).parameters) == arguments


@pytest.fixture(scope="module")
def alone() -> Iterator[str]:
    """The name of a communicator of one rank."""
    dist.init_process_group("hccl", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD._get_backend(torch.device("npu")).get_hccl_comm_name(0)
    dist.destroy_process_group()


def arguments_of_one_rank(name: str) -> list[tuple[object, tuple, dict]]:
    x, weight = torch.randn(4, 6).half().npu(), torch.randn(6, 5).half().npu()
    experts = torch.randn(2, 6, 5).half().npu()
    ops = torch.ops.npu
    return [
        (ops.npu_all_gather_base_mm, (x, weight, name, 1), {}),
        (ops.npu_all_gather_base_mm, (x, weight, name, 1), {"gather_output": False}),
        (ops.npu_mm_reduce_scatter_base, (x, weight, name, 1), {"bias": weight[0]}),
        (ops.npu_mm_all_reduce_base, (x, weight, name), {"x3": torch.randn(4, 5).half().npu()}),
        (ops.npu_alltoallv_gmm, (x, experts, name, 1, [1, 3], [1, 3]), {"permute_out_flag": True}),
        (ops.npu_alltoallv_gmm, (x, experts, name, 1, [1, 3], [1, 3]), {"mm_x": x, "mm_weight": weight}),
        (ops.npu_gmm_alltoallv, (x, experts, name, 1, [4, 0], [4, 0]), {}),
        (ops._npu_distribute_barrier, (x, name, 1), {}),
    ]


def test_schema_and_fake_agree_with_the_kernel(alone: str) -> None:
    for operator, arguments, options in arguments_of_one_rank(alone):
        torch.library.opcheck(
            operator.default,
            arguments,
            options,
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


def test_compiled_with_symbolic_sizes(alone: str) -> None:
    weight = torch.randn(6, 6).half().npu()

    def function(x: torch.Tensor) -> list[torch.Tensor]:
        reduced = torch.ops.npu.npu_mm_all_reduce_base(x * 2, weight, alone)
        output, gathered = torch.ops.npu.npu_all_gather_base_mm(reduced, weight, alone, 1)
        return [output + 1, gathered, torch.ops.npu.npu_mm_reduce_scatter_base(output, weight, alone, 1)]

    compiled = torch.compile(function, backend="aot_eager", dynamic=True, fullgraph=True)
    for rows in (3, 8, 17):
        x = torch.randn(rows, 6).half().npu()
        for actual, expected in zip(compiled(x), function(x), strict=True):
            assert torch.equal(actual, expected)
