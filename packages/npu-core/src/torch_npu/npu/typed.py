"""Legacy typed names: `torch.npu.FloatTensor`, `torch.npu.FloatStorage` and so on."""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch.storage import _LegacyStorage, _warn_typed_storage_removal

from torch_npu.utils._error_code import ErrCode, pta_error

_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


class _TensorType(type):
    """Type of the legacy tensor names: they test with isinstance and construct, but have no instances of their own."""

    dtype: torch.dtype

    def __instancecheck__(cls, instance: object) -> bool:
        return (
            isinstance(instance, torch.Tensor)
            and instance.device.type == "npu"
            and instance.dtype == cls.dtype
            and instance.layout == torch.strided
        )

    def __call__(cls, *arguments: Any) -> torch.Tensor:
        if len(arguments) == 1 and not isinstance(arguments[0], int):
            if isinstance(arguments[0], torch.Size):
                return torch.empty(arguments[0], dtype=cls.dtype, device="npu")
            return torch.as_tensor(arguments[0], dtype=cls.dtype).to("npu")
        return torch.empty(arguments or (0,), dtype=cls.dtype, device="npu")

    def __repr__(cls) -> str:
        return f"<class '{cls.__name__}'>"


class _NpuLegacyStorage(_LegacyStorage):
    @classmethod
    def from_buffer(cls, *arguments: Any, **keywords: Any) -> None:
        _warn_typed_storage_removal()
        raise RuntimeError(f"from_buffer: Not available for NPU storage{pta_error(ErrCode.UNAVAIL)}")

    @classmethod
    def _new_with_weak_ptr(cls, *arguments: Any, **keywords: Any) -> None:
        raise RuntimeError(f"_new_with_weak_ptr: Not available for NPU storage{pta_error(ErrCode.UNAVAIL)}")

    @classmethod
    def _new_shared_filename(cls, *arguments: Any, **keywords: Any) -> None:
        raise RuntimeError(f"_new_shared_filename: Not available for NPU storage{pta_error(ErrCode.UNAVAIL)}")


def _dtype_property(dtype: torch.dtype) -> Any:
    def get(self: object) -> torch.dtype:
        _warn_typed_storage_removal()
        return dtype

    return torch._utils.classproperty(get)


def _constant(value: torch.dtype, _: object) -> torch.dtype:
    return value


def _fill(members: dict[str, Any], body: dict[str, Any]) -> None:
    body.update(members)


def tensor_types() -> dict[str, type]:
    """Return the legacy tensor types by name."""
    # torch reads a type's C-level name in Tensor.type(T), so the name carries the module.
    return {
        f"{prefix}Tensor": _TensorType(f"torch.npu.{prefix}Tensor", (), {"dtype": dtype, "__module__": "torch.npu"})
        for prefix, dtype in _DTYPES.items()
    }


def storage_types() -> dict[str, type]:
    """Return the legacy storage classes by name, registered with torch."""
    classes: dict[str, type] = {}
    for prefix, dtype in _DTYPES.items():
        name = f"{prefix}Storage"
        members = {
            "__module__": "torch.npu",
            "dtype": _dtype_property(dtype),
            "_dtype": torch._utils.classproperty(functools.partial(_constant, dtype)),
        }
        # Through the metaclass of torch's own legacy storages.
        classes[name] = types.new_class(name, (_NpuLegacyStorage,), exec_body=functools.partial(_fill, members))
    torch._storage_classes.update(classes.values())
    return classes
