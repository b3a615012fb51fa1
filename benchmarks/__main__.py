"""Command line of the benchmarks: ``python -m benchmarks [suite ...]``.

Each suite runs in a process of its own, once per setting of the C allocator, because stock PyTorch on the CPU spends
much of its time in page faults of fresh temporaries when the allocator returns memory to the kernel.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
from pathlib import Path

from . import suites

ROOT = Path(__file__).resolve().parent.parent


def available() -> list[str]:
    """Names of the suites."""
    return sorted(module.name for module in pkgutil.iter_modules(suites.__path__))


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure npu against stock PyTorch.")
    parser.add_argument("suite", nargs="*", help=f"suites to run, all by default: {', '.join(available())}")
    parser.add_argument("--threads", type=int, default=2, help="threads of both sides (default 2)")
    parser.add_argument("--seconds", type=float, default=1.0, help="time per side and case (default 1)")
    parser.add_argument("--allocator", choices=("default", "tuned"), action="append", help="only this setting")
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="folder of benchmarks.json and benchmarks.txt")
    parser.add_argument("--check", action="store_true", help="exit with status 1 when a target is missed")
    parser.add_argument("--in-process", metavar="SUITE", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = set(options.suite) - set(available())
    if unknown:
        parser.error(f"no such suite: {', '.join(sorted(unknown))}; there are {', '.join(available())}")
    return options


def measure_suite(options: argparse.Namespace, path: Path) -> None:
    """Measure one suite in this process and write its results to `path`."""
    import torch

    from . import harness, machine

    torch.set_num_threads(options.threads)
    settings = harness.Settings(threads=options.threads, seconds=options.seconds, allocator=options.allocator[0])
    suite = importlib.import_module(f"{suites.__name__}.{options.in_process}")
    results = []
    for case in suite.cases(settings):
        if settings.allocator not in case.allocators:
            continue
        if case.footprint and case.footprint not in settings.copy_bandwidth:
            settings.copy_bandwidth[case.footprint] = machine.copy_bandwidth(case.footprint)
        if case.peak and case.peak not in settings.peak_flops:
            settings.peak_flops[case.peak] = machine.matmul_peak(getattr(torch, case.peak))
        result = harness.measure(options.in_process, case, settings)
        print(f"    {case.name}: ratio {result.ratio:.3f}", flush=True)
        results.append(result.as_dict())
    peaks = {"copy_gb_per_s": settings.copy_bandwidth, "matmul_gflop_per_s": settings.peak_flops}
    path.write_text(json.dumps({"machine": machine.facts(), "peaks": peaks, "results": results}))


def run_suite(name: str, allocator: str, options: argparse.Namespace) -> dict:
    """Measure one suite under one allocator setting in a process of its own."""
    from . import machine

    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "benchmarks", "--in-process", name, "--allocator", allocator]
        command += ["--threads", str(options.threads), "--seconds", str(options.seconds), "--out", file.name]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        environment |= machine.ALLOCATORS[allocator] | {"OMP_NUM_THREADS": str(options.threads)}
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        return json.loads(Path(file.name).read_text())


def main(arguments: list[str]) -> int:
    """Run the suites, print the table, write both files."""
    options = parse(arguments)
    if options.in_process:
        measure_suite(options, options.out)
        return 0

    from . import table

    results: list[dict] = []
    peaks: dict[str, dict] = {}
    facts: dict = {}
    for name in options.suite or available():
        for allocator in options.allocator or ("default", "tuned"):
            print(f"{name} ({allocator} malloc)", flush=True)
            part = run_suite(name, allocator, options)
            results += part["results"]
            facts = part["machine"]
            for kind, values in part["peaks"].items():
                for key, value in values.items():
                    peaks.setdefault(kind, {})[key] = max(value, peaks.get(kind, {}).get(key, 0.0))

    facts["threads"] = options.threads
    report = table.report(facts, peaks, results)
    print(f"\n{report}")
    options.out.mkdir(parents=True, exist_ok=True)
    data = {"machine": facts, "peaks": peaks, "results": results}
    (options.out / "benchmarks.json").write_text(json.dumps(data, indent=1) + "\n")
    (options.out / "benchmarks.txt").write_text(report + "\n")
    missed = [result for result in results if result["met"] is False]
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
