"""Switches: `set_option` and the module-like objects matmul, conv, aclnn and config.

All of them store into the one option registry of the runtime. On this device they are hints without numerical effect,
except where a docstring says otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

from npu_core import _C
from torch_npu import notices
from torch_npu.npu.initialization import _lazy_init, is_initialized
from torch_npu.utils._error_code import ErrCode, pta_error

__all__ = [
    "CubeMathType",
    "aclnn",
    "config",
    "conv",
    "get_mm_bmm_format_nd",
    "is_jit_compile_false",
    "matmul",
    "set_aoe",
    "set_compile_mode",
    "set_mm_bmm_format_nd",
    "set_option",
]

_ENABLE, _DISABLE = "enable", "disable"


def _one_of(*values: str) -> Callable[[str], bool]:
    return lambda value: value in values


def _any(value: str) -> bool:
    return True


# Accepted names with the check of their value; the text says what is expected.
_CHECKS: dict[str, tuple[Callable[[str], bool], str]] = {
    "ACL_PRECISION_MODE": (
        _one_of("allow_fp32_to_fp16", "must_keep_origin_dtype"),
        "['allow_fp32_to_fp16', 'must_keep_origin_dtype']",
    ),
    "ACL_OP_SELECT_IMPL_MODE": (
        _one_of("high_performance", "high_precision"),
        "['high_performance', 'high_precision']",
    ),
    "ACL_AICORE_NUM": (lambda value: value.isdigit() and 1 <= int(value) <= 32, "[1, 32]"),
    "ACL_OP_DEBUG_LEVEL": (_one_of("0", "1", "2", "3", "4"), "['0', '1', '2', '3', '4']"),
    "ACL_OP_COMPILER_CACHE_MODE": (_one_of("disable", "enable", "force"), "['disable', 'enable', 'force']"),
}
_UNCHECKED = (
    *("ACL_OPTYPELIST_FOR_IMPLMODE", "ACL_DEBUG_DIR", "ACL_OP_COMPILER_CACHE_DIR", "ACL_OP_DEBUG_OPTION"),
    *("jitCompile", "jitCompileInit", "autotune", "autotunegraphdumppath", "bmmv2_enable", "mdldumpswitch"),
    *("mdldumpconfigpath", "NPU_FUZZY_COMPILE_BLACKLIST", "FORCE_ACLNN_OP_LIST", "OP_HOOK_ENABLE"),
    *("MM_BMM_ND_ENABLE", "ALLOW_INTERNAL_FORMAT", "STRONG_CONSISTENCY", "TORCH_NPU_USE_COMPATIBLE_IMPL"),
    *("ALLOW_CONV_HF32", "ALLOW_MATMUL_HF32", "CUBE_MATH_TYPE"),
)
_DEPRECATED = ("ACL_OP_SELECT_IMPL_MODE", "ACL_OPTYPELIST_FOR_IMPLMODE")


def set_option(option: dict[str, Any]) -> None:
    """Set options of the device by name; legal before initialisation.

    Parameters
    ----------
    option : dict
        Name to value. Values are turned into str, in the dict too.

    Raises
    ------
    TypeError
        `option` is no dict.
    ValueError
        A value is not one of those the option takes.
    RuntimeError
        There is no option of that name.
    """
    if not isinstance(option, dict):
        raise TypeError(f"npu option must be a dict.{pta_error(ErrCode.PARAM)}")
    for name, given in option.items():
        value = str(given)
        if name not in _UNCHECKED and name not in _CHECKS:
            raise RuntimeError(f"invalid npu option name:{name}{pta_error(ErrCode.PARAM)}")
        check, expected = _CHECKS.get(name, (_any, ""))
        if not check(value):
            raise ValueError(f"value of {name} should be in {expected} but got {value}{pta_error(ErrCode.PARAM)}")
        if name in _DEPRECATED:
            notices.warn(f"npu option {name} is deprecated and has no effect", stacklevel=2)
        option[name] = value
    for name, value in option.items():
        _C._set_option(name, value)


def _is_enabled(name: str, default: bool) -> bool:
    value = _C._get_option(name)
    return default if value is None else value == _ENABLE


def _set_enabled(name: str, enabled: bool) -> None:
    _C._set_option(name, _ENABLE if enabled else _DISABLE)


def set_compile_mode(jit_compile: bool = False) -> None:
    """Choose between compiling kernels at run time and the prebuilt ones; here all kernels are prebuilt."""
    if is_initialized():
        _C._synchronize_device(_C._current_device())
    _set_enabled("jitCompile", jit_compile)


def is_jit_compile_false() -> bool:
    """Return True unless `set_compile_mode(jit_compile=True)` was called."""
    _lazy_init()
    return not _is_enabled("jitCompile", False)


def set_aoe(dump_path: str) -> None:
    """Name the folder for tuning data, which is made if missing; the host's kernels have nothing to tune.

    Raises
    ------
    TypeError
        `dump_path` is no path.
    OSError
        The folder cannot be made.
    """
    if not isinstance(dump_path, (str, os.PathLike)):
        raise TypeError(f"Type of dump_path is invalid.{pta_error(ErrCode.TYPE)}")
    try:
        os.makedirs(dump_path, exist_ok=True)
    except OSError as error:
        raise OSError(f"Value of dump_path is invalid. {error}{pta_error(ErrCode.SYSCALL)}") from error
    _set_enabled("autotune", True)
    _C._set_option("autotunegraphdumppath", os.fspath(dump_path))


def set_mm_bmm_format_nd(is_nd: bool = True) -> None:
    """Choose whether matmul keeps plain layout; here it always does."""
    if not isinstance(is_nd, bool):
        raise TypeError(f"is_nd must be a bool, but got {type(is_nd).__name__}{pta_error(ErrCode.TYPE)}")
    _set_enabled("MM_BMM_ND_ENABLE", is_nd)


def get_mm_bmm_format_nd() -> bool:
    """Return what `set_mm_bmm_format_nd` chose, True by default."""
    return _is_enabled("MM_BMM_ND_ENABLE", True)


class CubeMathType(IntEnum):
    """Arithmetic the matrix unit may use; the host computes float32 in full precision in every case."""

    KEEP_DTYPE = 0
    ALLOW_FP32_DOWN_PRECISION = 1
    USE_FP16 = 2
    USE_HF32 = 3
    USE_FP32_ADD = 4
    FORCE_GRP_ACC_FOR_FP32 = 4


class _Hf32Switch:
    """Attribute `allow_hf32`, stored as an option; other attributes read as None and ignore writes."""

    _option: str
    _default: bool

    @property
    def allow_hf32(self) -> bool:
        """Whether float32 inputs may be rounded to HF32; no numerical effect on this device."""
        return _is_enabled(self._option, self._default)

    @allow_hf32.setter
    def allow_hf32(self, allowed: bool) -> None:
        if not isinstance(allowed, bool):
            raise TypeError(f"allow_hf32 must be a bool, but got {type(allowed).__name__}{pta_error(ErrCode.TYPE)}")
        _set_enabled(self._option, allowed)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(type(self), name):
            object.__setattr__(self, name, value)


class _Matmul(_Hf32Switch):
    _option, _default = "ALLOW_MATMUL_HF32", False

    @property
    def cube_math_type(self) -> CubeMathType | None:
        """The chosen `CubeMathType`, None until one is chosen."""
        value = _C._get_option("CUBE_MATH_TYPE")
        return None if value is None else CubeMathType(int(value))

    @cube_math_type.setter
    def cube_math_type(self, kind: CubeMathType) -> None:
        if not isinstance(kind, CubeMathType):
            raise TypeError(
                f"cube_math_type must be a torch_npu.npu.CubeMathType, but got {kind!r}{pta_error(ErrCode.TYPE)}"
            )
        _C._set_option("CUBE_MATH_TYPE", str(int(kind)))


class _Conv(_Hf32Switch):
    _option, _default = "ALLOW_CONV_HF32", True


class _Aclnn(_Conv):
    """Same switch as `conv`, under the name older scripts use."""

    def version(self) -> None:
        """Warn that there is no version and return None."""
        notices.warn("torch.npu.aclnn.version isn't implemented!", stacklevel=2)

    def set_flags(self, _allow_hf32: bool | None = None) -> tuple[bool]:
        """Set `allow_hf32` when given and return the old value in a tuple."""
        old = self.allow_hf32
        if _allow_hf32 is not None:
            self.allow_hf32 = _allow_hf32
        return (old,)

    @contextmanager
    def flags(self, allow_hf32: bool = True) -> Iterator[None]:
        """Set `allow_hf32` for the duration of the context."""
        (old,) = self.set_flags(allow_hf32)
        try:
            yield
        finally:
            self.set_flags(old)


class _Config:
    """Attribute `allow_internal_format`; other assignments are ignored."""

    @property
    def allow_internal_format(self) -> bool:
        """Whether tensors may take a private (blocked) format; the host has none."""
        return _is_enabled("ALLOW_INTERNAL_FORMAT", False)

    @allow_internal_format.setter
    def allow_internal_format(self, allowed: Any) -> None:
        _set_enabled("ALLOW_INTERNAL_FORMAT", bool(allowed))

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(type(self), name):
            object.__setattr__(self, name, value)


matmul = _Matmul()
conv = _Conv()
aclnn = _Aclnn()
config = _Config()
