"""Extends modules of torch when a program imports them, so that ``import torch`` does not have to."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType


def after_import(name: str, extend: Callable[[], None]) -> None:
    """Call `extend` once module `name` is loaded: now, or right after its first successful import.

    Several extensions of one module run in the order in which they were announced.
    """
    if name in sys.modules:
        extend()
        return
    _FINDER.pending.setdefault(name, []).append(extend)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds a module that waits for extensions where the other finders do, and leaves when none waits any more."""

    def __init__(self) -> None:
        self.pending: dict[str, list[Callable[[], None]]] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self.pending:
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)  # finders of before Python 3.4 have none
            if finder is self or find_spec is None:
                continue
            spec = find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None

    def extend(self, name: str) -> None:
        extensions = self.pending.pop(name, [])
        if not self.pending and self in sys.meta_path:
            sys.meta_path.remove(self)
        for extension in extensions:
            extension()


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
        _FINDER.extend(module.__name__)


_FINDER = _Finder()
