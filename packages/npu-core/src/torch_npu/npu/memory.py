"""Device memory: the caching allocator, its statistics, and the cache of pinned host memory."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

import torch

from npu_core import _C
from torch_npu import notices
from torch_npu.npu.devices import _get_device_index
from torch_npu.npu.initialization import _lazy_init, is_initialized
from torch_npu.npu.memory_history import (  # noqa: F401
    _attach_out_of_memory_observer,
    _dump_snapshot,
    _record_memory_history,
    _snapshot,
)
from torch_npu.npu.memory_pool import MemPool, NPUPluggableAllocator, change_current_allocator, use_mem_pool
from torch_npu.npu.memory_report import format_summary
from torch_npu.utils._error_code import ErrCode, pta_error

__all__ = [
    "MemPool",
    "NPUPluggableAllocator",
    "caching_allocator_alloc",
    "caching_allocator_delete",
    "change_current_allocator",
    "empty_cache",
    "empty_virt_addr_cache",
    "get_allocator_backend",
    "get_per_process_memory_fraction",
    "host_empty_cache",
    "host_memory_stats",
    "host_memory_stats_as_nested_dict",
    "max_memory_allocated",
    "max_memory_cached",
    "max_memory_reserved",
    "memory_allocated",
    "memory_cached",
    "memory_reserved",
    "memory_snapshot",
    "memory_stats",
    "memory_stats_as_nested_dict",
    "memory_summary",
    "reset_accumulated_host_memory_stats",
    "reset_accumulated_memory_stats",
    "reset_max_memory_allocated",
    "reset_max_memory_cached",
    "reset_peak_host_memory_stats",
    "reset_peak_memory_stats",
    "set_per_process_memory_fraction",
    "use_mem_pool",
]


def caching_allocator_alloc(size: int, device: Any = None, stream: Any = None) -> int:
    """Allocate `size` bytes from the caching allocator and return the address.

    Parameters
    ----------
    stream : torch.npu.Stream or int, optional
        Stream (or its handle) the memory belongs to, by default the current one.
    """
    _lazy_init()
    index = _get_device_index(device)
    if stream is None:
        handle = 0
    elif isinstance(stream, int):
        handle = stream
    elif hasattr(stream, "npu_stream"):
        handle = stream.npu_stream
    else:
        raise TypeError(
            "Invalid type for stream argument, must be `torch_npu.npu.Stream` or `int` representing a pointer "
            f"to a existing stream, but got {type(stream).__name__}{pta_error(ErrCode.TYPE)}"
        )
    return _C._raw_allocate(size, index, handle)


def caching_allocator_delete(mem_ptr: int) -> None:
    """Free memory that `caching_allocator_alloc` returned."""
    _C._raw_free(mem_ptr)


def empty_cache() -> None:
    """Return cached memory that no tensor uses to the driver; no-op before initialisation."""
    if is_initialized():
        _C._empty_cache()


def empty_virt_addr_cache() -> None:
    """The same as `empty_cache`: the device's addresses cost nothing to keep."""
    empty_cache()


def host_empty_cache() -> None:
    """Return cached pinned host memory to the system."""
    if is_initialized():
        _C._pinned_empty_cache()


def set_per_process_memory_fraction(fraction: float, device: Any = None) -> None:
    """Limit this process to a fraction of a device's memory.

    Parameters
    ----------
    fraction : float
        Between 0 and 1; 1.0 removes the limit.
    """
    if not isinstance(fraction, float):
        raise TypeError(
            f"Invalid type for fraction argument, must be `float`, but got `{type(fraction).__name__}`"
            f"{pta_error(ErrCode.TYPE)}"
        )
    if not 0 <= fraction <= 1:
        raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~1{pta_error(ErrCode.VALUE)}")
    _lazy_init()
    _C._set_memory_fraction(fraction, _get_device_index(device))


def get_per_process_memory_fraction(device: Any = None) -> float:
    """Return the fraction set by `set_per_process_memory_fraction`, 1.0 when there is no limit."""
    _lazy_init()
    return _C._get_memory_fraction(_get_device_index(device))


def memory_stats_as_nested_dict(device: Any = None) -> dict[str, Any]:
    """Return the statistics of `memory_stats` as nested dicts."""
    if not is_initialized():
        return {}
    return _C._memory_stats(_get_device_index(device))


def memory_stats(device: Any = None) -> collections.OrderedDict[str, int]:
    """Return the allocator's counters, flattened with dots and sorted by key; empty before initialisation.

    Keys are ``<metric>.<pool>.<counter>``, for example ``allocated_bytes.all.peak``.
    """
    return collections.OrderedDict(sorted(_flatten("", memory_stats_as_nested_dict(device))))


def _flatten(prefix: str, value: Any) -> Iterator[tuple[str, int]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _flatten(f"{prefix}.{key}" if prefix else key, entry)
    else:
        yield prefix, value


def reset_peak_memory_stats(device: Any = None) -> None:
    """Set every peak to the current value."""
    _lazy_init()
    _C._reset_peak_memory_stats(_get_device_index(device))


def reset_accumulated_memory_stats(device: Any = None) -> None:
    """Set the running totals (allocated, freed, retries, ooms) to zero."""
    _lazy_init()
    _C._reset_accumulated_memory_stats(_get_device_index(device))


def memory_allocated(device: Any = None) -> int:
    """Return the bytes of live blocks."""
    return memory_stats(device).get("allocated_bytes.all.current", 0)


def max_memory_allocated(device: Any = None) -> int:
    """Return the peak of `memory_allocated`."""
    return memory_stats(device).get("allocated_bytes.all.peak", 0)


def memory_reserved(device: Any = None) -> int:
    """Return the bytes held from the driver, used or cached."""
    return memory_stats(device).get("reserved_bytes.all.current", 0)


def max_memory_reserved(device: Any = None) -> int:
    """Return the peak of `memory_reserved`."""
    return memory_stats(device).get("reserved_bytes.all.peak", 0)


def _deprecated(name: str, replacement: str) -> None:
    notices.warn(f"torch.npu.{name} is deprecated, use torch.npu.{replacement}", DeprecationWarning, stacklevel=3)


def memory_cached(device: Any = None) -> int:
    """Deprecated name of `memory_reserved`."""
    _deprecated("memory_cached", "memory_reserved")
    return memory_reserved(device)


def max_memory_cached(device: Any = None) -> int:
    """Deprecated name of `max_memory_reserved`."""
    _deprecated("max_memory_cached", "max_memory_reserved")
    return max_memory_reserved(device)


def reset_max_memory_allocated(device: Any = None) -> None:
    """Deprecated: resets all peaks, like `reset_peak_memory_stats`."""
    _deprecated("reset_max_memory_allocated", "reset_peak_memory_stats")
    reset_peak_memory_stats(device)


def reset_max_memory_cached(device: Any = None) -> None:
    """Deprecated: resets all peaks, like `reset_peak_memory_stats`."""
    _deprecated("reset_max_memory_cached", "reset_peak_memory_stats")
    reset_peak_memory_stats(device)


def memory_summary(device: Any = None, abbreviated: bool = False) -> str:
    """Return a table of the allocator's state.

    Parameters
    ----------
    abbreviated : bool
        Leave out the rows per pool.
    """
    _lazy_init()
    index = _get_device_index(device)
    return format_summary(index, memory_stats(index), abbreviated)


def memory_snapshot(mempool_id: tuple[int, int] | None = None) -> list[dict[str, Any]]:
    """Return the segments of all devices with their blocks.

    Parameters
    ----------
    mempool_id : tuple of int, optional
        Only the segments of this pool.
    """
    if not is_initialized():
        return []
    segments = _C._memory_snapshot()["segments"]
    if mempool_id is None:
        return segments
    return [segment for segment in segments if tuple(segment["segment_pool_id"]) == tuple(mempool_id)]


def get_allocator_backend() -> str:
    """Return ``"native"``: the caching allocator of npu-core."""
    return "native"


def host_memory_stats_as_nested_dict() -> dict[str, Any]:
    """Return the counters of `host_memory_stats` as nested dicts; empty before initialisation."""
    return _C._pinned_stats() if is_initialized() else {}


def host_memory_stats() -> collections.OrderedDict[str, int]:
    """Return the counters of the pinned host memory cache, flattened with dots and sorted by key.

    ``active_requests`` and ``active_bytes`` count what is handed out, ``allocations`` and ``allocated_bytes`` what is
    held from the system, each with ``current``, ``peak``, ``allocated`` and ``freed``. ``num_host_alloc`` and
    ``num_host_free`` count the calls of the system; ``host_alloc_time`` and ``host_free_time`` (``total``, ``max``,
    ``min``, ``avg`` in microseconds, ``count``) time them. Empty before initialisation.
    """
    return collections.OrderedDict(sorted(_flatten("", host_memory_stats_as_nested_dict())))


def reset_accumulated_host_memory_stats() -> None:
    """Set the running totals (allocated, freed, number and total time of system calls) to zero."""
    _lazy_init()
    _C._pinned_reset_accumulated_stats()


def reset_peak_host_memory_stats() -> None:
    """Set the peaks of the pinned host memory cache to the current values."""
    _lazy_init()
    _C._pinned_reset_peak_stats()


def _erase_stream(tensor: torch.Tensor, stream: torch.Stream) -> None:
    """Undo ``tensor.record_stream(stream)``: its memory no longer waits for that stream when it is freed.

    The caller guarantees, by an event, that the stream is done with the tensor.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"tensor should be torch.Tensor, but got {type(tensor).__name__}{pta_error(ErrCode.TYPE)}")
    if not isinstance(stream, torch.Stream):
        raise TypeError(
            f"stream should be torch_npu.npu.Stream, but got {type(stream).__name__}{pta_error(ErrCode.TYPE)}"
        )
    address = tensor.untyped_storage().data_ptr()
    if not _C._owns_address(address):
        notices.warn(
            "erase_stream is ignored for a tensor whose memory is not of the npu caching allocator", stacklevel=2
        )
        return
    _C._erase_stream(address, stream.stream_id, stream.device_index)
