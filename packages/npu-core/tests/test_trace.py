"""The trace interface of npu/runtime.h, used the way a plugin written in C uses it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

import npu_core

TASK, API, MEMORY = range(3)
OK, INVALID_ARGUMENT = 0, 1

# The functions of npu_runtime_api in their order; the table only ever grows at its end.
FUNCTIONS = """device_count current_device set_device device_properties current_stream default_stream stream_from_pool
stream_from_id stream_id stream_device stream_query stream_synchronize launch event_create event_destroy event_record
event_wait event_query event_synchronize event_time memory_allocate memory_free memory_record_stream memory_export
memory_import memory_close philox_reserve option_get option_set trace_attach trace_detach trace_flush trace_emit
trace_enabled clock_ns last_error""".split()


class Table(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("version", ctypes.c_uint32),
        *((name, ctypes.c_void_p) for name in FUNCTIONS),
    ]


class Record(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("stream_id", ctypes.c_int64),
        ("correlation", ctypes.c_uint64),
        ("begin_ns", ctypes.c_uint64),
        ("end_ns", ctypes.c_uint64),
        ("submit_ns", ctypes.c_uint64),
        ("value", ctypes.c_int64),
        ("thread_id", ctypes.c_uint32),
        ("task_kind", ctypes.c_uint32),
        ("name", ctypes.c_char * 88),
    ]


Sink = ctypes.CFUNCTYPE(None, ctypes.POINTER(Record), ctypes.c_size_t, ctypes.c_void_p)


class Tracer:
    """One attachment: the records that arrived, as plain objects."""

    def __init__(self) -> None:
        library = ctypes.CDLL(str(Path(npu_core.__file__).parent / "lib" / "libnpu_runtime.so"))
        library.npu_runtime_get.restype = ctypes.POINTER(Table)
        self.table = library.npu_runtime_get(1).contents
        assert self.table.struct_size >= ctypes.sizeof(Table)
        self.records: list[Record] = []
        self.sink = Sink(self._take)

    def _take(self, records, count: int, _user) -> None:
        self.records += [Record.from_buffer_copy(records[i]) for i in range(count)]

    def call(self, name: str, result: type, *arguments: object) -> int:
        return ctypes.CFUNCTYPE(result, *(type(a) for a in arguments))(getattr(self.table, name))(*arguments)

    def attach(self) -> int:
        return self.call("trace_attach", ctypes.c_int, self.sink, ctypes.c_void_p())

    def detach(self) -> int:
        return self.call("trace_detach", ctypes.c_int)

    def __enter__(self) -> Tracer:
        assert self.attach() == OK
        return self

    def __exit__(self, *_exception: object) -> None:
        assert self.detach() == OK

    def of_kind(self, kind: int) -> list[Record]:
        return [record for record in self.records if record.kind == kind]


@pytest.fixture(autouse=True)
def initialised():
    torch.npu.init()
    torch.npu.synchronize()


def test_every_task_joins_the_call_that_launched_it():
    a = torch.ones(1000, device="npu")
    torch.npu.synchronize()
    with Tracer() as tracer:
        for _ in range(100):
            a = a + 1
        torch.npu.synchronize()
    assert a.cpu().eq(101).all()
    launches = {record.correlation: record for record in tracer.of_kind(API)}
    tasks = tracer.of_kind(TASK)
    assert len(tasks) >= 100 and len({task.correlation for task in tasks}) == len(tasks)
    for task in tasks:
        launch = launches[task.correlation]
        assert task.name == launch.name != b""
        assert launch.begin_ns == task.submit_ns <= task.begin_ns <= task.end_ns
        assert launch.begin_ns <= launch.end_ns
    assert sum(b"add" in task.name for task in tasks) == 100
    ends = [task.end_ns for task in tasks]
    assert ends == sorted(ends)  # one stream, one engine


def test_allocations_are_recorded():
    with Tracer() as tracer:
        tensor = torch.empty(1000, dtype=torch.uint8, device="npu")
        del tensor
    events = [(record.name, record.value) for record in tracer.of_kind(MEMORY)]
    assert events == [(b"alloc", 1536), (b"free", 1536)]


def test_more_records_than_a_ring_holds():
    a = torch.zeros(8, device="npu")
    torch.npu.synchronize()
    with Tracer() as tracer:
        for _ in range(5000):
            a.add_(1)
        torch.npu.synchronize()
    assert a[0].item() == 5000
    assert sum(b"add" in task.name for task in tracer.of_kind(TASK)) == 5000
    assert sum(b"add" in launch.name for launch in tracer.of_kind(API)) == 5000


def test_one_sink_at_a_time():
    with Tracer() as tracer:
        assert tracer.call("trace_enabled", ctypes.c_int) == 1
        assert Tracer().attach() == INVALID_ARGUMENT
    assert tracer.call("trace_enabled", ctypes.c_int) == 0
    (torch.ones(3, device="npu") + 1).cpu()
    assert tracer.records == []


def test_a_plugin_emits_records_of_its_own():
    with Tracer() as tracer:
        record = Record(kind=API, device=0, stream_id=-1, value=7, name=b"mine")
        tracer.call("trace_emit", None, ctypes.pointer(record))
        assert tracer.call("trace_flush", ctypes.c_int) == OK
        assert [(r.name, r.value) for r in tracer.records] == [(b"mine", 7)]
        assert tracer.records[0].thread_id != 0
