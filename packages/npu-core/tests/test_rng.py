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


DRAW_MANY = """
    import hashlib, torch
    torch.set_num_threads(THREADS)
    torch.manual_seed(4)
    n = 30_001
    x = torch.linspace(-1, 1, n, device="npu")
    p = torch.rand(n, device="npu")
    results = [p, *torch.native_dropout(x, 0.3, True), *torch.native_dropout(x.bfloat16(), 0.3, True)]
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        e = torch.empty(n, device="npu", dtype=dtype)
        results += [torch.rand_like(e), torch.randn_like(e), e.clone().exponential_(), e.clone().log_normal_()]
        results += [e.clone().cauchy_(), e.clone().geometric_(0.2), e.clone().bernoulli_(0.2), e.clone().random_()]
    results += [torch.randint(0, high, (n,), device="npu") for high in (10, 100_000, 1 << 20, 1 << 40)]
    results += [torch.randperm(n, device="npu"), torch.bernoulli(p), torch.normal(x, p), torch.poisson(30 * p)]
    results += [torch.binomial(100 * p, p), torch._standard_gamma(p), torch._sample_dirichlet(p[:7000].view(-1, 7))]
    results += [torch.multinomial(p, 5000, True), torch.multinomial(p, 50)]
    results += [torch.multinomial(p[:30_000].view(300, 100), 9), torch.rrelu(x, 0.1, 0.4, True)]
    digest = hashlib.sha256()
    for result in results:
        digest.update(result.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    print(digest.hexdigest(), torch.npu.get_rng_state().tolist())
"""


def test_values_depend_on_seed_and_offset_only(run_python):
    def digest(threads: int, **environment: str) -> str:
        return run_python(DRAW_MANY.replace("THREADS", str(threads)), **environment).stdout

    one = digest(1)
    assert digest(2) == one and digest(3) == one


def test_every_instruction_set_gives_the_same_bits(run_python):
    code = """
        import hashlib, torch
        torch.manual_seed(4)
        digest = hashlib.sha256()
        for n in (1, 63, 64, 65, 100_003):
            for dtype in (torch.float16, torch.bfloat16, torch.float32):
                e = torch.empty(n, device="npu", dtype=dtype)
                results = [torch.rand_like(e), e.clone().uniform_(-3, 2), torch.randn_like(e), e.clone().normal_(2, 3)]
                results += [e.clone().exponential_(3.0), *torch.native_dropout(torch.ones_like(e), 0.3, True)]
                results += [torch.ops.aten.native_dropout_backward(results[0], results[-1], 1.7)]
                results += [e.clone().bernoulli_(0.2), torch.randint_like(e, 100), torch.randint_like(e, 1 << 8)]
                for result in results:
                    digest.update(result.cpu().view(torch.uint8).numpy().tobytes())
            for high in (7, 100_000, 1 << 30, 1 << 50):
                digest.update(torch.randint(0, high, (n,), device="npu").cpu().numpy().tobytes())
        print(digest.hexdigest())
        """
    assert len({run_python(code, NPU_CPU_ISA=isa).stdout for isa in ("base", "avx2", "avx512")}) == 1


def test_streams_do_not_change_values():
    torch.npu.manual_seed(8)
    here = torch.randn(5000, device="npu"), torch.nn.functional.dropout(torch.ones(5000, device="npu"), 0.5)
    torch.npu.manual_seed(8)
    ones = torch.ones(5000, device="npu")
    side = torch.npu.Stream()
    side.wait_stream(torch.npu.current_stream())
    with torch.npu.stream(side):
        there = torch.randn(5000, device="npu"), torch.nn.functional.dropout(ones, 0.5)
    side.synchronize()
    assert torch.equal(here[0], there[0]) and torch.equal(here[1], there[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_calls_use_disjoint_ranges_of_counters(dtype: torch.dtype):
    generator = torch.Generator(device="npu").manual_seed(12)
    words = 2 if dtype == torch.float64 else 1
    for size in (1, 4, 63, 64, 65, 1000):
        before = generator.get_offset()
        first = torch.rand(size, device="npu", dtype=dtype, generator=generator)
        after = generator.get_offset()
        assert before % 4 == 0 and after % 4 == 0 and after - before >= size * words
        # The same counters again give the same values; the next ones follow from the offset alone.
        second = torch.rand(size, device="npu", dtype=dtype, generator=generator)
        generator.set_offset(before)
        assert torch.equal(torch.rand(size, device="npu", dtype=dtype, generator=generator), first)
        assert torch.equal(torch.rand(size, device="npu", dtype=dtype, generator=generator), second)


def test_dropout_mask_is_given_by_seed_and_offset():
    x = torch.randn(3000, device="npu")
    torch.npu.manual_seed(6)
    torch.rand(100, device="npu")
    state = torch.npu.get_rng_state()
    _, mask = torch.native_dropout(x, 0.3, True)
    torch.npu.set_rng_state(state)
    # Neither values nor dtype of the input matter.
    _, again = torch.native_dropout(torch.zeros(3000, device="npu", dtype=torch.bfloat16), 0.3, True)
    assert torch.equal(mask, again)


def test_offset_of_a_generator():
    generator = torch.Generator(device="npu").manual_seed(2)
    assert generator.get_offset() == 0
    generator.set_offset(400)
    assert generator.get_offset() == 400 and generator.get_state()[8:].tolist() == [144, 1] + [0] * 6
    with pytest.raises(RuntimeError, match="offset must be a multiple of 4, but got 6"):
        generator.set_offset(6)
    generator.manual_seed(2)
    assert generator.get_offset() == 0


def test_cloned_generators_go_their_own_way():
    generator = torch.Generator(device="npu").manual_seed(2)
    torch.rand(10, device="npu", generator=generator)
    clone = generator.clone_state()
    assert clone.device == generator.device and torch.equal(clone.get_state(), generator.get_state())
    a = torch.rand(10, device="npu", generator=generator)
    assert clone.get_offset() != generator.get_offset()
    assert torch.equal(torch.rand(10, device="npu", generator=clone), a)


def test_graphsafe_state_is_shared():
    generator = torch.Generator(device="npu").manual_seed(2)
    state = generator.graphsafe_get_state()
    torch.rand(10, device="npu", generator=generator)
    assert state.get_offset() == generator.get_offset() > 0
    other = torch.Generator(device="npu").manual_seed(9)
    other.graphsafe_set_state(state)
    assert other.initial_seed() == 2
    values = [torch.rand(10, device="npu", generator=g) for g in (generator, other, state)]
    assert not torch.equal(values[0], values[1]) and not torch.equal(values[1], values[2])
    assert generator.get_offset() == other.get_offset() == state.get_offset()
    # Back to a state of its own.
    other.graphsafe_set_state(torch.Generator(device="npu").manual_seed(3))
    assert other.initial_seed() == 3 and generator.initial_seed() == 2
    for wrong in (torch.Generator(), torch.Generator(device="npu:1")):
        with pytest.raises(RuntimeError, match="graphsafe_set_state: expected a generator of device npu:0"):
            other.graphsafe_set_state(wrong)
