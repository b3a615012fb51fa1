"""``profile``: records host and device activity of a piece of a program."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any

from npu_profiler import console
from npu_profiler.chrome_trace import write_chrome_trace
from npu_profiler.mstx import mstx
from npu_profiler.profiler.experimental_config import _ExperimentalConfig, flag
from npu_profiler.profiler.result import write_result
from npu_profiler.profiler.step_schedule import ProfilerAction
from npu_profiler.recording import RecorderBusyError, Recording, RecordingOptions, Trace

_LONGEST_METADATA_TEXT = 4096
_LARGEST_METADATA = 50 * 1024
_LONGEST_TRACE_ID = 1024


class ProfilerActivity(Enum):
    """What a profile records."""

    CPU = 0
    NPU = 1

    def __str__(self) -> str:
        return f"ProfilerActivity.{self.name}"


def supported_activities() -> set[ProfilerActivity]:
    """Return every activity."""
    return set(ProfilerActivity)


def _externally_profiled() -> bool:
    return bool(os.environ.get("PROFILER_SAMPLECONFIG") or os.environ.get("PROFILING_MODE"))


class _KinetoProfile:
    """A profile with explicit start and stop, without schedule.

    Parameters
    ----------
    activities : iterable of ProfilerActivity, optional
        Default: CPU and NPU.
    record_shapes : bool
        Record the shapes and types of the ops' inputs.
    profile_memory : bool
        Record device memory as counters.
    with_stack : bool
        Record Python frames.
    with_flops : bool
        Collected, not exported.
    with_modules : bool
        Not part of this release: reported and ignored.
    experimental_config : _ExperimentalConfig, optional
        See there.
    custom_trace_id_callback : callable, optional
        Returns the id of the next window.
    """

    def __init__(
        self,
        *,
        activities: Iterable[ProfilerActivity] | None = None,
        record_shapes: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
        with_flops: bool = False,
        with_modules: bool = False,
        experimental_config: _ExperimentalConfig | None = None,
        custom_trace_id_callback: Callable[[], str] | None = None,
    ) -> None:
        self._recording: Recording | None = None  # first: __del__ looks at it
        self._trace: Trace | None = None
        self._metadata: dict[str, Any] = {}
        self._trace_id = ""
        self._trace_id_callback = custom_trace_id_callback
        self._activities = _checked_activities(activities)
        self._config = _checked_config(experimental_config)
        self._common = {
            "record_shapes": flag("record_shapes", record_shapes, False),
            "profile_memory": flag("profile_memory", profile_memory, False),
            "with_stack": flag("with_stack", with_stack, False),
            "with_flops": flag("with_flops", with_flops, False),
        }
        if flag("with_modules", with_modules, False):
            console.warning("with_modules is not part of this release of npu-profiler; it is ignored")

    def __del__(self) -> None:
        if getattr(self, "_recording", None) is not None and not sys.is_finalizing():
            self.stop()

    # ---- recording ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to record."""
        self._prepare_window()
        self._start_window()

    def stop(self) -> None:
        """Wait for the device when NPU activity is recorded, and end the recording."""
        self._stop_window()

    def export_chrome_trace(self, output_path: str) -> None:
        """Write the last recorded window as a Chrome trace.

        Parameters
        ----------
        output_path : str
            File to create or replace; a name that ends in ``.gz`` is compressed.
        """
        if self._trace is None:
            console.warning("export_chrome_trace: nothing has been recorded; stop the profile first")
            return
        try:
            write_chrome_trace(self._trace, output_path)
        except OSError as exc:
            console.error(f"export_chrome_trace: {exc}")

    def export_stacks(self, output_path: str, metric: str = "self_cpu_time_total") -> None:
        """Not part of this release."""
        raise NotImplementedError(_later("export_stacks", "with_stack=True adds the Python frames to the trace"))

    def export_memory_timeline(self, output_path: str, device: str | None = None) -> None:
        """Not part of this release."""
        raise NotImplementedError(_later("export_memory_timeline", "profile_memory=True adds counters to the trace"))

    # ---- description --------------------------------------------------------------------------------------------

    def add_metadata(self, key: str, value: str) -> None:
        """Add a text to ``profiler_metadata.json`` of the results written later."""
        if self._metadata_fits(key, value):
            self._set_metadata(key, value)

    def add_metadata_json(self, key: str, value: str) -> None:
        """Add a value, given as JSON text, to ``profiler_metadata.json`` of the results written later."""
        if not self._metadata_fits(key, value):
            return
        try:
            self._set_metadata(key, json.loads(value))
        except ValueError as exc:
            console.warning(f"add_metadata_json: the value of {key!r} is no JSON ({exc}); it is left out")

    def set_custom_trace_id_callback(self, callback: Callable[[], str]) -> None:
        """Set the function that names the windows begun from now on."""
        self._trace_id_callback = callback

    def get_trace_id(self) -> str:
        """Return the id of the current window, or of the last one."""
        return self._trace_id

    # ---- windows ------------------------------------------------------------------------------------------------

    def _prepare_window(self) -> None:
        if _externally_profiled():
            return
        if self._recording is not None:
            console.warning("the profile is already recording")
            return
        recording = Recording(self._options())
        try:
            recording.prepare()
        except RecorderBusyError as exc:
            console.error(str(exc))
            return
        self._recording = recording
        self._trace_id = self._new_trace_id()

    def _start_window(self) -> None:
        if self._recording is None:
            return
        try:
            self._recording.start()
        except BaseException:
            self._recording = None  # it has ended itself
            raise

    def _stop_window(self) -> None:
        recording, self._recording = self._recording, None
        if recording is None:
            return
        try:
            recording.stop()
        finally:
            self._trace = recording.trace

    def _cancel_window(self) -> None:
        recording, self._recording = self._recording, None
        if recording is not None:
            recording.cancel()

    def _options(self) -> RecordingOptions:
        include, exclude = self._config.mstx_domains
        everything = not self._config.markers_only
        return RecordingOptions(
            cpu=everything and ProfilerActivity.CPU in self._activities,
            npu=everything and ProfilerActivity.NPU in self._activities,
            markers=self._config.tx_enabled,
            include_domains=include,
            exclude_domains=exclude,
            **self._common,
        )

    def _result_writer(self, base: Path, worker: str | None) -> Callable[[], None]:
        """Return a function that writes the last window; it needs nothing of this object any more."""
        trace, config = self._trace, self._config_dict()
        metadata = {**self._metadata, "trace_id": self._trace_id}

        def write() -> None:
            if trace is None:
                console.warning("nothing has been recorded; no result is written")
                return
            try:
                folder = write_result(trace, base, worker, config, metadata)
            except OSError as exc:
                console.error(f"the result could not be written below {base}: {exc}")
            else:
                console.info(f"profile written to {folder}")

        return write

    def _config_dict(self) -> dict[str, Any]:
        common = {"activities": sorted(str(activity) for activity in self._activities), **self._common}
        return {"common_config": common, "experimental_config": self._config.as_dict()}

    def _new_trace_id(self) -> str:
        if self._trace_id_callback is not None:
            chosen = self._trace_id_callback()
            if isinstance(chosen, str) and len(chosen) <= _LONGEST_TRACE_ID:
                return chosen
            console.warning(f"custom_trace_id_callback must return a str of at most {_LONGEST_TRACE_ID} characters")
        return uuid.uuid4().hex.upper()

    def _set_metadata(self, key: str, value: Any) -> None:
        if key in self._metadata:
            console.warning(f"metadata {key!r} is overwritten")
        self._metadata[key] = value

    def _metadata_fits(self, key: Any, value: Any) -> bool:
        if not isinstance(key, str) or not isinstance(value, str):
            console.warning(f"metadata must be str, got {type(key).__name__} and {type(value).__name__}; left out")
        elif max(len(key), len(value)) > _LONGEST_METADATA_TEXT:
            console.warning(f"metadata {key[:40]!r} is longer than {_LONGEST_METADATA_TEXT} characters; left out")
        elif len(json.dumps(self._metadata)) + len(key) + len(value) > _LARGEST_METADATA:
            console.warning(f"metadata would exceed {_LARGEST_METADATA} bytes; {key!r} is left out")
        else:
            return True
        return False


class profile(_KinetoProfile):
    """Records the block it surrounds, or the steps its schedule selects.

    Parameters
    ----------
    schedule : callable, optional
        Step number to ProfilerAction, such as :class:`schedule`.  Without one everything is recorded.
    on_trace_ready : callable, optional
        Called with this object when a recorded window ends, such as :func:`tensorboard_trace_handler`.
    execution_trace_observer
        Not part of this release: reported and ignored.
    use_cuda
        Ignored with a warning.
    activities, record_shapes, profile_memory, with_stack, with_flops, with_modules, experimental_config, \
custom_trace_id_callback
        See :class:`_KinetoProfile`.

    Examples
    --------
    >>> with torch_npu.profiler.profile() as prof:  # doctest: +SKIP
    ...     model(batch)
    >>> prof.export_chrome_trace("trace.json")  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        activities: Iterable[ProfilerActivity] | None = None,
        schedule: Callable[[int], ProfilerAction] | None = None,
        on_trace_ready: Callable[[profile], Any] | None = None,
        record_shapes: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
        with_flops: bool = False,
        with_modules: bool = False,
        experimental_config: _ExperimentalConfig | None = None,
        execution_trace_observer: Any = None,
        custom_trace_id_callback: Callable[[], str] | None = None,
        use_cuda: bool | None = None,
    ) -> None:
        super().__init__(
            activities=activities,
            record_shapes=record_shapes,
            profile_memory=profile_memory,
            with_stack=with_stack,
            with_flops=with_flops,
            with_modules=with_modules,
            experimental_config=experimental_config,
            custom_trace_id_callback=custom_trace_id_callback,
        )
        if use_cuda is not None:
            console.warning("use_cuda is ignored; choose activities instead")
        if execution_trace_observer is not None:
            console.warning("execution_trace_observer is not part of this release of npu-profiler; it is ignored")
        if on_trace_ready is not None and not callable(on_trace_ready):
            console.warning(f"on_trace_ready must be callable, got {on_trace_ready!r}; it is ignored")
            on_trace_ready = None
        if schedule is not None and not callable(schedule):
            console.warning(f"schedule must be callable, got {schedule!r}; every step is recorded")
            schedule = None
        self._schedule = schedule
        self._on_trace_ready = on_trace_ready
        self._running = False
        self._step = 0
        self._action = ProfilerAction.NONE
        self._step_span: Any = None
        self._step_range = 0

    def __enter__(self) -> profile:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin with step 0 of the schedule."""
        if self._running:
            console.warning("the profile is already running")
            return
        self._running = True
        self._step = 0
        self._action = ProfilerAction.NONE
        self._enter(self._action_of(0))
        self._begin_step()

    def step(self) -> None:
        """Go to the next step of the schedule."""
        if not self._running:
            console.warning("step() on a profile that is not running does nothing")
            return
        self._end_step()
        self._step += 1
        self._enter(self._action_of(self._step))
        self._begin_step()

    def stop(self) -> None:
        """End the profile and the window it may be recording."""
        if not self._running:
            return
        self._running = False
        self._end_step()
        before, self._action = self._action, ProfilerAction.NONE
        if before is ProfilerAction.WARMUP:
            self._cancel_window()
        elif before in _RECORDING:
            if self._schedule is not None:
                console.warning("Incorrect schedule: the profile ended inside a window; what it has is kept")
            self._save_window()

    # ---- state machine ------------------------------------------------------------------------------------------

    def _action_of(self, step: int) -> ProfilerAction:
        return ProfilerAction.RECORD if self._schedule is None else self._schedule(step)

    def _enter(self, action: ProfilerAction) -> None:
        before, self._action = self._action, action
        if before is ProfilerAction.RECORD_AND_SAVE:
            self._save_window()
            before = ProfilerAction.NONE
        if (before, action) in _ILLEGAL:
            console.warning(f"Incorrect schedule: {before.name} is followed by {action.name}; the window is dropped")
            if before is ProfilerAction.WARMUP:
                self._cancel_window()
            else:
                self._stop_window()
                self._trace = None
            before = ProfilerAction.NONE
        if before is ProfilerAction.NONE and action is not ProfilerAction.NONE:
            self._prepare_window()
        if before not in _RECORDING and action in _RECORDING:
            self._start_window()

    def _save_window(self) -> None:
        if self._recording is None:
            return
        try:
            self._stop_window()
        finally:
            if self._trace is not None and self._on_trace_ready is not None:
                self._on_trace_ready(self)

    # ---- steps --------------------------------------------------------------------------------------------------

    def _begin_step(self) -> None:
        if self._schedule is None or self._action not in _RECORDING or self._recording is None:
            return
        from torch.profiler import record_function

        name = f"ProfilerStep#{self._step}"
        self._step_span = record_function(name)
        self._step_span.__enter__()
        if self._config.tx_enabled:
            self._step_range = mstx.range_start(name, _current_stream())

    def _end_step(self) -> None:
        if self._step_range:
            mstx.range_end(self._step_range)
            self._step_range = 0
        span, self._step_span = self._step_span, None
        if span is not None:
            span.__exit__(None, None, None)


_RECORDING = (ProfilerAction.RECORD, ProfilerAction.RECORD_AND_SAVE)
_ILLEGAL = {
    (ProfilerAction.WARMUP, ProfilerAction.NONE),
    (ProfilerAction.RECORD, ProfilerAction.NONE),
    (ProfilerAction.RECORD, ProfilerAction.WARMUP),
}


def _current_stream() -> Any:
    import torch

    npu = getattr(torch, "npu", None)
    return npu.current_stream() if npu is not None and npu.is_available() else None


def _checked_activities(activities: Any) -> set[ProfilerActivity]:
    if activities is None:
        return supported_activities()
    try:
        chosen = set(activities)
    except TypeError:
        chosen = set()
    if chosen and chosen <= supported_activities():
        return chosen
    expected = sorted(map(str, ProfilerActivity))
    console.warning(f"activities must be some of {expected}, got {activities!r}; all are used")
    return supported_activities()


def _checked_config(config: Any) -> _ExperimentalConfig:
    if config is None:
        return _ExperimentalConfig()
    if isinstance(config, _ExperimentalConfig):
        return config
    console.warning(f"experimental_config must be an _ExperimentalConfig, got {config!r}; the default is used")
    return _ExperimentalConfig()


def _later(name: str, instead: str) -> str:
    return f"{name} is not part of this release of npu-profiler; {instead} (export_chrome_trace)"
