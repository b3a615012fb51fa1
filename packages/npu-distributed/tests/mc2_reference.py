"""What the fused operators compute, in float64 and from the inputs of all ranks; shared by the tests of the ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

#: Largest relative error of one rounding.
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}


def comm_name(rank: int, group: dist.ProcessGroup | None = None) -> str:
    backend = (group or dist.group.WORLD)._get_backend(torch.device("npu"))
    return backend.get_hccl_comm_name(rank)


def random_floats(shape: list[int], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def random_scales(shape: list[int], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) * 0.01 + 0.001).to(dtype)


def random_integers(shape: list[int], dtype: torch.dtype, seed: int, limit: int = 128) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-limit, limit, shape, generator=generator).to(dtype)


def scale_bits(scale: Tensor, dtype: torch.dtype = torch.int64) -> Tensor:
    """Float32 scales as npu_trans_quant_param gives them: their bits, with something in the upper half to ignore."""
    return (scale.float().view(torch.int32).long().bitwise_and(0xFFFFFFFF) | (5 << 40)).view(dtype)


def assert_close(actual: Tensor, expected: Tensor, inner: Tensor) -> None:
    """Compare with the error of float32 sums and of one rounding to the dtype of `actual`, and no more.

    Parameters
    ----------
    actual : Tensor
        The operator's result.
    expected : Tensor
        float64.
    inner : Tensor
        Sum of the absolute values of all that was summed in float32.
    """
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    unit = ROUNDING[actual.dtype]
    smallest = torch.finfo(actual.dtype).smallest_normal * unit
    limit = unit * 1.01 * expected.abs() + 2.0**-20 * inner + smallest
    error = (actual.cpu().double() - expected).abs()
    worst = (error - limit).max() if error.numel() else torch.tensor(-1.0)
    assert worst <= 0, f"off by {error.max():.3g}; allowed there: {limit.flatten()[error.argmax()]:.3g}"
