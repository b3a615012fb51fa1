"""How `torch.multiprocessing` sends what lives on npu: the memory is shared, nothing is copied.

Queues, pipes, pools and the arguments of spawned processes pickle with reducers that these functions add to. A receiver
sees the sender's memory; the sender keeps it until all receivers have let go. What follows from that:

- every message has one receiver. Pickled bytes must not be loaded twice;
- the sender has to live until its tensors have been received; afterwards they outlive it;
- a received tensor can be sent on, and sent back, while the process that allocated it lives;
- a message that is never received keeps its memory until the sender ends;
- a tensor that was written on a stream which neither allocated it, nor is current where it is pickled, nor was named
  by `Tensor.record_stream` has to be synchronised before it is sent. A queue pickles in a thread of its own, where
  the default stream is current.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import reduction
from typing import Any

import torch
import torch.multiprocessing
import torch.multiprocessing.reductions as upstream
import torch.utils.data

from npu_core import _C
from torch_npu.npu.initialization import _lazy_init
from torch_npu.npu.streams import Event
from torch_npu.utils._error_code import ErrCode, pta_error

__all__ = ["rebuild_event", "rebuild_npu_storage", "rebuild_npu_tensor", "reduce_event", "reduce_storage", "register"]

Reduced = tuple[Callable[..., Any], tuple[Any, ...]]

_reduce_other_tensor = upstream.reduce_tensor
_reduce_other_storage = upstream.reduce_storage


def rebuild_npu_storage(device_index: int, message: bytes) -> torch.UntypedStorage:
    """Return the storage of a message; an empty message stands for an empty storage."""
    if not message:
        return torch.UntypedStorage(0, device=f"npu:{device_index}")
    _lazy_init()
    return _C._import_storage(message)


def rebuild_npu_tensor(
    tensor_cls: type[torch.Tensor],
    tensor_size: torch.Size,
    tensor_stride: tuple[int, ...],
    tensor_offset: int,
    storage_cls: type,
    dtype: torch.dtype,
    storage_device: int,
    storage_message: bytes,
    requires_grad: bool,
) -> torch.Tensor:
    """Return the tensor that `reduce_tensor` took apart.

    Parameters
    ----------
    storage_device : int
        Index of the device as the sender counts. The message knows the device itself, so this matters for empty
        storages only.
    storage_message : bytes
        Names the memory, see `rebuild_npu_storage`.
    """
    storage = torch.storage.TypedStorage(
        wrap_storage=rebuild_npu_storage(storage_device, storage_message), dtype=dtype, _internal=True
    )
    tensor = torch._utils._rebuild_tensor(storage, tensor_offset, tensor_size, tensor_stride)
    if issubclass(tensor_cls, torch.nn.Parameter):
        return tensor_cls(tensor, requires_grad=requires_grad)
    # An integer tensor may not even be told that it requires no gradient.
    if requires_grad:
        tensor.requires_grad_()
    return tensor


def rebuild_event(device: torch.device, handle: bytes) -> Event:
    """Return the event of a handle."""
    return Event.from_ipc_handle(device, handle)


def _refuse(text: str) -> Any:
    raise RuntimeError(text)


def _refusal_to_receiver() -> Reduced | None:
    """Return what raises where it is received, in a forked worker of a DataLoader.

    A worker pickles in a thread whose errors nobody hears of: the loader would wait for ever.
    """
    if not _C._is_in_bad_fork() or torch.utils.data.get_worker_info() is None:
        return None
    text = (
        "Cannot re-initialize NPU in forked subprocess: a worker of a DataLoader returned a tensor on npu. Return CPU "
        "tensors and move them in the main process, or use DataLoader(multiprocessing_context='spawn')"
    )
    return _refuse, (text + pta_error(ErrCode.UNAVAIL),)


def _message(storage: torch.UntypedStorage) -> bytes:
    return _C._export_storage(storage) if storage.nbytes() else b""


def reduce_tensor(tensor: torch.Tensor) -> Reduced:
    """Take a tensor apart for another process; those of other devices and layouts go to torch's own function."""
    if tensor.device.type != "npu" or tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
        return _reduce_other_tensor(tensor)
    if tensor.requires_grad and not tensor.is_leaf:
        raise RuntimeError(
            "Only leaf tensors can be sent to another process together with requires_grad: gradients do not flow "
            "between processes. Send tensor.detach() instead."
        )
    if (refusal := _refusal_to_receiver()) is not None:
        return refusal
    torch.utils.hooks.warn_if_has_hooks(tensor)
    storage = tensor.untyped_storage()
    return (
        rebuild_npu_tensor,
        (
            type(tensor),
            tensor.size(),
            tensor.stride(),
            tensor.storage_offset(),
            torch.storage.TypedStorage,
            tensor.dtype,
            storage.device.index,
            _message(storage),
            tensor.requires_grad,
        ),
    )


def reduce_storage(storage: torch.UntypedStorage) -> Reduced:
    """Take an untyped storage apart for another process."""
    if storage.device.type != "npu":
        return _reduce_other_storage(storage)
    if (refusal := _refusal_to_receiver()) is not None:
        return refusal
    return rebuild_npu_storage, (storage.device.index, _message(storage))


def reduce_event(event: Event) -> Reduced:
    """Take an event made with ``interprocess=True`` apart for another process."""
    handle = event.ipc_handle()
    return rebuild_event, (event.device, handle)


def register() -> None:
    """Make `torch.multiprocessing` use these functions."""
    # By name too: torch calls them for the parts of sparse and nested tensors, and programs that share weights between
    # processes call reduce_tensor themselves.
    upstream.reduce_tensor = reduce_tensor
    upstream.reduce_storage = reduce_storage
    for cls in (torch.Tensor, torch.nn.Parameter):
        reduction.register(cls, reduce_tensor)
    reduction.register(torch.UntypedStorage, reduce_storage)
    reduction.register(Event, reduce_event)
