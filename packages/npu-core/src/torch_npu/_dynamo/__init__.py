"""Makes torch.compile know the device, without importing torch._dynamo: that would triple the time of `import torch`."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_INTERFACES = "torch._dynamo.device_interface"


def register() -> None:
    """Register the device interface now if Dynamo is loaded, else when it gets loaded."""
    if _INTERFACES in sys.modules:
        _register_interface()
    else:
        sys.meta_path.insert(0, _Finder())


def _register_interface() -> None:
    from torch_npu._dynamo import device_interface

    device_interface.register()


class _Finder(importlib.abc.MetaPathFinder):
    """Waits for the import of Dynamo's table of devices, then goes away."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _INTERFACES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Executes the module as its own loader does, then registers the interface of npu."""

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
        _register_interface()
