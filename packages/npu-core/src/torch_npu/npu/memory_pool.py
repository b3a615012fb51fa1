"""Memory pools of their own, and allocators from users' libraries."""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Iterator
from typing import Any

from npu_core import _C
from torch_npu.npu.devices import _get_device_index
from torch_npu.npu.initialization import _lazy_init
from torch_npu.utils._error_code import ErrCode, pta_error


def _function_address(library: ctypes.CDLL, name: str, what: str) -> int:
    address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    if address is None:
        raise RuntimeError(f"{what} is None: {name} of {library._name} has no address{pta_error(ErrCode.PTR)}")
    return address


class NPUPluggableAllocator:
    """An allocator from a C library.

    Parameters
    ----------
    path_to_so_file : str
        The library.
    alloc_fn_name : str
        Name of ``void* alloc(ssize_t size, int device, void* stream)``. It returns memory that this process can address
        (that of `malloc` will do), or a null pointer when there is none left.
    free_fn_name : str
        Name of ``void free(void* ptr, ssize_t size, int device, void* stream)``. Work that used the memory is finished
        when it is called.

    Raises
    ------
    OSError
        If the library cannot be loaded.
    AttributeError
        If it has no such function.

    Notes
    -----
    The functions are called from any thread, one at a time per device, and must not call Python or torch.
    """

    def __init__(self, path_to_so_file: str, alloc_fn_name: str, free_fn_name: str) -> None:
        self._library = ctypes.CDLL(path_to_so_file)
        allocate = _function_address(self._library, alloc_fn_name, "alloc_fn")
        free = _function_address(self._library, free_fn_name, "free_fn")
        self._allocator = _C._PluggableAllocator(allocate, free)

    def allocator(self) -> _C._PluggableAllocator:
        """Return the native object; its ``set_init_fn(address)`` takes a C function ``void init(int device_count)``."""
        return self._allocator


_library_in_use: NPUPluggableAllocator | None = None


def change_current_allocator(allocator: NPUPluggableAllocator) -> None:
    """Take all device memory from `allocator`: one call of its functions for each tensor.

    Parameters
    ----------
    allocator : NPUPluggableAllocator
        Stays in use until the process ends.

    Raises
    ------
    RuntimeError
        If device memory was allocated already, or the allocator was changed before.
    """
    global _library_in_use
    if not isinstance(allocator, NPUPluggableAllocator):
        raise TypeError(
            f"change_current_allocator: expected an NPUPluggableAllocator, but got {type(allocator).__name__}"
            f"{pta_error(ErrCode.TYPE)}"
        )
    _C._change_allocator(allocator.allocator())
    _library_in_use = allocator


class MemPool:
    """Memory that only chosen allocations use; see `use_mem_pool`.

    It belongs to the device that is current when it is made. When the object dies, its memory goes back to the device,
    that of tensors still alive with the next `empty_cache` after their end.

    Parameters
    ----------
    allocator : optional
        Where the memory comes from: what ``NPUPluggableAllocator(...).allocator()`` returns. Default: the device.
    use_on_oom : bool
        Cached memory of the pool serves other allocations, too, before these run out of memory.
    no_split : bool
        A piece of memory is used as a whole: a smaller request does not divide it.
    """

    def __init__(self, allocator: Any = None, use_on_oom: bool = False, no_split: bool = False) -> None:
        if allocator is not None and not isinstance(allocator, _C._PluggableAllocator):
            raise TypeError(
                "MemPool: expected allocator to be what NPUPluggableAllocator(...).allocator() returns, but got "
                f"{type(allocator).__name__}{pta_error(ErrCode.TYPE)}"
            )
        _lazy_init()
        self._allocator = allocator
        self._options = (bool(use_on_oom), bool(no_split), allocator)
        self._device = _get_device_index(None)
        self._id: tuple[int, int] = _C._new_pool_id()
        _C._retain_pool(self._device, self._id, *self._options)
        # Not at exit: the driver takes its memory back by itself.
        weakref.finalize(self, _C._release_pool, self._device, self._id).atexit = False

    @property
    def id(self) -> tuple[int, int]:
        """The pool's id, as ``segment_pool_id`` of a snapshot names it."""
        return self._id

    @property
    def allocator(self) -> Any:
        """What the memory comes from, None for the device."""
        return self._allocator

    def use_count(self) -> int:
        """Return the number of users: this object, and each `use_mem_pool` that is active."""
        return _C._pool_uses(self._device, self._id)

    def snapshot(self) -> list[dict[str, Any]]:
        """Return the pool's segments, as `memory_snapshot` does."""
        from torch_npu.npu.memory import memory_snapshot

        return memory_snapshot(self._id)


@contextlib.contextmanager
def use_mem_pool(pool: MemPool, device: Any = None) -> Iterator[None]:
    """Allocate from `pool` what the calling thread allocates inside.

    Parameters
    ----------
    pool : MemPool
        The pool.
    device : torch.device, int or str, optional
        Device whose allocations are meant, by default the current one.
    """
    if not isinstance(pool, MemPool):
        raise TypeError(
            f"use_mem_pool: expected pool to be a MemPool, but got {type(pool).__name__}{pta_error(ErrCode.TYPE)}"
        )
    _lazy_init()
    index = _get_device_index(device)
    visiting = index != pool._device
    if visiting:
        _C._retain_pool(index, pool.id, *pool._options)
    try:
        _C._begin_allocating_to_pool(index, pool.id)
        try:
            yield
        finally:
            _C._end_allocating_to_pool(index, pool.id)
    finally:
        if visiting:
            _C._release_pool(index, pool.id)
