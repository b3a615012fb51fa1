# ruff: noqa: F401
"""The npu device for PyTorch under the names of the vendor's plugin.

Importing this package registers the device: ``torch.npu``, ``Tensor.npu``, ``device="npu"``. It touches no device.
Operators live in wheels of their own; ``torch_npu.npu_rms_norm`` and friends appear when their wheel is installed.
"""

from __future__ import annotations

import os
from typing import Any

_AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"


def _import_torch() -> None:
    # torch would import us back; the user's value is restored at once so that child processes inherit it.
    previous = os.environ.get(_AUTOLOAD)
    os.environ[_AUTOLOAD] = "0"
    try:
        import torch
    finally:
        if previous is None:
            del os.environ[_AUTOLOAD]
        else:
            os.environ[_AUTOLOAD] = previous


_import_torch()

from torch_npu import native_library  # noqa: E402

native_library.load()

from torch_npu import _dynamo, attributes, backend, multiprocessing, npu, shutdown  # noqa: E402
from torch_npu import dtype_ids as _dtype_ids  # noqa: E402
from torch_npu.npu import dlpack  # noqa: E402
from torch_npu.npu.memory import _erase_stream as erase_stream  # noqa: E402
from torch_npu.version import __version__  # noqa: E402

globals().update(_dtype_ids.IDS)

#: dtypes a storage on npu cannot have.
unsupported_dtype = backend.UNSUPPORTED_DTYPES

backend.register(npu)
multiprocessing.register()
dlpack.register()
_dynamo.register()
shutdown.register()
attributes.load_plugins()


def _autoload() -> None:
    """Entry point of torch's backend autoload; importing this package has done the work."""


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(attributes.operator_names() | _PUBLIC)
    return attributes.resolve(name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | attributes.operator_names())


_PUBLIC = {"__version__", "erase_stream", "npu", "unsupported_dtype", *_dtype_ids.IDS}

if os.environ.get("TORCH_TRANSFER_TO_NPU", "0") not in ("0", "1"):
    raise ValueError(f"TORCH_TRANSFER_TO_NPU should be 0 or 1, but got {os.environ['TORCH_TRANSFER_TO_NPU']!r}")
if os.environ.get("TORCH_TRANSFER_TO_NPU") == "1":
    import torch_npu.contrib.transfer_to_npu
