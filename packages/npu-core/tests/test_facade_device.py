"""torch.npu: devices, initialisation, registration with torch."""

from __future__ import annotations

import re
import threading

import pytest
import torch

import torch_npu


def test_module_is_one_object_under_all_names():
    import torch.npu as imported

    assert imported is torch.npu is torch_npu.npu is torch.get_device_module("npu")
    import torch.npu.amp as amp

    assert amp is torch_npu.npu.amp


def test_registration_with_torch():
    assert torch._C._get_privateuse1_backend_name() == "npu"
    torch.utils.rename_privateuse1_backend("npu")
    assert torch.device(0) == torch.device("npu:0")
    assert torch.accelerator.current_accelerator().type == "npu"
    assert torch.accelerator.device_count() == torch.npu.device_count()
    assert isinstance(torch.version.cann, str)


def test_count_needs_no_device(run_python):
    for mask, count in {"1,3": 2, "3,1": 0, "0,9": 1, "0,1,x": 2, "": 0}.items():
        done = run_python(
            "import torch; print(torch.npu.device_count(), torch.npu.is_initialized())",
            NPU_HOST_DEVICE_COUNT="8",
            ASCEND_RT_VISIBLE_DEVICES=mask,
        )
        assert done.stdout.split() == [str(count), "False"], mask


def test_current_device_is_per_thread():
    seen = []
    with torch.npu.device(1):
        assert torch.npu.current_device() == 1
        thread = threading.Thread(target=lambda: seen.append(torch.npu.current_device()))
        thread.start()
        thread.join()
    assert seen == [0]
    assert torch.npu.current_device() == 0


@pytest.mark.parametrize("device", [1, "npu:1", torch.device("npu", 1)])
def test_device_context_takes_every_form(device):
    with torch.npu.device(device):
        assert torch.npu.current_device() == 1
        assert torch.empty(1, device="npu").device == torch.device("npu:1")
    assert torch.npu.current_device() == 0


def test_device_of_follows_the_tensor():
    with torch.npu.device_of(torch.empty(1, device="npu:1")):
        assert torch.npu.current_device() == 1
    with torch.npu.device_of(torch.empty(1)):
        assert torch.npu.current_device() == 0


def test_set_device_checks_its_argument():
    torch.npu.set_device(-1)
    assert torch.npu.current_device() == 0
    with pytest.raises(ValueError, match="Expected a npu device, but got: cpu"):
        torch.npu.set_device("cpu")
    with pytest.raises(RuntimeError, match="Invalid device id"):
        torch.npu.set_device(torch.npu.device_count())


def test_properties():
    properties = torch.npu.get_device_properties(0)
    assert properties.name == torch.npu.get_device_name() == torch.npu.get_device_name("npu:1")
    assert properties.name.startswith("Ascend910B")
    assert properties.is_emulated
    assert 220 <= torch.npu.get_soc_version() <= 225
    assert torch_npu.npu.utils.get_soc_version() == torch_npu._C._npu_get_soc_version() == torch.npu.get_soc_version()
    assert properties.multi_processor_count == properties.vector_core_num
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", str(properties.uuid))
    assert str(properties.uuid).replace("-", "") == bytes(properties.uuid.bytes).hex()
    mib = properties.total_memory >> 20
    assert repr(properties).startswith(f"_NPUDeviceProperties(name='{properties.name}', total_memory={mib}MB, cube")
    with pytest.raises(AssertionError, match="Invalid device id"):
        torch.npu.get_device_properties(99)


def test_capability_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("TORCH_NPU_DEVICE_CAPABILITY", raising=False)
    with pytest.warns(UserWarning, match="isn't implemented"):
        assert torch.npu.get_device_capability() is None
    monkeypatch.setenv("TORCH_NPU_DEVICE_CAPABILITY", "8.6")
    with pytest.warns(UserWarning, match="compatibility only"):
        assert torch.npu.get_device_capability() == (8, 6)
    monkeypatch.setenv("TORCH_NPU_DEVICE_CAPABILITY", "8")
    with pytest.warns(UserWarning, match="can't parse"):
        assert torch.npu.get_device_capability() is None


def test_peer_access():
    assert torch.npu.can_device_access_peer(0, 1)
    assert not torch.npu.can_device_access_peer(0, 0)
    with pytest.raises(AssertionError, match="Invalid peer device id"):
        torch.npu.can_device_access_peer(0, 99)


def test_tensor_and_module_methods():
    tensor = torch.arange(3.0)
    moved = tensor.npu(1)
    assert moved.is_npu and moved.get_device() == 1 and not tensor.is_npu
    assert moved.npu(1) is moved
    assert moved.untyped_storage().is_npu
    with pytest.raises(RuntimeError, match="Invalid device, must be npu device"):
        tensor.npu("cpu")
    module = torch.nn.Linear(2, 2).npu()
    assert {parameter.device.type for parameter in module.parameters()} == {"npu"}
    assert repr(moved) == "tensor([0., 1., 2.], device='npu:1')"


def test_default_device_and_context():
    with torch.device("npu:1"):
        assert torch.ones(2).device == torch.device("npu:1")
    torch.set_default_device("npu")
    try:
        assert torch.ones(2).is_npu
    finally:
        torch.set_default_device(None)


def test_sync_debug_mode():
    tensor = torch.ones(3, device="npu")
    try:
        torch.npu.set_sync_debug_mode("error")
        assert torch.npu.get_sync_debug_mode() == 2
        with pytest.raises(RuntimeError, match="called a synchronizing NPU operation"):
            tensor.sum().item()
        torch.npu.set_sync_debug_mode("warn")
        with pytest.warns(UserWarning, match="called a synchronizing NPU operation"):
            tensor.cpu()
    finally:
        torch.npu.set_sync_debug_mode(0)
    for bad in ("loud", 3, 1.5):
        with pytest.raises(RuntimeError, match="invalid value of debug_mode"):
            torch.npu.set_sync_debug_mode(bad)


def test_a_forked_child_is_told_to_spawn(run_python):
    done = run_python(
        """
        import os, torch
        torch.ones(2, device="npu").sum().item()
        child = os.fork()
        if child == 0:
            print(torch.npu.is_initialized(), torch.npu._is_in_bad_fork(), flush=True)
            for use in (lambda: torch.ones(2, device="npu"), torch.npu.synchronize, torch.npu.current_stream):
                try:
                    use()
                except RuntimeError as error:
                    print(str(error).splitlines()[0], flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print(torch.ones(2, device="npu").sum().item())
        """
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "False True"
    text = "Cannot re-initialize NPU in forked subprocess. To use NPU with multiprocessing, you must use the 'spawn'"
    assert len(lines) == 5 and all(line.startswith(text) for line in lines[1:4])
    assert lines[4] == "2.0"


def test_fork_before_initialisation_is_safe(run_python):
    done = run_python(
        """
        import os, torch
        assert torch.npu.is_available() and torch.npu.device_count() == 2
        child = os.fork()
        total = torch.ones(2, device="npu").sum().item()
        if child == 0:
            os._exit(int(total))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    )
    assert done.stdout.split() == ["2"]


def test_queued_calls_run_in_order_and_report_where_they_came_from(run_python):
    done = run_python(
        """
        import torch
        def failing():
            raise ValueError("broken")
        torch.npu.manual_seed_all(1)
        torch.npu.manual_seed_all(2)
        torch.npu._lazy_call(failing)
        try:
            torch.npu.init()
        except Exception as error:
            print(str(error).splitlines()[0])
            print("originally invoked" in str(error) and 'File "<string>", line 7' in str(error))
        torch.npu.init()
        print(torch.npu.initial_seed())
        """
    )
    assert done.stdout.splitlines() == ["NPU call failed lazily at initialization with error: broken", "True", "2"]


def test_thread_count_reaches_the_engine():
    from npu_core import _C

    torch.npu.init()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert _C._get_option("engine_threads") == "1"
    finally:
        torch.set_num_threads(before)
    assert _C._get_option("engine_threads") == str(before)


def test_error_codes(run_python):
    with pytest.raises(TypeError, match="ERR00002 PTA invalid type") as caught:
        torch.npu.set_per_process_memory_fraction(1)
    assert re.search(r"\[ERROR\] [0-9\-\:]* \(PID:\d*, Device:\-?\d*, RankID:\-?\d*\) ERR\d{5}", str(caught.value))
    done = run_python(
        """
        import torch
        try:
            torch.npu.set_per_process_memory_fraction(1)
        except TypeError as error:
            print(error)
        """,
        TORCH_NPU_COMPACT_ERROR_OUTPUT="1",
    )
    assert done.stdout.splitlines() == ["Invalid type for fraction argument, must be `float`, but got `int`"]
