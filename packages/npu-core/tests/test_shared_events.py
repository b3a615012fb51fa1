"""Events that several processes record and wait for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from npu_core import _C

sys.path.append(str(Path(__file__).parent / "processes"))  # spawned children get it too

import npu_peers
from npu_peers import Peer, PeerError


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    process = Peer()
    yield process
    process.close()


@pytest.fixture(autouse=True)
def no_fault_is_left() -> Iterator[None]:
    yield
    if torch.npu.is_initialized():
        _C._inject_fault(0, _C._FAULT_NONE)
        torch.npu.synchronize()


def test_a_peer_waits_for_a_record_made_here(peer):
    tensor = torch.zeros(4, device="npu")
    peer(npu_peers.keep, "data", tensor)
    event = torch.npu.Event(interprocess=True)
    npu_peers.delay_next("aten::fill_", 300)
    tensor.fill_(3)
    event.record()
    assert peer(npu_peers.wait_and_read, event, "data") == [3.0] * 4
    peer(npu_peers.drop, "data")


def test_here_waits_for_a_record_of_a_peer(peer):
    tensor = torch.zeros(4, device="npu")
    peer(npu_peers.keep, "data", tensor)
    event = torch.npu.Event(interprocess=True)
    for value in (5.0, 6.0):
        peer(npu_peers.delay_next, "aten::fill_", 300)
        peer(npu_peers.write_and_record, event, "data", value)
        event.wait()
        assert tensor.tolist() == [value] * 4
    peer(npu_peers.delay_next, "aten::fill_", 300)
    peer(npu_peers.write_and_record, event, "data", 7.0)
    event.synchronize()
    assert event.query() and tensor.tolist() == [7.0] * 4
    peer(npu_peers.drop, "data")


def test_a_stream_that_is_not_ours_waits_too(peer):
    tensor = torch.zeros(4, device="npu")
    peer(npu_peers.keep, "data", tensor)
    event = torch.npu.Event(interprocess=True)
    peer(npu_peers.delay_next, "aten::fill_", 300)
    peer(npu_peers.write_and_record, event, "data", 5.0)
    stream = torch.Stream(device="npu")
    stream.wait_event(event)
    with stream:
        assert tensor.clone().tolist() == [5.0] * 4
    peer(npu_peers.drop, "data")


def test_handles(peer):
    event = torch.npu.Event(interprocess=True)
    handle = event.ipc_handle()
    assert isinstance(handle, bytes) and event.ipc_handle() == handle and event.npu_event != 0
    assert event.query(), "never recorded"
    event.synchronize()
    same = torch.npu.Event.from_ipc_handle("npu:0", handle)
    assert same.device == event.device == torch.device("npu:0") and same.ipc_handle() == handle
    tensor = torch.ones(3, device="npu") * 2
    same.record()
    event.synchronize()
    assert event.query() and same.query() and tensor.tolist() == [2, 2, 2]


def test_records_and_waits_within_one_process():
    event = torch.npu.Event(interprocess=True)
    side = torch.npu.Stream()
    npu_peers.delay_next("aten::mul", 300)
    with torch.npu.stream(side):
        tensor = torch.ones(4, device="npu") * 4
        event.record()
    torch.npu.current_stream().wait_event(event)
    assert tensor.clone().tolist() == [4.0] * 4
    assert event.query()


def test_events_of_other_devices():
    event = torch.npu.Event(interprocess=True)
    event.record(torch.npu.Stream(device="npu:1"))
    handle = event.ipc_handle()
    assert torch.npu.Event.from_ipc_handle(1, handle).device == torch.device("npu:1")
    with pytest.raises(RuntimeError, match="belongs to npu:1, but the device given is npu:0"):
        torch.npu.Event.from_ipc_handle(0, handle)


def test_an_event_that_is_gone(peer):
    event = torch.npu.Event(interprocess=True)
    handle = event.ipc_handle()
    del event
    with pytest.raises(RuntimeError, match="was destroyed by process"):
        torch.npu.Event.from_ipc_handle(0, handle)
    # Its place is taken by the next one, which the old handle must not open.
    event = torch.npu.Event(interprocess=True)
    assert event.ipc_handle() != handle
    with pytest.raises(RuntimeError, match="was destroyed by process"):
        torch.npu.Event.from_ipc_handle(0, handle)


def test_an_opened_event_outlives_the_one_it_was_opened_from():
    event = torch.npu.Event(interprocess=True)
    opened = torch.npu.Event.from_ipc_handle(0, event.ipc_handle())
    del event
    others = [torch.npu.Event(interprocess=True) for _ in range(3)]
    handles = {other.ipc_handle() for other in others}
    assert opened.ipc_handle() not in handles and len(handles) == 3
    opened.record()
    opened.synchronize()


def test_a_recorder_that_dies():
    peer = Peer()
    tensor = torch.zeros(4, device="npu")
    event = torch.npu.Event(interprocess=True)
    peer(npu_peers.keep, "data", tensor)
    # The delay is longer than the test: the event never happens.
    peer(npu_peers.delay_next, "aten::fill_", 600_000)
    peer(npu_peers.write_and_record, event, "data", 5.0)
    event.wait()
    peer.kill()
    peer.close()
    with pytest.raises(RuntimeError, match=r"process \d+, which recorded the event, ended before the event happened"):
        tensor.tolist()
    with pytest.raises(RuntimeError, match=r"process \d+, which recorded the event, ended before the event happened"):
        event.synchronize()
    assert not event.query() and tensor.tolist() == [0] * 4


def test_refusals(peer):
    with pytest.raises(RuntimeError, match="cannot take times"):
        torch.npu.Event(enable_timing=True, interprocess=True)
    with pytest.raises(RuntimeError, match="needs an Event with interprocess=True"):
        torch.npu.Event().ipc_handle()
    with pytest.raises(RuntimeError, match="3 bytes are no handle"):
        torch.npu.Event.from_ipc_handle(0, b"123")
    with pytest.raises((RuntimeError, PeerError), match="interprocess=True"):
        peer(npu_peers.keep, "event", torch.npu.Event())
    with pytest.raises(RuntimeError, match="enable_timing=True"):
        first, second = (torch.npu.Event(interprocess=True) for _ in range(2))
        first.record()
        second.record()
        first.elapsed_time(second)
