"""Spreads the generated kernels over source files."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path

from torchgen.model import NativeFunctionsGroup

from .groups import functional_name
from .kernels import GeneratedGroup, generate_group

_SOURCE_LIST = "generated_sources.cmake"


def shard_of(name: str, count: int) -> int:
    """Return the file an op belongs to; adding or removing other ops does not move it."""
    return zlib.crc32(name.encode()) % count


def render(groups: Iterable[NativeFunctionsGroup], count: int) -> dict[str, str]:
    """Return file name -> content: ``count`` C++ files and a CMake file that lists them."""
    shards: list[list[GeneratedGroup]] = [[] for _ in range(count)]
    for group in groups:
        shards[shard_of(functional_name(group), count)].append(generate_group(group))
    files = {f"generated_{i}.cpp": _source(shard) for i, shard in enumerate(shards)}
    listed = "\n".join(f'  "${{CMAKE_CURRENT_LIST_DIR}}/{name}"' for name in files)
    files[_SOURCE_LIST] = f"# Written by codegen/generate.py.\nset(NPU_GENERATED_SOURCES\n{listed}\n)\n"
    return files


def write(files: dict[str, str], directory: Path) -> list[str]:
    """Write the files whose content changed and remove generated files of an earlier, larger split.

    Returns
    -------
    list[str]
        Names of the files written; the others keep their time stamp, so that nothing is rebuilt for them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for stale in directory.glob("generated_*.cpp"):
        if stale.name not in files:
            stale.unlink()
    changed = []
    for name, content in files.items():
        path = directory / name
        if not path.exists() or path.read_text() != content:
            path.write_text(content)
            changed.append(name)
    return changed


def _source(shard: list[GeneratedGroup]) -> str:
    headers = sorted(set().union(*(group.headers for group in shard)))
    lines = [
        "// Written by codegen/generate.py from torch's native_functions.yaml.",
        # Keeps the header of all operators out: it would triple the time to compile this file.
        "#define TORCH_ASSERT_ONLY_METHOD_OPERATORS",
        '#include "aten/structured_meta.h"',
        "",
        *(f"#include <{header}>" for header in headers),
        "#include <torch/library.h>",
        "",
        "namespace npu::aten {",
        "namespace {",
        "",
        *(group.definitions for group in shard),
        "}  // namespace",
        "",
        "TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {",
        *(f"  {registration}" for group in shard for registration in group.registrations),
        "}",
        "",
        "}  // namespace npu::aten",
        "",
    ]
    return "\n".join(lines)
