"""Arguments of random ops: errors, empty tensors, layouts, out=, and that the calls do not wait."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def seed():
    states = torch.npu.get_rng_state_all()
    torch.npu.manual_seed_all(7)
    yield
    torch.npu.set_rng_state_all(states)


def npu(*values: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, device="npu", dtype=dtype)


def empty(dtype: torch.dtype = torch.float32, *size: int) -> torch.Tensor:
    return torch.empty(size or (3,), device="npu", dtype=dtype)


NAN, INF = float("nan"), float("inf")
OVERLAP = "more than one element of the written-to tensor refers to a single memory location"

AT_THE_CALL = [
    (lambda: empty().uniform_(1, 0), RuntimeError, "uniform_ expects to return a [from, to) range"),
    (lambda: empty(torch.float16).uniform_(-65504, 65504), RuntimeError, "uniform_ expects to-from <="),
    (lambda: empty(torch.float16).uniform_(0, 1e6), RuntimeError, "to is out of bounds for Half"),
    (lambda: empty(torch.int32).uniform_(), NotImplementedError, "uniform_: expected self to be float32"),
    (lambda: empty(torch.int32).normal_(), NotImplementedError, "normal_: expected self to be float32"),
    (lambda: empty().normal_(0, -1), RuntimeError, "normal expects std >= 0.0, but found std -1"),
    (lambda: empty().normal_(0, NAN), RuntimeError, "normal expects std >= 0.0, but found std nan"),
    (lambda: torch.normal(npu(0.0), -1.0), RuntimeError, "normal expects std >= 0.0"),
    (
        lambda: torch.normal(npu(0.0), npu(1.0).to(torch.complex64)),
        RuntimeError,
        "standard deviation to be non-complex",
    ),
    (lambda: torch.normal(empty(torch.int32), npu(1.0)), NotImplementedError, "normal: expected self to be float32"),
    (lambda: empty().log_normal_(0, 0), RuntimeError, "log_normal_ expects std > 0.0"),
    (lambda: empty(torch.int64).log_normal_(), NotImplementedError, "log_normal_: expected self to be float32"),
    (lambda: empty().cauchy_(0, -1), RuntimeError, "cauchy_ expects sigma > 0.0"),
    (lambda: empty(torch.int64).cauchy_(), RuntimeError, "continuous probability distribution"),
    (lambda: empty().exponential_(0), RuntimeError, "exponential_ expects lambda > 0.0"),
    (lambda: empty(torch.int64).exponential_(), RuntimeError, "continuous probability distribution"),
    (lambda: empty().geometric_(0), RuntimeError, "geometric_ expects p to be in (0, 1), but got p=0"),
    (lambda: empty().geometric_(1), RuntimeError, "geometric_ expects p to be in (0, 1), but got p=1"),
    (lambda: empty(torch.bool).geometric_(0.5), NotImplementedError, "geometric_: expected self"),
    (lambda: empty().bernoulli_(1.5), RuntimeError, "bernoulli_ expects p to be in [0, 1], but got p=1.5"),
    (lambda: empty().bernoulli_(NAN), RuntimeError, "bernoulli_ expects p to be in [0, 1], but got p=nan"),
    (lambda: empty(torch.complex64).bernoulli_(), NotImplementedError, "bernoulli: expected the result to be"),
    (lambda: torch.bernoulli(empty(torch.int64)), NotImplementedError, "expected the probabilities to be float32"),
    (
        lambda: empty().random_(5, 2),
        RuntimeError,
        "random_ expects 'from' to be less than 'to', but got from=5 >= to=2",
    ),
    (lambda: empty(torch.uint8).random_(0, 300), RuntimeError, "to - 1 is out of bounds for"),
    (lambda: empty(torch.bool).random_(0, 3), RuntimeError, "to - 1 is out of bounds for"),
    (lambda: empty(torch.uint8).random_(-1, 3), RuntimeError, "from is out of bounds for"),
    (lambda: empty(torch.bfloat16).random_(1001, 1002), RuntimeError, "there is none; use a wider dtype"),
    (lambda: empty(torch.complex64).random_(), NotImplementedError, "random_: expected self to be bool"),
    (lambda: torch.randperm(257, device="npu", dtype=torch.uint8), RuntimeError, "n cannot be greater than 256"),
    (lambda: torch.randperm(2050, device="npu", dtype=torch.float16), RuntimeError, "n cannot be greater than 2049"),
    (lambda: torch.randperm(3, device="npu", dtype=torch.bool), NotImplementedError, "randperm: expected"),
    (lambda: torch.randperm(-1, device="npu"), RuntimeError, "negative"),
    (lambda: torch.multinomial(npu(1, 2, dtype=torch.int64), 1), RuntimeError, "only supports floating-point dtypes"),
    (lambda: torch.multinomial(empty(torch.float32, 2, 2, 2), 1), RuntimeError, "prob_dist must be 1 or 2 dim"),
    (lambda: torch.multinomial(npu(1, 2), 0), RuntimeError, "cannot sample n_sample <= 0 samples"),
    (lambda: torch.multinomial(npu(1, 2), 3), RuntimeError, "without replacement"),
    (lambda: torch.multinomial(npu(1).expand(2**24 + 1), 1), RuntimeError, "number of categories cannot exceed 2^24"),
    (lambda: torch.multinomial(empty(torch.float32, 2, 0), 1, True), RuntimeError, "at least one category"),
    (lambda: torch.multinomial(npu(1, 2), 1, out=empty(torch.int32)), RuntimeError, "expects Long tensor out"),
    (lambda: torch.poisson(empty(torch.int64)), NotImplementedError, "poisson: expected the rates"),
    (lambda: torch.binomial(empty(torch.int64), npu(0.5)), NotImplementedError, "binomial: expected count"),
    (lambda: torch.binomial(npu(1), npu(0.5, dtype=torch.float64)), RuntimeError, "count and prob to have one dtype"),
    (lambda: torch._standard_gamma(empty(torch.int64)), NotImplementedError, "_standard_gamma: expected"),
    (lambda: torch._sample_dirichlet(npu(1)[0]), RuntimeError, "at least one dimension"),
    (lambda: torch.native_dropout(npu(1), 1.5, True), RuntimeError, "dropout probability has to be between 0 and 1"),
    (lambda: torch.native_dropout(empty(torch.int64), 0.5, True), NotImplementedError, "floating point tensor"),
    (
        lambda: torch.ops.aten.native_dropout_backward(npu(1), npu(1), 2.0),
        RuntimeError,
        "mask should be Bool, but has dtype Float",
    ),
    (lambda: torch.rrelu(npu(1), 0.5, 0.1, True), RuntimeError, "Lower bound should be less than or equal"),
    (
        lambda: torch._C._nn.rrelu_with_noise(npu(1), npu(1, 2), 0.1, 0.2, True),
        RuntimeError,
        "noise tensor shape must match self tensor shape",
    ),
    (lambda: npu(1).expand(3).uniform_(), RuntimeError, OVERLAP),
    (lambda: npu(1).expand(3).normal_(), RuntimeError, OVERLAP),
    (lambda: npu(1).expand(3).random_(), RuntimeError, OVERLAP),
    (lambda: npu(1).expand(3).bernoulli_(), RuntimeError, OVERLAP),
]


@pytest.mark.parametrize(("call", "kind", "text"), AT_THE_CALL, ids=lambda v: v if isinstance(v, str) else "")
def test_errors_at_the_call(call: Callable[[], object], kind: type[Exception], text: str):
    state = torch.npu.get_rng_state()
    with pytest.raises(kind, match=re.escape(text)):
        call()
    assert torch.equal(torch.npu.get_rng_state(), state), "a refused call must not consume random numbers"
    torch.npu.synchronize()


IN_THE_TASK = [
    (lambda: torch.bernoulli(npu(0.5, 2.0)), "aten::bernoulli_.*p_in >= 0"),
    (lambda: torch.bernoulli(npu(0.5, NAN)), "aten::bernoulli_.*p_in >= 0"),
    (lambda: empty(torch.bool).bernoulli_(npu(-0.5)), "aten::bernoulli_.*p_in >= 0"),
    (lambda: torch.normal(npu(0, 0), npu(1, -1)), "aten::normal.*all elements of std >= 0.0"),
    (lambda: torch.normal(0.0, npu(1, NAN)), "aten::normal.*all elements of std >= 0.0"),
    (lambda: torch.multinomial(npu(1, -1), 1), "aten::multinomial.*contains either `inf`, `nan` or element < 0"),
    (lambda: torch.multinomial(npu(1, INF), 1, True), "aten::multinomial.*contains either"),
    (lambda: torch.multinomial(npu(1, 2, NAN), 2), "aten::multinomial.*contains either"),
    (lambda: torch.multinomial(npu(0, 0), 1), "aten::multinomial.*sum of probabilities <= 0"),
    (lambda: torch.multinomial(npu(0, 0), 2), "aten::multinomial.*sum of probabilities <= 0"),
    (lambda: torch.poisson(npu(1, -1)), "aten::poisson.*expected rate to be non-negative"),
    (lambda: torch._standard_gamma(npu(1, -1)), "aten::_standard_gamma.*concentrations to be >= 0"),
    (lambda: torch._sample_dirichlet(npu(0, 0)), "aten::_sample_dirichlet.*concentration > 0"),
]


@pytest.mark.parametrize(("call", "text"), IN_THE_TASK, ids=lambda v: v if isinstance(v, str) else "")
def test_errors_in_values_come_with_the_next_synchronisation(call: Callable[[], object], text: str):
    call()
    with pytest.raises(RuntimeError, match=text):
        torch.npu.synchronize()
    assert torch.rand(3, device="npu").cpu().isfinite().all()


GENERATED = [
    lambda t, g: t.uniform_(generator=g),
    lambda t, g: t.normal_(generator=g),
    lambda t, g: t.log_normal_(generator=g),
    lambda t, g: t.cauchy_(generator=g),
    lambda t, g: t.exponential_(generator=g),
    lambda t, g: t.geometric_(0.3, generator=g),
    lambda t, g: t.bernoulli_(0.3, generator=g),
    lambda t, g: t.bernoulli_(torch.full_like(t, 0.3), generator=g),
    lambda t, g: torch.bernoulli(torch.full_like(t, 0.3), generator=g),
    lambda t, g: torch.bernoulli(t, 0.3, generator=g),
    lambda t, g: t.random_(generator=g),
    lambda t, g: t.random_(7, generator=g),
    lambda t, g: t.random_(-70_000, 70_000, generator=g),
    lambda t, g: torch.normal(torch.zeros_like(t), 1.0, generator=g),
    lambda t, g: torch.normal(0.0, torch.ones_like(t), generator=g),
    lambda t, g: torch.normal(torch.zeros_like(t), torch.ones_like(t), generator=g),
    lambda t, g: torch.normal(0.0, 1.0, t.shape, device="npu", generator=g),
    lambda t, g: torch.poisson(torch.full_like(t, 20.0), generator=g),
    lambda t, g: torch.binomial(torch.full_like(t, 90.0), torch.full_like(t, 0.4), generator=g),
    lambda t, g: torch._standard_gamma(torch.full_like(t, 0.5), generator=g),
    lambda t, g: torch._sample_dirichlet(torch.ones_like(t), generator=g),
    lambda t, g: torch._fused_dropout(torch.ones_like(t), 0.5, generator=g)[0],
    lambda t, g: torch.rrelu(torch.full_like(t, -1.0), 0.1, 0.9, True, generator=g),
    lambda t, g: torch.rand(t.shape, device="npu", generator=g),
    lambda t, g: torch.randn(t.shape, device="npu", generator=g),
    lambda t, g: torch.randint(0, 1000, t.shape, device="npu", generator=g),
    lambda t, g: torch.randperm(t.numel(), device="npu", generator=g),
    lambda t, g: torch.multinomial(torch.ones_like(t), 5, generator=g),
    lambda t, g: torch.multinomial(torch.ones_like(t), 5, replacement=True, generator=g),
]
NAMES = [str(number) for number in range(len(GENERATED))]


@pytest.mark.parametrize("draw", GENERATED, ids=NAMES)
def test_generator_argument(draw: Callable):
    generator = torch.Generator(device="npu").manual_seed(5)
    before = torch.npu.get_rng_state()
    first = draw(empty(torch.float32, 40, 50), generator)
    offset = generator.get_offset()
    assert offset > 0 and offset % 4 == 0
    second = draw(empty(torch.float32, 40, 50), generator)
    assert torch.equal(torch.npu.get_rng_state(), before), "the default generator must not be used"
    assert not torch.equal(first, second)
    generator.manual_seed(5)
    assert torch.equal(draw(empty(torch.float32, 40, 50), generator), first)
    with pytest.raises(RuntimeError, match="Expected a 'npu' generator device but found 'cpu'"):
        draw(empty(torch.float32, 40, 50), torch.Generator())
    with pytest.raises(RuntimeError, match="Expected a generator of device npu:0 but found one of npu:1"):
        draw(empty(torch.float32, 40, 50), torch.Generator(device="npu:1"))


IN_PLACE = GENERATED[:8] + GENERATED[10:13]


@pytest.mark.parametrize("fill", IN_PLACE, ids=[str(number) for number in range(len(IN_PLACE))])
def test_values_do_not_depend_on_the_layout(fill: Callable):
    def drawn(tensor: torch.Tensor) -> torch.Tensor:
        return fill(tensor, torch.Generator(device="npu").manual_seed(1)).cpu().contiguous()

    shape = (6, 5, 7, 9)
    dense = drawn(empty(torch.float32, *shape))
    assert torch.equal(drawn(empty(torch.float32, *shape).to(memory_format=torch.channels_last)), dense)
    assert torch.equal(drawn(empty(torch.float32, 9, 7, 5, 6).permute(3, 2, 1, 0)), dense)
    base = torch.full((6, 5, 7, 18), -7.0, device="npu")
    assert torch.equal(drawn(base[..., ::2]), dense) and (base[..., 1::2] == -7).all()


def test_dropout_does_not_depend_on_the_layout():
    x = torch.randn(4, 6, 5, 7)

    def drawn(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        torch.npu.manual_seed(3)
        out, mask = torch.native_dropout(tensor, 0.4, True)
        assert out.stride() == tensor.stride()
        return out.cpu().contiguous(), mask.cpu().contiguous()

    dense = drawn(x.to("npu"))
    for other in (
        drawn(x.to("npu").to(memory_format=torch.channels_last)),
        drawn(x.to("npu").permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)),
    ):
        assert torch.equal(other[0], dense[0]) and torch.equal(other[1], dense[1])


@pytest.mark.parametrize("draw", GENERATED[:23], ids=NAMES[:23])
@pytest.mark.parametrize("shape", [(0,), (3, 0, 2)])
def test_empty_tensors(draw: Callable, shape: tuple[int, ...]):
    assert draw(empty(torch.float32).new_empty(shape), None).shape == shape


def test_empty_results():
    assert torch.randperm(0, device="npu").shape == (0,)
    assert torch.multinomial(torch.empty(0, 3, device="npu"), 2).shape == (0, 2)
    out, mask = torch.native_dropout(torch.empty(0, 3, device="npu"), 0.5, True)
    assert out.shape == mask.shape == (0, 3) and mask.dtype == torch.bool


def test_out_arguments_are_resized_and_keep_their_strides():
    p = torch.full((20, 30), 0.5, device="npu")
    for call in (
        lambda out: torch.bernoulli(p, out=out),
        lambda out: torch.normal(p, 1.0, out=out),
        lambda out: torch.normal(1.0, p, out=out),
        lambda out: torch.normal(p, p[:1], out=out),
        lambda out: torch.normal(0.0, 1.0, (20, 30), out=out),
        lambda out: torch.rand(20, 30, out=out),
        lambda out: torch.randn(20, 30, out=out),
        lambda out: torch.ops.aten.poisson.out(p, out=out),
        lambda out: torch.ops.aten._standard_gamma.out(p, out=out),
        lambda out: torch.ops.aten.uniform.out(p, out=out),
    ):
        torch.npu.manual_seed(2)
        fresh = call(torch.empty(0, device="npu"))
        torch.npu.manual_seed(2)
        strided = torch.empty(30, 20, device="npu").t()
        assert fresh.shape == (20, 30) and torch.equal(call(strided), fresh) and strided.stride() == (1, 20)
    perm = torch.empty(20, device="npu", dtype=torch.int64)[::2]
    assert torch.equal(torch.randperm(10, out=perm).sort().values.cpu(), torch.arange(10))
    drawn = torch.multinomial(p, 3, out=torch.empty(0, device="npu", dtype=torch.int64))
    assert drawn.shape == (20, 3)


def test_functional_forms_leave_their_input_alone():
    x = torch.full((100,), 3.0, device="npu")
    for form in ("uniform", "normal_functional", "exponential", "cauchy", "log_normal", "random"):
        result = getattr(torch.ops.aten, form)(x)
        assert (x == 3).all() and not torch.equal(result, x), form


def test_random_ops_do_not_wait_or_fall_back(run_python):
    done = run_python(
        """
        import torch
        x = torch.full((64, 64), 0.5, device="npu")
        torch.npu.synchronize()
        torch.npu.set_sync_debug_mode("error")
        results = [
            torch.rand_like(x), torch.randn_like(x), x.clone().log_normal_(), x.clone().cauchy_(),
            x.clone().exponential_(), x.clone().geometric_(0.5), torch.bernoulli(x), torch.bernoulli(x, 0.5),
            x.clone().random_(), torch.randint_like(x, 5), torch.normal(x, x), torch.normal(x, 1.0),
            torch.normal(0.0, x), torch.normal(0.0, 1.0, (3,), device="npu"), torch.randperm(9, device="npu"),
            torch.multinomial(x, 3), torch.multinomial(x, 3, True), torch.poisson(x), torch.binomial(x, x),
            torch._standard_gamma(x), torch._sample_dirichlet(x), torch.native_dropout(x, 0.5, True)[0],
            torch.rrelu(-x, 0.1, 0.2, True), torch.nn.functional.alpha_dropout(x, 0.5, True),
            torch.nn.functional.dropout2d(x, 0.5), torch.randn(3, device="npu", dtype=torch.complex64),
        ]
        torch.npu.set_sync_debug_mode("default")
        torch.npu.synchronize()
        """,
        NPU_COUNT_FALLBACKS="1",
    )
    assert "npu: fallback" not in done.stderr, done.stderr
