"""Lazy initialisation: nothing touches a device before the first call that needs one."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable

import torch

from npu_core import _C

__all__ = ["init", "is_available", "is_initialized"]

#: One default `torch.Generator` per device once initialised, empty before.
default_generators: tuple[torch.Generator, ...] = ()

_queued: list[tuple[Callable[[], object], list[str]]] = []
_lock = threading.RLock()
_ready = False
_thread_state = threading.local()


class DeferredNpuCallError(Exception):
    """A call that was queued before initialisation failed when it ran."""


def is_available() -> bool:
    """Return True when at least one device is visible. Never initialises."""
    return _C._device_count() > 0


def is_initialized() -> bool:
    """Return True once the devices are initialised in this process (not in a child forked afterwards)."""
    return _C._is_initialized() and not _C._is_in_bad_fork()


def init() -> None:
    """Initialise the devices now instead of at first use. Idempotent and thread-safe."""
    _lazy_init()


def _is_in_bad_fork() -> bool:
    return _C._is_in_bad_fork()


def _lazy_call(call: Callable[[], object], **_: object) -> None:
    """Run `call` now, or at initialisation when that has not happened yet."""
    with _lock:
        if not _ready or _C._is_in_bad_fork():
            _queued.append((call, traceback.format_stack()))
            return
    call()


def _lazy_init() -> None:
    global _ready, default_generators
    if _ready and not _C._is_in_bad_fork():
        return
    # A queued call may use the device: it runs in the thread that initialises.
    if getattr(_thread_state, "initializing", False):
        return
    with _lock:
        if _ready and not _C._is_in_bad_fork():
            return
        _C._initialize()
        _thread_state.initializing = True
        try:
            default_generators = tuple(_C._default_generator(index) for index in range(_C._device_count()))
            _C._register_fork_handler()
            _forward_thread_count(torch.get_num_threads())
            _run_queued()
            _ready = True
        finally:
            _thread_state.initializing = False


def _run_queued() -> None:
    while _queued:
        call, stack = _queued.pop(0)
        try:
            call()
        except Exception as error:
            raise DeferredNpuCallError(
                f"NPU call failed lazily at initialization with error: {error}\n\n"
                f"NPU call was originally invoked at:\n\n{''.join(stack)}"
            ) from error


def _forward_thread_count(count: int) -> None:
    """Tell the compute engine how many threads the host was told to use."""
    _C._set_option("engine_threads", str(count))
