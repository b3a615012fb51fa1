"""How npu-core finds this package: entry point group ``npu.plugins``."""

import functools
from collections.abc import Mapping
from typing import Any

from npu_ops_vision.names import OPERATORS


def load() -> Mapping[str, Any]:
    """Register the operators and return what ``torch_npu`` offers by these names."""
    import torch

    # Not the package: it may be half imported, waiting for the torch that is loading us.
    import npu_ops_vision.operators  # noqa: F401

    return {name: getattr(torch.ops.npu, name) for name in OPERATORS}


@functools.cache
def _plugin() -> Any:
    from importlib.metadata import version

    from npu_core.plugins import Plugin

    return Plugin(
        name="npu-ops-vision",
        version=version("npu-ops-vision"),
        core_api=(1, 1),
        attributes=OPERATORS,
        load=load,
    )


def __getattr__(name: str) -> Any:
    # `plugin` is made on demand, so that this module can be imported where npu-core is not installed.
    if name == "plugin":
        return _plugin()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
