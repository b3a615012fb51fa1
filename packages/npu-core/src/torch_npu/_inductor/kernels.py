"""Run-time part of generated code: compiles kernels and gives them to the device."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from torch._inductor.async_compile import AsyncCompile, get_compile_threads
from torch._inductor.codecache import CppCodeCache, LambdaFuture

from npu_core import _C

_ENTRY = "npu_entry"


class KernelLibrary(CppCodeCache):
    """Shared libraries of kernels, compiled once per source and machine, kept in Inductor's cache folder."""

    cache: dict[str, Callable[[], Any]] = {}
    cache_clear = staticmethod(cache.clear)
    cpp_compile_command_flags = {"include_pytorch": False, "shared": True}

    @classmethod
    def _get_uncompiled_header(cls, device: str) -> str | None:
        # Precompiled once per machine: it takes longer than any kernel.
        return "torch/csrc/inductor/cpp_prefix.h"


@functools.cache
def require_compiler() -> None:
    """Raise unless a C++ compiler is at hand.

    Raises
    ------
    RuntimeError
        Inductor found none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise RuntimeError(
            'torch.compile(backend="inductor") compiles C++ kernels for npu at run time, but found no C++ compiler: '
            "install g++ (or name a compiler in the environment variable CXX), or use "
            'torch.compile(backend="aot_eager"), which needs none.'
        ) from error


def compile_kernel(compiler: AsyncCompile, name: str, types: Sequence[str], source: str) -> Any:
    """Compile a generated kernel.

    Parameters
    ----------
    compiler : AsyncCompile
        Inductor's pool of compilers.
    name : str
        Name of the kernel in errors and profiles.
    types : sequence of str
        C++ types of its arguments.
    source : str
        Defines ``void kernel(...)``.

    Returns
    -------
    callable or LambdaFuture
        Called with tensors and numbers, queues the kernel on the current stream of the tensors' device.
    """
    text = f"{source}\n{entry_source(types)}"
    submit = compiler.submit if get_compile_threads() > 1 else None
    library = KernelLibrary.load_async(text, submit_fn=submit)

    def load() -> _C._CompiledKernel:
        address = ctypes.cast(getattr(library(), _ENTRY), ctypes.c_void_p).value or 0
        return _C._CompiledKernel(name, address, signature(types))

    return load() if submit is None else LambdaFuture(load)


def signature(types: Sequence[str]) -> str:
    """Return the letters `_C._CompiledKernel` wants for arguments of these C++ types."""
    letters = []
    for declared in types:
        if declared.endswith("*"):
            letters.append("r" if declared.startswith("const ") else "w")
        else:
            letters.append("f" if re.search(r"\b(float|double)\b", declared) else "i")
    return "".join(letters)


def entry_source(types: Sequence[str]) -> str:
    """Return the function that takes the arguments out of a task's 64-bit words."""
    lines = []
    for index, declared in enumerate(types):
        word = f"words[{index}]"
        if declared.endswith("*"):
            lines.append(f"reinterpret_cast<{declared}>({word})")
        elif signature([declared]) == "f":
            lines.append(f"static_cast<{declared}>(*reinterpret_cast<const double*>(&{word}))")
        else:
            lines.append(f"static_cast<{declared}>({word})")
    arguments = ", ".join(lines)
    return f'extern "C" void {_ENTRY}(const uint64_t* words) {{\n  kernel({arguments});\n}}\n'
