"""C++ that is compiled when a suite needs it: loops that must not contain an interpreter."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch


def compiler() -> str | None:
    """The C++ compiler of this machine: the one named in CXX, else c++."""
    return shutil.which(os.environ.get("CXX", "c++"))


@cache
def load(name: str) -> ctypes.CDLL:
    """Compile ``native/<name>.cpp`` against the installed torch and load it.

    Raises
    ------
    FileNotFoundError
        If there is no compiler.
    subprocess.CalledProcessError
        If the source does not compile; the compiler's messages are on stderr.
    """
    program = compiler()
    if program is None:
        raise FileNotFoundError("benchmarks: no C++ compiler; install g++ (Debian, Ubuntu: apt-get install g++)")
    source = Path(__file__).with_name(f"{name}.cpp")
    torch_folder = Path(torch.__file__).parent
    libraries = torch_folder / "lib"
    # A loaded library needs its file no longer.
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, f"{name}.so")
        command = [program, "-std=c++20", "-O2", "-shared", "-fPIC", f"-I{torch_folder / 'include'}", str(source)]
        command += [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lc10", "-o", str(built)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(built))
