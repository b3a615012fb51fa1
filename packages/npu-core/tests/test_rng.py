"""Random numbers: seeds, states and who follows them."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop


@pytest.fixture(autouse=True)
def restore_states():
    states = torch.npu.get_rng_state_all()
    yield
    torch.npu.set_rng_state_all(states)


def draw(device: str = "npu") -> list[float]:
    return torch.rand(5, device=device).tolist()


def test_seed_repeats_and_state_has_the_documented_bytes():
    torch.npu.manual_seed(1234)
    assert torch.npu.get_rng_state().tolist() == [210, 4] + [0] * 14
    first = draw()
    state = torch.npu.get_rng_state()
    assert state.dtype == torch.uint8 and state.device.type == "cpu" and state[8] % 4 == 0 and state[8:].any()
    second = draw()
    assert first != second
    torch.npu.set_rng_state(state)
    assert draw() == second
    torch.npu.manual_seed(1234)
    assert draw() == first
    assert torch.npu.initial_seed() == 1234


def test_devices_are_independent():
    torch.npu.manual_seed_all(5)
    assert draw("npu:0") == draw("npu:1")
    draw("npu:0")
    with torch.npu.device(1):
        torch.npu.manual_seed(6)
    assert torch.npu.get_rng_state("npu:1")[0] == 6 and torch.npu.get_rng_state("npu:0")[0] == 5


def test_torch_manual_seed_reaches_npu():
    torch.manual_seed(77)
    assert torch.npu.initial_seed() == 77
    first = draw()
    torch.manual_seed(77)
    assert draw() == first
    torch.manual_seed(-1)
    assert torch.npu.initial_seed() == (1 << 64) - 1


def test_seed_before_initialisation_is_applied(run_python):
    code = """
        import torch
        torch.manual_seed(9)
        assert not torch.npu.is_initialized()
        print(torch.rand(3, device="npu").tolist(), torch.npu.initial_seed())
        """
    first, second = run_python(code).stdout, run_python(code).stdout
    assert first == second and first.strip().endswith(" 9")


def test_states_before_initialisation_are_applied(run_python):
    done = run_python(
        """
        import torch
        state = torch.tensor([3, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0], dtype=torch.uint8)
        torch.npu.set_rng_state(state)
        state.zero_()
        assert not torch.npu.is_initialized()
        print(torch.npu.get_rng_state().tolist()[:9])
        """
    )
    assert done.stdout.strip() == "[3, 0, 0, 0, 0, 0, 0, 0, 8]"


def test_short_and_wrong_states():
    torch.npu.set_rng_state(torch.tensor([9, 0, 0, 0, 0, 0, 0, 0], dtype=torch.uint8))
    assert torch.npu.get_rng_state().tolist() == [9] + [0] * 15
    with pytest.raises(RuntimeError, match="RNG state is wrong size"):
        torch.npu.set_rng_state(torch.zeros(7, dtype=torch.uint8))
    odd = torch.zeros(16, dtype=torch.uint8)
    odd[8] = 2
    with pytest.raises(RuntimeError, match="offset must be a multiple of 4"):
        torch.npu.set_rng_state(odd)


def test_seed_all_gives_every_device_the_same_new_seed():
    before = torch.npu.initial_seed()
    torch.npu.seed_all()
    states = torch.npu.get_rng_state_all()
    assert torch.equal(states[0], states[1]) and torch.npu.initial_seed() != before
    torch.npu.seed()
    assert not torch.equal(*torch.npu.get_rng_state_all()[:2])


def test_generator_objects():
    generator = torch.Generator(device="npu")
    assert generator.device.type == "npu" and generator.initial_seed() == 67280421310721
    generator.manual_seed(3)
    first = torch.rand(4, device="npu", generator=generator)
    before = torch.npu.get_rng_state()
    generator.manual_seed(3)
    assert torch.equal(torch.rand(4, device="npu", generator=generator), first)
    assert torch.equal(torch.npu.get_rng_state(), before)
    assert len(torch.npu.default_generators) == torch.npu.device_count()
    torch.npu.default_generators[0].manual_seed(4)
    assert torch.npu.initial_seed() == 4


def test_fork_rng_restores_npu():
    torch.npu.manual_seed_all(1)
    with torch.random.fork_rng(device_type="npu"):
        inside = draw()
    assert draw() == inside


def test_checkpoint_replays_dropout():
    torch.npu.manual_seed(11)
    x = torch.ones(64, device="npu", requires_grad=True)
    kept = []

    def region(value: torch.Tensor) -> torch.Tensor:
        dropped = torch.nn.functional.dropout(value, 0.5)
        kept.append(dropped.detach() != 0)
        return dropped

    with set_checkpoint_early_stop(False):
        checkpoint(region, x, use_reentrant=False).sum().backward()
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(x.grad != 0, kept[0])
