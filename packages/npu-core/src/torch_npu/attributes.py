"""Attributes of torch_npu that come from elsewhere: operators and what plugins add.

Operators are found when asked for, in ``torch.ops.npu``; a name nobody provides is explained with the wheel that
would.
"""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType
from typing import Any

import torch

from npu_core import plugins
from npu_core.version import __version__ as core_version
from torch_npu import notices
from torch_npu.utils._error_code import ErrCode, pta_error

_NAMESPACE = "npu::"


def operator_names() -> set[str]:
    """Return the names of the public operators in ``torch.ops.npu``."""
    names = set()
    for qualified in torch._C._dispatch_get_all_op_names():
        if qualified.startswith(_NAMESPACE):
            name = qualified[len(_NAMESPACE) :].split(".")[0]
            if not name.startswith("_"):
                names.add(name)
    return names


def load_plugins() -> None:
    """Load the installed plugins, hang what they provide on torch_npu and warn about those that do not fit."""
    for status in plugins.load_all():
        for name, value in status.objects.items():
            _attach(name, value)
        if status.problem:
            notices.warn(f"{status.problem}. To fix: {status.remedy}", stacklevel=2)
    for name in operator_names():
        if name not in torch.__dict__:
            setattr(torch, name, _deprecated_stub(name))


def _attach(name: str, value: Any) -> None:
    """Set ``torch_npu.<name>``, dots allowed; modules become importable under that name."""
    *parents, last = name.split(".")
    owner = importlib.import_module(".".join(["torch_npu", *parents]))
    setattr(owner, last, value)
    if isinstance(value, ModuleType):
        sys.modules[f"torch_npu.{name}"] = value


def _deprecated_stub(name: str) -> Any:
    def stub(*arguments: Any, **keywords: Any) -> None:
        raise RuntimeError(
            f"torch.{name} is deprecated and will be removed in future version. Use torch_npu.{name} instead."
            + pta_error(ErrCode.NOT_SUPPORT)
        )

    stub.__name__ = name
    return stub


def resolve(name: str) -> Any:
    """Return ``torch_npu.<name>`` for a name the package itself does not define.

    Raises
    ------
    AttributeError
        Nobody provides it; the message says which wheel would.
    """
    if not name.startswith("__"):
        if _has_operator(name):
            return getattr(torch.ops.npu, name)
        try:
            return importlib.import_module(f"torch_npu.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"torch_npu.{name}":
                raise
    raise missing("torch_npu", name)


def _has_operator(name: str) -> bool:
    try:
        getattr(torch.ops.npu, name)
    except AttributeError:
        return False
    return True


@functools.cache
def _wheels() -> dict[str, str]:
    from torch_npu.wheel_index import NAMES

    return {name: wheel for wheel, names in NAMES.items() for name in names}


def missing(module: str, name: str) -> AttributeError:
    """Return the error for a name that `module` lacks."""
    qualified = f"{module}.{name}"
    wheel = _wheels().get(qualified.removeprefix("torch_npu."))
    if name.startswith("__") or wheel is None:
        return AttributeError(f"module {module!r} (npu-core {core_version}) has no attribute {name!r}")
    for status in plugins.statuses():
        if status.name == wheel:
            if status.problem:
                return AttributeError(
                    f"{qualified} is provided by the wheel {wheel}, which was not loaded: "
                    f"{status.problem}. To fix: {status.remedy}"
                )
            return AttributeError(
                f"{qualified} is not in {wheel} {status.version}; pip install --upgrade {wheel}, or check that this "
                "release provides it"
            )
    return AttributeError(f"{qualified} is provided by the wheel {wheel}; pip install {wheel}")
