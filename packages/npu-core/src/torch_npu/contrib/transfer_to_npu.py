"""Run a script that was written for CUDA on npu: ``from torch_npu.contrib import transfer_to_npu``.

Importing this module rebinds, for the rest of the process:

- the functions and classes of ``torch.cuda`` to those of ``torch.npu`` of the same name;
- ``Tensor.cuda``, ``Tensor.is_cuda`` and their like on modules and storages;
- device arguments that name cuda (``"cuda:1"``, ``torch.device("cuda")``) in factory functions, ``to``, ``load``,
  autocast, GradScaler, generators, device contexts and device meshes;
- the distributed backend ``nccl`` to ``hccl``;
- ``torch.jit.script`` to the identity, because it would compile against the names it knew before.

What has no counterpart on npu (for example CUDA graphs) is left as it was and says so when used. A device object the
script makes itself stays a cuda device until it is passed on, so ``tensor.device.type == "cuda"`` is False.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
import torch.profiler
import torch.utils._device

from torch_npu.npu import amp, devices, memory, random

_DEVICE_TEXT = re.compile(r"cuda(:\d+)?")
_DEVICE_KEYWORDS = ("device", "device_type", "map_location", "device_id", "device_ids", "devices", "output_device")

# Functions of torch whose device arguments are translated.
_FACTORIES = (
    *("zeros", "ones", "empty", "full", "rand", "randn", "randint", "randperm", "arange", "range", "linspace"),
    *("logspace", "eye", "tensor", "as_tensor", "asarray", "from_file", "frombuffer", "empty_strided", "normal"),
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like"),
    *("hann_window", "hamming_window", "blackman_window", "bartlett_window", "kaiser_window", "empty_permuted"),
    *("sparse_coo_tensor", "sparse_csr_tensor", "sparse_csc_tensor", "sparse_bsr_tensor", "sparse_bsc_tensor"),
    *("sparse_compressed_tensor", "scalar_tensor", "tril_indices", "triu_indices", "complex"),
    *("load", "set_default_device", "get_device_module", "get_autocast_dtype", "is_autocast_enabled"),
    *("set_autocast_enabled", "set_autocast_dtype"),
)
_TENSOR_METHODS = (
    *("to", "new_tensor", "new_full", "new_empty", "new_empty_strided", "new_ones", "new_zeros", "pin_memory"),
    "is_pinned",
)


def _is_cuda_device(value: Any) -> bool:
    if isinstance(value, str):
        return _DEVICE_TEXT.fullmatch(value) is not None
    return isinstance(value, torch.device) and value.type == "cuda"


def translate(value: Any) -> Any:
    """Return `value` with every cuda device in it replaced by the npu device of the same index."""
    if isinstance(value, str):
        return value.replace("cuda", "npu", 1) if _is_cuda_device(value) else value
    if isinstance(value, torch.device):
        return torch.device("npu", value.index) if _is_cuda_device(value) else value
    if isinstance(value, dict):
        return {translate(key): translate(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(translate(entry) for entry in value)
    return value


def _translating(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `function` so that device arguments are translated."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        if any(_is_cuda_device(argument) for argument in arguments):
            arguments = tuple(translate(argument) if _is_cuda_device(argument) else argument for argument in arguments)
        for name in _DEVICE_KEYWORDS:
            if name in keywords:
                keywords[name] = translate(keywords[name])
        return function(*arguments, **keywords)

    return wrapper


def _wrap(owner: Any, *names: str) -> None:
    for name in names:
        original = getattr(owner, name, None)
        if original is not None:
            setattr(owner, name, _translating(original))


def _redirect_cuda_module() -> None:
    devices._DEVICE_TYPES.add("cuda")
    for source, target in (
        (torch.npu, torch.cuda),
        (amp, torch.cuda.amp),
        (random, torch.cuda.random),
        (memory, torch.cuda.memory),
    ):
        for name, value in vars(source).items():
            if not name.startswith("_") and not isinstance(value, types.ModuleType):
                setattr(target, name, value)
    for name in ("_lazy_init", "_lazy_call", "_is_in_bad_fork", "_get_device_index"):
        setattr(torch.cuda, name, getattr(torch.npu, name))
    torch.cuda.DoubleTensor = torch.npu.FloatTensor  # as the vendor's plugin does: its units have no float64
    torch.cuda.amp.autocast_mode.autocast = amp.autocast
    torch.cuda.amp.grad_scaler.GradScaler = amp.GradScaler


def _redirect_methods() -> None:
    torch.Tensor.cuda = _translating(torch.Tensor.npu)
    torch.Tensor.is_cuda = torch.Tensor.is_npu
    torch.nn.Module.cuda = _translating(torch.nn.Module.npu)
    torch.storage._StorageBase.cuda = _translating(torch.storage._StorageBase.npu)
    torch.storage._StorageBase.is_cuda = torch.storage._StorageBase.is_npu
    torch.TypedStorage.cuda = _translating(torch.TypedStorage.npu)
    torch.TypedStorage.is_cuda = torch.TypedStorage.is_npu
    torch.nn.utils.rnn.PackedSequence.cuda = _translating(torch.nn.utils.rnn.PackedSequence.npu)
    torch.nn.utils.rnn.PackedSequence.is_cuda = torch.nn.utils.rnn.PackedSequence.is_npu
    _wrap(torch.Tensor, *_TENSOR_METHODS)
    _wrap(torch.nn.Module, "to", "to_empty")


class _GeneratorType(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch._C.Generator)

    def __call__(cls, device: Any = "cpu") -> torch._C.Generator:
        return torch._C.Generator(translate(device))


class Generator(metaclass=_GeneratorType):
    """`torch.Generator` that takes cuda devices as npu ones."""


def _redirect_device_arguments() -> None:
    # Device contexts recognise factory functions by identity: let them remember the originals.
    torch.utils._device._device_constructors()
    _wrap(torch, *_FACTORIES)
    _wrap(torch.fft, "fftfreq", "rfftfreq")
    torch.Generator = Generator
    _wrap(torch.utils._device.DeviceContext, "__init__")
    _wrap(torch.amp.autocast_mode.autocast, "__init__")
    # These default to cuda, so an absent argument means it too.
    _default_to_npu(torch.amp.GradScaler, "__init__", "device")
    _default_to_npu(torch.random, "fork_rng", "device_type")
    torch.profiler.ProfilerActivity.CUDA = torch.profiler.ProfilerActivity.PrivateUse1


def _default_to_npu(owner: Any, name: str, parameter: str) -> None:
    original = getattr(owner, name)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        bound = signature.bind(*arguments, **keywords)
        bound.apply_defaults()
        bound.arguments[parameter] = translate(bound.arguments[parameter])
        return original(*bound.args, **bound.kwargs)

    setattr(owner, name, wrapper)


def _translate_backend(backend: Any) -> Any:
    if not isinstance(backend, str):
        return backend
    return backend.replace("cuda", "npu").replace("nccl", "hccl")


def _redirect_distributed() -> None:
    if not torch.distributed.is_available():
        return
    from torch.distributed import distributed_c10d

    for name in ("init_process_group", "new_group"):
        original = getattr(distributed_c10d, name)

        @functools.wraps(original)
        def wrapper(*arguments: Any, _original: Callable[..., Any] = original, **keywords: Any) -> Any:
            arguments = tuple(_translate_backend(argument) for argument in arguments)
            if "backend" in keywords:
                keywords["backend"] = _translate_backend(keywords["backend"])
            if "device_id" in keywords:
                keywords["device_id"] = translate(keywords["device_id"])
            return _original(*arguments, **keywords)

        setattr(distributed_c10d, name, wrapper)
        setattr(torch.distributed, name, wrapper)
    if hasattr(torch.distributed, "is_hccl_available"):
        torch.distributed.is_nccl_available = torch.distributed.is_hccl_available
        distributed_c10d.is_nccl_available = torch.distributed.is_hccl_available
    _wrap(torch.distributed, "init_device_mesh")
    _wrap(torch.distributed.device_mesh, "init_device_mesh")
    _wrap(torch.distributed.device_mesh.DeviceMesh, "__init__")


def _pass_through_jit() -> None:
    def script(obj: Any = None, *arguments: Any, **keywords: Any) -> Any:
        warnings.warn("torch.jit.script is the identity under transfer_to_npu", RuntimeWarning, stacklevel=2)
        return obj

    torch.jit.script = script
    torch.jit.script_method = script


def _apply() -> None:
    _redirect_cuda_module()
    _redirect_methods()
    _redirect_device_arguments()
    _redirect_distributed()
    _pass_through_jit()
    warnings.warn(
        "torch.cuda, Tensor.cuda, cuda device arguments, the backend nccl and torch.jit.script now mean npu in this "
        "process (torch_npu.contrib.transfer_to_npu)",
        ImportWarning,
        stacklevel=2,
    )


_apply()
