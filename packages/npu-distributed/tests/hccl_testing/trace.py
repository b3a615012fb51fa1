"""The tasks that ran on this process's devices, read from the runtime's trace (npu/trace.h)."""

from __future__ import annotations

import ctypes
from pathlib import Path

TASK = 0
# The functions of npu_runtime_api in their order, as far as they are needed; the table only ever grows at its end.
FUNCTIONS = """device_count current_device set_device device_properties current_stream default_stream stream_from_pool
stream_from_id stream_id stream_device stream_query stream_synchronize launch event_create event_destroy event_record
event_wait event_query event_synchronize event_time memory_allocate memory_free memory_record_stream memory_export
memory_import memory_close philox_reserve option_get option_set trace_attach trace_detach trace_flush""".split()


class Record(ctypes.Structure):
    """npu_trace_record."""

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


class Table(ctypes.Structure):
    """npu_runtime_api."""

    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("version", ctypes.c_uint32),
        *((name, ctypes.c_void_p) for name in FUNCTIONS),
    ]


Sink = ctypes.CFUNCTYPE(None, ctypes.POINTER(Record), ctypes.c_size_t, ctypes.c_void_p)


class Trace:
    """Collects the tasks that end while it is entered."""

    def __init__(self) -> None:
        import npu_core

        library = ctypes.CDLL(str(Path(npu_core.__file__).parent / "lib" / "libnpu_runtime.so"))
        library.npu_runtime_get.restype = ctypes.POINTER(Table)
        self._table = library.npu_runtime_get(1).contents
        self._records: list[Record] = []
        self._sink = Sink(self._take)

    def _take(self, records: ctypes._Pointer[Record], count: int, _user: object) -> None:
        self._records += [Record.from_buffer_copy(records[i]) for i in range(count)]

    def _call(self, name: str, *arguments: object) -> None:
        function = ctypes.CFUNCTYPE(ctypes.c_int, *(type(one) for one in arguments))(getattr(self._table, name))
        status = function(*arguments)
        assert status == 0, f"{name} gives status {status}"

    def __enter__(self) -> Trace:
        self._call("trace_attach", self._sink, ctypes.c_void_p())
        return self

    def __exit__(self, *_exception: object) -> None:
        self._call("trace_detach")

    def ended(self) -> list[Record]:
        """The tasks that have ended so far, in the order in which they were submitted."""
        self._call("trace_flush")
        return sorted((one for one in self._records if one.kind == TASK), key=lambda one: one.submit_ns)
