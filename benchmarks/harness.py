"""Alternating A/B measurement of two ways to do the same work in one process.

A suite is a module of :mod:`benchmarks.suites` with a function ``cases(settings) -> Iterator[Case]``.  The harness
measures one case after the other and frees it before the next one is built.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

Work = Callable[[], object]


def nothing() -> None:
    """End of a sample for work that is complete when it returns."""


@dataclass(frozen=True)
class Target:
    """What a case must reach.

    Parameters
    ----------
    metric : str
        ``"ratio"`` (at most `value`), ``"speedup"`` (at least), ``"bandwidth_share"`` (at least),
        ``"peak_share"`` (at least), ``"extra_ms"`` (at most) or ``"nanoseconds"`` (of the subject, at most).
    value : float
        The bound.
    allocator : str
        The allocator setting in which the bound holds, ``"tuned"`` or ``"default"``.
    """

    metric: str
    value: float
    allocator: str = "tuned"

    @property
    def at_most(self) -> bool:
        """True when smaller is better."""
        return self.metric in ("ratio", "extra_ms", "nanoseconds")

    def met(self, measured: float) -> bool:
        """Whether `measured` reaches the bound."""
        return measured <= self.value if self.at_most else measured >= self.value

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        return f"{self.metric} {sign} {self.value:g}"


@dataclass
class Case:
    """One comparison.

    Parameters
    ----------
    name : str
        What is compared, unique in its suite.
    subject, baseline : callable
        One piece of work on the npu and the same piece on stock PyTorch.  Asynchronous work need not be complete on
        return: a sample is several calls followed by one call of the matching ``finish``.
    finish, finish_baseline : callable
        Waits for the work of the sample.
    operations : int
        How many operations one call does; times are reported per operation.
    bytes_moved, flops : float
        Of one operation; give the rates and, against the machine's measured peaks, the shares.
    peak : str
        Name of the dtype whose measured matmul peak `flops` is compared with, for instance ``"float32"``.
    footprint : int
        Bytes of the source whose plain copy `bytes_moved` is compared with; 0 = do not compare.
    self_timed : bool
        The callables return their own time in seconds, for work that runs in other processes.
    samples : int
        Lower bound of the number of samples of each side.
    target : Target, optional
        What must be reached.
    allocators : tuple of str
        Settings of the allocator in which the case is measured.
    note : str
        What a reader must know to read the figures.
    series, size : str, int
        Cases of one series that differ in `size`, a number of elements, make one row of the table of ratios and one
        line of the plot.
    mean : str
        Name of the geometric mean that this case's speed-up enters.
    """

    name: str
    subject: Work
    baseline: Work
    finish: Work = nothing
    finish_baseline: Work = nothing
    operations: int = 1
    bytes_moved: float = 0.0
    flops: float = 0.0
    peak: str = ""
    footprint: int = 0
    self_timed: bool = False
    samples: int = 9
    target: Target | None = None
    allocators: tuple[str, ...] = ("default", "tuned")
    note: str = ""
    series: str = ""
    size: int = 0
    mean: str = ""


@dataclass
class Timing:
    """Times of one side, in seconds per operation."""

    median: float
    best: float
    spread: float
    samples: int
    calls_per_sample: int


@dataclass
class Result:
    """What was measured of one case under one allocator setting.  ``ratio`` = subject / baseline."""

    suite: str
    case: str
    allocator: str
    subject: Timing
    baseline: Timing
    ratio: float
    speedup: float
    extra_ms: float
    nanoseconds: float
    threads: int
    gigabytes_per_second: float | None = None
    baseline_gigabytes_per_second: float | None = None
    bandwidth_share: float | None = None
    gigaflops: float | None = None
    baseline_gigaflops: float | None = None
    peak_share: float | None = None
    target: str = ""
    target_allocator: str = ""
    met: bool | None = None
    note: str = ""
    series: str = ""
    size: int = 0
    mean: str = ""

    def as_dict(self) -> dict:
        """The result as JSON-ready data."""
        return asdict(self)


@dataclass
class Settings:
    """How long and with what a run measures.

    Parameters
    ----------
    threads : int
        Threads of torch's team, for both sides.
    seconds : float
        Time to spend on each side of a case.
    sample_seconds : float
        Least length of a sample, long against timer and scheduling noise.
    allocator : str
        Name of the allocator setting of this process.
    quick : bool
        One short sample of each side, and small sizes where a suite has a choice: shows that everything runs; the
        figures mean nothing.
    """

    threads: int = 2
    seconds: float = 1.0
    sample_seconds: float = 0.02
    allocator: str = "default"
    quick: bool = False
    copy_bandwidth: dict[int, float] = field(default_factory=dict)
    peak_flops: dict[str, float] = field(default_factory=dict)


def sample_time(work: Work, finish: Work, calls: int) -> float:
    """Seconds that `calls` calls of `work` and one `finish` take."""
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    finish()
    return time.perf_counter() - begin


def calls_for(work: Work, finish: Work, seconds: float) -> int:
    """Number of calls whose sample lasts at least `seconds`."""
    calls = 1
    while True:
        elapsed = sample_time(work, finish, calls)
        if elapsed >= seconds or calls >= 1_000_000:
            return calls
        calls = max(calls + 1, min(calls * 10, math.ceil(calls * seconds / max(elapsed, 1e-9) * 1.2)))


def summarise(samples: list[float], calls: int, operations: int) -> Timing:
    """Median, best and interquartile spread of `samples`, per operation."""
    scale = 1.0 / (calls * operations)
    quartiles = statistics.quantiles(samples, n=4) if len(samples) > 1 else [samples[0]] * 3
    return Timing(
        median=statistics.median(samples) * scale,
        best=min(samples) * scale,
        spread=(quartiles[2] - quartiles[0]) / statistics.median(samples),
        samples=len(samples),
        calls_per_sample=calls,
    )


def alternate(case: Case, settings: Settings) -> tuple[Timing, Timing]:
    """Measures both sides of `case` in turns, the first side changing from pair to pair.

    Parameters
    ----------
    case : Case
        What to measure.
    settings : Settings
        How long to measure.

    Returns
    -------
    tuple of Timing
        Subject and baseline.
    """
    sides = ((case.subject, case.finish), (case.baseline, case.finish_baseline))
    if case.self_timed:
        calls = [1, 1]
        for work, _ in sides:
            work()
    else:
        for work, finish in sides:
            sample_time(work, finish, 1 if settings.quick else 3)
        sample_seconds = 0.0 if settings.quick else settings.sample_seconds
        calls = [calls_for(work, finish, sample_seconds) for work, finish in sides]

    samples, seconds = (1, 0.0) if settings.quick else (case.samples, settings.seconds)
    times: tuple[list[float], list[float]] = ([], [])
    begin = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()
    try:
        turn = 0
        while len(times[0]) < samples or time.perf_counter() - begin < 2 * seconds:
            for side in (0, 1) if turn % 2 == 0 else (1, 0):
                work, finish = sides[side]
                if case.self_timed:
                    measured = work()
                    if not isinstance(measured, float):
                        raise TypeError(f"case {case.name!r} is self-timed: its callables must return seconds")
                    times[side].append(measured)
                else:
                    sample_time(work, finish, 1)  # the caches and the thread team of the other side are left behind
                    times[side].append(sample_time(work, finish, calls[side]))
            turn += 1
    finally:
        if collecting:
            gc.enable()
    return summarise(times[0], calls[0], case.operations), summarise(times[1], calls[1], case.operations)


def measure(suite: str, case: Case, settings: Settings) -> Result:
    """Measures `case` and derives ratio, rates, shares and whether its target is met."""
    subject, baseline = alternate(case, settings)
    result = Result(
        suite=suite,
        case=case.name,
        allocator=settings.allocator,
        subject=subject,
        baseline=baseline,
        ratio=subject.median / baseline.median,
        speedup=baseline.median / subject.median,
        extra_ms=(subject.median - baseline.median) * 1e3,
        nanoseconds=subject.median * 1e9,
        threads=settings.threads,
        note=case.note,
        series=case.series,
        size=case.size,
        mean=case.mean,
    )
    if case.bytes_moved:
        result.gigabytes_per_second = case.bytes_moved / subject.median * 1e-9
        result.baseline_gigabytes_per_second = case.bytes_moved / baseline.median * 1e-9
        if case.footprint:
            result.bandwidth_share = result.gigabytes_per_second / settings.copy_bandwidth[case.footprint]
    if case.flops:
        result.gigaflops = case.flops / subject.median * 1e-9
        result.baseline_gigaflops = case.flops / baseline.median * 1e-9
        if case.peak:
            result.peak_share = result.gigaflops / settings.peak_flops[case.peak]
    if case.target is not None:
        result.target = str(case.target)
        result.target_allocator = case.target.allocator
        measured = getattr(result, case.target.metric)
        if measured is None:
            raise ValueError(
                f"case {case.name!r} of suite {suite!r} has the target {case.target} but gives nothing to measure it; "
                "set bytes_moved and footprint, or flops and peak"
            )
        if case.target.allocator == settings.allocator and not settings.quick:
            result.met = case.target.met(measured)
    return result
