"""Makes torch.compile know the device without importing torch._dynamo, which would slow `import torch` down."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_DYNAMO = "torch._dynamo"


def register() -> None:
    """Extend Dynamo now if it is loaded, else as soon as it is."""
    if _DYNAMO in sys.modules:
        _extend()
    else:
        sys.meta_path.insert(0, _Finder())


def _extend() -> None:
    from torch_npu._dynamo import device_interface, trace_rules

    device_interface.register()
    trace_rules.register()


class _Finder(importlib.abc.MetaPathFinder):
    """Waits for the import of Dynamo, then goes away."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _DYNAMO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Executes the module as its own loader does, then extends it."""

    def __init__(self, original: importlib.abc.Loader) -> None:
        self._original = original

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._original.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module shows its own loader, as tools that read its source expect.
        module.__loader__ = self._original
        if module.__spec__ is not None:
            module.__spec__.loader = self._original
        self._original.exec_module(module)
        _extend()
