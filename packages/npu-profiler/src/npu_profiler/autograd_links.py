"""Which forward op a backward op belongs to: autograd gives both the same sequence number."""

from __future__ import annotations

from collections.abc import Iterable

from npu_profiler.host_events import HostEvent


def forward_backward_pairs(events: Iterable[HostEvent]) -> list[tuple[HostEvent, HostEvent]]:
    """Return (forward, backward) pairs.

    Several forward ops may carry a number: ops that build no graph node do not advance it.  The one that built the
    node is the last.  Of the ops that run inside a backward node, the first is the node itself.
    """
    forward: dict[tuple[int, int], HostEvent] = {}
    backward: dict[tuple[int, int], HostEvent] = {}
    for event in events:
        if event.category != "cpu_op" or event.sequence_number < 0:
            continue
        if event.forward_thread_id == 0:
            key = event.torch_thread_id, event.sequence_number
            if key not in forward or event.begin_ns > forward[key].begin_ns:
                forward[key] = event
        else:
            key = event.forward_thread_id, event.sequence_number
            if key not in backward or event.begin_ns < backward[key].begin_ns:
                backward[key] = event
    # A number may have been used before the window by a forward op outside it: then the pair would point backwards.
    return [(forward[key], late) for key, late in backward.items() if key in forward and _precedes(forward[key], late)]


def _precedes(forward: HostEvent, backward: HostEvent) -> bool:
    return forward.end_ns <= backward.begin_ns
