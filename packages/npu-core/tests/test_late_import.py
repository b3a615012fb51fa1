"""Extensions of modules that are not imported yet."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import sys

import pytest

from npu_core import late_import
from npu_core.late_import import after_import


@pytest.fixture
def finder(monkeypatch):
    """Return the finder with nothing pending, apart from what the rest of the process waits for."""
    finder = late_import._Finder()
    monkeypatch.setattr(late_import, "_FINDER", finder)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    return finder


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return a function that writes a module and tells its name; the modules are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = []

    def write(name: str, source: str = "value = 1\n") -> str:
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        names.append(name)
        return name

    yield write
    for name in names:
        sys.modules.pop(name, None)


def test_extends_after_the_import(finder, module):
    name, seen = module("extended_later"), []
    after_import(name, lambda: seen.append(sys.modules[name].value))
    assert seen == [] and name not in sys.modules and sys.meta_path[0] is finder
    imported = importlib.import_module(name)
    assert seen == [1]
    assert finder not in sys.meta_path
    importlib.reload(imported)
    assert seen == [1]


def test_extends_a_loaded_module_at_once(finder, module):
    name, seen = module("extended_at_once"), []
    importlib.import_module(name)
    after_import(name, lambda: seen.append(name))
    assert seen == [name] and finder not in sys.meta_path


def test_several_extensions(finder, module):
    first, second, seen = module("first_of_two"), module("second_of_two"), []
    after_import(first, lambda: seen.append("a"))
    after_import(second, lambda: seen.append("b"))
    after_import(first, lambda: seen.append("c"))
    assert sys.meta_path.count(finder) == 1
    importlib.import_module(first)
    assert seen == ["a", "c"] and finder in sys.meta_path
    importlib.import_module(second)
    assert seen == ["a", "c", "b"] and finder not in sys.meta_path


def test_looking_does_not_use_it_up(finder, module):
    name, seen = module("looked_at"), []
    after_import(name, lambda: seen.append(name))
    assert importlib.util.find_spec(name).origin.endswith("looked_at.py")
    assert seen == []
    importlib.import_module(name)
    assert seen == [name]


def test_a_failed_import_may_be_repeated(finder, module):
    name, seen = module("failing_once", "raise OSError('not yet')\n"), []
    after_import(name, lambda: seen.append(name))
    with pytest.raises(OSError, match="not yet"):
        importlib.import_module(name)
    assert seen == []
    module(name, "value = 22\n")
    importlib.import_module(name)
    assert seen == [name]


def test_a_missing_module_stays_missing(finder):
    after_import("no_such_module_anywhere", pytest.fail)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        importlib.import_module("no_such_module_anywhere")


def test_the_module_shows_its_own_loader(finder, module):
    name = module("with_source", "def answer():\n    return 42\n")
    after_import(name, lambda: None)
    imported = importlib.import_module(name)
    assert isinstance(imported.__loader__, importlib.machinery.SourceFileLoader)
    assert imported.__spec__.loader is imported.__loader__
    assert "return 42" in inspect.getsource(imported.answer)


def test_other_finders_are_asked(finder, module):
    name, asked, seen = module("found_elsewhere"), [], []

    class Other:
        @staticmethod
        def find_spec(name, path, target=None):
            asked.append(name)
            return importlib.machinery.PathFinder.find_spec(name, path, target)

    class Ancient:
        """Has no find_spec."""

    sys.meta_path[:0] = [Ancient(), Other()]
    after_import(name, lambda: seen.append(name))
    importlib.import_module(name)
    assert asked == [name] and seen == [name]
