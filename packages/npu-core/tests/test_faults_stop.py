"""stop_device, restart_device, memory errors, self-tests, and the limits that are kept and returned."""

from __future__ import annotations

import re

import pytest
import torch

from torch_npu.npu import fault_tolerance

FORCE_STOP = re.compile(r"^FORCE STOP\.\n\[ERROR\] .* ERR00100 PTA call acl api failed$", re.MULTILINE)


@pytest.fixture
def restarted():
    """Leave both devices running, whatever the test did."""
    torch.npu.init()
    yield
    for device in range(torch.npu.device_count()):
        torch.npu.restart_device(device)
        torch.npu.synchronize(device)


def raises_force_stop(call) -> None:
    with pytest.raises(RuntimeError) as caught:
        call()
    assert FORCE_STOP.match(str(caught.value)), str(caught.value)


def test_a_stopped_device_drops_and_refuses_until_it_is_restarted(hold, restarted):
    value, other = torch.zeros(8, device="npu"), torch.ones(8, device="npu:1")
    torch.npu.synchronize()
    hold()
    value.add_(1)  # it runs already, or is dropped like the rest
    for _ in range(10):
        value.add_(100)
    event = torch.npu.default_stream().record_event()
    assert torch.npu.stop_device(0) == 0
    assert torch.npu.stop_device(0) == 0
    hold.release()
    for call in (
        lambda: value.add_(1),
        lambda: torch.ones(3, device="npu"),
        lambda: value.copy_(torch.zeros(8)),
        lambda: torch.npu.synchronize(0),
        lambda: torch.npu.current_stream().synchronize(),
        lambda: event.synchronize(),
        lambda: value.tolist(),
        lambda: value.nonzero(),
        lambda: torch.npu.Stream().record_event(),
        lambda: torch.npu.Stream().wait_event(event),
    ):
        raises_force_stop(call)
        raises_force_stop(call)
    assert (other + 1).sum().item() == 16  # the other device is not concerned
    assert torch.npu.restart_device(0) is None
    torch.npu.synchronize(0)
    assert value.tolist() in ([0.0] * 8, [1.0] * 8)
    assert (value * 0 + 3).tolist() == [3.0] * 8


def test_sync_launch_streams_save_what_there_is(restarted):
    value = torch.arange(6.0, device="npu")
    torch.npu.synchronize()
    saver = torch.npu.SyncLaunchStream()
    assert torch.npu.stop_device(0) == 0
    raises_force_stop(lambda: value + 1)
    with torch.npu.stream(saver):
        assert value.cpu().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
        assert (value * 2).sum().item() == 30
    with torch.npu.stream(torch.npu.SyncLaunchStream()):  # also one that did not exist yet
        assert value.cpu().sum().item() == 15


def test_a_host_that_waits_is_told(run_python):
    done = run_python(
        """
        import threading, torch
        from npu_core import _C
        first, second = torch.npu.Stream(), torch.npu.Stream("npu:1")
        value, other = torch.zeros(4, device="npu"), torch.zeros(4, device="npu:1")
        torch.npu.synchronize(0), torch.npu.synchronize(1)
        _C._inject_fault(1, _C._FAULT_DELAY_TASK, match="add", count=1, delay_ns=3600 * 10**9)
        with torch.npu.stream(second):
            other.add_(1)
        first.wait_stream(second)  # another device, which is not stopped: the wait would last an hour
        ready = threading.Event()
        def wait():
            ready.set()
            try:
                first.synchronize()
            except RuntimeError as error:
                print(str(error).splitlines()[0], flush=True)
        thread = threading.Thread(target=wait)
        thread.start()
        ready.wait()
        torch.npu.stop_device(0)
        thread.join()
        torch.npu.restart_device(0)
        _C._inject_fault(1, _C._FAULT_NONE)
        torch.npu.synchronize(1)
        with torch.npu.stream(first):
            print((value + 2).tolist(), other.tolist())
        """
    )
    assert done.stdout.splitlines() == ["FORCE STOP.", f"{[2.0] * 4} {[1.0] * 4}"]


def test_a_process_ends_quietly_with_a_stopped_device(run_python):
    done = run_python("import torch; x = torch.ones(4, device='npu'); x += 1; torch.npu.stop_device(0)")
    assert (done.stdout, done.stderr) == ("", "")


def test_restart_drops_pending_errors_of_a_device_that_was_not_stopped(restarted):
    torch.gather(torch.zeros(4, 3, device="npu"), 0, torch.full((1, 3), 77, device="npu"))
    while not torch.npu.current_stream().query():
        pass
    torch.npu.restart_device(0)
    torch.npu.synchronize()


def test_restart_with_new_resources(restarted):
    torch.npu.stop_device(0)
    with pytest.raises(NotImplementedError, match="disable_tensor_unsafe_check=True"):
        torch.npu.restart_device(0, rebuild_all_resources=True)
    torch.npu.restart_device(0, rebuild_all_resources=True, disable_tensor_unsafe_check=True)
    assert (torch.ones(2, device="npu") + 1).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("function", [torch.npu.stop_device, torch.npu.restart_device, torch.npu.check_uce_in_memory])
def test_arguments(function):
    for wrong in ("npu:0", True, None, 0.0):
        with pytest.raises(TypeError, match="device_id should be an int"):
            function(wrong)
    with pytest.raises(RuntimeError, match=r"device_id should be in \[0, 2\), but got -1"):
        function(-1)


def test_memory_errors_are_classified(restarted):
    torch.npu.empty_cache()
    assert torch.npu.check_uce_in_memory(0) == 0 and torch.npu._get_uce_addr() == []
    live = torch.zeros(1 << 20, device="npu")
    cached = torch.zeros(8 << 20, device="npu")
    address = cached.data_ptr()
    torch.npu.synchronize()
    fault_tolerance._inject_memory_error(0, 0x1000, 16)
    assert torch.npu.check_uce_in_memory(0) == 1
    del cached
    fault_tolerance._inject_memory_error(0, address + 4096, 16)
    assert torch.npu._get_uce_addr() == [{"ptr": 0x1000, "size": 16}, {"ptr": address + 4096, "size": 16}]
    assert torch.npu.check_uce_in_memory(1) == 0
    assert torch.npu.check_uce_in_memory(0) == 2
    assert torch.npu.check_uce_in_memory(0) == 1  # the call gave the cached memory back
    fault_tolerance._inject_memory_error(0, live.data_ptr() + 100, 1)
    assert torch.npu.check_uce_in_memory(0) == 3
    torch.npu.restart_device(0)
    assert torch.npu.check_uce_in_memory(0) == 0


def test_stress_detect(monkeypatch):
    assert torch.npu.stress_detect() == torch.npu.stress_detect("aic") == 0
    with pytest.warns(UserWarning, match="'aic' or 'hccs', but got 'gpu'"):
        assert torch.npu.stress_detect("gpu") == 1
    monkeypatch.delenv("RANK", raising=False)
    with pytest.warns(UserWarning, match="initialised torch.distributed"):
        assert torch.npu.stress_detect("hccs") == 1


def test_stress_detect_sees_a_core_that_computes_wrong_results(monkeypatch):
    right = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: right(a, b).index_fill_(0, torch.tensor(5), 1.5))
    assert torch.npu.stress_detect() == 2


def test_device_limit(run_python):
    done = run_python(
        """
        import torch
        cores = {"cube_core_num": 24, "vector_core_num": 48}
        assert torch.npu.get_device_limit(0) == torch.npu.get_device_limit(1) == cores
        for wrong in (lambda: torch.npu.set_device_limit(0, cube_num=25), lambda: torch.npu.set_device_limit(0, 0)):
            try:
                wrong()
            except ValueError as error:
                print(str(error).splitlines()[0])
        torch.npu.set_device_limit(1, vector_num=6)
        print(torch.npu.get_device_limit(1), torch.npu.get_device_limit(0) == cores)
        print(torch.npu.get_stream_limit(torch.npu.default_stream(1)))
        try:
            torch.npu.set_device_limit(0, 2, 2)
        except RuntimeError as error:
            print(str(error).splitlines()[0])
        """
    )
    assert done.stdout.splitlines() == [
        "cube_num should be -1 or in [1, 24], but got 25",
        "cube_num should be -1 or in [1, 24], but got 0",
        "{'cube_core_num': 24, 'vector_core_num': 6} True",
        "{'cube_core_num': 24, 'vector_core_num': 6}",
        "Function 'set_device_limit' has already been called, and works once per process",
    ]
    for wrong in ("0", True, 1.0):
        with pytest.raises(TypeError, match="device should be an int"):
            torch.npu.set_device_limit(wrong)
        with pytest.raises(TypeError, match="device should be an int"):
            torch.npu.get_device_limit(wrong)
    with pytest.raises(AssertionError, match="Invalid device id"):
        torch.npu.get_device_limit(99)


def test_stream_limit():
    stream, other = torch.npu.Stream(), torch.npu.Stream()
    cores = torch.npu.get_device_limit(0)
    assert torch.npu.get_stream_limit(stream) == cores
    torch.npu.set_stream_limit(stream, cube_num=3)
    torch.npu.set_stream_limit(stream, vector_num=5)
    assert torch.npu.get_stream_limit(stream) == {"cube_core_num": 3, "vector_core_num": 5}
    assert torch.npu.get_stream_limit(other) == cores
    torch.npu.reset_stream_limit(stream)
    assert torch.npu.get_stream_limit(stream) == cores
    for function in (torch.npu.set_stream_limit, torch.npu.get_stream_limit, torch.npu.reset_stream_limit):
        for wrong in (None, 0, "npu"):
            with pytest.raises(AssertionError, match="stream should be a torch.npu.Stream"):
                function(wrong)


def test_op_timeout():
    from npu_core import _C

    torch.npu.set_op_timeout_ms(1500)
    assert _C._get_option("op_timeout_ms") == "1500"
    torch.ops.npu.set_op_timeout_ms(20)
    assert _C._get_option("op_timeout_ms") == "20"
    with pytest.raises(ValueError, match="should not be negative"):
        torch.npu.set_op_timeout_ms(-1)


def test_warnings_of_the_native_part_can_be_silenced(run_python):
    code = "import torch; torch.npu.Stream(); torch.npu.set_sync_debug_mode(1); torch.ones(2, device='npu').tolist()"
    for variables, silent in (
        ({}, False),
        ({"TORCH_NPU_WARNING_DISABLE": "1"}, True),
        ({"RANK": "1"}, True),
        ({"RANK": "0"}, False),
    ):
        done = run_python(code, STREAMS_PER_DEVICE="9", **{"RANK": None, **variables})
        assert ("STREAMS_PER_DEVICE should be" not in done.stderr) is silent, (variables, done.stderr)
        assert ("called a synchronizing NPU operation" not in done.stderr) is silent, (variables, done.stderr)
