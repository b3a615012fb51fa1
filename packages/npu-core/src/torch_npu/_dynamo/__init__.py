"""Makes torch.compile know the device without importing torch._dynamo, which would slow `import torch` down."""

from __future__ import annotations

from npu_core.late_import import after_import


def register() -> None:
    """Extend Dynamo now if it is loaded, else as soon as it is."""
    after_import("torch._dynamo", _extend)


def _extend() -> None:
    from torch_npu._dynamo import device_interface, trace_rules

    device_interface.register()
    trace_rules.register()
