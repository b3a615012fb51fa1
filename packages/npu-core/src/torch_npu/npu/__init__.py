# ruff: noqa: F401, F403
"""The device module: `torch.npu` and `torch_npu.npu` are this object."""

from __future__ import annotations

from typing import Any

import torch

from npu_core import _C
from torch_npu import _inductor
from torch_npu.npu import amp, initialization, memory, random, utils
from torch_npu.npu.amp.autocast_mode import (
    get_amp_supported_dtype,
    get_autocast_dtype,
    is_autocast_enabled,
    set_autocast_dtype,
    set_autocast_enabled,
)
from torch_npu.npu.determinism import *
from torch_npu.npu.devices import *
from torch_npu.npu.devices import _exchange_device, _get_device_index, _maybe_exchange_device
from torch_npu.npu.fault_tolerance import *
from torch_npu.npu.fault_tolerance import _get_uce_addr
from torch_npu.npu.initialization import *
from torch_npu.npu.initialization import DeferredNpuCallError, _is_in_bad_fork, _lazy_call, _lazy_init
from torch_npu.npu.limits import *
from torch_npu.npu.memory import *
from torch_npu.npu.options import *
from torch_npu.npu.overflow import *
from torch_npu.npu.random import *
from torch_npu.npu.streams import *
from torch_npu.npu.streams import _set_stream_by_id
from torch_npu.npu.typed import storage_types, tensor_types

_device_t = torch.device | str | int | None


def _is_compiled() -> bool:
    return True


def ipc_collect() -> None:
    """Free memory that was sent to other processes and that none of them uses any more.

    Sending, freeing, `empty_cache` and running out of memory do the same.
    """
    _C._ipc_collect()


def is_current_stream_capturing() -> bool:
    """Return False: this release captures no graphs."""
    return False


globals().update(tensor_types())
globals().update(storage_types())


def __getattr__(name: str) -> Any:
    # Both change at initialisation. torch's checkpointing reads _initialized to decide whether to keep our RNG state.
    if name == "_initialized":
        return initialization.is_initialized()
    if name == "default_generators":
        return initialization.default_generators
    if name in _inductor.CLASSES:
        from torch_npu._inductor import codegen

        return getattr(codegen, _inductor.CLASSES[name])
    from torch_npu.attributes import missing

    raise missing(__name__, name)
