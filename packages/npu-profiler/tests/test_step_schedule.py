"""schedule: which action a step has."""

from __future__ import annotations

import pytest

from npu_profiler.profiler import ProfilerAction, schedule

SHORT = {"-": ProfilerAction.NONE, "w": ProfilerAction.WARMUP, "r": ProfilerAction.RECORD}
SHORT["s"] = ProfilerAction.RECORD_AND_SAVE


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"wait": 1, "active": 2, "warmup": 1, "repeat": 2, "skip_first": 1}, "--wrs-wrs--"),
        ({"wait": 1, "active": 2, "warmup": 1, "repeat": 2, "skip_first": 1, "skip_first_wait": 1}, "-wrs-wrs---"),
        ({"wait": 0, "active": 1}, "ssss"),
        ({"wait": 2, "active": 1}, "--s--s"),
        ({"wait": 0, "active": 3, "repeat": 1}, "rrs---"),
    ],
)
def test_actions(arguments, expected):
    plan = schedule(**arguments)
    assert [plan(step) for step in range(len(expected))] == [SHORT[letter] for letter in expected]


def test_active_is_the_second_positional_parameter():
    plan = schedule(1, 2, 3)
    assert (plan.wait, plan.active, plan.warmup) == (1, 2, 3)


@pytest.mark.parametrize(
    ("name", "value", "used"),
    [
        ("wait", -1, 0),
        ("wait", "2", 0),
        ("warmup", 1.5, 0),
        ("repeat", -3, 0),
        ("skip_first", None, 0),
        ("active", 0, 1),
        ("active", -1, 1),
        ("active", None, 1),
        ("skip_first_wait", "yes", 0),
    ],
)
def test_invalid_values_are_reset_with_a_warning(capsys, name, value, used):
    plan = schedule(**{"wait": 1, "active": 2, "warmup": 1, name: value})
    assert getattr(plan, name) == used
    out = capsys.readouterr().out
    assert "[WARNING]" in out and f"schedule: {name}" in out


def test_warmup_zero_prints_a_hint(capsys):
    schedule(wait=1, active=1)
    assert "warmup" in capsys.readouterr().out
    schedule(wait=1, active=1, warmup=1)
    assert capsys.readouterr().out == ""


def test_negative_step_raises():
    with pytest.raises(ValueError, match="got -1"):
        schedule(wait=1, active=1, warmup=1)(-1)


def test_values_of_the_actions():
    assert [(a.name, a.value) for a in ProfilerAction] == [
        ("NONE", 0),
        ("WARMUP", 1),
        ("RECORD", 2),
        ("RECORD_AND_SAVE", 3),
    ]
