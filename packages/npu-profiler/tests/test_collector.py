"""The collector library against a runtime that the test controls, in a process of its own each."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HEADERS = HERE.parent.parent / "npu-core" / "include"


@pytest.fixture(scope="module")
def fake_runtime(tmp_path_factory) -> Path:
    compiler = shutil.which("c++")
    if compiler is None or not HEADERS.is_dir():
        pytest.skip("needs a C++ compiler and the npu-core headers of the repository")
    library = tmp_path_factory.mktemp("fake") / "libnpu_runtime.so"
    command = [compiler, "-std=c++20", "-shared", "-fPIC", "-O1", f"-I{HEADERS}", "-Wl,-soname,libnpu_runtime.so"]
    subprocess.run([*command, "-o", str(library), str(HERE / "fake_runtime.cpp")], check=True, timeout=120)
    return library


def run(fake_runtime: Path | None, program: str) -> None:
    prelude = "import ctypes, time\nfrom npu_profiler import collector\n"
    if fake_runtime is not None:
        prelude += f"fake = ctypes.CDLL({str(fake_runtime)!r})\n"
        prelude += "fake.fake_emit.argtypes = [ctypes.c_int32, ctypes.c_char_p] + [ctypes.c_uint64] * 3\n"
    result = subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(program)], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr


def test_records_come_back_whole(fake_runtime):
    run(
        fake_runtime,
        """
        collector.start()
        fake.fake_emit(0, b"aten::add.out", 10, 20, 3)
        fake.fake_emit(1, b"launch", 5, 6, 3)
        fake.fake_emit(0, b"aten::add.out", 30, 40, 4)
        collector.stop()
        got = collector.take()
        assert got.names == ("aten::add.out", "launch"), got.names
        assert [tuple(r) for r in got.records()] == [
            (10, 20, 10, 3, 7, -5, 0, 0, 42, 2, 0, 0),
            (5, 6, 5, 3, -1, -5, 1, 0, 42, 2, 1, 0),
            (30, 40, 30, 4, 7, -5, 0, 0, 42, 2, 0, 0),
        ]
        assert got.lost == 0
        """,
    )


def test_nothing_before_start_or_after_stop(fake_runtime):
    run(
        fake_runtime,
        """
        fake.fake_emit(0, b"before", 1, 2, 1)
        collector.start()
        fake.fake_emit(0, b"inside", 3, 4, 2)
        collector.stop()
        fake.fake_emit(0, b"after", 5, 6, 3)
        assert collector.take().names == ("inside",)
        assert collector.take().names == ()
        collector.start()
        fake.fake_emit(0, b"again", 7, 8, 4)
        collector.stop()
        assert collector.take().names == ("again",)
        """,
    )


def test_copies_more_than_one_block(fake_runtime):
    run(
        fake_runtime,
        """
        collector.start()
        for i in range(150_000):
            fake.fake_emit(0, b"op%d" % (i % 300), i, i + 1, i)
        collector.stop()
        got = collector.take()
        assert len(got.names) == 300
        assert [r.correlation for r in got.records()] == list(range(150_000))
        assert all(got.names[r.name] == f"op{r.correlation % 300}" for r in got.records())
        """,
    )


def test_markers_have_device_times_and_are_no_kernels(fake_runtime):
    run(
        fake_runtime,
        """
        collector.start()
        started = time.monotonic_ns()
        before = collector.clock_ns()
        collector.launch_marker(0, 7, 101)
        fake.fake_emit(0, b"kernel", 1, 2, 1)
        collector.launch_marker(0, 7, 102)
        assert fake.fake_run_queue() == 2
        collector.stop()
        got = collector.take()
        assert got.names == ("kernel",)
        assert list(got.marker_times) == [101, 102]
        assert before <= got.marker_times[101] <= got.marker_times[102] <= collector.clock_ns()
        assert started <= got.marker_times[102] <= time.monotonic_ns()
        """,
    )


def test_marker_left_from_an_earlier_recording_is_ignored(fake_runtime):
    run(
        fake_runtime,
        """
        collector.start()
        collector.launch_marker(0, 7, 101)
        collector.stop()
        collector.take()
        collector.start()
        fake.fake_run_queue()
        collector.stop()
        got = collector.take()
        assert got.marker_times == {} and got.names == ()
        """,
    )


def test_errors_carry_the_text_of_the_runtime(fake_runtime):
    run(
        fake_runtime,
        """
        collector.start()
        for call, text in (
            (collector.start, "a sink is attached already"),
            (lambda: collector.launch_marker(1, 7, 1), "no such stream"),
        ):
            try:
                call()
            except collector.CollectorError as exc:
                assert str(exc) == text, exc
            else:
                raise AssertionError(text)
        """,
    )


def test_without_a_runtime_the_error_names_the_wheel():
    run(
        None,
        """
        try:
            collector.start()
        except collector.CollectorError as exc:
            assert "npu-core" in str(exc)
        else:
            raise AssertionError("start succeeded without a runtime")
        assert collector.clock_ns() == 0
        """,
    )


def test_links_neither_torch_nor_npu_core():
    import npu_profiler

    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("needs readelf")
    library = Path(npu_profiler.__file__).with_name("libnpu_profiler.so")
    dynamic = subprocess.run([readelf, "-d", str(library)], capture_output=True, text=True, check=True).stdout
    needed = [line for line in dynamic.splitlines() if "NEEDED" in line]
    assert needed and not any(name in line for line in needed for name in ("torch", "c10", "npu"))
