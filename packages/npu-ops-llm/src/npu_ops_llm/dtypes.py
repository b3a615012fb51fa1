"""Dtypes of arguments: the checks of the kernels, in their words, for fake kernels."""

import torch
from torch import Tensor

from npu_ops_llm.registration import check

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
INDICES = (torch.int32, torch.int64)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_dtype(op: str, argument: str, tensor: Tensor | None, accepted: tuple[torch.dtype, ...] = FLOATS) -> None:
    """Raise unless the tensor is None or has one of the dtypes `accepted`."""
    if tensor is None or tensor.dtype in accepted:
        return
    *some, last = map(dtype_name, accepted)
    names = f"{', '.join(some)} or {last}" if some else last
    check(False, op, argument, f"expected dtype {names}, got {dtype_name(tensor.dtype)}")


def check_same_dtype(op: str, argument: str, tensor: Tensor, like: str, model: Tensor) -> None:
    """Raise unless the tensor has the dtype of `model`, the argument named `like`."""
    found, wanted = dtype_name(tensor.dtype), dtype_name(model.dtype)
    check(tensor.dtype == model.dtype, op, argument, f"expected dtype {wanted} (as {like}), got {found}")


def int4_hint(dtype: torch.dtype | None) -> str:
    """What to say of an unsupported dtype: torch takes torch_npu.int4, a number, for torch.uint64."""
    return "; for int4 pass torch.quint4x2" if dtype == torch.uint64 else ""
