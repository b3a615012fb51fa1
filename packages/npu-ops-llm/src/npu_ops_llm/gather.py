"""Rows by index.  Schemas and kernels: ``csrc/ops/gather.cpp``, ``csrc/kernels/gather.inc``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from npu_ops_llm.registration import check, differentiable, fake, once_differentiable


@fake
def npu_gather_sparse_index(input: Tensor, index: Tensor) -> Tensor:
    """Rows of `input`: ``out = input[index]`` on dim 0.  Differentiable in `input`.

    Parameters
    ----------
    input : Tensor
        Any shape, dtype and strides.  Without dims the output is `input`.
    index : Tensor
        int32 or int64, any shape; values in ``[0, input.size(0))``.

    Returns
    -------
    Tensor
        Shape ``index.shape + input.shape[1:]``, dtype of `input`, contiguous.

    Raises
    ------
    RuntimeError
        If the output would have more than 8 dims, `index` is no int32 or int64, or the tensors are on different
        devices.
    IndexError
        If an index is negative or too large; on npu at the next synchronisation.

    Examples
    --------
    >>> torch.ops.npu.npu_gather_sparse_index(torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([2, 0]))
    tensor([[5, 6],
            [1, 2]])
    """
    check(
        input.dim() + index.dim() - 1 <= 8,
        "npu_gather_sparse_index",
        "index",
        lambda: (
            "the dims of input plus those of index, less one, must not greater than 8; input has shape "
            f"{list(input.shape)}, index has shape {list(index.shape)}"
        ),
    )
    return input.new_empty([*index.shape, *input.shape[1:]] if input.dim() > 0 else [])


@fake
def npu_gather_sparse_index_backward(grad: Tensor, self_sizes: Sequence[int], index: Tensor) -> Tensor:
    """Gradient of :func:`npu_gather_sparse_index`: zeros to which row ``index[i]`` gets ``grad[i]`` added.

    16-bit types are summed in float32 and rounded once; rows of one index are added in their order, for every number
    of threads.

    Parameters
    ----------
    grad : Tensor
        Upstream gradient, shape ``index.shape + self_sizes[1:]``; float16, bfloat16, float32, float64, complex, an
        integer up to int64, or bool.
    self_sizes : list of int
        Shape of the `input` of :func:`npu_gather_sparse_index`.
    index : Tensor
        As given to :func:`npu_gather_sparse_index`.

    Returns
    -------
    Tensor
        Shape `self_sizes`, dtype of `grad`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, or the tensors are on different devices.
    IndexError
        If an index is negative or too large; on npu at the next synchronisation.
    """
    expected = [*index.shape, *self_sizes[1:]] if len(self_sizes) > 0 else []
    check(
        grad.dim() == len(expected) and all(a == b for a, b in zip(grad.shape, expected, strict=True)),
        "npu_gather_sparse_index_backward",
        "grad",
        lambda: (
            f"expected shape {expected} (those of index, then self_sizes without the first), got {list(grad.shape)}"
        ),
    )
    return grad.new_empty(list(self_sizes))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    x, index = inputs
    ctx.sizes = x.shape
    ctx.save_for_backward(index)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (index,) = ctx.saved_tensors
    return torch.ops.npu.npu_gather_sparse_index_backward(grad, ctx.sizes, index), None


differentiable("npu_gather_sparse_index", _setup_context, _backward)
once_differentiable("npu_gather_sparse_index", "npu_gather_sparse_index_backward")
