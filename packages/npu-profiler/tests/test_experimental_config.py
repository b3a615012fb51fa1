"""_ExperimentalConfig and the names around it."""

from __future__ import annotations

import pytest

import npu_profiler.profiler as profiler
from npu_profiler.profiler import AiCMetrics, ProfilerLevel, _ExperimentalConfig


def test_supported_values():
    assert profiler.supported_profiler_level() == {"Level0", "Level1", "Level2", "Level_none"}
    assert profiler.supported_export_type() == {"db", "text"}
    assert len(profiler.supported_ai_core_metrics()) == 9
    assert {str(a) for a in profiler.supported_activities()} == {"ProfilerActivity.CPU", "ProfilerActivity.NPU"}


def test_defaults_print_nothing(capsys):
    config = _ExperimentalConfig()
    assert capsys.readouterr().out == ""
    assert config.export_type == ["text"]
    assert (config.with_gc, config.gc_detect_threshold, config.tx_enabled) == (False, None, False)
    assert config.as_dict()["_profiler_level"] == "Level0"
    assert config.as_dict()["_aic_metrics"] == AiCMetrics.AiCoreNone


@pytest.mark.parametrize(
    ("arguments", "field", "used"),
    [
        ({"profiler_level": "Level9"}, "_profiler_level", "Level0"),
        ({"l2_cache": "yes"}, "_l2_cache", False),
        ({"data_simplification": 1}, "_data_simplification", True),
        ({"mstx": 1}, "_mstx", False),
        ({"aic_metrics": AiCMetrics.Memory}, "_aic_metrics", AiCMetrics.AiCoreNone),
        ({"aic_metrics": "x", "profiler_level": "Level1"}, "_aic_metrics", AiCMetrics.PipeUtilization),
        ({"profiler_level": ProfilerLevel.Level_none}, "_mstx", True),
        ({"msprof_tx": True}, "_mstx", True),
        ({"export_type": "xml"}, "_export_type", ["text"]),
        ({"export_type": []}, "_export_type", ["text"]),
        ({"host_sys": ["gpu"]}, "_host_sys", []),
        ({"mstx_domain_include": ["a"]}, "_mstx_domain_include", []),
        ({"mstx": True, "mstx_domain_include": "a"}, "_mstx_domain_include", []),
        ({"mstx": True, "mstx_domain_exclude": [1]}, "_mstx_domain_exclude", []),
    ],
)
def test_what_makes_no_sense_is_reset_with_a_warning(capsys, arguments, field, used):
    config = _ExperimentalConfig(**arguments)
    assert config.as_dict()[field] == used
    assert "[WARNING]" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [{"record_op_args": True}, {"op_attr": True}, {"gc_detect_threshold": 1.0}, {"export_type": ["text", "db"]}],
)
def test_what_is_not_delivered_says_so(capsys, arguments):
    _ExperimentalConfig(**arguments)
    out = capsys.readouterr().out
    assert "not part of this release" in out and next(iter(arguments)) in out


def test_names_of_a_later_release_are_absent():
    for name in ("analyse", "dynamic_profile"):
        with pytest.raises(AttributeError, match="not part of this release"):
            getattr(profiler, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        profiler.nothing  # noqa: B018
    with pytest.raises(ImportError):
        from npu_profiler.profiler import dynamic_profile  # noqa: F401
    for name in profiler.__all__:
        assert getattr(profiler, name) is not None
    assert set(profiler.__all__) <= set(dir(profiler))
