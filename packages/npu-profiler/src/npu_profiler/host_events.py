"""torch's own CPU events of a recording."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class HostEvent:
    """A framework op, a ``record_function`` span or a Python frame; times are Unix nanoseconds.

    ``thread_id`` is the OS's; torch numbers threads itself in ``torch_thread_id`` and ``forward_thread_id`` (0: none).
    """

    name: str
    category: str
    begin_ns: int
    end_ns: int
    thread_id: int
    torch_thread_id: int
    sequence_number: int
    forward_thread_id: int
    shapes: list[Any]
    dtypes: list[str]


class HostRecorder:
    """Records the CPU side with torch's profiler, which observes the calling thread and autograd's threads.

    ``start`` and ``stop`` belong on the same thread.

    Parameters
    ----------
    record_shapes, with_stack, with_flops
        As in ``torch.profiler.profile``.
    """

    def __init__(self, *, record_shapes: bool, with_stack: bool, with_flops: bool) -> None:
        from torch.autograd import _profiler_enabled

        # Not torch.profiler.profile: its first start imports torch._inductor (1.9 s) to look at one option.
        from torch.autograd.profiler import profile

        if _profiler_enabled():
            # Starting a second one would end the first without a word.
            raise RuntimeError("torch's profiler is already recording on this thread")

        self._profile = profile(
            use_kineto=True,
            record_shapes=record_shapes,
            with_stack=with_stack,
            with_flops=with_flops,
        )
        self._profile._prepare_trace()

    def start(self) -> None:
        """Begin to record."""
        self._profile._start_trace()

    def stop(self) -> HostEvents:
        """End the recording and return its events."""
        self._profile.__exit__(None, None, None)
        return HostEvents(self._profile.kineto_results)


class HostEvents:
    """The events of a stopped recording, converted when they are read."""

    def __init__(self, results: Any) -> None:
        self._results = results

    def __iter__(self) -> Iterator[HostEvent]:
        for event in self._results.events():
            if event.is_hidden_event() or event.name() == "[memory]":
                continue
            yield HostEvent(
                name=event.name(),
                category=_category(event),
                begin_ns=event.start_ns(),
                end_ns=event.end_ns(),
                thread_id=event.device_resource_id(),
                torch_thread_id=event.start_thread_id(),
                sequence_number=event.sequence_nr(),
                forward_thread_id=event.fwd_thread_id(),
                shapes=event.shapes(),
                dtypes=event.dtypes(),
            )


def _category(event: Any) -> str:
    if event.is_python_function():
        return "python_function"
    return "user_annotation" if event.is_user_annotation() else "cpu_op"
