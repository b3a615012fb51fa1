"""Prints what a reader must know of built wheels and refuses those that break a promise of the project.

The promises: a wheel of operators (``npu-ops-*``) serves every Python 3 and every torch it was not built with, so its
tag is ``py3-none-linux_x86_64`` and its libraries need no C++ symbol of torch; no wheel carries a copy of torch.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

OPERATOR_WHEEL = "npu_ops_"
OPERATOR_TAG = "py3-none-linux_x86_64"
# Names of torch's unstable C++ ABI as a demangler prints them; `torch::stable` lives in headers only.
UNSTABLE_SYMBOL = re.compile(r"(?<![\w:])(?:c10|at|caffe2|torch)::")


@dataclass
class Library:
    """One shared library inside a wheel."""

    name: str
    size: int
    needed: list[str]
    unstable_symbols: list[str]


@dataclass
class Wheel:
    """What was found in one wheel."""

    file: str
    size: int
    tag: str
    requires: list[str]
    libraries: list[Library]

    def problems(self) -> list[str]:
        """The promises this wheel breaks."""
        found = []
        for library in self.libraries:
            if Path(library.name).name.startswith(("libtorch", "libc10")):
                found.append(f"{self.file} carries {library.name}: torch's libraries must come from torch's own wheel")
        if self.file.startswith(OPERATOR_WHEEL):
            if self.tag != OPERATOR_TAG:
                found.append(f"{self.file} has the tag {self.tag}; expected {OPERATOR_TAG}")
            if not self.libraries:
                found.append(f"{self.file} contains no shared library; expected its operators")
            for library in self.libraries:
                for symbol in library.unstable_symbols[:5]:
                    found.append(f"{self.file}: {library.name} needs {symbol}, which is no part of the stable ABI")
        return found


def inspect(path: Path) -> Wheel:
    """Read the wheel at `path`."""
    libraries = []
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
        for entry in archive.infolist():
            if re.search(r"\.so(\.\d+)*$", entry.filename):
                libraries.append(inspect_library(Path(archive.extract(entry, folder)), entry.filename))
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        requires = re.findall(r"^Requires-Dist: (.*)$", archive.read(metadata).decode(), re.MULTILINE)
    return Wheel(path.name, path.stat().st_size, "-".join(path.stem.split("-")[-3:]), requires, libraries)


def inspect_library(path: Path, name: str) -> Library:
    """Read the dynamic section and the undefined symbols of a shared library with binutils."""
    dynamic = output("readelf", "--dynamic", "--wide", path)
    symbols = output("nm", "--dynamic", "--undefined-only", "--demangle", path)
    return Library(
        name=name,
        size=path.stat().st_size,
        needed=re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic),
        unstable_symbols=[line.split(maxsplit=1)[-1] for line in symbols.splitlines() if UNSTABLE_SYMBOL.search(line)],
    )


def output(*command: str | Path) -> str:
    """What a command prints."""
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def main(paths: list[str]) -> int:
    """Print a report of the wheels at `paths`; 1 when a promise is broken."""
    problems = []
    for path in map(Path, paths):
        wheel = inspect(path)
        print(f"{wheel.file}  {wheel.size / 2**20:.2f} MiB, tag {wheel.tag}")
        print(f"    requires {', '.join(wheel.requires) or 'nothing'}")
        for library in wheel.libraries:
            unstable = len(library.unstable_symbols)
            print(f"    {library.name}  {library.size / 2**20:.2f} MiB, {unstable} symbols of torch's C++ ABI")
            print(f"        needs {', '.join(library.needed)}")
        problems += wheel.problems()
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
