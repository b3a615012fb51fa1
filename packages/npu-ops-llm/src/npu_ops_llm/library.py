"""The compiled library of this package."""

import ctypes
from pathlib import Path

import torch

#: The one shared library of this package.
PATH = Path(__file__).parent / "lib" / "libnpu_ops_llm.so"


def load() -> None:
    """Load the library, which registers its operators with torch."""
    torch.ops.load_library(str(PATH))


def kernel_isa(limit: str | None = None) -> str:
    """Instruction set whose kernels the operators use, lowered first when `limit` is given.

    Parameters
    ----------
    limit
        ``"base"``, ``"avx2"``, ``"avx512"``, ``"avx512_bf16"`` or ``"amx"``.  A set that this CPU lacks means the
        best one it has.  The environment variable ``NPU_CPU_ISA`` sets the limit at load.

    Returns
    -------
    str
        The instruction set in force.  An operator without kernels of its own for it uses the next lower one.

    Raises
    ------
    ValueError
        If `limit`, or ``NPU_CPU_ISA``, is not one of these names.
    """
    function = ctypes.CDLL(str(PATH)).npu_kernels_isa
    function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_char_p
    name = function(None if limit is None else limit.encode())
    if name is None:
        raise ValueError(
            f"expected an instruction set among base, avx2, avx512, avx512_bf16, amx; got limit={limit!r} "
            "(or see the environment variable NPU_CPU_ISA)"
        )
    return name.decode()
