"""Dispatch and combine as work of a stream: order, errors, memory, compilation, shapes without a group."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(seconds=80)
V2 = "npu_moe_distribute_dispatch_v2"
EXPERTS = 4


def store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()


def communicator(rank: int, group: dist.ProcessGroup | None = None) -> str:
    return (group or dist.group.WORLD)._get_backend(torch.device("npu")).get_hccl_comm_name(rank)


def ids_of(tokens: int, step: int = 0) -> Tensor:
    """Two different experts for every token."""
    first = (torch.arange(tokens) + step) % EXPERTS
    return torch.stack([first, (first + 1 + torch.arange(tokens) % (EXPERTS - 1)) % EXPERTS], 1).int().npu()


def there_and_back(x: Tensor, ids: Tensor, weights: Tensor, where: tuple, **more: Any) -> Tensor:
    """Every expert returns what it gets."""
    results = torch.ops.npu.npu_moe_distribute_dispatch_v2(x, ids, *where, **more)
    return torch.ops.npu.npu_moe_distribute_combine_v2(results[0], ids, results[2], results[4], weights, *where, **more)


# ---- streams and memory ----------------------------------------------------------------------------------------------


def late_peer(rank: int, size: int) -> dict:
    """Rank 1 comes when rank 0 has done all it can do without it."""
    where = (communicator(rank), size, rank, EXPERTS)
    x = torch.full((3, 16), 1.0 + rank, dtype=torch.bfloat16, device="npu")
    weights = torch.full((3, 2), 0.5, device="npu")
    if rank == 1:
        store().wait(["moe: rank 0 waits"], PATIENCE)
    out = there_and_back(x, ids_of(3), weights, where)
    doubled = out * 2
    early = torch.npu.current_stream().query()
    side = torch.npu.Stream()
    with torch.npu.stream(side):
        side_sum = torch.ones(100, device="npu").sum()
    side.synchronize()
    if rank == 0:
        early = early or torch.npu.current_stream().query()
        store().set("moe: rank 0 waits", "now")
    return {"early": early, "side": side_sum.item(), "values": doubled.unique().tolist()}


def test_host_is_not_blocked(ranks) -> None:
    first, second = ranks(2).run(late_peer)
    assert first["early"] is False and first["side"] == 100
    assert first["values"] == [2.0] and second["values"] == [4.0]


def ordered_without_host(rank: int, size: int) -> None:
    """Producers, both operators and consumers are queued back to back; every input is dropped at once."""
    where = (communicator(rank), size, rank, EXPERTS)
    total = torch.zeros(40, 512, device="npu")
    slow = torch.ones(1 << 20, device="npu")
    for step in range(30):
        for _ in range(3):
            slow = slow * 1.0  # so that the producers are late
        x = torch.zeros(40, 512, device="npu") + slow[:512]
        x = x.mul_(step % 7).add_(rank).bfloat16()
        ids, weights = ids_of(40, step), torch.full((40, 2), 0.25, device="npu").mul_(2)
        out = there_and_back(x, ids, weights, where)
        del x, ids, weights
        torch.full((40, 512), -5.0, dtype=torch.bfloat16, device="npu")  # would land in the freed blocks
        total += out
        del out
    expected = sum(step % 7 + rank for step in range(30))
    assert total.unique().tolist() == [expected]


def test_order_without_host(ranks) -> None:
    ranks(2).run(ordered_without_host)


def on_another_stream(rank: int, size: int) -> None:
    """The current stream is the one that counts."""
    where = (communicator(rank), size, rank, EXPERTS)
    stream = torch.npu.Stream()
    weights = torch.full((8, 2), 0.5, device="npu")
    ids = ids_of(8)
    torch.npu.synchronize()
    with torch.npu.stream(stream):
        for step in range(10):
            x = torch.ones(8, 4096, device="npu")
            for _ in range(4):
                x.mul_(2)
            out = there_and_back((x + step).bfloat16(), ids, weights, where)
            assert (out - step - 16).abs().max().item() == 0


def test_current_stream(ranks) -> None:
    ranks(2).run(on_another_stream)


def resident_kib() -> int:
    with open("/proc/self/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])


def many_calls(rank: int, size: int) -> dict:
    where = (communicator(rank), size, rank, EXPERTS)
    x = torch.randn(32, 256, device="npu").bfloat16()
    ids, weights = ids_of(32), torch.full((32, 2), 0.5, device="npu")

    def calls(count: int) -> tuple[int, int]:
        for _ in range(count // 20):  # how many calls are under way decides about the memory they use
            for _ in range(20):
                there_and_back(x, ids, weights, where)
            torch.npu.synchronize()
        return resident_kib(), torch.npu.memory_allocated()

    calls(100)
    before, allocated = calls(20)
    after, still = calls(400)
    return {"grown": after - before, "held": still - allocated}


def test_many_calls_hold_nothing(ranks) -> None:
    for answer in ranks(2).run(many_calls):
        assert answer["held"] == 0 and answer["grown"] < 4096, answer


def performance(rank: int, size: int) -> list[list[int]]:
    where = (communicator(rank), size, rank, EXPERTS)
    waited = torch.tensor([1000, 2000], device="npu")
    x, ids = torch.ones(2, 8, dtype=torch.bfloat16, device="npu"), ids_of(2)
    seen = [waited.tolist()]
    for _ in range(2):
        dispatched = torch.ops.npu.npu_moe_distribute_dispatch_v2(x, ids, *where, performance_info=waited)
        seen.append(waited.tolist())
    weights = torch.ones(2, 2, device="npu")
    torch.ops.npu.npu_moe_distribute_combine_v2(
        dispatched[0], ids, dispatched[2], dispatched[4], weights, *where, performance_info=waited
    )
    seen.append(waited.tolist())
    return seen


def test_waited_time_is_added(ranks) -> None:
    for rank, seen in enumerate(ranks(2).run(performance)):
        peer = 1 - rank
        assert all(step[rank] == seen[0][rank] for step in seen)
        assert seen[0][peer] <= seen[1][peer] <= seen[2][peer] <= seen[3][peer] < seen[0][peer] + 90e6


def accepted(rank: int, size: int) -> None:
    """Arguments without effect, non-contiguous inputs, and inputs that require a gradient."""
    where = (communicator(rank), size, rank, EXPERTS)
    x = torch.arange(48.0, device="npu").bfloat16().reshape(16, 3).t().requires_grad_()
    ids = ids_of(3).t().contiguous().t()
    weights = torch.full((2, 3), 0.5, device="npu").t()
    elastic = torch.zeros(4 + 2 * size, dtype=torch.int32, device="npu")
    for algorithm in ("", "fullmesh", "fullmesh_v1", "fullmesh_v2", "hierarchy"):
        out = there_and_back(x, ids, weights, where, comm_alg=algorithm, elastic_info=elastic, group_tp="unused")
        assert not out.requires_grad and out.is_contiguous() and torch.equal(out, x)


def test_accepted_without_effect(ranks) -> None:
    ranks(2).run(accepted)


# ---- errors ----------------------------------------------------------------------------------------------------------


def scaled(rank: int, size: int) -> None:
    """In the first version scales alone make rows int8, as quant_mode=1 does."""
    where = (communicator(rank), size, rank, EXPERTS)
    x = (torch.arange(24.0).reshape(3, 8) / 8 + rank).bfloat16()
    scales = torch.arange(1.0, 1 + EXPERTS * 8).reshape(EXPERTS, 8) / 4
    ids = ids_of(3)
    dispatch = torch.ops.npu.npu_moe_distribute_dispatch
    alone = dispatch(x.npu(), ids, *where, scales=scales.npu())
    named = dispatch(x.npu(), ids, *where, scales=scales.npu(), quant_mode=1)
    assert alone[0].dtype == torch.int8
    assert all(torch.equal(one, other) for one, other in zip(alone, named, strict=True))
    counts, local = alone[4].tolist(), EXPERTS // size
    values = [(torch.arange(24.0).reshape(3, 8) / 8 + source).bfloat16().float() for source in range(size)]
    place = 0
    for block in range(local * size):
        expert, source = rank * local + block // size, block % size
        for token in range(3):
            if expert in ids[token].tolist():
                expected = (values[source][token] * scales[expert]).round().clamp(-128, 127)
                assert torch.equal(alone[0][place].cpu().float(), expected)
                place += 1
        assert counts[block] == place


def test_scales_alone_of_the_first_version(ranks) -> None:
    ranks(2).run(scaled)


def wrong_calls(rank: int, size: int, name: str) -> list[Callable[[], Any]]:
    """Calls that are wrong on their face, for a group of two."""
    x, ids = torch.ones(2, 8, dtype=torch.bfloat16, device="npu"), ids_of(2)
    weights, scales = torch.ones(2, 2, device="npu"), torch.ones(EXPERTS, 8, device="npu")
    rows, triples = torch.ones(16, 8, dtype=torch.bfloat16, device="npu"), torch.zeros(48, dtype=torch.int32).npu()
    counts = torch.zeros(4, dtype=torch.int32, device="npu")
    where = {"group_ep": name, "ep_world_size": size, "ep_rank_id": rank, "moe_expert_num": EXPERTS}

    def dispatch(x: Tensor = x, ids: Tensor = ids, **changes: Any) -> Callable:
        return lambda: torch.ops.npu.npu_moe_distribute_dispatch_v2(x, ids, **where | changes)

    def first(x: Tensor = x, **changes: Any) -> Callable:
        return lambda: torch.ops.npu.npu_moe_distribute_dispatch(x, ids, **where | changes)

    def combine(rows: Tensor = rows, weights: Tensor = weights, **changes: Any) -> Callable:
        return lambda: torch.ops.npu.npu_moe_distribute_combine_v2(
            rows, ids, triples, counts, weights, **where | changes
        )

    def normed(residual: Tensor, gamma: Tensor) -> Callable:
        return lambda: torch.ops.npu.npu_moe_distribute_combine_add_rms_norm(
            rows, ids, triples, counts, weights, residual, gamma, **where
        )

    return [
        dispatch(x[0]),
        dispatch(ids=ids[0]),
        dispatch(ids=ids.long()),
        dispatch(x.float()),
        dispatch(ids=ids[:1]),
        dispatch(group_ep=""),
        dispatch(group_ep="n" * 128),
        dispatch(group_ep="nobody"),
        dispatch(ep_world_size=size + 1, moe_expert_num=6),
        dispatch(ep_rank_id=1 - rank),
        dispatch(ep_rank_id=size),
        dispatch(moe_expert_num=5),
        dispatch(shared_expert_rank_num=2),
        dispatch(shared_expert_num=2),
        dispatch(shared_expert_num=2, shared_expert_rank_num=1),
        dispatch(expert_token_nums_type=2),
        dispatch(expert_shard_type=1),
        dispatch(tp_world_size=2),
        dispatch(quant_mode=6),
        dispatch(quant_mode=1),
        dispatch(scales=scales),
        dispatch(scales=scales[:3], quant_mode=2),
        dispatch(scales=scales.half(), quant_mode=2),
        dispatch(x.int()),
        dispatch(global_bs=2),
        dispatch(comm_alg="ring"),
        dispatch(elastic_info=counts[:3]),
        dispatch(performance_info=counts[:2]),
        dispatch(x_active_mask=counts[:2]),
        dispatch(x_active_mask=(counts == 0)[:3]),
        dispatch(y_dtype=torch.float16, quant_mode=4),
        dispatch(zero_expert_num=-1),
        dispatch(x.cpu()),
        first(x.int(), scales=scales),
        first(quant_mode=3),
        combine(rows.float()),
        combine(rows[0]),
        combine(weights=weights.half()),
        combine(copy_expert_num=1),
        combine(const_expert_num=1, ori_x=x),
        combine(comm_quant_mode=3),
        combine(shared_expert_x=x[:1]),
        combine(ori_x=x.half()),
        normed(x[:, :4], x[0]),
        normed(x, x[0, :4]),
    ]


def errors_of(calls: list[Callable[[], Any]]) -> list[str]:
    said = []
    for call in calls:
        try:
            call()
            said.append("no error")
        except RuntimeError as error:
            said.append(str(error))
    return said


def refused(rank: int, size: int) -> list[str]:
    """Messages of wrong calls: no communication, so each rank gets its own."""
    name = communicator(rank)
    said = errors_of(wrong_calls(rank, size, name))
    x, weights = torch.ones(2, 8, dtype=torch.bfloat16, device="npu"), torch.full((2, 2), 0.5, device="npu")
    out = there_and_back(x, ids_of(2), weights, (name, size, rank, EXPERTS))
    assert torch.equal(out, x)  # the group works on
    return said


REFUSED = [
    r"x: x and expert_ids should be 2D",
    r"expert_ids: x and expert_ids should be 2D",
    r"expert_ids: expected Int, got Long",
    r"x: expected bfloat16, float16 or int32 \(packed int4\), got Float",
    r"expert_ids: expected as many rows as x has, 2, got 1",
    r"1 to 127 characters, but has 0",
    r"1 to 127 characters, but has 128",
    r'no communicator "nobody"',
    r"world size 3 is not the size of communicator",
    r"ep_rank_id: expected the rank in the communicator .*, (0, got 1|1, got 0)",
    r"ep_rank_id: expected a rank in \[0, 2\), got 2",
    r"moe_expert_num: expected a multiple of ep_world_size - shared_expert_rank_num = 2, got 5",
    r"shared_expert_rank_num: expected a number in \[0, 2\), got 2",
    r"shared_expert_num: expected 0 or 1 with shared_expert_rank_num=0, got 2",
    r"shared_expert_num: expected a divisor of shared_expert_rank_num=1, got 2",
    r"expert_token_nums_type: expected 0 .* or 1 .*, got 2",
    r"expert_shard_type: expected 0",
    r"tp_world_size: expected 0 or 1, got 2",
    r"quant_mode: expected 0 .* got 6",
    r"scales: is needed with quant_mode=1",
    r"scales: has no meaning with quant_mode=0",
    r"scales: expected shape \[4, 8\], got \[3, 8\]",
    r"scales: expected Float, got Half",
    r"scales: is needed with x of int32",
    r"global_bs: .* at least 4 .* got 2",
    r'comm_alg: expected "", "fullmesh".* got "ring"',
    r"elastic_info: expected shape \[8\], got \[3\]",
    r"performance_info: expected Long, got Int",
    r"x_active_mask: expected Bool, got Int",
    r"x_active_mask: expected shape \[2\] or \[2, 2\], got \[3\]",
    r"y_dtype: expected one of float8_e4m3fn, float8_e5m2, got float16",
    r"zero_expert_num: expected 0 or more, got -1",
    r"x: expected a tensor on npu:|expected npu tensors",
    r"npu_moe_distribute_dispatch: argument x: expected bfloat16 or float16, got Int",
    r"npu_moe_distribute_dispatch: argument quant_mode: .* got 3",
    r"expand_x: expected bfloat16, float16 or int32, got Float",
    r"expand_x: expected 2 dims",
    r"expert_scales: expected Float, got Half",
    r"ori_x: is needed with copy_expert_num=1",
    r"const_expert_alpha_1: is needed with const_expert_num=1",
    r"comm_quant_mode: expected 0 \(none\) or 2 \(int8\), got 3",
    r"shared_expert_x: expected shape \[2, 8\]",
    r"ori_x: expected BFloat16, got Half",
    r"residual_x: expected shape \[2, 1, 8\] or \[2, 8\], got \[2, 4\]",
    r"gamma: expected shape \[8\], got \[4\]",
]


def test_refused_at_once(ranks) -> None:
    for said in ranks(2).run(refused):
        assert len(said) == len(REFUSED)
        for text, pattern in zip(said, REFUSED, strict=True):
            assert re.search(pattern, text, re.DOTALL), f"expected {pattern!r}, got {text!r}"


# What a fake kernel cannot know, and what it has shapes for though no kernel does it.
UNKNOWN_TO_FAKES = ("characters", "communicator", "on npu:", "tp_world_size")


def test_refused_by_fakes() -> None:
    """What a kernel refuses the fake kernel refuses as well, with the same text."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        said = errors_of(wrong_calls(0, 2, "made up"))
    checked = 0
    for text, pattern in zip(said, REFUSED, strict=True):
        if not any(word in pattern for word in UNKNOWN_TO_FAKES):
            assert re.search(pattern, text, re.DOTALL), f"expected {pattern!r}, got {text!r}"
            checked += 1
    assert checked == len(REFUSED) - 7


def fails(rank: int, size: int, mistake: str) -> dict:
    """Rank 1 makes a mistake that only shows when the call runs; in a group of its own, which it ends."""
    group = dist.new_group()
    where: tuple = (communicator(rank, group), size, rank, EXPERTS)
    x, ids = torch.ones(3, 8, dtype=torch.bfloat16, device="npu"), ids_of(3)
    weights = torch.full((3, 2), 0.5, device="npu")
    wrong = rank == 1
    more: dict[str, Any] = {}
    if mistake == "expert" and wrong:
        ids[2, 1] = 17
    elif mistake == "experts" and wrong:
        where = (*where[:3], 2 * EXPERTS)
    elif mistake == "tokens" and wrong:
        x, ids, weights = x[:2], ids[:2], weights[:2]
    elif mistake == "elastic" and wrong:
        more["elastic_info"] = torch.ones(4 + size, dtype=torch.int32, device="npu")
    answer = {}
    try:
        if mistake.startswith("ordinal"):
            results = torch.ops.npu.npu_moe_distribute_dispatch(x, ids, *where)
            if wrong:
                results[2][3] = 5
            out = torch.ops.npu.npu_moe_distribute_combine(results[0], ids, results[2], results[4], weights, *where)
        else:
            results = torch.ops.npu.npu_moe_distribute_dispatch_v2(x, ids, *where, **more)
            triples, counts = results[2], results[4]
            if wrong:
                edits = {"rank": (3, 9), "token": (4, 6), "slot": (5, 2)}
                if mistake in ("twice", "crowd"):
                    rows = triples[: 3 * int(counts[-1])].view(-1, 3)
                    source = rows[0, 0].item()
                    same = (rows[:, 0] == source) == (mistake == "twice")
                    rows[same.nonzero()[-1, 0]] = rows[0]
                elif mistake in edits:
                    triples[edits[mistake][0]] = edits[mistake][1]
                elif mistake == "missing":
                    counts[-1] -= 1
                elif mistake == "rows":
                    counts[-1] = 1000
            out = torch.ops.npu.npu_moe_distribute_combine_v2(results[0], ids, triples, counts, weights, *where)
        out.sum().item()
    except RuntimeError as error:
        answer["error"] = str(error)
    try:
        torch.ops.npu.npu_moe_distribute_dispatch_v2(x, ids_of(len(x)), *where)[4].tolist()
    except RuntimeError as error:
        answer["later"] = str(error)
    # The device is fine, and so are other groups.
    answer["sum"] = torch.ones(3, device="npu").sum().item()
    dist.barrier()
    dist.destroy_process_group(group)
    return answer


FAILURES = {
    "expert": r"dispatch_v2: rank 1: argument expert_ids: token 2, slot 1: expected an expert in \[0, 4\), got 17",
    "experts": r"EI0005: hccl: call number \d+: argument moe_expert_num: .* all ranks, got 4 on rank 0 and 8 on rank 1",
    "tokens": r"global_bs .*: expected the same on all ranks, got 3 on rank 0 and 2 on rank 1",
    "elastic": r"rank 1: argument elastic_info: scaling down is not supported.* got 1",
    "rank": r"combine_v2: rank 1: argument assist_info_for_combine: row 1: .* got rank 9, token",
    "token": r"rank 1: argument assist_info_for_combine: row 1: .* token 6, slot",
    "slot": r"rank 1: argument assist_info_for_combine: row 1: .* slot 2",
    "twice": r"two rows come for rank \d, token \d, slot \d",
    "crowd": r"rank \d is to get 7 or more rows, but has only 6 slots",
    "missing": r"no row comes for rank \d, token \d, slot \d",
    "rows": r"rank 1: argument ep_send_counts: expected a last element in \[0, \d+\].* got 1000",
    "ordinal": r"argument expand_idx of rank 1: token 1 asks for row 5 of its rows at expert \d",
}


@pytest.mark.parametrize("mistake", FAILURES)
def test_failure_on_every_rank(ranks, mistake: str) -> None:
    for answer in ranks(2).run(fails, mistake):
        assert re.search(FAILURES[mistake], answer.get("error", ""), re.DOTALL), answer
        assert "later" in answer and answer["sum"] == 3.0, answer


# ---- shapes without a group ------------------------------------------------------------------------------------------


def fake_shapes(world: int, rank: int, tokens: int = 4, **more: Any) -> list[tuple]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(tokens, 16, dtype=torch.bfloat16, device="npu")
        ids = torch.empty(tokens, 3, dtype=torch.int32, device="npu")
        version = more.pop("version", 2)
        op = torch.ops.npu.npu_moe_distribute_dispatch_v2 if version == 2 else torch.ops.npu.npu_moe_distribute_dispatch
        if "scales" in more:
            more["scales"] = torch.empty(8 + ("shared_expert_rank_num" in more), 16, device="npu")
        if "expert_scales" in more:
            more["expert_scales"] = torch.empty(tokens, 3, device="npu")
        results = op(x, ids, "made up", world, rank, 8, **more)
        return [(tuple(result.shape), result.dtype) for result in results]


def test_shapes_without_a_group() -> None:
    i32, i64, f32, bf16 = torch.int32, torch.int64, torch.float32, torch.bfloat16
    assert fake_shapes(4, 3) == [
        ((32, 16), bf16),
        ((32,), f32),
        ((32 * 128,), i32),
        ((2,), i64),
        ((8,), i32),
        ((0,), i32),
        ((32,), f32),
    ]
    assert fake_shapes(4, 0, quant_mode=2, tp_world_size=1, global_bs=40)[0] == ((80, 16), torch.int8)
    assert fake_shapes(5, 0, shared_expert_rank_num=1)[0] == ((20, 16), bf16)  # the one replica hears all ranks
    assert fake_shapes(10, 1, shared_expert_rank_num=2)[:1] == [((20, 16), bf16)]
    assert fake_shapes(4, 3, quant_mode=3)[:2] == [((32, 16), torch.float8_e4m3fn), ((32, 1), f32)]
    assert fake_shapes(4, 3, quant_mode=5)[:2] == [((32, 16), torch.float8_e5m2), ((32, 2), torch.uint8)]
    first = fake_shapes(8, 3, version=1, expert_scales=True)
    assert first[2] == ((12,), i32) and first[4] == ((8 + 2 * 32 * 3,), i32)
    assert fake_shapes(10, 1, version=1, shared_expert_rank_num=2, scales=True)[0] == ((20, 16), torch.int8)


@pytest.mark.parametrize("version", [1, 2])
def test_shapes_of_two_tensor_parallel_ranks(version: int) -> None:
    """Both get the rows of both."""
    one = [shape for shape, _ in fake_shapes(4, 3, version=version, tp_world_size=1)]
    two = [shape for shape, _ in fake_shapes(4, 3, version=version, tp_world_size=2)]
    assert (one[0], one[1], one[4], one[5]) == ((32, 16), (32,), (8,), (1,))
    assert (two[0], two[1], two[4], two[5]) == ((64, 16), (64,), (16,), (2,))
    assert (two[2], two[3], two[6]) == (one[2], one[3], one[6])


def test_shapes_with_shared_experts_on_the_last_ranks() -> None:
    """The first version knows them."""
    more = {"version": 1, "shared_expert_rank_num": 2}
    on_first, on_last = (
        [fake_shapes(10, rank, expert_shard_type=kind, **more) for rank in range(10)] for kind in (0, 1)
    )
    assert on_last == on_first[2:] + on_first[:2]
    assert on_last[0][0][0] == (40, 16) and on_last[9][0][0] == (20, 16)


def test_combine_shapes_without_a_group() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        rows = torch.empty(64, 16, dtype=torch.float16, device="npu")
        ids = torch.empty(5, 3, dtype=torch.int32, device="npu")
        any_length, weights = torch.empty(7, dtype=torch.int32, device="npu"), torch.empty(5, 3, device="npu")
        where = ("made up", 256, 7, 256)
        second = torch.ops.npu.npu_moe_distribute_combine_v2(rows, ids, any_length, any_length, weights, *where)
        first = torch.ops.npu.npu_moe_distribute_combine(rows, ids, any_length, any_length, weights, *where)
        integer = torch.ops.npu.npu_moe_distribute_combine(
            rows.int(), ids, any_length, any_length, weights, *where, out_dtype=0
        )
        residual, gamma = rows[:5].unsqueeze(1), rows[0]
        y, rstd, x = torch.ops.npu.npu_moe_distribute_combine_add_rms_norm(
            rows, ids, any_length, any_length, weights, residual, gamma, *where
        )
    assert first.shape == second.shape == integer.shape == (5, 16) and y.shape == x.shape == (5, 1, 16)
    assert first.dtype == second.dtype == y.dtype == torch.float16 and integer.dtype == torch.bfloat16
    assert rstd.shape == (5, 1, 1) and rstd.dtype == torch.float32


def compiled(rank: int, size: int) -> None:
    where = (communicator(rank), size, rank, EXPERTS)

    def layer(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        results = torch.ops.npu.npu_moe_distribute_dispatch_v2(x * 2, ids, *where)
        rows = results[0] + 1
        return torch.ops.npu.npu_moe_distribute_combine_v2(rows, ids, results[2], results[4], weights, *where) * 0.5

    fast = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for tokens in (3, 6, 4):
        x = torch.randn(tokens, 8, device="npu").bfloat16()
        ids, weights = ids_of(tokens), torch.full((tokens, 2), 0.5, device="npu")
        assert torch.equal(fast(x, ids, weights), layer(x, ids, weights))


def test_compiled(ranks) -> None:
    ranks(2).run(compiled)


def checked(rank: int, size: int) -> None:
    """torch's own checks of custom operators, in a group of one."""
    where = (communicator(rank), 1, 0, EXPERTS)
    x, ids = torch.randn(3, 8, device="npu").bfloat16(), ids_of(3)
    weights = torch.full((3, 2), 0.5, device="npu")
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    ops = torch.ops.npu
    for dispatch, combine in (
        (ops.npu_moe_distribute_dispatch, ops.npu_moe_distribute_combine),
        (ops.npu_moe_distribute_dispatch_v2, ops.npu_moe_distribute_combine_v2),
    ):
        torch.library.opcheck(dispatch.default, (x, ids, *where), {"quant_mode": 2}, test_utils=checks)
        results = dispatch(x, ids, *where)
        rows = (results[0], ids, results[2], results[4], weights)
        torch.library.opcheck(combine.default, (*rows, *where), test_utils=checks)
    torch.library.opcheck(
        ops.npu_moe_distribute_combine_add_rms_norm.default, (*rows, x, x[0], *where), test_utils=checks
    )


def test_checks_of_custom_operators(ranks) -> None:
    ranks(1).run(checked)


def test_documentation() -> None:
    import torch_npu

    for name in (V2, "npu_moe_distribute_combine", "npu_moe_distribute_combine_add_rms_norm"):
        documentation = getattr(torch_npu, name).__doc__
        assert "Parameters\n" in documentation and "Returns\n" in documentation
