"""Check that a shared library keeps the rules of the stable torch ABI.

The build runs this on every library made with ``npu_add_op_library``: a broken rule fails the build, instead of the
import on a machine with another torch.

    python check_op_library.py libnpu_ops_llm.so .../site-packages/torch/include
"""

import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

#: torch once, and the runtimes of C and C++.
ALLOWED_LIBRARIES = {
    "libtorch_cpu.so",
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "libc.so.6",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
}
ALLOWED_EXPORTS = {"npu_kernels_isa"}

_SHT_DYNAMIC, _SHT_DYNSYM = 6, 11
_DT_NEEDED, _DT_RPATH, _DT_RUNPATH = 1, 15, 29
_STB_WEAK = 2
_OF_TORCH_CPP = re.compile(r"^_Z\w*?(?:3c10|2at|5torch|6caffe2)")
_OF_THE_TOOLCHAIN = re.compile(r"^(?:_edata|_end|__bss_start|_init|_fini|_Z\w*St)")


@dataclass(frozen=True)
class Symbol:
    """A dynamic symbol; `defined` in the library, or wanted from another."""

    name: str
    defined: bool
    weak: bool


@dataclass(frozen=True)
class SharedLibrary:
    """What the dynamic section of an ELF file says."""

    needed: list[str]
    run_paths: list[str]
    symbols: list[Symbol]


def read_shared_library(path: Path) -> SharedLibrary:
    """Read a 64-bit little-endian ELF file.

    Raises
    ------
    ValueError
        If `path` is another kind of file.
    """
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{path}: expected a 64-bit little-endian ELF file")
    (section_table,) = struct.unpack_from("<Q", data, 0x28)
    entry_size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, section_table + i * entry_size) for i in range(count)]
    library = SharedLibrary([], [], [])
    for _, kind, _, _, offset, size, link, _, _, _ in sections:
        if kind not in (_SHT_DYNAMIC, _SHT_DYNSYM):
            continue
        strings = sections[link][4]

        def string(at: int, strings: int = strings) -> str:
            return data[strings + at : data.index(b"\0", strings + at)].decode()

        body = data[offset : offset + size]
        if kind == _SHT_DYNAMIC:
            for tag, value in struct.iter_unpack("<QQ", body):
                if tag == _DT_NEEDED:
                    library.needed.append(string(value))
                elif tag in (_DT_RPATH, _DT_RUNPATH):
                    library.run_paths.append(string(value))
        else:
            for name, info, _, section, _, _ in struct.iter_unpack("<IBBHQQ", body):
                library.symbols.append(Symbol(string(name), defined=section != 0, weak=info >> 4 == _STB_WEAK))
    return library


def shims_after_2_11(torch_include: Path) -> set[str]:
    """Names of the stable C functions that torch 2.11 does not have."""
    names: set[str] = set()
    newer = False
    for line in (torch_include / "torch/csrc/stable/c/shim.h").read_text().splitlines():
        if version := re.match(r"#if TORCH_FEATURE_VERSION >= TORCH_VERSION_2_(\d+)_0", line):
            newer = int(version[1]) > 11
        elif line.startswith("#endif // TORCH_FEATURE_VERSION"):
            newer = False
        elif newer:
            names.update(re.findall(r"\b((?:aoti_)?torch_\w+)\(", line))
    return names


def broken_rules(library: SharedLibrary, torch_include: Path) -> list[str]:
    """One sentence for every rule that `library` breaks."""
    wanted = [symbol for symbol in library.symbols if not symbol.defined]
    problems: list[str] = []
    if "libtorch_cpu.so" not in library.needed:
        problems.append("does not name libtorch_cpu.so as needed, which torch loads with RTLD_LOCAL")
    if foreign := sorted(set(library.needed) - ALLOWED_LIBRARIES):
        problems.append(f"needs other libraries: {', '.join(foreign)}")
    if library.run_paths:
        problems.append(f"has a run path of the build machine: {', '.join(library.run_paths)}")
    if unstable := [symbol.name for symbol in wanted if _OF_TORCH_CPP.match(symbol.name)]:
        problems.append(f"uses C++ symbols of torch, which change with its version: {', '.join(unstable)}")
    newer = shims_after_2_11(torch_include)
    if strong := [symbol.name for symbol in wanted if not symbol.weak and symbol.name in newer]:
        problems.append(f"uses functions that torch 2.11 lacks (declare them weak): {', '.join(strong)}")
    exports = [s.name for s in library.symbols if s.defined and s.name and not s.weak]
    if visible := [name for name in exports if name not in ALLOWED_EXPORTS and not _OF_THE_TOOLCHAIN.match(name)]:
        problems.append(f"exports more than {', '.join(sorted(ALLOWED_EXPORTS))}: {', '.join(visible)}")
    return problems


def main(arguments: list[str]) -> int:
    """Print the broken rules of the library named first; 1 when there are any."""
    if len(arguments) != 2:
        print("usage: check_op_library.py <library> <torch include directory>", file=sys.stderr)
        return 2
    problems = broken_rules(read_shared_library(Path(arguments[0])), Path(arguments[1]))
    for problem in problems:
        print(f"{arguments[0]}: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
