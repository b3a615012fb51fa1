"""Dispatch and combine of mixtures of experts against loops over the inputs of all ranks."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any

import moe_reference as reference
import pytest
import torch
import torch.distributed as dist
from moe_reference import Case, Inputs
from torch import Tensor


def communicator(rank: int) -> str:
    return dist.group.WORLD._get_backend(torch.device("npu")).get_hccl_comm_name(rank)


def on_npu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.npu()


def arguments(case: Case, rank: int, **more: Any) -> dict[str, Any]:
    """What dispatch and combine have in common."""
    return {
        "group_ep": communicator(rank),
        "ep_world_size": case.world,
        "ep_rank_id": rank,
        "moe_expert_num": case.experts,
        "shared_expert_num": case.shared_experts,
        "shared_expert_rank_num": case.shared_ranks,
        "global_bs": case.global_bs,
        "tp_world_size": case.tp_world_size,
        **more,
    }


def special(case: Case) -> dict[str, int]:
    return dict(zip(("zero_expert_num", "copy_expert_num", "const_expert_num"), case.special, strict=True))


def dispatch(case: Case, rank: int, given: Inputs) -> tuple[Tensor, ...]:
    common = arguments(
        case,
        rank,
        scales=on_npu(given.scales),
        x_active_mask=on_npu(given.mask),
        expert_scales=on_npu(given.weights) if case.expert_scales else None,
        quant_mode=case.quant,
        expert_token_nums_type=case.nums_type,
    )
    if case.version == 1:
        return torch.ops.npu.npu_moe_distribute_dispatch(given.x.npu(), given.ids.npu(), **common)
    if case.y_dtype:
        common["y_dtype"] = torch.float8_e5m2 if case.y_dtype == "e5m2" else torch.float8_e4m3fn
    return torch.ops.npu.npu_moe_distribute_dispatch_v2(given.x.npu(), given.ids.npu(), **common, **special(case))


def check_dispatch(case: Case, rank: int, inputs: list[Inputs], results: tuple[Tensor, ...]) -> None:
    given = inputs[rank]
    rows, counts, numbers = reference.layout(case, inputs, rank)
    expand_x, dynamic_scales, metadata, token_nums, recv_counts, tp_counts, expand_scales = (t.cpu() for t in results)
    bound, slots = case.bound(rank), case.tokens[rank] * case.k
    assert expand_x.shape == (bound, case.hidden) and len(rows) <= bound
    for n, (source, token, slot) in enumerate(rows):
        row, scale = reference.quantised(case, inputs[source], token, slot)
        assert expand_x.dtype == row.dtype
        assert torch.equal(expand_x[n].float(), row.float()), (n, source, token, slot)
        if scale is not None:
            assert torch.equal(dynamic_scales[n], scale), (n, dynamic_scales[n], scale)
        weight = 0.0
        if case.expert_scales and slot < case.k:
            weight = inputs[source].weights[token, slot].item()
        assert expand_scales[n].item() == weight
    assert not expand_x[len(rows) :].float().any() and not dynamic_scales[len(rows) :].any()
    assert expand_scales.shape == (bound,) and not expand_scales[len(rows) :].any()
    assert dynamic_scales.shape[0] == bound and (dynamic_scales.dim() == 2) == (case.quant >= 3)
    assert token_nums.dtype == torch.int64
    assert token_nums.tolist() == (numbers if case.nums_type else torch.tensor(numbers).cumsum(0).tolist())
    assert tp_counts.tolist() == [len(rows)] * case.tp_world_size
    assert recv_counts.dtype == metadata.dtype == torch.int32
    if case.version == 2:
        assert recv_counts.tolist() == counts
        assert metadata.shape == (max(slots, 128 * bound),)
        assert metadata[: 3 * len(rows)].view(-1, 3).tolist() == [list(row) for row in rows]
        assert not metadata[3 * len(rows) :].any()
        return
    more = 2 * case.batch * case.k * (case.world // 8) if case.expert_scales else 0
    assert recv_counts.tolist() == counts + [0] * more
    ordinals, seen = [], [0] * case.experts
    for token in range(case.tokens[rank]):
        for slot in range(case.k):
            number = int(given.ids[token, slot])
            ordinals.append(seen[number] if given.active(token, slot) else 0)
            seen[number] += given.active(token, slot)
    assert metadata.tolist() == ordinals


def apply_experts(case: Case, rank: int, results: tuple[Tensor, ...]) -> Tensor:
    """What a rank makes of its rows, on the npu and without a look at the numbers of rows."""
    value = reference.dequantised(case, results[0], results[1])
    if rank < case.shared_ranks:
        return reference.expert(case, -1 - rank // case.replicas, value)
    sums = results[3].cumsum(0) if case.nums_type else results[3]
    local = torch.searchsorted(sums.contiguous(), torch.arange(len(value), device="npu"), right=True)
    first = (rank - case.shared_ranks) * case.local_experts(rank)
    return reference.expert(case, 0, value * (1 + (first + local.clamp(max=len(sums) - 1)) / 8)[:, None])


def combine(case: Case, rank: int, given: Inputs, rows: Tensor, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The results of combine: x, and y and rstd if there is a norm."""
    positional = (rows, given.ids.npu(), results[2], results[4], given.weights.npu())
    common = arguments(
        case,
        rank,
        x_active_mask=on_npu(given.mask),
        comm_quant_mode=case.transit,
        tp_send_counts=results[5],
        expand_scales=results[6],
        shared_expert_x=on_npu(given.shared_x),
    )
    if case.version == 1:
        return (torch.ops.npu.npu_moe_distribute_combine(*positional, **common),)
    if sum(case.special):
        common |= special(case) | {"ori_x": given.ori_x.npu()}
    if case.special[2]:
        constants = ("const_expert_alpha_1", given.alpha1), ("const_expert_alpha_2", given.alpha2)
        common |= {name: tensor.npu() for name, tensor in (*constants, ("const_expert_v", given.const_v))}
    if not case.norm:
        return (torch.ops.npu.npu_moe_distribute_combine_v2(*positional, **common),)
    y, rstd, x = torch.ops.npu.npu_moe_distribute_combine_add_rms_norm(
        *positional, given.residual.npu(), given.gamma.npu(), **common, norm_eps=1e-5
    )
    return x, y, rstd


def check_combine(case: Case, rank: int, inputs: list[Inputs], results: tuple[Tensor, ...]) -> None:
    narrow, wide = reference.combined(case, inputs, rank)
    given = inputs[rank]
    dtype = given.residual.dtype
    x = results[0].cpu()
    tolerance = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    if not case.norm:
        assert x.dtype == dtype and x.shape == narrow.shape
        torch.testing.assert_close(x.double(), wide, rtol=tolerance, atol=1e-5)
        if not case.special[2]:
            assert torch.equal(x, narrow.to(dtype))
        return
    y, rstd = results[1].cpu(), results[2].cpu()
    z = wide + given.residual[:, 0].double()
    expected = (z.square().mean(1, keepdim=True) + 1e-5).rsqrt()
    assert x.shape == y.shape == given.residual.shape and rstd.shape == (case.tokens[rank], 1, 1)
    assert x.dtype == y.dtype == dtype and rstd.dtype == torch.float32
    torch.testing.assert_close(x[:, 0].double(), z, rtol=tolerance, atol=1e-5)
    torch.testing.assert_close(rstd[:, 0].double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(y[:, 0].double(), z * expected * given.gamma.double(), rtol=tolerance, atol=1e-5)


def run_case(rank: int, size: int, fields: dict) -> None:
    case = Case(**fields)
    inputs = reference.all_inputs(case)
    results = dispatch(case, rank, inputs[rank])
    check_dispatch(case, rank, inputs, results)
    if case.dtype == "int32" or case.quant == 1:
        return  # their experts know a scale that is not the operator's
    check_combine(case, rank, inputs, combine(case, rank, inputs[rank], apply_experts(case, rank, results), results))


def run_cases(rank: int, size: int, cases: list[dict]) -> None:
    for fields in cases:
        try:
            run_case(rank, size, fields)
        except Exception as error:
            raise AssertionError(f"rank {rank}: {fields}") from error


def random_case(world: int, seed: int) -> Case:
    """A call with everything drawn."""
    draw = random.Random(seed)
    case = Case(world=world, tokens=[], k=1, experts=1, seed=seed, version=draw.choice((1, 2, 2)))
    case.hidden = draw.choice((8, 17, 64, 136))
    case.dtype = draw.choice(("bf16", "fp16"))
    if world > 1 and draw.random() < 0.5:
        case.shared_ranks = draw.randrange(1, world)
        divisors = [n for n in range(1, case.shared_ranks + 1) if case.shared_ranks % n == 0]
        case.shared_experts = draw.choice(divisors) if case.version == 2 else 1
    case.experts = draw.randrange(1, 4) * (world - case.shared_ranks)
    if case.version == 2 and draw.random() < 0.5:
        case.special = [draw.randrange(3) for _ in range(3)]
        case.norm = draw.random() < 0.4
    case.k = draw.randrange(1, min(6, case.experts + sum(case.special)) + 1)
    if draw.random() < 0.5:
        case.tokens = [draw.randrange(7) for _ in range(world)]
        case.global_bs = world * max(1, *case.tokens)
    else:
        case.tokens = [draw.randrange(1, 9)] * world
    case.mask = draw.choice(("none", "prefix", "slots"))
    case.quant = draw.choice((0, 0, 1, 2, 2, 3, 4, 5) if case.version == 2 else (0, 1, 2))
    case.scales = case.quant == 1 or (case.quant in (2, 3) and draw.random() < 0.5)
    case.expert_scales = draw.random() < 0.5
    case.nums_type = draw.randrange(2)
    case.transit = draw.choice((0, 2))
    case.shared_x = draw.random() < 0.4
    case.tp_world_size = draw.randrange(2)
    return case


FEATURES = {
    "plain": {},
    "version 1": {"version": 1},
    "float16": {"dtype": "fp16"},
    "prefix": {"mask": "prefix"},
    "slots": {"mask": "slots"},
    "slots, version 1": {"mask": "slots", "version": 1},
    "running sums": {"nums_type": 0, "expert_scales": True},
    "uneven": {"tokens": [3, 0, 5, 1], "global_bs": 20},
    "uneven, version 1": {"tokens": [0, 4, 5, 2], "global_bs": 20, "version": 1},
    "no tokens": {"tokens": [0, 0, 0, 0]},
    "int8 static": {"quant": 1, "scales": True},
    "int8": {"quant": 2},
    "int8, scales": {"quant": 2, "scales": True},
    "int8, version 1": {"quant": 2, "version": 1, "scales": True},
    "float8 groups": {"quant": 3, "hidden": 200},
    "float8 groups, scales": {"quant": 3, "hidden": 130, "scales": True, "y_dtype": "e5m2"},
    "MX": {"quant": 4, "hidden": 96},
    "MX e5m2": {"quant": 5, "hidden": 70},
    "MX float16": {"quant": 4, "hidden": 33, "dtype": "fp16", "y_dtype": "e5m2"},
    "int4": {"dtype": "int32"},
    "special": {"special": [1, 2, 2], "k": 6},
    "special, norm": {"special": [1, 1, 1], "k": 5, "norm": True, "mask": "slots"},
    "norm": {"norm": True, "dtype": "fp16", "shared_x": True},
    "int8 in transit": {"transit": 2, "hidden": 21},
    "int8 in transit, version 1": {"transit": 2, "version": 1, "dtype": "fp16"},
    "shared result": {"shared_x": True, "mask": "prefix"},
    "tensor parallel of one": {"tp_world_size": 1},
}
SHARED = {
    "one": {"shared_ranks": 1},
    "one, version 1": {"shared_ranks": 1, "version": 1},
    "replicas": {"shared_ranks": 2, "quant": 2, "scales": True},
    "replicas, version 1": {"shared_ranks": 2, "version": 1, "mask": "prefix"},
    "two": {"shared_experts": 2, "shared_ranks": 2, "mask": "slots", "tokens": [4, 2, 0, 3], "global_bs": 16},
    "three replicas of four ranks": {"shared_ranks": 3, "norm": True},
    "three replicas of four ranks, version 1": {"shared_ranks": 3, "version": 1},
    "everything": {
        "shared_experts": 2,
        "shared_ranks": 2,
        "special": [1, 1, 2],
        "k": 5,
        "quant": 2,
        "transit": 2,
        "mask": "slots",
        "shared_x": True,
        "expert_scales": True,
    },
}


def featured(world: int, changes: dict) -> dict:
    """The case of a feature in a group of a size."""
    fields = {"world": world, "tokens": [4] * world, "k": 3, "experts": 4 * world, **changes}
    fields["tokens"] = (fields["tokens"] * world)[:world]
    if fields.get("global_bs"):
        fields["global_bs"] = world * max(fields["tokens"] + [1])
    if fields.get("shared_ranks"):
        fields["experts"] = 4 * (world - fields["shared_ranks"])
    return asdict(Case(**fields))


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("world", (1, 2, 4))
def test_feature(ranks, world: int, feature: str) -> None:
    ranks(world).run(run_case, featured(world, FEATURES[feature]))


@pytest.mark.parametrize("feature", SHARED)
def test_shared_experts(ranks, feature: str) -> None:
    ranks(4).run(run_case, featured(4, SHARED[feature]))


def test_shared_expert_of_two_ranks(ranks) -> None:
    ranks(2).run(run_cases, [featured(2, {"shared_ranks": 1, "version": version}) for version in (1, 2)])


@pytest.mark.parametrize("world", (1, 2, 4))
def test_random(ranks, world: int) -> None:
    ranks(world).run(run_cases, [asdict(random_case(world, 100 * world + seed)) for seed in range(25)])


@pytest.mark.parametrize("isa", ("base", "avx2"))
def test_other_instruction_sets(fresh_ranks, isa: str) -> None:
    """The kernels that this CPU would not choose."""
    cases = [featured(1, changes) for changes in FEATURES.values()]
    fresh_ranks(1, NPU_CPU_ISA=isa).run(run_cases, cases)


def test_eight_ranks(ranks) -> None:
    """Also the longer ep_recv_counts of version 1, which begin at eight ranks."""
    cases = [featured(8, {"version": 1, "expert_scales": True}), featured(8, {"shared_experts": 2, "shared_ranks": 4})]
    cases += [asdict(random_case(8, seed)) for seed in range(3)]
    ranks(8).run(run_cases, cases, timeout=180)  # eight interpreters start on a machine that may have two cores


def documented_example(rank: int, size: int, version: int) -> dict:
    ids = torch.tensor([[[0, 2], [3, 1]], [[2, 3], [0, 3]]][rank], dtype=torch.int32, device="npu")
    x = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]][rank], dtype=torch.bfloat16, device="npu")
    weights = torch.tensor([[[0.5, 0.5], [0.25, 0.75]], [[1.0, 0.0], [0.5, 0.5]]][rank], device="npu")
    suffix = "_v2" if version == 2 else ""
    where = (communicator(rank), 2, rank, 4)
    results = getattr(torch.ops.npu, f"npu_moe_distribute_dispatch{suffix}")(x, ids, *where)
    sums = results[3].cumsum(0)
    local = torch.searchsorted(sums, torch.arange(len(results[0]), device="npu"), right=True)
    rows = results[0] * (2 * rank + local + 1)[:, None]
    combine = getattr(torch.ops.npu, f"npu_moe_distribute_combine{suffix}")
    out = combine(rows.bfloat16(), ids, results[2], results[4], weights, *where)
    return {
        "metadata": results[2].tolist(),
        "counts": results[4].tolist(),
        "numbers": results[3].tolist(),
        "out": out.tolist(),
    }


def test_documented_example(ranks) -> None:
    first, second = ranks(2).run(documented_example, 2)
    assert first["metadata"][:10] == [0, 0, 0, 1, 1, 0, 0, 1, 1, 0]
    assert second["metadata"][:16] == [0, 0, 1, 1, 0, 0, 0, 1, 0, 1, 0, 1, 1, 1, 1, 0]
    assert first["counts"] == [1, 2, 3, 3] and first["numbers"] == [2, 1]
    assert second["counts"] == [1, 2, 3, 5] and second["numbers"] == [2, 3]
    assert first["out"] == [[2], [5]] and second["out"] == [[9], [10]]


def test_documented_example_of_version_1(ranks) -> None:
    first, second = ranks(2).run(documented_example, 1)
    assert first["metadata"] == [0, 0, 0, 0] and second["metadata"] == [0, 0, 0, 1]
    assert first["counts"] == [1, 2, 3, 3] and second["counts"] == [1, 2, 3, 5]
    assert first["out"] == [[2], [5]] and second["out"] == [[9], [10]]


def documented_shared_example(rank: int, size: int) -> dict:
    ids = torch.tensor([[[0, 2]], [[1, 3]], [[3, 0]], [[2, 1]]][rank], dtype=torch.int32, device="npu")
    x = torch.full((1, 8), rank + 1.0, dtype=torch.float16, device="npu")
    results = torch.ops.npu.npu_moe_distribute_dispatch_v2(
        x, ids, communicator(rank), 4, rank, 4, shared_expert_num=1, shared_expert_rank_num=2
    )
    return {"metadata": results[2][:13].tolist(), "counts": results[4].tolist(), "heads": results[0][:, 0].tolist()}


def test_documented_shared_example(ranks) -> None:
    answers = ranks(4).run(documented_shared_example)
    assert answers[0]["metadata"] == [0, 0, 2, 2, 0, 2, *[0] * 7] and answers[0]["counts"] == [1, 1, 2, 2]
    assert answers[1]["metadata"] == [1, 0, 2, 3, 0, 2, *[0] * 7] and answers[1]["counts"] == [0, 1, 1, 2]
    assert answers[2]["metadata"] == [0, 0, 0, 2, 0, 1, 1, 0, 0, 3, 0, 1, 0]
    assert answers[2]["counts"] == [1, 1, 2, 2, 2, 3, 3, 4]
    assert answers[3]["metadata"] == [0, 0, 1, 3, 0, 0, 1, 0, 1, 2, 0, 0, 0]
    assert answers[3]["counts"] == [1, 1, 1, 2, 2, 3, 4, 4]
    assert [answer["heads"] for answer in answers[:2]] == [[1, 3], [2, 4]]
    assert answers[2]["heads"][:4] == [1, 3, 2, 4] and answers[3]["heads"][:4] == [1, 4, 2, 3]


def large_round_trip(rank: int, size: int) -> None:
    """More than one round of an exchange carries, with and without a quantisation that depends on the expert."""
    tokens, hidden, experts = 1100, 8192, 4
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(tokens, hidden, generator=generator).bfloat16().npu()
    ids = torch.rand(tokens, experts, generator=generator).argsort(1)[:, :2].int().npu()
    weights = torch.full((tokens, 2), 0.5, device="npu")
    where = (communicator(rank), size, rank, experts)
    results = torch.ops.npu.npu_moe_distribute_dispatch_v2(x, ids, *where)
    out = torch.ops.npu.npu_moe_distribute_combine_v2(results[0], ids, results[2], results[4], weights, *where)
    assert torch.equal(out.cpu(), x.cpu())
    ids = torch.rand(tokens, experts, generator=generator).argsort(1).int().npu()
    scales = torch.ones(experts, hidden, device="npu")
    results = torch.ops.npu.npu_moe_distribute_dispatch_v2(x, ids, *where, scales=scales, quant_mode=2)
    rows = (results[0] * results[1][:, None]).bfloat16()
    weights = torch.full((tokens, experts), 0.25, device="npu")
    out = torch.ops.npu.npu_moe_distribute_combine_v2(rows, ids, results[2], results[4], weights, *where)
    largest = x.abs().amax(1, keepdim=True).float()
    assert ((out.float() - x.float()).abs() <= largest / 254 + x.float().abs() / 128).all().item()


def test_several_rounds(ranks) -> None:
    ranks(2).run(large_round_trip)


def integers(rank: int, size: int) -> list:
    """expand_x of int32, which only the first version can make float16 of."""
    ids = torch.tensor([[0, 1]], dtype=torch.int32, device="npu")
    x = torch.zeros(1, 4, dtype=torch.bfloat16, device="npu")
    weights = torch.tensor([[0.5, 0.25]], device="npu")
    where = (communicator(rank), size, rank, 2)
    found: list = []
    for version, more in ((1, {"out_dtype": 1}), (1, {}), (2, {})):
        suffix = "_v2" if version == 2 else ""
        results = getattr(torch.ops.npu, f"npu_moe_distribute_dispatch{suffix}")(x, ids, *where)
        rows = torch.full((len(results[0]), 4), 10 * (rank + 1), dtype=torch.int32, device="npu")
        out = getattr(torch.ops.npu, f"npu_moe_distribute_combine{suffix}")(
            rows, ids, results[2], results[4], weights, *where, **more
        )
        found.append([str(out.dtype), out[0, 3].item()])
    return found


def test_integer_rows(ranks) -> None:
    expected = [["torch.float16", 10.0], ["torch.bfloat16", 10.0], ["torch.bfloat16", 10.0]]
    assert ranks(2).run(integers) == [expected, expected]
