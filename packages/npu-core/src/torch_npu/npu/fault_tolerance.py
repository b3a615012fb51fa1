"""Stopping and restarting a device, and asking it whether it is healthy."""

from __future__ import annotations

import operator
import os
from typing import Any

import torch

from npu_core import _C
from torch_npu import notices
from torch_npu.npu.initialization import _lazy_init
from torch_npu.npu.memory import empty_cache, memory_snapshot
from torch_npu.utils._error_code import ErrCode, pta_error

__all__ = ["check_uce_in_memory", "restart_device", "stop_device", "stress_detect"]

# Ranges of the last memory-error report, by device.  The emulated memory has no errors of its own: tests put them here.
_memory_errors: dict[int, list[dict[str, int]]] = {}

_STRESS_SIZE = 512


def _index(device_id: int) -> int:
    if isinstance(device_id, bool) or not hasattr(device_id, "__index__"):
        raise TypeError(f"device_id should be an int, but got: {device_id!r}{pta_error(ErrCode.TYPE)}")
    index = operator.index(device_id)
    if not 0 <= index < _C._device_count():
        raise RuntimeError(
            f"device_id should be in [0, {_C._device_count()}), but got {index}{pta_error(ErrCode.PARAM)}"
        )
    return index


def stop_device(device_id: int) -> int:
    """Abort the device: drop queued work and refuse more, until `restart_device`.

    Operations on its streams, and waits for them, raise a RuntimeError that begins with ``FORCE STOP.``. A kernel that
    runs is not interrupted. What tensors hold stays. `SyncLaunchStream` work is neither dropped nor refused, so that a
    checkpoint can still be written.

    Returns
    -------
    int
        0 when the device is stopped, 1 when it could not be.
    """
    index = _index(device_id)
    _lazy_init()
    try:
        _C._stop_device(index)
    except RuntimeError as error:
        notices.warn(f"npu:{index} could not be stopped: {error}", stacklevel=2)
        return 1
    return 0


def restart_device(
    device_id: int, rebuild_all_resources: bool = False, disable_tensor_unsafe_check: bool = False
) -> None:
    """Make a device usable again after `stop_device`, or drop the errors pending on one that was not stopped.

    Parameters
    ----------
    device_id : int
        Index of the device.
    rebuild_all_resources : bool
        Start with new streams. A restarted stream of this device is an empty one either way.
    disable_tensor_unsafe_check : bool
        Must be True with `rebuild_all_resources`: marking tensors as unsafe is not supported on this device, whose
        memory survives a restart unharmed.

    Raises
    ------
    NotImplementedError
        `rebuild_all_resources` without `disable_tensor_unsafe_check`.
    """
    index = _index(device_id)
    if rebuild_all_resources and not disable_tensor_unsafe_check:
        raise NotImplementedError(
            "restart_device: rebuild_all_resources=True marks tensors as unsafe, which is not supported on this "
            f"device; pass disable_tensor_unsafe_check=True as well{pta_error(ErrCode.NOT_SUPPORT)}"
        )
    _lazy_init()
    _C._restart_device(index)
    _memory_errors.pop(index, None)


def _inject_memory_error(device_id: int, address: int, size: int) -> None:
    """Report an uncorrectable error in device memory, as tests of `check_uce_in_memory` need it."""
    _memory_errors.setdefault(_index(device_id), []).append({"ptr": address, "size": size})


def _get_uce_addr() -> list[dict[str, int]]:
    """Return the ranges of the last memory-error report of all devices: ``[{"ptr": address, "size": bytes}]``."""
    return [dict(error) for _, errors in sorted(_memory_errors.items()) for error in errors]


def check_uce_in_memory(device_id: int) -> int:
    """Say where the uncorrectable memory errors of a device lie.

    Returns
    -------
    int
        0 no error was reported; 1 outside the memory of this framework; 2 in cached memory that no tensor uses, which
        the call gives back to the driver; 3 inside a tensor. The worst one counts.
    """
    index = _index(device_id)
    errors = _memory_errors.get(index, [])
    worst = max((_classify(index, error["ptr"], error["size"]) for error in errors), default=0)
    if worst == 2:
        empty_cache()
    return worst


def _classify(device: int, address: int, size: int) -> int:
    kinds = [1]
    for segment in memory_snapshot():
        if segment["device"] != device:
            continue
        for block in segment["blocks"]:
            if block["address"] < address + size and address < block["address"] + block["size"]:
                kinds.append(2 if block["state"] == "inactive" else 3)
    return max(kinds)


def stress_detect(detect_type: str = "aic") -> int:
    """Test the hardware of the current device; waits for the result.

    Parameters
    ----------
    detect_type : {"aic", "hccs"}
        The cores (a matrix product with a known result, on every core), or the links to the peers of the job.

    Returns
    -------
    int
        0 passed, 1 could not run (with a warning that says why), 2 the hardware computes wrong results.
    """
    if detect_type == "aic":
        return _detect_cores()
    if detect_type == "hccs":
        return _detect_links()
    notices.warn(f"stress_detect: detect_type should be 'aic' or 'hccs', but got {detect_type!r}", stacklevel=2)
    return 1


def _detect_cores() -> int:
    try:
        return _compute_known_product()
    except torch.OutOfMemoryError:
        empty_cache()
    try:
        return _compute_known_product()
    except torch.OutOfMemoryError as error:
        notices.warn(f"stress_detect: no memory for the test: {error}", stacklevel=3)
        return 1


def _compute_known_product() -> int:
    # Row i holds i % 7, column j holds j % 5: exact in float32, and every element is known.
    rows = torch.arange(_STRESS_SIZE, device="npu") % 7
    columns = torch.arange(_STRESS_SIZE, device="npu") % 5
    left = rows.float().unsqueeze(1).expand(-1, _STRESS_SIZE).contiguous()
    right = columns.float().expand(_STRESS_SIZE, -1).contiguous()
    expected = rows.unsqueeze(1) * columns * _STRESS_SIZE
    return 0 if bool(((left @ right) == expected).all()) else 2


def _detect_links() -> int:
    missing = [name for name in ("RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE") if name not in os.environ]
    distributed: Any = torch.distributed
    if missing or not distributed.is_available() or not distributed.is_initialized():
        notices.warn(
            "stress_detect('hccs') needs an initialised torch.distributed job with RANK, LOCAL_WORLD_SIZE and "
            "WORLD_SIZE in the environment",
            stacklevel=3,
        )
        return 1
    ones = torch.ones(_STRESS_SIZE, device="npu")
    distributed.all_reduce(ones)
    return 0 if bool((ones == distributed.get_world_size()).all()) else 2
