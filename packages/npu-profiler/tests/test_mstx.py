"""mstx: return values, argument checks, and what a recording keeps of the host side."""

from __future__ import annotations

import threading
import time
import warnings

import pytest

from npu_profiler import marker_log
from npu_profiler.mstx import annotate, mstx
from npu_profiler.profiler import ProfilerLevel, _ExperimentalConfig, profile


def keep_markers(**options):
    return profile(
        experimental_config=_ExperimentalConfig(profiler_level=ProfilerLevel.Level_none, mstx=True, **options)
    )


def markers(events):
    return [event for event in events if event.get("cat") == "mstx"]


def rows(events):
    return {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}


def test_ids_are_positive_and_unique_with_and_without_a_recording():
    ids = [mstx.range_start("a") for _ in range(3)]
    with keep_markers():
        ids += [mstx.range_start("a"), mstx().range_start("b", None, "d"), mstx.range_start()]
    assert all(isinstance(i, int) and i > 0 for i in ids)
    assert len(set(ids)) == len(ids)


def test_ids_are_unique_across_threads():
    got: list[int] = []

    def work():
        got.extend([mstx.range_start("a") for _ in range(2000)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(got)) == 8000


def test_push_and_pop_return_levels():
    assert [mstx.range_push("a"), mstx.range_push("b")] == [0, 1]
    assert [mstx.range_pop(), mstx.range_pop(), mstx.range_pop()] == [1, 0, -1]


def test_push_stacks_are_per_domain_and_thread():
    assert mstx.range_push("a", domain="one") == 0
    assert mstx.range_push("b", domain="two") == 0
    elsewhere = []
    thread = threading.Thread(target=lambda: elsewhere.extend([mstx.range_pop("one"), mstx.range_push("c")]))
    thread.start()
    thread.join()
    assert elsewhere == [-1, 0]
    assert mstx.range_pop("two") == 0
    assert mstx.range_pop("one") == 0
    assert mstx.range_pop() == -1


@pytest.mark.parametrize("message", ["", None, 3, b"text"])
@pytest.mark.parametrize(
    ("function", "failure"), [(mstx.mark, None), (mstx.range_start, 0), (mstx.range_push, -1)], ids=lambda v: str(v)
)
def test_invalid_message_warns_and_fails(function, failure, message):
    with pytest.warns(UserWarning, match=r"Invalid message for mstx\.") as caught:
        assert function(message) == failure
    assert caught[0].filename == __file__


@pytest.mark.parametrize("stream", [1, "npu:0", object()])
@pytest.mark.parametrize(("function", "failure"), [(mstx.mark, None), (mstx.range_start, 0), (mstx.range_push, -1)])
def test_invalid_stream_warns_and_fails(function, failure, stream):
    with pytest.warns(UserWarning, match=r"Invalid stream for mstx\.") as caught:
        assert function("m", stream) == failure
    assert caught[0].filename == __file__


@pytest.mark.parametrize("domain", ["", None, 3])
@pytest.mark.parametrize(
    ("call", "failure"),
    [
        (lambda domain: mstx.range_start("m", None, domain), 0),
        (lambda domain: mstx.range_push("m", None, domain), -1),
        (lambda domain: mstx.range_pop(domain), -1),
        (lambda domain: mstx.range_end(1, domain), None),
    ],
)
def test_invalid_domain_warns_and_fails(call, failure, domain):
    with pytest.warns(UserWarning, match=r"Invalid domain for mstx\."):
        assert call(domain) == failure


def test_mark_only_checks_the_type_of_the_domain():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mstx.mark("m", domain="")
    with pytest.warns(UserWarning, match=r"Invalid domain for mstx\.mark"):
        mstx.mark("m", domain=None)


def test_range_end_warns_for_what_is_no_id_and_ignores_unknown_ids():
    with pytest.warns(UserWarning, match=r"Invalid range_id for mstx\.range_end"):
        mstx.range_end("1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mstx.range_end(0)
        mstx.range_end(-5)
        mstx.range_end(10**9)


def test_warnings_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("TORCH_NPU_WARNING_DISABLE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mstx.range_start("") == 0


def test_a_failure_inside_is_printed_and_yields_none(monkeypatch, capsys):
    def broken(self, *args):
        raise RuntimeError("no more room")

    monkeypatch.setattr(marker_log.MarkerLog, "open_range", broken)
    with keep_markers():
        assert mstx.range_start("m") is None
    assert "[ERROR]" in (out := capsys.readouterr().out)
    assert "mstx.range_start failed: no more room" in out


def test_a_call_that_does_not_fit_the_signature_raises():
    with pytest.raises(TypeError):
        mstx.mark("m", None, "d", "more")


def test_nothing_is_kept_without_mstx(events_of):
    with profile(activities=None) as prof:
        mstx.mark("m")
    assert marker_log.active() is None
    assert markers(events_of(prof)) == []


def test_marks_and_ranges_are_in_the_trace(events_of):
    with keep_markers() as prof:
        before = time.time_ns()
        mstx.mark("point")
        range_id = mstx.range_start("work", None, "mine")
        time.sleep(0.02)
        mstx.range_end(range_id, "mine")
        after = time.time_ns()
    events = events_of(prof)
    found = {event["name"]: event for event in markers(events)}
    assert set(found) == {"point", "work"}
    assert found["point"]["dur"] == 0
    assert found["point"]["args"]["domain"] == "default"
    assert found["work"]["args"]["domain"] == "mine"
    assert 20_000 <= found["work"]["dur"] < 20_000_000
    # Both clocks are read for this comparison: they agree to a few hundred nanoseconds.
    assert all(before - 20_000 <= e["begin"] <= e["end"] <= after + 20_000 for e in found.values())
    names = rows(events)
    assert names[found["point"]["pid"], found["point"]["tid"]] == "mstx default"
    assert names[found["work"]["pid"], found["work"]["tid"]] == "mstx mine"


def test_wrong_domain_and_unknown_id_leave_the_range_open(events_of):
    with keep_markers() as prof:
        range_id = mstx.range_start("work", None, "mine")
        mstx.range_end(range_id)
        mstx.range_end(range_id, "other")
        time.sleep(0.01)
        mstx.range_end(range_id, "mine")
        mstx.range_end(range_id, "mine")
    (event,) = markers(events_of(prof))
    assert event["dur"] >= 10_000
    assert "Unfinished" not in event["args"]


def test_a_range_still_open_at_the_end_is_cut(events_of):
    with keep_markers() as prof:
        mstx.range_start("work")
        time.sleep(0.01)
    (event,) = markers(events_of(prof))
    assert event["args"]["Unfinished"] is True
    assert event["dur"] >= 10_000


def test_ranges_from_before_the_recording_are_not_in_it(events_of):
    early = mstx.range_start("early")
    with keep_markers() as prof:
        mstx.range_end(early)
        mstx.mark("inside")
    mstx.mark("late")
    assert [event["name"] for event in markers(events_of(prof))] == ["inside"]


def test_a_range_may_end_on_another_thread(events_of):
    with keep_markers() as prof:
        range_id = mstx.range_start("work")
        thread = threading.Thread(target=mstx.range_end, args=(range_id,))
        thread.start()
        thread.join()
    (event,) = markers(events_of(prof))
    assert event["args"]["Begin thread"] == threading.get_native_id()
    assert event["args"]["End thread"] not in (0, threading.get_native_id())


def test_overlapping_ranges_get_rows_in_which_they_nest(events_of):
    with keep_markers() as prof:
        first = mstx.range_start("first")
        second = mstx.range_start("second")
        inner = mstx.range_start("inner")
        mstx.range_end(inner)
        mstx.range_end(first)
        mstx.range_end(second)
    by_row: dict[tuple, list] = {}
    found = markers(events_of(prof))
    assert {event["name"] for event in found} == {"first", "second", "inner"}
    for event in found:
        by_row.setdefault((event["pid"], event["tid"]), []).append(event)
    assert len(by_row) == 2
    for row in by_row.values():
        for a in row:
            for b in row:
                apart = a["end"] <= b["begin"] or b["end"] <= a["begin"]
                inside = a["begin"] <= b["begin"] <= b["end"] <= a["end"]
                around = b["begin"] <= a["begin"] <= a["end"] <= b["end"]
                assert apart or inside or around


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, {"a", "b", "default"}),
        ({"mstx_domain_include": ["a"]}, {"a"}),
        ({"mstx_domain_exclude": ["a"]}, {"b", "default"}),
        ({"mstx_domain_include": ["a", "b"], "mstx_domain_exclude": ["a"]}, {"a", "b"}),
    ],
)
def test_domain_filters(events_of, options, kept):
    with keep_markers(**options) as prof:
        for domain in ("a", "b", "default"):
            mstx.mark("mark", domain=domain)
            mstx.range_end(mstx.range_start("range", None, domain), domain)
            mstx.range_push("pushed", domain=domain)
            mstx.range_pop(domain)
    found = markers(events_of(prof))
    assert {event["args"]["domain"] for event in found} == kept
    assert len(found) == 3 * len(kept)


def test_mstx_range_wraps_every_call(events_of):
    @mstx.mstx_range("work", None, "mine")
    def double(x, *, times=2):
        """Doubles."""
        return x * times

    assert (double.__name__, double.__doc__) == ("double", "Doubles.")
    with keep_markers() as prof:
        assert double(3) == 6
        assert double(3, times=5) == 15
    assert [(e["name"], e["args"]["domain"]) for e in markers(events_of(prof))] == [("work", "mine")] * 2


@pytest.mark.parametrize("wrap", [mstx.mstx_range("fails"), mstx.annotate("fails")])
def test_the_range_ends_when_the_function_raises(events_of, wrap):
    @wrap
    def fail():
        raise KeyError("gone")

    with keep_markers() as prof:
        with pytest.raises(KeyError):
            fail()
    (event,) = markers(events_of(prof))
    assert event["name"] == "fails" and "Unfinished" not in event["args"]


def test_annotate_as_context_manager(events_of):
    assert mstx.annotate is annotate
    with keep_markers() as prof:
        with mstx.annotate("outer", domain="d"), mstx.annotate("inner"):
            pass
        with pytest.raises(ValueError, match="stop"), mstx.annotate("raises"):
            raise ValueError("stop")
        repeated = mstx.annotate("twice")
        with repeated, repeated:
            pass
    names = [event["name"] for event in markers(events_of(prof))]
    assert sorted(names) == ["inner", "outer", "raises", "twice", "twice"]


def test_annotate_names_functions_and_refuses_an_empty_block(events_of):
    @mstx.annotate()
    def plain():
        return 7

    @mstx.annotate("named")
    def other():
        return 8

    with keep_markers() as prof:
        assert (plain(), other(), plain.__name__) == (7, 8, "plain")
        with pytest.warns(UserWarning, match="Invalid message"), mstx.annotate():
            pass
    assert [event["name"] for event in markers(events_of(prof))] == ["plain", "named"]


def test_markers_from_many_threads_are_all_kept(events_of):
    def work(index):
        for i in range(500):
            with mstx.annotate(f"{index}-{i}"):
                mstx.range_push("pushed")
                mstx.range_pop()

    with keep_markers() as prof:
        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    names = [event["name"] for event in markers(events_of(prof))]
    assert len(names) == 4000
    assert len(set(names)) == 2001
