"""How a process that uses npu ends: never hanging, never aborted, never silent about an error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

# Work that is certainly still queued when the next line runs, and fails at its end if `fail`.
QUEUED = """
import torch
from npu_core import _C
HOUR_NS = 3600 * 10**9
value = torch.zeros(64, device="npu")
torch.npu.synchronize()
def queue(delay_ns, fail=False):
    _C._inject_fault(0, _C._FAULT_DELAY_TASK, match="add", count=1, delay_ns=delay_ns)
    if fail:
        _C._inject_fault(0, _C._FAULT_FAIL_TASK, match="mul")
    for _ in range(100):
        value.add_(1)
    value.mul_(2)
"""


def test_queued_work_runs_and_its_error_is_reported(run_python):
    done = run_python(QUEUED + "queue(100_000_000, fail=True)")
    assert done.stdout == ""
    assert done.stderr.count("an asynchronous error was pending on npu:0 when the process ended: aten::mul") == 1


def test_queued_work_without_an_error_is_no_news(run_python):
    done = run_python(QUEUED + "queue(100_000_000)")
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("read", ["pass", "value.sum().item()"], ids=["submits", "waits"])
def test_a_daemon_thread_that_goes_on(run_python, read):
    for _ in range(3):
        done = run_python(
            f"""
            import threading, torch
            busy = threading.Event()
            def work():
                value = torch.zeros(1000, device="npu")
                while True:
                    value = value + 1
                    {read}
                    busy.set()
            threading.Thread(target=work, daemon=True).start()
            busy.wait()
            """
        )
        assert (done.stdout, done.stderr) == ("", "")


def test_a_thread_that_outlives_the_main_module(run_python):
    done = run_python(
        """
        import threading, torch
        main = threading.main_thread()
        def work():
            main.join()
            value = torch.zeros(8, device="npu")
            for _ in range(500):
                value += 1
            print(value.tolist())
        threading.Thread(target=work).start()
        """
    )
    assert done.stdout == f"{[500.0] * 8}\n" and done.stderr == ""


def test_sys_exit_in_a_thread_ends_that_thread_only(run_python):
    done = run_python(
        """
        import sys, threading, torch
        value = torch.zeros(4, device="npu")
        def work():
            value.add_(1)
            torch.npu.synchronize()
            sys.exit(5)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        print((value + 1).tolist())
        """
    )
    assert done.stdout == "[2.0, 2.0, 2.0, 2.0]\n" and done.stderr == ""


def test_os_exit_waits_for_nothing(run_python):
    done = run_python(QUEUED + "queue(HOUR_NS)\nimport os\nos._exit(3)", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


def test_an_unhandled_exception(run_python):
    done = run_python(QUEUED + "queue(100_000_000)\nraise ValueError('mine')", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and done.stderr.splitlines()[-1] == "ValueError: mine"


@pytest.mark.parametrize("status", [0, 7])
def test_sys_exit_in_the_main_thread(run_python, status):
    done = run_python(QUEUED + f"queue(100_000_000)\nimport sys\nsys.exit({status})", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_exit_handlers_may_use_the_device(run_python):
    done = run_python(
        """
        import atexit
        def late():
            print("late", (torch.ones(3, device="npu") * 2).tolist(), (value + 1).tolist(), flush=True)
        atexit.register(late)  # registered before torch is imported, so it runs behind torch_npu's own handler
        import torch
        def early():
            print("early", (torch.ones(3, device="npu") * 3).tolist(), flush=True)
        atexit.register(early)
        value = torch.zeros(1, device="npu")
        """
    )
    assert done.stdout.splitlines() == ["early [3.0, 3.0, 3.0]", "late [2.0, 2.0, 2.0] [1.0]"]
    assert done.stderr == ""


def test_an_error_of_the_last_exit_handler_is_reported(run_python):
    done = run_python(
        """
        import atexit
        def late():
            _C._inject_fault(0, _C._FAULT_FAIL_TASK, match="add")
            value.add_(1)
        atexit.register(late)
        import torch
        from npu_core import _C
        value = torch.zeros(1, device="npu")
        """
    )
    assert "an asynchronous error was pending on npu:0 when the process ended: aten::add" in done.stderr


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_children_end_with_work_queued(tmp_path, run_python, method):
    script = tmp_path / "job.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing, torch

            def child(queue):
                value = torch.zeros(1000, device="npu")
                for _ in range(100):
                    value += 1
                queue.put(value.sum().item())
                for _ in range(1000):
                    value += 1  # nobody waits for these

            if __name__ == "__main__":
                context = multiprocessing.get_context("{method}")
                queue = context.Queue()
                children = [context.Process(target=child, args=(queue,)) for _ in range(2)]
                for process in children:
                    process.start()
                print(sorted(queue.get() for _ in children))
                for process in children:
                    process.join()
                print([process.exitcode for process in children], (torch.ones(2, device="npu") + 1).tolist())
            """
        )
    )
    done = (
        run_python(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')")
        if method == "fork"
        else (subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240, check=False))
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[100000.0, 100000.0]", "[0, 0] [2.0, 2.0]"]
    assert done.stderr == ""


def test_ctrl_c_ends_the_wait_at_exit(run_python):
    """The queued work is dropped; the process ends in order although a task would have lasted an hour."""
    program = textwrap.dedent(QUEUED) + textwrap.dedent(
        """
        import atexit
        atexit.register(print, "ending", flush=True)
        value.add_(1)
        queue(2_000_000_000)
        for _ in range(50):
            _C._inject_fault(0, _C._FAULT_DELAY_TASK, match="add", count=1, delay_ns=HOUR_NS)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None and process.stdout.readline() == "ending\n"
    errors = ""
    for _ in range(400):  # the first one may come before the wait has begun
        process.send_signal(signal.SIGINT)
        try:
            errors = process.communicate(timeout=0.3)[1]
            break
        except subprocess.TimeoutExpired:
            continue
    else:
        process.kill()
        pytest.fail("the process ignored Ctrl-C")
    assert process.returncode in (0, 130, -signal.SIGINT), errors
    assert "terminate called" not in errors
