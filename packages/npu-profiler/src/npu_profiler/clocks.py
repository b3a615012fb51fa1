"""CLOCK_MONOTONIC, which the device and the markers use, on the Unix time line, which torch's CPU events use."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class ClockPair:
    """Both clocks at one moment."""

    monotonic_ns: int
    unix_ns: int


def read_pair(samples: int = 16) -> ClockPair:
    """Read both clocks; of several tries the one with the least time between the reads is the best."""
    best = None
    best_width = 0
    for _ in range(samples):
        before = time.monotonic_ns()
        unix = time.time_ns()
        after = time.monotonic_ns()
        if best is None or after - before < best_width:
            best, best_width = ClockPair((before + after) // 2, unix), after - before
    assert best is not None
    return best


class UnixTimeline:
    """Converts between the clocks by the straight line through two moments.

    torch converts its own clock by such a line too, so the two stay together even while the system clock is slewed.
    """

    def __init__(self, start: ClockPair, end: ClockPair) -> None:
        self._start = start
        elapsed = end.monotonic_ns - start.monotonic_ns
        self._gain = (end.unix_ns - start.unix_ns - elapsed) / elapsed if elapsed > 0 else 0.0

    def from_monotonic(self, nanoseconds: int) -> int:
        """Return the Unix time in nanoseconds of a CLOCK_MONOTONIC time."""
        since = nanoseconds - self._start.monotonic_ns
        return self._start.unix_ns + since + round(since * self._gain)
