"""Extends a module of torch when a program imports it, so that ``import torch`` does not have to."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType


def after_import(name: str, extend: Callable[[], None]) -> None:
    """Call `extend` once module `name` is loaded: now, or right after its first import."""
    if name in sys.modules:
        extend()
    else:
        sys.meta_path.insert(0, _Finder(name, extend))


class _Finder(importlib.abc.MetaPathFinder):
    """Waits for the import of one module, then goes away."""

    def __init__(self, name: str, extend: Callable[[], None]) -> None:
        self._name = name
        self._extend = extend

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._extend)
        return spec


class _Loader(importlib.abc.Loader):
    """Executes the module as its own loader does, then extends it."""

    def __init__(self, original: importlib.abc.Loader, extend: Callable[[], None]) -> None:
        self._original = original
        self._extend = extend

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._original.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module shows its own loader, as tools that read its source expect.
        module.__loader__ = self._original
        if module.__spec__ is not None:
            module.__spec__.loader = self._original
        self._original.exec_module(module)
        self._extend()
