"""Writes the asynchronous npu kernels of every structured ATen op of the installed torch.

The build calls ``python generate.py --out DIR --shards N`` and compiles the files of ``DIR/generated_sources.cmake``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from structured.groups import overload_names, structured_groups
from structured.shards import render, write
from structured.special_cases import HAND_WRITTEN


def main() -> None:
    """Run the generator from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    parser.add_argument("--shards", type=int, default=10, help="number of C++ files (default 10)")
    arguments = parser.parse_args()
    if arguments.shards < 1:
        parser.error(f"--shards must be at least 1, got {arguments.shards}")
    groups = structured_groups(HAND_WRITTEN)
    changed = write(render(groups, arguments.shards), arguments.out)
    overloads = sum(1 for group in groups for _ in overload_names(group))
    print(f"{overloads} overloads of {len(groups)} structured ops; {len(changed)} files changed in {arguments.out}")


if __name__ == "__main__":
    main()
