"""Which steps a profile records."""

from __future__ import annotations

from enum import Enum
from typing import Any

from npu_profiler import console


class ProfilerAction(Enum):
    """What a profile does during a step."""

    NONE = 0
    WARMUP = 1
    RECORD = 2
    RECORD_AND_SAVE = 3


class schedule:
    """Cycles of ``wait`` idle, ``warmup`` unrecorded and ``active`` recorded steps.

    ``active`` is the second positional parameter, unlike in ``torch.profiler.schedule``.  A value that makes no sense
    is replaced, with a warning, by 0 (``active``: 1).

    Parameters
    ----------
    wait, active, warmup : int
        Steps of each phase of a cycle.
    repeat : int
        Number of cycles; 0 means without end.
    skip_first : int
        Steps before the first cycle.
    skip_first_wait : int
        Not zero: the first cycle has no ``wait`` phase.

    Examples
    --------
    >>> plan = schedule(wait=1, active=1, warmup=1)
    >>> [plan(step).name for step in range(4)]
    ['NONE', 'WARMUP', 'RECORD_AND_SAVE', 'NONE']
    """

    def __init__(
        self,
        wait: int,
        active: int,
        warmup: int = 0,
        repeat: int = 0,
        skip_first: int = 0,
        skip_first_wait: int = 0,
    ) -> None:
        self.wait = _checked("wait", wait, 0)
        self.active = _checked("active", active, 1, minimum=1)
        self.warmup = _checked("warmup", warmup, 0)
        self.repeat = _checked("repeat", repeat, 0)
        self.skip_first = _checked("skip_first", skip_first, 0)
        self.skip_first_wait = _checked("skip_first_wait", skip_first_wait, 0, minimum=None)
        if self.warmup == 0:
            console.info("schedule without warmup: the first recorded step includes the cost of starting to record")

    def __call__(self, step: int) -> ProfilerAction:
        """Return the action of a step.

        Raises
        ------
        ValueError
            For a negative step.
        """
        if step < 0:
            raise ValueError(f"schedule: expected step >= 0, got {step}")
        if step < self.skip_first:
            return ProfilerAction.NONE
        since = step - self.skip_first + (self.wait if self.skip_first_wait != 0 else 0)
        length = self.wait + self.warmup + self.active
        if self.repeat > 0 and since // length >= self.repeat:
            return ProfilerAction.NONE
        place = since % length
        if place < self.wait:
            return ProfilerAction.NONE
        if place < self.wait + self.warmup:
            return ProfilerAction.WARMUP
        return ProfilerAction.RECORD if place < length - 1 else ProfilerAction.RECORD_AND_SAVE


def _checked(name: str, value: Any, default: int, minimum: int | None = 0) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and (minimum is None or value >= minimum):
        return value
    expected = "an int" if minimum is None else f"an int >= {minimum}"
    console.warning(f"schedule: {name} must be {expected}, got {value!r}; {default} is used")
    return default
