"""torch.npu.Stream and Event: identity, order, overlap, times."""

from __future__ import annotations

import sys
import threading
import time

import pytest
import torch

from npu_core import _C

DELAY_NS = 100_000_000


def test_pool_and_ids():
    first = torch.npu.Stream()
    others = [torch.npu.Stream() for _ in range(32)]
    assert others[-1] == first and hash(others[-1]) == hash(first)
    assert len({stream.stream_id for stream in others}) == 32
    assert first.stream_id >> 5 == 3
    assert torch.npu.Stream(priority=-1).stream_id >> 5 == 4
    assert torch.npu.Stream(priority=3).stream_id >> 5 == 3
    assert torch.npu.default_stream().stream_id == 0


def test_sync_launch_pool_is_a_family_of_its_own():
    first = torch.npu.SyncLaunchStream()
    assert [torch.npu.SyncLaunchStream() for _ in range(4)][-1] == first
    same = torch.npu.Stream(stream_id=first.stream_id, device_index=0, device_type=20)
    assert same != first
    assert not isinstance(first, torch.npu.Stream)
    assert repr(first).startswith("<torch_npu.npu.SyncLaunchStream device=npu:0 npu_stream=0x")
    assert isinstance(torch.npu.Stream(is_sync_launch=True), torch.npu.Stream)
    with torch.npu.stream(first):
        assert torch.ones(3, device="npu").sum().item() == 3


def test_small_pool(run_python):
    done = run_python(
        """
        import torch
        streams = [torch.npu.Stream() for _ in range(9)]
        print(streams[8] == streams[0], streams[0].stream_id >> 3)
        """,
        STREAMS_PER_DEVICE="8",
    )
    assert done.stdout.split() == ["True", "3"]


def test_attributes():
    stream = torch.npu.Stream("npu:1")
    assert stream.device == torch.device("npu:1") and stream.device_index == 1 and stream.device_type == 20
    assert stream.npu_stream != 0 and stream._as_parameter_.value == stream.npu_stream
    assert isinstance(stream, torch.Stream)
    assert stream == torch.npu.Stream(stream_id=stream.stream_id, device_index=1, device_type=20)
    assert stream != object() and stream != torch.npu.default_stream()
    with pytest.raises(RuntimeError, match="not support"):
        _ = stream.priority
    with pytest.raises(RuntimeError, match="not support"):
        stream.priority_range()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stream_id": 999999, "device_index": 0, "device_type": 20}, "names no stream"),
        ({"stream_id": 0, "device_index": 99, "device_type": 20}, "device_index should be in"),
        ({"stream_id": 0, "device_index": -1, "device_type": 20}, "device_index should be in"),
        ({"stream_id": 0, "device_index": 0, "device_type": 1}, "Expected device_type 20"),
    ],
)
def test_wrapping_checks_what_it_wraps(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        torch.npu.Stream(**arguments)


def test_current_stream_is_per_thread_and_device():
    side, other = torch.npu.Stream(), torch.npu.Stream("npu:1")
    seen = []
    with torch.npu.stream(side):
        assert torch.npu.current_stream() == side == torch.npu.current_stream("npu:0")
        thread = threading.Thread(target=lambda: seen.append(torch.npu.current_stream()))
        thread.start()
        thread.join()
        with torch.npu.stream(other):
            assert torch.npu.current_device() == 1
            assert torch.npu.current_stream() == other and torch.npu.current_stream(0) == side
        assert torch.npu.current_device() == 0
    assert seen == [torch.npu.default_stream()]
    assert torch.npu.current_stream() == torch.npu.default_stream()
    with torch.npu.stream(None):
        assert torch.npu.current_stream() == torch.npu.default_stream()


def test_torch_and_accelerator_streams_interoperate():
    generic = torch.Stream(device="npu")
    with generic:
        assert torch.npu.current_stream().stream_id == generic.stream_id
        result = torch.ones(4, device="npu") * 2
    event = generic.record_event()
    torch.npu.current_stream().wait_event(event)
    assert result.sum().item() == 8
    assert torch.accelerator.current_stream().stream_id == torch.npu.current_stream().stream_id


def test_work_is_asynchronous(hold):
    stream = torch.npu.Stream()
    tensor = torch.zeros(8, device="npu")
    torch.npu.synchronize()
    hold()
    with torch.npu.stream(stream):
        tensor.add_(1)
    assert not stream.query()
    hold.release()
    stream.synchronize()
    assert stream.query() and tensor.sum().item() == 8


def test_waiting_releases_the_gil(hold):
    """The work waited for ends only because another thread runs Python code meanwhile."""
    main = threading.get_ident()

    def release_once_main_waits() -> None:
        while sys._current_frames()[main].f_code is not torch.npu.Stream.synchronize.__code__:
            time.sleep(0.001)
        hold.release()

    tensor = torch.zeros(8, device="npu")
    torch.npu.synchronize()
    hold()
    tensor.add_(1)
    thread = threading.Thread(target=release_once_main_waits)
    thread.start()
    torch.npu.current_stream().synchronize()
    thread.join()
    assert tensor.sum().item() == 8


def test_an_event_orders_two_streams(hold):
    producer, consumer = torch.npu.Stream(), torch.npu.Stream()
    value = torch.zeros(1024, device="npu")
    torch.npu.synchronize()
    hold()
    with torch.npu.stream(producer):
        value.add_(5)
        event = producer.record_event()
    with torch.npu.stream(consumer):
        consumer.wait_event(event)
        result = value * 2
    assert not event.query() and not consumer.query()
    hold.release()
    consumer.synchronize()
    assert event.query() and result.eq(10).all().item()


def test_wait_stream_orders_across_devices(hold):
    first, second = torch.npu.Stream("npu:0"), torch.npu.Stream("npu:1")
    torch.npu.synchronize(0)
    source = torch.zeros(16, device="npu:0")
    torch.npu.synchronize(0)
    hold(0)
    with torch.npu.stream(first):
        source.add_(3)
    second.wait_stream(first)
    with torch.npu.stream(second):
        copied = source.to("npu:1", non_blocking=True)
    assert not second.query()
    hold.release()
    second.synchronize()
    assert copied.eq(3).all().item()


def test_event_before_the_first_record():
    event = torch.npu.Event()
    assert event.query() and event.device is None and event.npu_event == 0
    assert repr(event) == "<torch_npu.npu.Event uninitialized>"
    event.wait()
    event.synchronize()
    with pytest.raises(RuntimeError, match="Both events must be recorded before calculating elapsed time."):
        event.elapsed_time(event)
    with pytest.raises(RuntimeError, match="Event must be recorded before getting recorded timestamp."):
        event.recorded_time()


def test_event_times():
    start, end = torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
    tensor = torch.zeros(8, device="npu")
    torch.npu.synchronize()
    before = time.monotonic_ns()
    start.record()
    _C._inject_fault(0, _C._FAULT_DELAY_TASK, match="add", count=1, delay_ns=DELAY_NS)
    tensor.add_(1)
    end.record()
    elapsed = start.elapsed_time(end)
    after = time.monotonic_ns()
    assert DELAY_NS <= elapsed * 1e6 <= after - before
    assert end.recorded_time() - start.recorded_time() == pytest.approx(1000 * elapsed, abs=2)
    assert start.device == torch.device("npu:0") and start.npu_event != 0
    assert repr(start) == f"<torch_npu.npu.Event {start.npu_event:#x}>"


def test_event_misuse():
    event = torch.npu.Event()
    event.record()
    with pytest.raises(RuntimeError, match="Event device 0 does not match recording stream's device 1"):
        event.record(torch.npu.default_stream(1))
    with pytest.raises(RuntimeError, match="enable_timing=True"):
        event.elapsed_time(event)


def test_a_failed_task_is_raised_at_the_next_synchronisation_and_then_over():
    tensor = torch.zeros(4, device="npu")
    torch.npu.synchronize()
    _C._inject_fault(0, _C._FAULT_FAIL_TASK, count=1)
    tensor.add_(1)
    with pytest.raises(RuntimeError, match="add.*(?s:.)*ASCEND_LAUNCH_BLOCKING=1"):
        torch.npu.synchronize()
    tensor.fill_(2)
    torch.npu.synchronize()
    assert tensor.sum().item() == 8


def test_record_stream_keeps_memory_until_the_other_stream_is_done(hold):
    side = torch.npu.Stream()
    victim = torch.full((1 << 20,), 7.0, device="npu")
    address = victim.data_ptr()
    torch.npu.synchronize()
    hold()
    with torch.npu.stream(side):
        copied = victim * 1
    victim.record_stream(side)
    del victim
    fresh = torch.full((1 << 20,), -1.0, device="npu")
    assert fresh.data_ptr() != address
    hold.release()
    side.synchronize()
    assert copied.eq(7).all().item()
    del fresh


def test_erase_stream_undoes_record_stream(hold):
    import torch_npu

    side = torch.npu.Stream()
    torch.npu.empty_cache()
    tensor = torch.zeros(1 << 20, device="npu")
    work = torch.zeros(8, device="npu")
    address = tensor.data_ptr()
    torch.npu.synchronize()
    hold()
    with torch.npu.stream(side):
        work.add_(1)
    tensor.record_stream(side)
    torch_npu.erase_stream(tensor, side)
    del tensor
    assert torch.zeros(1 << 20, device="npu").data_ptr() == address
    with pytest.raises(TypeError, match="tensor should be torch.Tensor"):
        torch_npu.erase_stream(1, side)
    with pytest.raises(TypeError, match="stream should be torch_npu.npu.Stream"):
        torch_npu.erase_stream(work, 1)
