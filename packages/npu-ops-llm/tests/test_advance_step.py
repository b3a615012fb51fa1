"""npu_advance_step_flashattn against plain loops over Python integers."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

ADVANCE = torch.ops.npu.npu_advance_step_flashattn
WRITTEN = ("input_tokens", "input_positions", "seq_lens", "slot_mapping")


def plain(state: dict[str, Any], queries: int, sequences: int, size: int) -> dict[str, list[int]]:
    """What the four tensors hold afterwards, without speculation."""
    tokens, positions, lens, slots = (state[name].tolist() for name in WRITTEN)
    for i in range(sequences):
        if i >= queries:
            tokens[i], positions[i], slots[i] = 0, 0, -1
            continue
        p = lens[i]
        tokens[i], positions[i], lens[i] = int(state["sampled_token_ids"][i, 0]), p, p + 1
        slots[i] = int(state["block_tables"][i, p // size]) * size + p % size
    return dict(zip(WRITTEN, (tokens, positions, lens, slots), strict=True))


def speculative(state: dict[str, Any], spec: Tensor, accepted: Tensor, size: int) -> dict[str, list[int]]:
    """The same with speculation."""
    tokens, positions, lens, slots = (state[name].tolist() for name in WRITTEN)
    sequences, k = spec.shape
    for r in range(sequences):
        row = [*state["sampled_token_ids"][r].tolist(), -1]
        last = row[row.index(min(row)) - 1]  # of no accepted token: row[-1], the -1 itself
        tokens[r * (1 + k) : (r + 1) * (1 + k)] = [last, *spec[r].tolist()]
        for e in range(r * (1 + k), (r + 1) * (1 + k)):
            positions[e] += 1 + int(accepted[r])
            lens[e] = positions[e] + 1
            slots[e] = int(state["block_tables"][r, positions[e] // size]) * size + positions[e] % size
    return dict(zip(WRITTEN, (tokens, positions, lens, slots), strict=True))


def plain_state(queries: int, sequences: int, size: int, blocks: int) -> dict[str, Any]:
    return {
        "input_tokens": torch.randint(1000, (sequences,)),
        "sampled_token_ids": torch.randint(1000, (queries, 1)),
        "input_positions": torch.randint(1000, (sequences,)),
        "seq_lens": torch.randint(blocks * size, (sequences,)),
        "slot_mapping": torch.randint(1000, (sequences,)),
        "block_tables": torch.randint(2**40, (sequences, blocks)),
    }


def assert_holds(state: dict[str, Any], expected: dict[str, list[int]]) -> None:
    assert {name: state[name].tolist() for name in WRITTEN} == expected


def on(device: str, state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(device) for name, value in state.items()}


@pytest.mark.parametrize(("queries", "sequences"), [(1, 1), (3, 3), (3, 7), (0, 2), (0, 0), (257, 300)])
@pytest.mark.parametrize("size", [1, 4, 128])
def test_plain(queries: int, sequences: int, size: int, device: str) -> None:
    state = plain_state(queries, sequences, size, 5)
    expected = plain(state, queries, sequences, size)
    state = on(device, state)
    assert ADVANCE(**state, num_seqs=sequences, num_queries=queries, block_size=size) is None
    assert_holds(state, expected)


def speculative_state(sequences: int, k: int, size: int, blocks: int) -> tuple[dict[str, Any], Tensor, Tensor]:
    flat = sequences * (1 + k)
    state = plain_state(sequences, flat, size, blocks)
    state["block_tables"] = state["block_tables"][:sequences]
    accepted = torch.randint(k + 1, (sequences,))
    sampled = torch.randint(1000, (sequences, 1 + k))
    for row, count in zip(sampled, accepted.tolist(), strict=True):
        row[count + 1 :] = -1
    state["sampled_token_ids"] = sampled
    state["input_positions"] = torch.randint(blocks * size - k - 1, (flat,))
    return state, torch.randint(1000, (sequences, k)), accepted


@pytest.mark.parametrize("sequences", [1, 2, 33])
@pytest.mark.parametrize("k", [0, 1, 4])
def test_speculative(sequences: int, k: int, device: str) -> None:
    state, spec, accepted = speculative_state(sequences, k, 4, 6)
    expected = speculative(state, spec, accepted, 4)
    state = on(device, state)
    extra = {"spec_token": spec.to(device), "accepted_num": accepted.to(device)}
    ADVANCE(**state, num_seqs=sequences, num_queries=sequences, block_size=4, **extra)
    assert_holds(state, expected)


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=1, max_size=4))
def test_last_token_of_any_row(rows: list[list[int]]) -> None:
    """Rows with ties, without -1, with less than -1."""
    count = len(rows)
    state, spec, accepted = speculative_state(count, 3, 4, 6)
    state["sampled_token_ids"] = torch.tensor(rows)
    expected = speculative(state, spec, accepted, 4)
    ADVANCE(**state, num_seqs=count, num_queries=count, block_size=4, spec_token=spec, accepted_num=accepted)
    assert_holds(state, expected)


def test_specification_example(device: str) -> None:
    tokens, positions, slots = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(3))
    lens = torch.tensor([4], device=device)
    sampled, tables = torch.tensor([[7]], device=device), torch.tensor([[5, 9]], device=device)
    ADVANCE(tokens, sampled, positions, lens, slots, tables, 1, 1, 4)
    assert [t.item() for t in (tokens, positions, lens, slots)] == [7, 4, 5, 36]


def test_every_row_looks_up_its_own_blocks(device: str) -> None:
    """Not the flattened table at an offset: row 1 finds block 9, not 5 + 2."""
    state = on(
        device,
        {
            **plain_state(2, 2, 4, 2),
            "seq_lens": torch.tensor([1, 2]),
            "block_tables": torch.tensor([[5, 6], [9, 10]]),
        },
    )
    ADVANCE(**state, num_seqs=2, num_queries=2, block_size=4)
    assert state["slot_mapping"].tolist() == [5 * 4 + 1, 9 * 4 + 2]


def test_tensors_of_any_strides(device: str) -> None:
    state = plain_state(3, 5, 4, 6)
    expected = plain(state, 3, 5, 4)
    strided = {}
    for name, value in state.items():
        wide = torch.full((*value.shape[:-1], 2 * value.shape[-1]), 7, device=device)
        strided[name] = wide[..., ::2].copy_(value)
    strided["block_tables"] = strided["block_tables"].t().contiguous().t()
    ADVANCE(**strided, num_seqs=5, num_queries=3, block_size=4)
    assert_holds(strided, expected)
    for name in WRITTEN:
        assert bool((strided[name]._base[1::2] == 7).all()), "memory between the elements was written"


def test_compiled_graphs_keep_the_writes(device: str) -> None:
    state = on(device, plain_state(3, 5, 4, 6))

    def step(state: dict[str, Tensor]) -> Tensor:
        ADVANCE(**state, num_seqs=5, num_queries=3, block_size=4)
        return state["slot_mapping"] + 1

    ours, theirs = ({name: value.clone() for name, value in state.items()} for _ in range(2))
    torch._dynamo.reset()
    actual = torch.compile(step, backend="aot_eager", fullgraph=True)(ours)
    assert torch.equal(actual.cpu(), step(theirs).cpu())
    for name in WRITTEN:
        assert torch.equal(ours[name].cpu(), theirs[name].cpu())


# ---- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [24, -1, 2**62, -(2**63)])
def test_a_position_beyond_the_blocks_writes_nothing(length: int) -> None:
    state = plain_state(3, 3, 4, 6)
    state["seq_lens"][2] = length
    before = {name: value.clone() for name, value in state.items()}
    message = (
        f"npu_advance_step_flashattn: argument block_tables: position {length} of sequence 2 is outside its 6 blocks"
    )
    with pytest.raises(IndexError, match=message):
        ADVANCE(**state, num_seqs=3, num_queries=3, block_size=4)
    for name, value in before.items():
        assert torch.equal(state[name], value)


def test_a_position_beyond_the_blocks_with_speculation() -> None:
    state, spec, accepted = speculative_state(2, 2, 4, 6)
    state["input_positions"][4], accepted[1] = 22, 1
    before = {name: value.clone() for name, value in state.items()}
    with pytest.raises(IndexError, match="position 24 of sequence 1"):
        ADVANCE(**state, num_seqs=2, num_queries=2, block_size=4, spec_token=spec, accepted_num=accepted)
    for name, value in before.items():
        assert torch.equal(state[name], value)


def test_a_position_beyond_the_blocks_surfaces_at_the_next_synchronisation() -> None:
    import torch_npu

    state = on("npu", plain_state(3, 3, 4, 6))
    state["seq_lens"][1] = 24
    torch_npu.npu.synchronize()
    ADVANCE(**state, num_seqs=3, num_queries=3, block_size=4)
    with pytest.raises(IndexError, match="npu_advance_step_flashattn.*argument block_tables: position 24"):
        torch_npu.npu.synchronize()


def test_errors_name_the_argument(device: str) -> None:
    state = on(device, plain_state(3, 5, 4, 6))
    numbers = {"num_seqs": 5, "num_queries": 3, "block_size": 4}

    def change(message: str, **changes: Any) -> None:
        with pytest.raises(RuntimeError, match="npu_advance_step_flashattn: argument " + message):
            ADVANCE(**{**state, **numbers, **changes})

    def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    change(r"num_queries: expected 0 <= num_queries <= num_seqs \(5\), got 6", num_queries=6)
    change("num_queries: expected 0 <= num_queries", num_queries=-1)
    change("block_size: expected a positive number, got 0", block_size=0)
    for name in WRITTEN:
        change(rf"{name}: expected shape \[5\] \(num_seqs,\), got \[4\]", **{name: zeros(4)})
        change(f"{name}: expected dtype int64, got int32", **{name: zeros(5, dtype=torch.int32)})
        change(f"{name}: more than one element refers to a single memory location", **{name: zeros(1).expand(5)})
    change(r"sampled_token_ids: expected shape \[3, 1\]", sampled_token_ids=zeros(3))
    change(r"sampled_token_ids: expected shape \[3, 1\]", sampled_token_ids=zeros(3, 2))
    change(r"block_tables: expected shape \(num_seqs, blocks\), got \[5\]", block_tables=zeros(5))
    change(r"block_tables: expected shape \[5, 2\]", block_tables=zeros(4, 2))
    change("accepted_num: expected spec_token and accepted_num together", spec_token=zeros(5, 2))
    change("spec_token: expected spec_token and accepted_num together", accepted_num=zeros(5))
    both = {"spec_token": zeros(5, 2), "accepted_num": zeros(5)}
    change(r"num_queries: expected num_seqs \(5\) with spec_token, got 3", **both)
    change(r"input_tokens: expected shape \[15\] \(num_seqs \* \(1 \+ k\),\)", **both, num_queries=5)
    change(r"spec_token: expected shape \(num_seqs, k\)", spec_token=zeros(5), accepted_num=zeros(5))
    change(r"accepted_num: expected shape \[5\]", spec_token=zeros(5, 2), accepted_num=zeros(4), num_queries=5)


def test_meta_tensors_are_checked() -> None:
    state = on("meta", plain_state(3, 5, 4, 6))
    assert ADVANCE(**state, num_seqs=5, num_queries=3, block_size=4) is None
    with pytest.raises(RuntimeError, match=r"argument sampled_token_ids: expected shape \[2, 1\], got \[3, 1\]"):
        ADVANCE(**state, num_seqs=5, num_queries=2, block_size=4)


def test_devices_must_agree() -> None:
    import torch_npu  # noqa: F401

    state = {**on("npu", plain_state(3, 5, 4, 6)), "seq_lens": torch.zeros(5, dtype=torch.int64)}
    with pytest.raises(RuntimeError, match="npu:0 and cpu! .*when checking argument seq_lens"):
        ADVANCE(**state, num_seqs=5, num_queries=3, block_size=4)
