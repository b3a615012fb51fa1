"""The harness measures what it says: order, units, ratio and verdict."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import harness, plot, table
from benchmarks.harness import Case, Settings, Target, alternate, calls_for, measure, sample_time, summarise
from benchmarks.suites import allocator, copies, scaling, tiny_training

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
        (Target("nanoseconds", 150.0), (149e-9, 1.0), True),
        (Target("nanoseconds", 150.0), (151e-9, 1.0), False),
    ],
)
def test_targets(target: Target, seconds: tuple[float, float], met: bool | None) -> None:
    case = Case("t", lambda: seconds[0], lambda: seconds[1], self_timed=True, samples=1, target=target)
    assert measure("suite", case, Settings(seconds=0.0, allocator="tuned")).met is met


def test_a_quick_run_is_one_call_per_side_and_judges_nothing(clock: Clock) -> None:
    calls: list[str] = []
    case = Case("q", lambda: calls.append("npu"), lambda: calls.append("cpu"), target=Target("ratio", 1e9))
    result = measure("suite", case, Settings(quick=True, allocator="tuned"))
    assert (result.subject.samples, result.baseline.samples) == (1, 1)
    assert (result.subject.calls_per_sample, result.baseline.calls_per_sample) == (1, 1)
    # Of the pair: one call to warm up, one to find the length of a sample, one to come back to the side, one sample.
    assert calls.count("npu") == calls.count("cpu") == 4
    assert (result.target, result.met) == ("ratio <= 1e+09", None)


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


# ---- the report -----------------------------------------------------------------------------------------------------


def result_of(series: str, size: int, threads: int, ratio: float, allocator: str = "tuned", **changes: object) -> dict:
    """A result as data, of a case whose baseline takes a second."""
    case = Case(f"{series} {size}", lambda: ratio, lambda: 1.0, self_timed=True, samples=1, series=series, size=size)
    case = dataclasses.replace(case, **changes)
    return measure("s", case, Settings(threads=threads, seconds=0.0, allocator=allocator)).as_dict()


def test_a_sweep_has_one_row_per_series_and_one_column_per_size() -> None:
    results = [
        result_of("mul", 2**20, 2, 0.5),
        result_of("add", 16, 1, 1.25),
        result_of("add", 2**12, 1, 2.0),
        result_of("", 7, 1, 9.0),
    ]
    head, _, *rows = table.sweep(results)[1:]
    assert head.split()[-5:] == ["threads", "malloc", "16", "4Ki", "1Mi"]
    assert [row.split() for row in rows] == [["add", "1", "tuned", "1.25", "2.00"], ["mul", "2", "tuned", "0.50"]]
    assert rows[1].index("0.50") == head.index("1Mi")
    assert table.sweep(results[3:]) == []


def test_the_report_counts_the_targets() -> None:
    results = [
        result_of("a", 1, 1, 0.5, target=Target("ratio", 1.0)),
        result_of("b", 2, 1, 3.0, target=Target("ratio", 1.0)),
        result_of("c", 3, 1, 3.0, target=Target("ratio", 1.0, allocator="default")),
        result_of("d", 4, 1, 3.0),
    ]
    assert table.targets(results) == "targets met: 1 of 2\n  missed: s / b 2"
    assert table.targets(results) in table.report({}, {}, results)


def test_a_note_of_several_cases_is_printed_once() -> None:
    results = [result_of("a", size, 1, 1.0, note="beware") for size in (1, 2, 2)] + [
        result_of("b", 1, 1, 1.0, note="x")
    ]
    assert table.notes(results) == ["", "s / a 1 and 1 more: beware", "s / b 1: x"]
    assert table.notes([result_of("c", 1, 1, 1.0)]) == []


def test_the_plot_shows_the_ratios_of_the_tuned_allocator(tmp_path: Path) -> None:
    results = [
        result_of("add", 4096, 1, 2.0),
        result_of("add", 16, 1, 1.25),
        result_of("add", 16, 2, 1.5),
        result_of("mul", 16, 2, 0.75),
        result_of("mul", 16, 2, 8.0, allocator="default"),
        result_of("", 16, 2, 9.0),
    ]
    drawn = {}
    for panel in plot.figure_of(results).axes:
        for line in panel.get_lines():
            if line.get_label() in ("add", "mul"):
                drawn[panel.get_title(), line.get_label()] = [tuple(point) for point in line.get_xydata()]
    assert drawn == {
        ("1 thread, tuned malloc", "add"): [(16, 1.25), (4096, 2.0)],
        ("1 thread, tuned malloc", "mul"): [],
        ("2 threads, tuned malloc", "add"): [(16, 1.5)],
        ("2 threads, tuned malloc", "mul"): [(16, 0.75)],
    }
    picture = tmp_path / "new" / "ratios.png"
    plot.save(results, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="run the suite scaling"):
        plot.figure_of(results[5:])


# ---- the command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        (["scaling"], [("scaling", "default", 1), ("scaling", "default", 2), ("scaling", "tuned", 1)]),
        (["scaling", "--threads", "3", "--allocator", "tuned"], [("scaling", "tuned", 3)]),
        (["random", "copies", "--allocator", "default"], [("random", "default", 2), ("copies", "default", 2)]),
    ],
)
def test_which_processes_are_started(
    arguments: list[str], runs: list[tuple[str, str, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[tuple[str, str, int]] = []

    def run_suite(name: str, allocator: str, threads: int, options: argparse.Namespace) -> dict:
        started.append((name, allocator, threads))
        return {"machine": {}, "peaks": {}, "results": [result_of("x", 1, threads, 2.0, target=Target("ratio", 1.0))]}

    monkeypatch.setattr(command, "run_suite", run_suite)
    assert command.main([*arguments, "--out", str(tmp_path)]) == 0
    assert started[: len(runs)] == runs
    assert len(json.loads((tmp_path / "benchmarks.json").read_text())["results"]) == len(started)
    assert "missed: s / x 1" in (tmp_path / "benchmarks.txt").read_text()
    assert command.main([*arguments, "--out", str(tmp_path), "--check"]) == 1


def test_the_command_line_from_end_to_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "ratios.svg"
    options = ["--quick", "--allocator", "tuned", "--threads", "1", "--out", str(tmp_path), "--plot", str(picture)]
    assert command.main(["scaling", *options]) == 0
    saved = json.loads((tmp_path / "benchmarks.json").read_text())
    assert {result["threads"] for result in saved["results"]} == {1}
    assert {result["series"] for result in saved["results"]} >= {"add", "sum", "mm bfloat16"}
    assert "</svg>" in picture.read_text()
    printed = capfd.readouterr().out
    assert "add, 16 elements, 1 thread: ratio" in printed
    assert "figures mean nothing" in printed


# ---- the suites -----------------------------------------------------------------------------------------------------

SUITES = ("random", "allocator", "copies", "tiny_training", "scaling")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Teams of threads that wait for each other take seconds for the smallest operation on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_growth() -> Iterator[None]:
    """What a suite allocates on the device is free again afterwards."""
    gc.collect()
    torch.npu.synchronize()
    before = torch.npu.memory_allocated()
    yield
    gc.collect()
    torch.npu.synchronize()
    assert torch.npu.memory_allocated() <= before


@pytest.mark.usefixtures("one_thread", "no_growth")
@pytest.mark.parametrize("name", SUITES)
def test_suite_runs(name: str) -> None:
    settings = Settings(quick=True, allocator="tuned", threads=1)
    results = list(command.measure_cases(name, settings))
    assert len({result.case for result in results}) == len(results) > 0
    for result in results:
        assert math.isfinite(result.ratio) and result.ratio > 0, result.case
        assert result.as_dict() == json.loads(json.dumps(result.as_dict()))


@pytest.mark.usefixtures("one_thread")
def test_copies_copy_what_their_names_say() -> None:
    seen = set()
    for case in copies.cases(Settings(quick=True)):
        to, of = case.subject.func.__self__, case.subject.args[0]
        to.zero_()
        case.subject()
        case.finish()
        assert torch.equal(to.cpu(), torch.ones(to.shape, dtype=to.dtype)), case.name
        direction = {("npu", "cpu"): "H2D", ("cpu", "npu"): "D2H", ("npu", "npu"): "D2D"}[
            to.device.type, of.device.type
        ]
        assert case.name.startswith(direction)
        assert ("pinned" in case.name) == (to.is_pinned() or of.is_pinned()), case.name
        assert ("non_blocking" in case.name) == case.subject.keywords.get("non_blocking", False), case.name
        assert ("transposed" in case.name) == (not of.is_contiguous()), case.name
        assert ("bfloat16" in case.name) == (to.dtype == torch.bfloat16), case.name
        seen.add(direction)
    assert seen == {"H2D", "D2H", "D2D"}


@pytest.mark.parametrize("name", scaling.OPERATIONS)
def test_operations_of_a_sweep_do_the_same_on_both_devices(name: str) -> None:
    operands = scaling.on_both((7, 7), torch.float32)
    operation, _ = scaling.OPERATIONS[name]
    torch.testing.assert_close(operation(*operands["npu"]).cpu(), operation(*operands["cpu"]))


def test_a_sweep_measures_the_same_operands_in_every_case() -> None:
    cases = list(scaling.cases(Settings(quick=True)))
    operands = [
        x for case in cases if case.series != "add_" for side in (case.subject, case.baseline) for x in side.args
    ]
    before = [x.clone() for x in operands]
    for case in cases:
        case.subject()
        case.baseline()
    assert len(operands) >= 4 * (len(scaling.OPERATIONS) - 1)
    for now, then in zip(operands, before, strict=True):
        assert torch.equal(now, then)


def test_every_target_of_a_sweep_is_of_a_case() -> None:
    cases = {(name, size) for name in (*scaling.OPERATIONS, "mm float32", "mm bfloat16") for size in scaling.SIZES}
    assert scaling.TARGETS.keys() <= cases


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", tiny_training.OPTIMIZERS)
def test_optimizers_of_tiny_training_train_alike(name: str) -> None:
    """The same losses on both devices, so both sides of the comparison do the same work."""
    losses = {}
    for device in ("npu", "cpu"):
        torch.manual_seed(0)
        model = tiny_training.perceptron().to(device)
        inputs, labels = torch.randn(8, tiny_training.WIDTH).to(device), torch.arange(8).to(device)
        optimizer = tiny_training.OPTIMIZERS[name](model.parameters())
        values = []
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        losses[device] = values
    assert losses["cpu"][2] < losses["cpu"][0]
    assert losses["npu"] == pytest.approx(losses["cpu"], rel=1e-4)


def test_native_loops_allocate_as_often_as_they_say() -> None:
    cases = [case for case in allocator.cases(Settings(quick=True)) if case.name.startswith("native")]
    assert len(cases) == 4 * 2
    for case in cases:
        before = torch.npu.memory_stats()
        case.subject()
        case.finish()
        after = torch.npu.memory_stats()
        counter = "allocation.all.allocated"
        assert after[counter] - before[counter] == case.operations == allocator.LOOPS, case.name


def test_without_a_compiler_the_native_figures_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    names = [case.name for case in allocator.cases(Settings(quick=True))]
    assert names == ["torch.empty 512 B", "torch.empty 4 KiB"]
    assert "no C++ compiler" in capsys.readouterr().out
