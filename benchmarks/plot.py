"""The ratios of a sweep over sizes as a picture; matplotlib is needed only here.

Also draws the figures of an earlier run: ``python -m benchmarks.plot out/benchmarks.json ratios.png``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of seaborn's colour-blind palette, in a fixed order, so that an operation keeps its colour from plot to plot.
COLOURS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#949494", "#56b4e9")


def require_matplotlib() -> None:
    """Raise before anything is measured when the picture could not be drawn afterwards."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("benchmarks: --plot needs matplotlib; pip install matplotlib, or leave --plot out")


def figure_of(results: list[dict]) -> Figure:
    """Ratio over the number of elements: one panel per number of threads, one line per series.

    Parameters
    ----------
    results : list of dict
        :class:`benchmarks.harness.Result` as data.  Of several allocator settings the tuned one is drawn.
    """
    from matplotlib.figure import Figure

    found = [result for result in results if result["series"]]
    if not found:
        raise ValueError("benchmarks: nothing to plot: no case of the run belongs to a series; run the suite scaling")
    allocator = "tuned" if any(result["allocator"] == "tuned" for result in found) else "default"
    found = [result for result in found if result["allocator"] == allocator]
    names = list(dict.fromkeys(result["series"] for result in found))
    counts = sorted({result["threads"] for result in found})

    figure = Figure(figsize=(1.5 + 5.5 * len(counts), 5), layout="constrained")
    panels: list = list(figure.subplots(1, len(counts), sharey=True, squeeze=False)[0])
    for panel, threads in zip(panels, counts, strict=True):
        for number, name in enumerate(names):
            points = sorted(
                (result["size"], result["ratio"])
                for result in found
                if result["series"] == name and result["threads"] == threads
            )
            colour = COLOURS[number % len(COLOURS)]
            sizes, values = zip(*points, strict=True) if points else ((), ())
            panel.plot(sizes, values, marker="o", markersize=4, color=colour, label=name)
        panel.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        panel.yaxis.set_major_formatter("{x:g}")
        panel.grid(alpha=0.3)
        panel.set_title(f"{threads} thread{'s' if threads > 1 else ''}, {allocator} malloc")
        panel.set_xlabel("elements")
    panels[0].set_ylabel("time on npu / time on cpu (below 1: npu is faster)")
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure


def save(results: list[dict], path: Path) -> None:
    """Draw `results` into `path`, whose suffix chooses the format."""
    figure = figure_of(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Draw a saved run."""
    parser = argparse.ArgumentParser(description="draw the ratios over size of a saved run of the suite scaling")
    parser.add_argument("results", type=Path, help="benchmarks.json of a run")
    parser.add_argument("picture", type=Path, help="file to write")
    options = parser.parse_args()
    require_matplotlib()
    save(json.loads(options.results.read_text())["results"], options.picture)


if __name__ == "__main__":
    main()
