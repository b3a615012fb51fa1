"""The plugin loader, with entry points made for the purpose."""

from __future__ import annotations

import importlib.metadata
import sys
import types

import pytest

from npu_core import plugins
from npu_core.plugins import CORE_API_VERSION, GROUP, Plugin


@pytest.fixture
def provide(monkeypatch):
    """Return a function that makes an entry point for `value` in a module of its own."""

    def make(name: str, value: object) -> importlib.metadata.EntryPoint:
        module_name = f"plugin_under_test_{name.replace('-', '_')}"
        module = types.ModuleType(module_name)
        module.plugin = value
        monkeypatch.setitem(sys.modules, module_name, module)
        return importlib.metadata.EntryPoint(name, f"{module_name}:plugin", GROUP)

    return make


def good(name: str = "npu-good", load=lambda: {"answer": 42}, core_api=(CORE_API_VERSION, CORE_API_VERSION)) -> Plugin:
    return Plugin(name, "1.2", core_api, ("answer",), load)


def test_a_compatible_plugin_is_loaded(provide):
    (status,) = plugins.load_all([provide("npu-good", good())])
    assert (status.name, status.version, status.state, status.problem) == ("npu-good", "1.2", "loaded", "")
    assert status.objects == {"answer": 42} and status.attributes == ("answer",)


def test_load_may_return_nothing(provide):
    (status,) = plugins.load_all([provide("npu-good", good(load=lambda: None))])
    assert status.state == "loaded" and status.objects == {}


@pytest.mark.parametrize(
    ("accepted", "text", "remedy"),
    [
        ((CORE_API_VERSION + 1, CORE_API_VERSION + 2), f"{CORE_API_VERSION + 1} to {CORE_API_VERSION + 2}", "a newer"),
        ((CORE_API_VERSION - 1, CORE_API_VERSION - 1), f"{CORE_API_VERSION - 1}", "an older"),
    ],
)
def test_a_plugin_for_another_interface_is_skipped_and_explained(provide, accepted, text, remedy):
    def load():
        raise AssertionError("must not be loaded")

    first, second = plugins.load_all(
        [provide("npu-other", good("npu-other", load, accepted)), provide("npu-good", good())]
    )
    assert first.state == "incompatible" and second.state == "loaded"
    assert f"npu-other 1.2 is made for plugin API {text}, npu-core" in first.problem
    assert first.problem.endswith(f"provides {CORE_API_VERSION}")
    assert f"install {remedy} npu-core" in first.remedy


def test_a_failing_plugin_does_not_stop_the_others(provide):
    def load():
        raise OSError("no such library")

    broken = importlib.metadata.EntryPoint("npu-gone", "module_that_is_not_there:plugin", GROUP)
    gone, failing, wrong, fine = plugins.load_all(
        [broken, provide("npu-bad", good("npu-bad", load)), provide("npu-odd", object()), provide("npu-good", good())]
    )
    assert gone.state == failing.state == wrong.state == "failed" and fine.state == "loaded"
    assert "ModuleNotFoundError" in gone.problem and "OSError: no such library" in failing.problem
    assert "expected an npu_core.plugins.Plugin" in wrong.problem
    assert all("pip install --force-reinstall" in status.remedy for status in (gone, failing, wrong))


FACADE = """
    import importlib.metadata, sys, types, warnings
    from npu_core.plugins import Plugin, CORE_API_VERSION, GROUP

    def provide(name, load, core_api=(CORE_API_VERSION, CORE_API_VERSION)):
        module = types.ModuleType("plugin_" + name.replace("-", "_"))
        module.plugin = Plugin(name, "1.0", core_api, (), load)
        sys.modules[module.__name__] = module
        return importlib.metadata.EntryPoint(name, module.__name__ + ":plugin", GROUP)

    def install(*points):
        original = importlib.metadata.entry_points
        importlib.metadata.entry_points = lambda **query: (
            importlib.metadata.EntryPoints(points) if query.get("group") == GROUP else original(**query))

    """


def test_the_facade_hangs_up_what_plugins_provide(run_python):
    done = run_python(
        FACADE
        + """
    def load():
        module = types.ModuleType("somewhere.parts")
        module.value = 5
        return {"parts": module, "npu.marker": "mark"}

    install(provide("npu-new", load))
    import torch_npu, torch
    import torch_npu.parts
    print(torch_npu.parts.value, torch.npu.marker)
    """,
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    assert done.stdout.split() == ["5", "mark"]


def test_the_facade_warns_about_a_skipped_plugin_and_names_it_when_it_is_missed(run_python):
    done = run_python(
        FACADE
        + """
    install(provide("npu-ops-llm", None, (99, 99)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import torch_npu, torch
    print([str(entry.message) for entry in caught if "npu-ops-llm" in str(entry.message)][0])
    try:
        torch_npu.npu_rms_norm
    except AttributeError as error:
        print(error)
    print(torch.npu.is_available())
    """,
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    warning, error, available = done.stdout.splitlines()
    assert warning.startswith("npu-ops-llm 1.0 is made for plugin API 99")
    assert error.startswith(
        "torch_npu.npu_rms_norm is provided by the wheel npu-ops-llm, which was not loaded: npu-ops"
    )
    assert available == "True"


def test_a_missing_wheel_is_named(run_python):
    done = run_python(
        FACADE
        + """
    install()
    import torch_npu
    for owner, name in ((torch_npu, "npu_rms_norm"), (torch_npu, "profiler"), (torch_npu.npu, "mstx")):
        try:
            getattr(owner, name)
        except AttributeError as error:
            print(error)
    """,
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    assert done.stdout.splitlines() == [
        "torch_npu.npu_rms_norm is provided by the wheel npu-ops-llm; pip install npu-ops-llm",
        "torch_npu.profiler is provided by the wheel npu-profiler; pip install npu-profiler",
        "torch_npu.npu.mstx is provided by the wheel npu-profiler; pip install npu-profiler",
    ]
