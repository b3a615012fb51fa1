"""The operators of torch.nn.SyncBatchNorm on npu.

Every rank reduces its own rows, the module gathers mean, inverse deviation and count of all ranks and combines them
here; backward all-reduces two sums between `reduce_gradients` and `input_gradient`. Half precision is
summed in float32.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.cache
def register() -> torch.library.Library:
    """Give the operators an npu kernel; the library that holds them lives as long as the process."""
    library = torch.library.Library("aten", "IMPL")
    for name, kernel in (
        ("batch_norm_stats", statistics),
        ("batch_norm_gather_stats", gather_statistics_of_equal_counts),
        ("batch_norm_gather_stats_with_counts", gather_statistics),
        ("batch_norm_elemt", normalise),
        ("batch_norm_backward_reduce", reduce_gradients),
        ("batch_norm_backward_elemt", input_gradient),
    ):
        library.impl(name, kernel, "PrivateUse1")
    return library


def _all_but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 2))


def statistics(input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) of each channel over this rank's rows."""
    variance, mean = torch.var_mean(_wide(input), _all_but_channels(input), correction=0)
    return mean, torch.rsqrt(variance + eps)


def gather_statistics(
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Combine (ranks, channels) means and inverse deviations of `counts` values each, and update the running ones."""
    share = (counts / counts.sum()).to(mean.dtype).unsqueeze(1)
    whole_mean = (share * mean).sum(0)
    within = invstd.square().reciprocal() - eps
    variance = (share * (within + (mean - whole_mean).square())).sum(0)
    if running_mean is not None:
        running_mean.lerp_(whole_mean.to(running_mean.dtype), momentum)
    if running_var is not None:
        total = counts.sum().to(variance.dtype)
        running_var.lerp_((variance * (total / (total - 1))).to(running_var.dtype), momentum)
    return whole_mean, torch.rsqrt(variance + eps)


def gather_statistics_of_equal_counts(
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    count: int,
) -> tuple[Tensor, Tensor]:
    """As `gather_statistics` where every rank has `count` values per channel."""
    counts = torch.full((mean.size(0),), float(count), device=mean.device, dtype=mean.dtype)
    return gather_statistics(input, mean, invstd, running_mean, running_var, momentum, eps, counts)


def normalise(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, eps: float
) -> Tensor:
    """(input - mean) * invstd * weight + bias, in the type of `input`."""
    scale = invstd if weight is None else invstd * weight.to(invstd.dtype)
    shift = -mean * scale if bias is None else bias.to(invstd.dtype) - mean * scale
    return torch.addcmul(_per_channel(shift, input), _wide(input), _per_channel(scale, input)).to(input.dtype)


def reduce_gradients(
    grad_out: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    input_g: bool,
    weight_g: bool,
    bias_g: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """This rank's sums of the gradient and of gradient * (input - mean), and the gradients of weight and bias."""
    gradient, dims = _wide(grad_out), _all_but_channels(input)
    total = gradient.sum(dims)
    weighted = (gradient * (_wide(input) - _per_channel(mean, input))).sum(dims)
    dtype = mean.dtype if weight is None else weight.dtype
    return (
        total if input_g else None,
        weighted if input_g else None,
        (weighted * invstd).to(dtype) if weight_g else None,
        total.to(dtype) if bias_g else None,
    )


def input_gradient(
    grad_out: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    count: Tensor,
) -> Tensor:
    """Gradient of `input`, given both sums over all ranks."""
    total = count.sum().to(mean.dtype)
    scale = invstd if weight is None else invstd * weight.to(invstd.dtype)
    slope = scale * invstd.square() * sum_dy_xmu / total
    shift = scale * sum_dy / total - slope * mean
    result = _wide(grad_out) * _per_channel(scale, input) - _wide(input) * _per_channel(slope, input)
    return (result - _per_channel(shift, input)).to(input.dtype)
