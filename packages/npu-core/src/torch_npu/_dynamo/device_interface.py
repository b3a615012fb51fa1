"""The functions of `torch.npu` under the names Dynamo and Inductor ask for."""

from __future__ import annotations

from typing import Any

from torch._dynamo.device_interface import (
    DeviceInterface,
    caching_worker_current_devices,
    caching_worker_device_properties,
    register_interface_for_device,
)

from npu_core import _C
from torch_npu.npu import devices, initialization, memory, streams


class NpuInterface(DeviceInterface):
    """Dynamo's view of npu."""

    device = devices.device  # type: ignore[assignment]
    Event = streams.Event  # type: ignore[assignment]
    Stream = streams.Stream  # type: ignore[assignment]

    class Worker:
        """What a compiler process may ask: answers recorded by the process that has the device."""

        @staticmethod
        def set_device(device: int) -> None:
            caching_worker_current_devices["npu"] = device

        @staticmethod
        def current_device() -> int:
            recorded = caching_worker_current_devices.get("npu")
            return devices.current_device() if recorded is None else recorded

        @staticmethod
        def get_device_properties(device: Any = None) -> Any:
            if "npu" not in caching_worker_device_properties:
                caching_worker_device_properties["npu"] = [
                    devices.get_device_properties(index) for index in range(devices.device_count())
                ]
            index = NpuInterface.Worker.current_device() if device is None else devices._get_device_index(device)
            return caching_worker_device_properties["npu"][index]

    current_device = staticmethod(devices.current_device)
    set_device = staticmethod(devices.set_device)
    exchange_device = staticmethod(devices._exchange_device)
    maybe_exchange_device = staticmethod(devices._maybe_exchange_device)
    device_count = staticmethod(devices.device_count)
    is_available = staticmethod(initialization.is_available)
    stream = staticmethod(streams.stream)  # type: ignore[assignment]
    current_stream = staticmethod(streams.current_stream)
    set_stream = staticmethod(streams.set_stream)
    _set_stream_by_id = staticmethod(streams._set_stream_by_id)
    synchronize = staticmethod(devices.synchronize)
    memory_allocated = staticmethod(memory.memory_allocated)
    is_bf16_supported = staticmethod(devices.is_bf16_supported)

    @staticmethod
    def get_raw_stream(device_idx: int) -> int:
        """Return the handle of the current stream of a device."""
        return _C._stream_handle(*_C._current_stream(device_idx))

    @staticmethod
    def get_compute_capability(device: Any = None) -> str:
        """Return the name of the SoC, part of the keys of compiled code."""
        return devices.get_device_name(device)


def register() -> None:
    """Register the interface for every visible device."""
    register_interface_for_device("npu", NpuInterface)
    for index in range(devices.device_count()):
        register_interface_for_device(f"npu:{index}", NpuInterface)
