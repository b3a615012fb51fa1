"""Command line of the benchmarks: ``python -m benchmarks [suite ...]``.

Each suite runs in a process of its own, once per setting of the C allocator, because stock PyTorch on the CPU spends
much of its time in page faults of fresh temporaries when the allocator returns memory to the kernel; and once per
number of threads where the suite lists several in ``THREAD_COUNTS``, because a team that has worked keeps its size.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from . import suites

if TYPE_CHECKING:
    from . import harness

ROOT = Path(__file__).resolve().parent.parent
THREADS = 2


def available() -> list[str]:
    """Names of the suites."""
    return sorted(module.name for module in pkgutil.iter_modules(suites.__path__))


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure npu against stock PyTorch.")
    parser.add_argument("suite", nargs="*", help=f"suites to run, all by default: {', '.join(available())}")
    parser.add_argument("--threads", type=int, help="threads of both sides (default 2; scaling: 1 and 2)")
    parser.add_argument("--seconds", type=float, default=1.0, help="time per side and case (default 1)")
    parser.add_argument("--quick", action="store_true", help="one short sample each: shows that everything runs")
    parser.add_argument("--allocator", choices=("default", "tuned"), action="append", help="only this setting")
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="folder of benchmarks.json and benchmarks.txt")
    parser.add_argument("--check", action="store_true", help="exit with status 1 when a target is missed")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios over size of the suite scaling")
    parser.add_argument("--in-process", metavar="SUITE", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = set(options.suite) - set(available())
    if unknown:
        parser.error(f"no such suite: {', '.join(sorted(unknown))}; there are {', '.join(available())}")
    return options


def module_of(name: str) -> ModuleType:
    """The suite called `name`."""
    return importlib.import_module(f"{suites.__name__}.{name}")


def measure_cases(name: str, settings: harness.Settings) -> Iterator[harness.Result]:
    """Measure the cases of a suite in this process, one after the other.

    Parameters
    ----------
    name : str
        The suite.
    settings : Settings
        How to measure; the machine's peaks that cases compare with are added to it.
    """
    import torch

    from . import harness, machine

    seconds, sizes = (0.0, (256,)) if settings.quick else (0.5, (1024, 2048))
    for case in module_of(name).cases(settings):
        if settings.allocator not in case.allocators:
            continue
        if case.footprint and case.footprint not in settings.copy_bandwidth:
            settings.copy_bandwidth[case.footprint] = machine.copy_bandwidth(case.footprint, seconds)
        if case.peak and case.peak not in settings.peak_flops:
            settings.peak_flops[case.peak] = machine.matmul_peak(getattr(torch, case.peak), sizes, seconds)
        yield harness.measure(name, case, settings)


def measure_suite(options: argparse.Namespace, path: Path) -> None:
    """Measure one suite in this process and write its results to `path`."""
    import torch

    from . import harness, machine, table

    torch.set_num_threads(options.threads)
    settings = harness.Settings(
        threads=options.threads, seconds=options.seconds, allocator=options.allocator[0], quick=options.quick
    )
    results = []
    for result in measure_cases(options.in_process, settings):
        results.append(result.as_dict())
        verdict = table.verdict(results[-1])
        print(f"    {result.case}: ratio {result.ratio:.3f}{verdict and ', ' + verdict}", flush=True)
    peaks = {"copy_gb_per_s": settings.copy_bandwidth, "matmul_gflop_per_s": settings.peak_flops}
    path.write_text(json.dumps({"machine": machine.facts(), "peaks": peaks, "results": results}))


def run_suite(name: str, allocator: str, threads: int, options: argparse.Namespace) -> dict:
    """Measure one suite under one allocator setting in a process of its own."""
    from . import machine

    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "benchmarks", "--in-process", name, "--allocator", allocator]
        command += ["--threads", str(threads), "--seconds", str(options.seconds), "--out", file.name]
        command += ["--quick"] if options.quick else []
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        environment |= machine.ALLOCATORS[allocator] | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        return json.loads(Path(file.name).read_text())


def main(arguments: list[str]) -> int:
    """Run the suites, print the table, write both files."""
    options = parse(arguments)
    if options.in_process:
        measure_suite(options, options.out)
        return 0

    from . import plot, table

    if options.plot:
        plot.require_matplotlib()
    results: list[dict] = []
    peaks: dict[str, dict] = {}
    facts: dict = {}
    for name in options.suite or available():
        counts = (options.threads,) if options.threads else getattr(module_of(name), "THREAD_COUNTS", (THREADS,))
        for allocator, threads in itertools.product(options.allocator or ("default", "tuned"), counts):
            print(f"{name} ({allocator} malloc, {threads} thread{'s' if threads > 1 else ''})", flush=True)
            part = run_suite(name, allocator, threads, options)
            results += part["results"]
            facts = part["machine"]
            for kind, values in part["peaks"].items():
                for key, value in values.items():
                    peaks.setdefault(kind, {})[key] = max(value, peaks.get(kind, {}).get(key, 0.0))

    facts["threads"] = options.threads or f"{THREADS} where a case does not say otherwise"
    if options.quick:
        facts["quick"] = "one call per side: shows that everything runs, the figures mean nothing"
    report = table.report(facts, peaks, results)
    print(f"\n{report}")
    options.out.mkdir(parents=True, exist_ok=True)
    data = {"machine": facts, "peaks": peaks, "results": results}
    (options.out / "benchmarks.json").write_text(json.dumps(data, indent=1) + "\n")
    (options.out / "benchmarks.txt").write_text(report + "\n")
    if options.plot:
        plot.save(results, options.plot)
        print(f"plot: {options.plot}")
    missed = [result for result in results if result["met"] is False]
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
