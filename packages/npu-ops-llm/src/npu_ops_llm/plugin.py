"""How npu-core finds this package: entry point group ``npu.plugins``."""

import functools
from collections.abc import Mapping
from typing import Any

from npu_ops_llm.names import ATB_OPERATORS, OPERATORS


def load() -> Mapping[str, Any]:
    """Register the operators and return what ``torch_npu`` offers by these names."""
    import torch

    # Not the package: it may be half imported, waiting for the torch that is loading us.
    import npu_ops_llm.operators  # noqa: F401

    found = {name: getattr(torch.ops.npu, name) for name in OPERATORS}
    return found | {name: getattr(torch.ops.atb, name) for name in ATB_OPERATORS}


@functools.cache
def _plugin() -> Any:
    from importlib.metadata import version

    from npu_core.plugins import Plugin

    return Plugin(
        name="npu-ops-llm",
        version=version("npu-ops-llm"),
        core_api=(1, 1),
        attributes=(*OPERATORS, *ATB_OPERATORS),
        load=load,
    )


def __getattr__(name: str) -> Any:
    # `plugin` is made on demand, so that this module can be imported where npu-core is not installed.
    if name == "plugin":
        return _plugin()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
