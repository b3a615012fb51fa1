"""The harness measures what it says: order, units, ratio and verdict."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks import harness, table
from benchmarks.harness import Case, Settings, Target, alternate, calls_for, measure, sample_time, summarise

QUICK = Settings(seconds=0.01, sample_seconds=0.002, allocator="tuned")


class Clock:
    """Time that passes only when work says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-9
        return self.now

    def work(self, seconds: float) -> Callable[[], None]:
        """Work that takes `seconds`."""

        def run() -> None:
            self.now += seconds

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(harness, "time", clock)
    return clock


def test_ratio_is_subject_over_baseline(clock: Clock) -> None:
    result = measure("suite", Case("c", subject=clock.work(0.004), baseline=clock.work(0.001), samples=5), QUICK)
    assert result.ratio == pytest.approx(4, rel=1e-3)
    assert result.speedup == pytest.approx(0.25, rel=1e-3)
    assert result.extra_ms == pytest.approx(3, rel=1e-3)


def test_sides_alternate_and_change_order() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return 1.0

    case = Case("order", subject=lambda: side("a"), baseline=lambda: side("b"), self_timed=True, samples=4)
    alternate(case, Settings(seconds=0.0))
    assert order == ["a", "b"] + ["a", "b", "b", "a"] * 2  # warm-up, then pairs


def test_times_are_per_operation() -> None:
    timing = summarise([2.0, 4.0, 6.0], calls=10, operations=100)
    assert timing.median == pytest.approx(0.004)
    assert timing.best == pytest.approx(0.002)
    assert timing.spread == pytest.approx(1.0)


def test_finish_belongs_to_the_sample(clock: Clock) -> None:
    case = Case("async", clock.work(1e-4), finish=clock.work(0.01), baseline=clock.work(1e-3), samples=3)
    subject, _ = alternate(case, QUICK)
    assert subject.median * subject.calls_per_sample == pytest.approx(0.01 + 1e-4 * subject.calls_per_sample, rel=1e-3)


@pytest.mark.parametrize("seconds", [1e-6, 1e-3, 0.5])
def test_samples_are_long_enough(clock: Clock, seconds: float) -> None:
    work, finish = clock.work(seconds), clock.work(0.0)
    calls = calls_for(work, finish, 0.02)
    assert sample_time(work, finish, calls) >= 0.02
    assert calls == 1 or sample_time(work, finish, calls) < 0.2


@pytest.mark.parametrize(
    ("target", "seconds", "met"),
    [
        (Target("ratio", 1.05), (1.04, 1.0), True),
        (Target("ratio", 1.05), (1.06, 1.0), False),
        (Target("speedup", 5.0), (1.0, 5.1), True),
        (Target("speedup", 5.0), (1.0, 4.9), False),
        (Target("extra_ms", 150.0), (1.1, 1.0), True),
        (Target("extra_ms", 150.0, allocator="default"), (1.1, 1.0), None),
    ],
)
def test_targets(target: Target, seconds: tuple[float, float], met: bool | None) -> None:
    case = Case("t", lambda: seconds[0], lambda: seconds[1], self_timed=True, samples=1, target=target)
    assert measure("suite", case, Settings(seconds=0.0, allocator="tuned")).met is met


def test_shares_are_against_the_measured_machine() -> None:
    case = Case(
        *("s", lambda: 0.5, lambda: 1.0),
        self_timed=True,
        samples=1,
        bytes_moved=1e9,
        footprint=7,
        flops=3e9,
        peak="float32",
        target=Target("bandwidth_share", 0.75),
    )
    settings = Settings(seconds=0.0, allocator="tuned", copy_bandwidth={7: 4.0}, peak_flops={"float32": 12.0})
    result = measure("suite", case, settings)
    assert (result.gigabytes_per_second, result.bandwidth_share, result.met) == (2.0, 0.5, False)
    assert (result.gigaflops, result.peak_share) == (6.0, 0.5)
    assert "MISSED" in table.report({}, {}, [result.as_dict()])


def test_a_target_without_figures_is_an_error() -> None:
    case = Case("t", lambda: 1.0, lambda: 1.0, self_timed=True, samples=1, target=Target("peak_share", 0.5))
    with pytest.raises(ValueError, match="flops and peak"):
        measure("suite", case, Settings(seconds=0.0))


def test_self_timed_work_must_return_seconds() -> None:
    case = Case("t", lambda: None, lambda: 1.0, self_timed=True)
    with pytest.raises(TypeError, match="must return seconds"):
        measure("suite", case, QUICK)
