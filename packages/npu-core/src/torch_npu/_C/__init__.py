"""The compiled module under the name clients know, with the few functions they call on it.

Plugins hang their own parts here (``torch_npu._C._distributed_c10d``).
"""

from __future__ import annotations

from typing import Any

from npu_core import _C as _native
from torch_npu.npu.devices import get_soc_version as _npu_get_soc_version
from torch_npu.npu.options import set_option as _npu_setOption

__all__ = ["_npu_getOption", "_npu_get_soc_version", "_npu_setOption"]


def _npu_getOption(name: str) -> bytes | None:
    """Return the value of an option as bytes, None when it is unset."""
    value = _native._get_option(name)
    return None if value is None else value.encode()


def __getattr__(name: str) -> Any:
    if not name.startswith("__") and hasattr(_native, name):
        return getattr(_native, name)
    from torch_npu.attributes import missing

    raise missing(__name__, name)
