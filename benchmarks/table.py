"""The text report of a benchmark run."""

from __future__ import annotations

import statistics


def seconds(value: float) -> str:
    """A duration with three digits and a fitting unit."""
    for scale, unit in ((1e-9, "ns"), (1e-6, "us"), (1e-3, "ms")):
        if value < 1000 * scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g} s"


def rate(result: dict) -> str:
    """Rate of the npu side, and its share of what the machine can do."""
    parts = []
    if result["gigabytes_per_second"] is not None:
        parts.append(f"{result['gigabytes_per_second']:.1f} GB/s")
        if result["bandwidth_share"] is not None:
            parts.append(f"{result['bandwidth_share']:.0%} of copy")
    if result["gigaflops"] is not None:
        parts.append(f"{result['gigaflops']:.0f} GFLOP/s")
        if result["peak_share"] is not None:
            parts.append(f"{result['peak_share']:.0%} of peak")
    return ", ".join(parts)


def verdict(result: dict) -> str:
    """The target of a case and whether it was reached."""
    if not result["target"]:
        return ""
    if result["met"] is None:
        return ""
    return f"{result['target']}: {'met' if result['met'] else 'MISSED'}"


def columns(rows: list[list[str]]) -> list[str]:
    """Align `rows`; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def sweep(results: list[dict]) -> list[str]:
    """Ratios of the results that belong to a series: one row per series, one column per size."""
    found = [result for result in results if result["series"]]
    if not found:
        return []
    sizes = sorted({result["size"] for result in found})
    ratios: dict[tuple[str, int, str], dict[int, float]] = {}
    for result in found:
        key = (result["series"], result["threads"], result["allocator"])
        ratios.setdefault(key, {})[result["size"]] = result["ratio"]
    rows = [["ratio by number of elements", "threads", "malloc", *map(elements, sizes)]]
    for (series, threads, allocator), row in sorted(ratios.items()):
        cells = [f"{row[size]:.2f}" if size in row else "" for size in sizes]
        rows.append([series, str(threads), allocator, *cells])
    return ["", *columns(rows)]


def means(results: list[dict]) -> list[str]:
    """Geometric means of the speed-ups, and the least of them."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for result in results:
        if result["mean"]:
            groups.setdefault((result["mean"], result["allocator"]), []).append(result)
    rows = [["geometric mean of speed-ups", "malloc", "cases", "mean", "least", "of"]]
    for (name, allocator), group in sorted(groups.items()):
        least = min(group, key=lambda result: result["speedup"])
        mean = statistics.geometric_mean(result["speedup"] for result in group)
        rows.append([name, allocator, str(len(group)), f"{mean:.2f}", f"{least['speedup']:.2f}", least["case"]])
    return ["", *columns(rows)] if groups else []


def elements(count: int) -> str:
    """A number of elements, short."""
    for scale, unit in ((2**20, "Mi"), (2**10, "Ki")):
        if count >= scale and count % scale == 0:
            return f"{count // scale}{unit}"
    return str(count)


def targets(results: list[dict]) -> str:
    """How many targets were met, and which were not."""
    judged = [result for result in results if result["met"] is not None]
    missed = [f"{result['suite']} / {result['case']}" for result in judged if not result["met"]]
    return f"targets met: {len(judged) - len(missed)} of {len(judged)}" + "".join(
        f"\n  missed: {name}" for name in missed
    )


def notes(results: list[dict]) -> list[str]:
    """Each note once, with the cases it belongs to."""
    cases: dict[tuple[str, str], dict[str, None]] = {}
    for result in results:
        if result["note"]:
            cases.setdefault((result["suite"], result["note"]), {})[result["case"]] = None
    lines = []
    for (suite, note), names in cases.items():
        first, *others = names
        lines.append(f"{suite} / {first}{f' and {len(others)} more' if others else ''}: {note}")
    return ["", *lines] if lines else []


def report(machine: dict, peaks: dict[str, dict], results: list[dict]) -> str:
    """The whole report.

    Parameters
    ----------
    machine : dict
        What :func:`benchmarks.machine.facts` says.
    peaks : dict
        Measured copy bandwidth by footprint and matmul peak by dtype.
    results : list of dict
        :class:`benchmarks.harness.Result` as data.
    """
    lines = [f"{key}: {', '.join(value) if isinstance(value, list) else value}" for key, value in machine.items()]
    for footprint, value in peaks.get("copy_gb_per_s", {}).items():
        lines.append(f"copy of {int(footprint) / 2**20:g} MiB: {value:.1f} GB/s (read + written)")
    for dtype, value in peaks.get("matmul_gflop_per_s", {}).items():
        lines.append(f"matmul {dtype}: {value:.0f} GFLOP/s")
    lines += ["", "ratio = time on npu / time of stock PyTorch on the CPU, medians; below 1 the npu side is faster", ""]

    rows = [["suite", "case", "malloc", "npu", "cpu", "ratio", "+-", "rate on npu", "target"]]
    for result in results:
        rows.append(
            [
                result["suite"],
                result["case"],
                result["allocator"],
                seconds(result["subject"]["median"]),
                seconds(result["baseline"]["median"]),
                f"{result['ratio']:.3f}",
                f"{max(result['subject']['spread'], result['baseline']['spread']):.0%}",
                rate(result),
                verdict(result),
            ]
        )
    lines += [*columns(rows), *sweep(results), *means(results), "", targets(results)]
    return "\n".join([*lines, *notes(results)])
