"""How npu-core finds this package: entry point group ``npu.plugins``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from npu_distributed.fused_operators import FAMILIES, OPERATORS
from npu_distributed.version import TORCH_MINOR, __version__

_MODULES = ("distributed", "_C._distributed_c10d")

plugin: Any  # made by __getattr__


def check_torch(version: str) -> None:
    """Raise ImportError unless torch `version` is the one this wheel was built for.

    Without this check the mismatch would show as an undefined symbol, or not at all.
    """
    if version.split("+")[0].split(".")[:2] != TORCH_MINOR.split("."):
        raise ImportError(
            f"npu-distributed {__version__} is built for torch {TORCH_MINOR}.*, but torch {version} is installed. "
            f"Install a release of npu-distributed for this torch, or torch=={TORCH_MINOR}.*"
        )


def load() -> Mapping[str, Any]:
    """Register backend "hccl" and return what ``torch_npu`` offers by these names."""
    import torch

    check_torch(torch.__version__)
    if not torch.distributed.is_available():
        return {}
    from npu_distributed import (
        backend,
        c10d_names,
        context_parallel,
        distributed,
        dtensor,
        inductor,
        parallel_store,
        sync_batch_norm,
    )

    backend.register()
    dtensor.register()
    context_parallel.register()
    inductor.register()
    parallel_store.register()
    sync_batch_norm.register()
    for family in FAMILIES:
        importlib.import_module(f"npu_distributed.{family}")
    return {"distributed": distributed, "_C._distributed_c10d": c10d_names}  # torch_npu finds operators by itself


def __getattr__(name: str) -> Any:
    # Made on demand, so that this module can be imported where npu-core is not installed.
    if name != "plugin":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from npu_core.plugins import Plugin

    global plugin
    plugin = Plugin(
        name="npu-distributed", version=__version__, core_api=(1, 1), attributes=(*_MODULES, *OPERATORS), load=load
    )
    return plugin
