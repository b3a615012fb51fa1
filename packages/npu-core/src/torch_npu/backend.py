"""Makes torch know the device: its name, its module, its methods."""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any

import torch

from npu_core import _C
from torch_npu.npu.initialization import _forward_thread_count
from torch_npu.utils._error_code import ErrCode, pta_error

UNSUPPORTED_DTYPES = [torch.quint8, torch.quint4x2, torch.quint2x4, torch.qint32, torch.qint8]

#: Version of the vendor's toolkit whose interface this plugin follows.
CANN_VERSION = "8.5.0"


def register(module: ModuleType) -> None:
    """Register `module` as the device module of "npu" and generate the methods of tensors, modules and storages."""
    accelerator = torch._C._get_accelerator().type
    if accelerator not in ("cpu", "npu", "privateuseone"):
        raise RuntimeError(
            "Two accelerators cannot be used at the same time in PyTorch: npu and "
            f"{accelerator}. Install the CPU build of torch to use npu.{pta_error(ErrCode.NOT_SUPPORT)}"
        )
    torch.utils.rename_privateuse1_backend("npu")
    torch._register_device_module("npu", module)
    # `import torch.npu.amp` must find the module that exists, not make a second one.
    prefix = module.__name__ + "."
    for name in [name for name in sys.modules if name.startswith(prefix)]:
        sys.modules[f"torch.npu.{name[len(prefix) :]}"] = sys.modules[name]
    torch.utils.generate_methods_for_privateuse1_backend(
        for_tensor=True, for_module=True, for_storage=True, unsupported_dtype=UNSUPPORTED_DTYPES
    )
    torch.version.cann = CANN_VERSION  # type: ignore[attr-defined]
    _follow_thread_count()


def _follow_thread_count() -> None:
    """Let ``torch.set_num_threads`` reach the compute engine, which has the only team of worker threads."""
    original = torch.set_num_threads

    @functools.wraps(original)
    def set_num_threads(*arguments: Any, **keywords: Any) -> None:
        original(*arguments, **keywords)
        if _C._is_initialized() and not _C._is_in_bad_fork():
            _forward_thread_count(torch.get_num_threads())

    torch.set_num_threads = set_num_threads
