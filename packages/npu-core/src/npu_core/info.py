"""The command line of the report: ``python -m npu_core`` and the script ``npu-info``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from npu_core import report


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; return 1 when it holds problems, else 0."""
    parser = argparse.ArgumentParser(prog="npu-info", description="Show the npu devices and plugins of this machine.")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    options = parser.parse_args(arguments)
    found = report.collect()
    print(found.to_json() if options.json else report.render(found))
    return 1 if found.problems else 0
