"""Ctrl-C while the host waits for the device."""

import pytest

# What every program below does around its wait: the device is held, so the wait cannot end by itself.
PROGRAM = """
import os, signal, sys, threading
import torch
from npu_core import _C

HOUR_NS = 3600 * 10**9
value = torch.arange(1 << 19, device="npu", dtype=torch.float64)
host = torch.zeros(1 << 19, dtype=torch.float64)
event = torch.npu.Event(enable_timing=True)
torch.npu.synchronize()

def interrupted(wait):
    _C._inject_fault(0, _C._FAULT_DELAY_TASK, match="add", count=1, delay_ns=HOUR_NS)
    value.add_(0)
    event.record()
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        wait()
        timer.join()
        return "not interrupted"
    except KeyboardInterrupt:
        return "interrupted"
    finally:
        timer.join()
        _C._inject_fault(0, _C._FAULT_NONE)

for round in range(2):
    print(interrupted(lambda: {wait}))
    torch.npu.synchronize()
    assert event.query() and torch.equal(value.cpu(), torch.arange(1 << 19, dtype=torch.float64))
"""

WAITS = {
    "device": "torch.npu.synchronize()",
    "accelerator": "torch.accelerator.synchronize()",
    "stream": "torch.npu.current_stream().synchronize()",
    "event": "event.synchronize()",
    "elapsed": "event.elapsed_time(event)",
    "generic event": "torch.Event.synchronize(event)",
    "item": "value[3].item()",
    "tolist": "value[:4].tolist()",
    "small copy": "value[:4].cpu()",
    "large copy to the host": "value.cpu()",
    "large copy from the host": "value.copy_(host)",
    "operator without a kernel": "torch.nonzero(value)",
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS.keys())
def test_ctrl_c_ends_the_wait_and_the_device_stays_usable(run_python, wait):
    done = run_python(PROGRAM.replace("{wait}", wait))
    assert done.stdout.split("\n")[:2] == ["interrupted", "interrupted"], done.stdout
    assert done.stderr == ""


def test_other_threads_wait_on(run_python):
    """Only the main thread gets KeyboardInterrupt; another thread's wait ends when its work has."""
    done = run_python(
        """
        import os, signal, threading, torch
        from npu_core import _C
        value = torch.zeros(4, device="npu")
        torch.npu.synchronize()
        _C._inject_fault(0, _C._FAULT_DELAY_TASK, match="add", count=1, delay_ns=3600 * 10**9)
        value.add_(1)
        seen = []
        finished = threading.Event()
        def wait():
            seen.append(value.tolist())
            finished.set()
        threading.Thread(target=wait).start()
        try:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            finished.wait()
        except KeyboardInterrupt:
            print("interrupted", seen)
        _C._inject_fault(0, _C._FAULT_NONE)
        finished.wait()
        print(seen)
        """
    )
    assert done.stdout.splitlines() == ["interrupted []", "[[1.0, 1.0, 1.0, 1.0]]"]
