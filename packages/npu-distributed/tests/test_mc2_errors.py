"""What the fused operators refuse, at the call and on every rank alike."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from mc2_reference import comm_name
from torch._subclasses import FakeTensorMode

torch_npu = pytest.importorskip("torch_npu")

GATHER, SCATTER, REDUCE = "npu_all_gather_base_mm", "npu_mm_reduce_scatter_base", "npu_mm_all_reduce_base"
THERE, BACK = "npu_alltoallv_gmm", "npu_gmm_alltoallv"


def tensor(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype).npu()


def mistakes(name: str) -> list[tuple[str, tuple, dict[str, Any], str]]:
    """Operator, arguments and what the error says, for a group of two."""
    x, w = tensor(4, 6), tensor(6, 5)
    qx, qw = tensor(4, 6, dtype=torch.int8), tensor(6, 5, dtype=torch.int8)
    scale = tensor(1, 5, dtype=torch.float32)
    rows = tensor(4, 1, dtype=torch.float32)
    half_scale = tensor(5)
    wide_x, wide_w = tensor(4, 96), tensor(96, 5, dtype=torch.int8)
    experts = tensor(2, 6, 5)
    float8 = torch.ones(6, 5).to(torch.float8_e4m3fn).npu()
    cases: list[tuple[str, tuple, dict[str, Any], str]] = []
    for op in (GATHER, SCATTER):
        cases += [
            (op, (tensor(4), w, name, 2), {}, "self: expected 2 dims"),
            (op, (tensor(1, 4, 6), w, name, 2), {}, "self: expected 2 dims"),
            (op, (x, tensor(6), name, 2), {}, "x2: expected 2 dims"),
            (op, (x, tensor(7, 5), name, 2), {}, "x2: expected 6 rows"),
            (op, (x, w, name, 3), {}, "world size 3 is not the size"),
            (op, (x, w, "nobody", 2), {}, 'no communicator "nobody"'),
            (op, (x, w, "", 2), {}, "1 to 127 characters"),
            (op, (x, w, "n" * 128, 2), {}, "1 to 127 characters"),
            (op, (x, w, name, 0), {}, "world_size: expected a positive number, but got 0"),
            (op, (x, w, name, -1), {}, "world_size: expected a positive number, but got -1"),
            (op, (x, w, name, 2), {"comm_turn": 1}, "comm_turn: expected 0"),
            (op, (x, w, name, 2), {"comm_mode": "ccu"}, 'comm_mode: expected None, "ai_cpu" or "aiv", but got "ccu"'),
            (op, (x, tensor(6, 5, dtype=torch.bfloat16), name, 2), {}, "x2: expected Half like self"),
            (op, (x.float(), w.float(), name, 2), {}, "self: expected float16, bfloat16 or int8"),
            (op, (x, w, name, 2), {"bias": tensor(4)}, r"bias: expected the shape \[5\]"),
            (op, (x, w, name, 2), {"bias": tensor(5, dtype=torch.float32)}, "bias: expected the type of self"),
            (op, (x, w, name, 2), {"x1_scale": rows}, "x1_scale: it has a meaning beside x2_scale only"),
            (op, (qx, qw, name, 2), {}, "x2_scale: int8 tensors need it"),
            (
                op,
                (qx, qw, name, 2),
                {"x2_scale": tensor(4, dtype=torch.float32)},
                r"x2_scale: expected the shape \[5\]",
            ),
            (op, (qx, qw, name, 2), {"x2_scale": half_scale}, "x2_scale: expected float32 or int64"),
            (
                op,
                (qx, qw, name, 2),
                {"x2_scale": scale, "x1_scale": rows[:3]},
                r"x1_scale: expected the shape \[4, 1\]",
            ),
            (op, (qx, qw, name, 2), {"x2_scale": scale, "x1_scale": rows.half()}, "x1_scale: expected float32"),
            (op, (qx, qw, name, 2), {"x2_scale": scale, "output_dtype": torch.int8}, "output_dtype: expected float16"),
            (op, (x, w.cpu(), name, 2), {}, "x2: expected a tensor on npu"),
            (op, (x.cpu(), w.cpu(), name, 2), {}, r"expected npu tensors, got CPU tensors; move them with .to\("),
        ]
    cases += [
        (GATHER, (x, w, name, 2), {"gather_index": 2}, "gather_index: expected 0 or 1"),
        (GATHER, (x, w, name, 2), {"gather_index": 1}, "self: expected 12 columns"),
        (SCATTER, (x[:3], w, name, 2), {}, "self: expected a number of rows divisible by the 2 ranks"),
        (SCATTER, (x, w, name, 2), {"reduce_op": "max"}, 'reduce_op: expected "sum", but got "max"'),
        (REDUCE, (tensor(6), w, name), {}, "x1: expected 2 dims"),
        (REDUCE, (x, tensor(2, 6, 5), name), {}, "x2: expected 2 dims"),
        (REDUCE, (x, tensor(7, 5), name), {}, "x2: expected 6 rows"),
        (REDUCE, (x, w, name), {"reduce_op": "mean"}, 'reduce_op: expected "sum"'),
        (REDUCE, (x, w, name), {"comm_turn": 2}, "comm_turn: expected 0"),
        (REDUCE, (x, w, name), {"comm_mode": "AIV"}, "comm_mode"),
        (REDUCE, (x, w, name), {"group_sizes": [1, 2]}, "group_sizes: expected no or 3 numbers, but got 2"),
        (REDUCE, (x, w, "nobody"), {}, 'no communicator "nobody"'),
        (REDUCE, (x, w, name), {"x3": tensor(4, 6)}, "x3: expected the shape of the output"),
        (REDUCE, (x, w, name), {"x3": tensor(4, 5, dtype=torch.float32)}, "x3: expected the type of the output"),
        (REDUCE, (x, w, name), {"bias": tensor(5, dtype=torch.int32)}, "bias: expected Half"),
        (REDUCE, (qx, qw, name), {"dequant_scale": scale, "bias": half_scale}, "bias: expected Int"),
        (
            REDUCE,
            (x, w, name),
            {"antiquant_scale": half_scale},
            "antiquant_scale: it has a meaning for an int8 x2 only",
        ),
        (REDUCE, (x, w, name), {"antiquant_offset": half_scale}, "antiquant_offset: it has a meaning for an int8 x2"),
        (REDUCE, (x, w, name), {"dequant_scale": scale}, "dequant_scale: it has a meaning for an int8 x2 only"),
        (REDUCE, (x, w, name), {"pertoken_scale": rows[:, 0]}, "pertoken_scale: it has a meaning for int8 x1 and x2"),
        (REDUCE, (x, qw, name), {}, "antiquant_scale: an int8 x2 beside x1 of type Half needs it"),
        (REDUCE, (x, qw, name), {"dequant_scale": scale}, "dequant_scale: it has a meaning for int8 x1 and x2 only"),
        (REDUCE, (x, qw, name), {"antiquant_scale": scale}, "antiquant_scale: expected Half like x1"),
        (REDUCE, (x, qw, name), {"antiquant_scale": tensor(4)}, "antiquant_scale: expected the shape"),
        (REDUCE, (x, w.bfloat16(), name), {}, "x2: expected Half like x1"),
        (REDUCE, (qx, w, name), {}, "x2: expected int8 like x1"),
        (REDUCE, (qx, qw, name), {}, "dequant_scale: int8 x1 and x2 need it"),
        (REDUCE, (qx, qw, name), {"dequant_scale": scale, "antiquant_scale": half_scale}, "antiquant_scale: it has a"),
        (
            REDUCE,
            (qx, qw, name),
            {"dequant_scale": scale, "antiquant_offset": half_scale},
            "antiquant_offset: it has a",
        ),
        (REDUCE, (qx, qw, name), {"dequant_scale": half_scale}, "dequant_scale: expected int64, uint64, bfloat16"),
        (REDUCE, (qx, qw, name), {"dequant_scale": rows}, r"dequant_scale: expected the shape \[5\]"),
        (REDUCE, (qx, qw, name), {"pertoken_scale": rows[:, 0]}, "pertoken_scale: it needs dequant_scale"),
        (
            REDUCE,
            (qx, qw, name),
            {"dequant_scale": scale, "pertoken_scale": rows},
            "pertoken_scale: expected the shape",
        ),
        (
            REDUCE,
            (qx, qw, name),
            {"dequant_scale": scale, "pertoken_scale": rows[:3, 0]},
            "pertoken_scale: expected the",
        ),
        (
            REDUCE,
            (qx, qw, name),
            {"dequant_scale": scale, "pertoken_scale": rows[:, 0].half()},
            "pertoken_scale: expected float32",
        ),
        (
            REDUCE,
            (qx, qw, name),
            {"dequant_scale": scale, "comm_quant_scale_1": half_scale},
            "comm_quant_scale_2: .*both",
        ),
        (
            REDUCE,
            (qx, qw, name),
            {"dequant_scale": scale, "comm_quant_scale_2": half_scale},
            "comm_quant_scale_1: .*both",
        ),
        (
            REDUCE,
            (qx, qw, name),
            {"dequant_scale": scale, "comm_quant_scale_1": half_scale, "comm_quant_scale_2": tensor(4)},
            "comm_quant_scale_2: expected the shape",
        ),
        (
            REDUCE,
            (qx, qw, name),
            {"dequant_scale": scale, "comm_quant_scale_1": scale, "comm_quant_scale_2": half_scale},
            "comm_quant_scale_1: expected the type of the output",
        ),
        (
            REDUCE,
            (x, w, name),
            {"comm_quant_scale_1": half_scale, "comm_quant_scale_2": half_scale},
            "comm_quant_scale_1: it has a meaning for int8",
        ),
        (REDUCE, (x, float8, name), {}, "x2: float8 and float4 are not supported"),
        (REDUCE, (x, w, name), {"x1_dtype": 290}, "x1_dtype, x2_dtype"),
        *(
            (
                REDUCE,
                (wide_x, wide_w, name),
                {"antiquant_scale": tensor(3, 5), "antiquant_group_size": group},
                "group_size",
            )
            for group in (-32, 31, 96, 128)
        ),
        *(
            (
                REDUCE,
                (*matrices, name),
                {"antiquant_group_size": group, **scales},
                "antiquant_group_size: expected 0 or a",
            )
            for group in (7, -1, 96)
            for matrices, scales in (
                ((wide_x, tensor(96, 5)), {}),
                ((tensor(4, 96, dtype=torch.int8), wide_w), {"dequant_scale": scale}),
            )
        ),
        (
            REDUCE,
            (wide_x, wide_w, name),
            {"antiquant_scale": tensor(2, 5), "antiquant_group_size": 32},
            r"antiquant_scale: expected the shape .* = \[3, 5\]",
        ),
    ]
    for op in (THERE, BACK):
        good = (x, experts, name, 2, [1, 1, 1, 1], [1, 1, 1, 1])
        cases += [
            (op, (*good[:4], [1, 1, 2], good[5]), {}, "send_counts: expected 4 numbers.*but got 3"),
            (op, (*good[:5], [4]), {}, "recv_counts: expected 4 numbers.*but got 1"),
            (
                op,
                (*good[:4], [5, 1, -1, -1], good[5]),
                {},
                "send_counts: expected no negative number, but element 2 is -1",
            ),
            (op, (*good[:5], [1, 1, 1, -1]), {}, "recv_counts: expected no negative number"),
            (op, (*good[:4], [1, 1, 1, 2], good[5]), {}, "send_counts: expected a sum of 4"),
            (op, (x, tensor(2, 5, 6), *good[2:]), {}, "gmm_weight: expected the shape .* with H1 = 6"),
            (op, good, {"trans_gmm_weight": True}, "gmm_weight: expected the shape .* with H1 = 6"),
            (op, (x[0], *good[1:]), {}, "gmm_x: expected 2 dims"),
            (op, (x, w, *good[2:]), {}, "gmm_weight: expected 3 dims"),
            (op, (x.float(), experts.float(), *good[2:]), {}, "gmm_x: expected float16 or bfloat16"),
            (op, (x, experts.bfloat16(), *good[2:]), {}, "gmm_weight: expected Half like gmm_x"),
            (op, (x, experts, name, 4, [1, 1, 1, 1, 0, 0, 0, 0], [0] * 8), {}, "world size 4 is not the size"),
            (op, (x, experts, "nobody", *good[3:]), {}, 'no communicator "nobody"'),
            (op, good, {"mm_x": x}, "mm_weight: mm_x and mm_weight belong together"),
            (op, good, {"mm_weight": w}, "mm_x: mm_x and mm_weight belong together"),
            (op, good, {"mm_x": x, "mm_weight": tensor(7, 5)}, "mm_weight: expected the shape .* with H2 = 6"),
            (op, good, {"mm_x": x, "mm_weight": w, "trans_mm_weight": True}, "mm_weight: expected the shape"),
            (op, good, {"send_counts_tensor": tensor(4, dtype=torch.int64)}, "send_counts_tensor: it is reserved"),
            (op, good, {"recv_counts_tensor": tensor(4, dtype=torch.int64)}, "recv_counts_tensor: it is reserved"),
            (op, good, {"comm_mode": "cpu"}, "comm_mode"),
        ]
    cases += [
        ("_npu_distribute_barrier", (x, "nobody", 2), {}, 'no communicator "nobody"'),
        ("_npu_distribute_barrier", (x, name, 1), {}, "world size 1 is not the size"),
        ("_npu_distribute_barrier", (x, name, -1), {}, "world_size: expected a positive number, but got -1"),
    ]
    return cases


def expect_error(op: str, arguments: tuple, options: dict[str, Any], text: str) -> None:
    try:
        getattr(torch_npu, op)(*arguments, **options)
    except RuntimeError as error:
        message = str(error).splitlines()[0]
        assert op in message and re.search(text, message), f"{op}, expected {text}: {message}"
        kind = NotImplementedError if "not support" in text or "x1_dtype" in text else RuntimeError
        assert type(error) is kind, (op, text, type(error))
    else:
        raise AssertionError(f"{op} accepted {options} (expected: {text})")


def every_mistake(rank: int, size: int) -> int:
    cases = mistakes(comm_name(rank))
    for case in cases:
        expect_error(*case)
    # The group still works, and nobody has waited for anybody.
    x = tensor(4, 6)
    result = torch_npu.npu_mm_all_reduce_base(x, tensor(6, 5), comm_name(rank))
    assert torch.equal(result.cpu(), torch.full((4, 5), 6.0 * size).half())
    return len(cases)


def test_mistakes(ranks) -> None:
    first, second = ranks(2).run(every_mistake)
    assert first == second > 100


# What a fake kernel cannot know: the communicator, and the device that it is on.
UNKNOWN_TO_FAKES = ("world size", "communicator", "characters", "on npu", "CPU tensors")


def test_mistakes_of_fakes() -> None:
    """What a kernel refuses the fake kernel refuses as well, with the same text."""
    with FakeTensorMode():
        cases = [case for case in mistakes("nobody") if not any(word in case[3] for word in UNKNOWN_TO_FAKES)]
        assert len(cases) > 100
        for case in cases:
            expect_error(*case)
