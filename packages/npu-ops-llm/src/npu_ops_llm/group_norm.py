"""Group norm with SiLU or swish.  Schemas and kernels: ``csrc/ops/group_norm.cpp``, ``csrc/kernels/group_norm.inc``."""

from typing import Any

import torch
from torch import Tensor

from npu_ops_llm.registration import check, differentiable, fake, once_differentiable


def _check_shapes(
    op: str, input: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, groups_name: str
) -> None:
    shape = list(input.shape)
    check(2 <= input.dim() <= 8, op, "input", f"expected 2 to 8 dims (N, C, ...), got shape {shape}")
    check(groups > 0, op, groups_name, f"expected a positive number of groups, got {groups}")
    message = f"expected a divisor of the channels; input has shape {shape}, got {groups} groups"
    check(input.shape[1] % groups == 0, op, groups_name, message)
    for argument, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            message = f"expected shape [{input.shape[1]}] (the channels), got {list(tensor.shape)}"
            check(tensor.dim() == 1 and tensor.shape[0] == input.shape[1], op, argument, message)


@fake
def npu_group_norm_silu(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, group: int, eps: float = 0.00001
) -> tuple[Tensor, Tensor, Tensor]:
    """Group norm followed by SiLU.

    Over the channels of each group and all spatial dims: ``xh = (input - mean) * rstd`` with
    ``rstd = 1 / sqrt(var + eps)`` and the biased variance; ``z = xh * weight + bias``; ``out = z * sigmoid(z)``.  In
    float32 with one rounding.

    Parameters
    ----------
    input : Tensor
        (N, C, ...), 2 to 8 dims; float16, bfloat16 or float32.
    weight, bias : Tensor, optional
        (C,), both of one dtype: that of `input` or float32.  None is 1 and 0.
    group : int
        Number of groups, a divisor of C.
    eps : float
        Added to the variance; positive.

    Returns
    -------
    out : Tensor
        Shape and dtype of `input`.
    mean, rstd : Tensor
        (N, group), dtype of `input`.

    Raises
    ------
    RuntimeError
        If a dtype, shape or number does not fit, or the tensors are on different devices.

    Notes
    -----
    Sources: Y. Wu, K. He, "Group Normalization", ECCV 2018; S. Elfwing et al., "Sigmoid-Weighted Linear Units for
    Neural Network Function Approximation in Reinforcement Learning", 2017.

    Examples
    --------
    >>> torch.ops.npu.npu_group_norm_silu(torch.tensor([[1.0, 3.0, 5.0, 5.0]]), None, None, 2)[0]
    tensor([[-0.2689,  0.7311,  0.0000,  0.0000]])
    """
    op = "npu_group_norm_silu"
    _check_shapes(op, input, weight, bias, group, "group")
    check(eps > 0, op, "eps", f"expected a positive number, got {eps}")
    statistics = (input.shape[0], group)
    return input.new_empty(input.shape), input.new_empty(statistics), input.new_empty(statistics)


@fake
def npu_group_norm_swish(
    input: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float | None = 1e-5,
    swish_scale: float | None = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Group norm followed by swish.

    As :func:`npu_group_norm_silu` with ``out = z * sigmoid(swish_scale * z)``.  Differentiable in `input`, `weight` and
    `bias` through `out`.

    Parameters
    ----------
    input : Tensor
        (N, C, ...), 2 to 8 dims; float16, bfloat16 or float32.
    num_groups : int
        Number of groups, a divisor of C.
    weight, bias : Tensor
        (C,), both of one dtype: that of `input` or float32.
    eps : float, optional
        Added to the variance; positive.  None is 1e-5.
    swish_scale : float, optional
        Factor within the sigmoid.  None is 1.

    Returns
    -------
    out : Tensor
        Shape and dtype of `input`.
    mean, rstd : Tensor
        (N, num_groups), dtype of `weight`; not differentiable.

    Raises
    ------
    RuntimeError
        If a dtype, shape or number does not fit, or the tensors are on different devices.

    Notes
    -----
    Sources: Y. Wu, K. He, "Group Normalization", ECCV 2018; P. Ramachandran, B. Zoph, Q. V. Le, "Searching for
    Activation Functions", 2017.

    Examples
    --------
    >>> ones = torch.ones(4)
    >>> torch.ops.npu.npu_group_norm_swish(torch.tensor([[1.0, 3.0, 5.0, 5.0]]), 2, ones, ones - 1)[0]
    tensor([[-0.2689,  0.7311,  0.0000,  0.0000]])
    """
    op = "npu_group_norm_swish"
    _check_shapes(op, input, weight, bias, num_groups, "num_groups")
    check(eps is None or eps > 0, op, "eps", f"expected a positive number, got {eps}")
    statistics = (input.shape[0], num_groups)
    return input.new_empty(input.shape), weight.new_empty(statistics), weight.new_empty(statistics)


@fake
def npu_group_norm_swish_grad(
    grad: Tensor,
    input: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    grad_input_mask: list[bool],
    swish_scale: float | None = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`npu_group_norm_swish`.

    With ``s = sigmoid(swish_scale * z)``: ``dz = grad * s * (1 + swish_scale * z * (1 - s))``; ``dbias = sum(dz)`` and
    ``dweight = sum(dz * xh)`` over N and the spatial dims; with ``dxh = dz * weight``:
    ``dx = rstd * (dxh - mean(dxh) - xh * mean(dxh * xh))``, the means over a group.  In float32.

    Parameters
    ----------
    grad, input : Tensor
        Upstream gradient and input: one shape (N, C, ...), one dtype of float16, bfloat16 and float32.
    num_groups, weight, bias, swish_scale
        As given to :func:`npu_group_norm_swish`.
    mean, rstd : Tensor
        Second and third output of :func:`npu_group_norm_swish`.
    grad_input_mask : list of three bool
        Whether `dx`, `dweight` and `dbias` are wanted.  `dx` is always computed.

    Returns
    -------
    dx : Tensor
        Shape and dtype of `input`.
    dweight, dbias : Tensor
        (C,), dtype of `weight`; zeros where not wanted.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, or the tensors are on different devices.
    """
    op = "npu_group_norm_swish_grad"
    _check_shapes(op, input, weight, bias, num_groups, "num_groups")
    check(len(grad_input_mask) == 3, op, "grad_input_mask", f"expected three flags, got {len(grad_input_mask)}")
    return input.new_empty(input.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, ctx.num_groups, weight, bias, _, ctx.swish_scale = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, weight, bias, mean, rstd)


def _backward(ctx: Any, dout: Tensor, _dmean: Tensor | None, _drstd: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, bias, mean, rstd = ctx.saved_tensors
    wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[2], ctx.needs_input_grad[3]]
    found = torch.ops.npu.npu_group_norm_swish_grad(
        dout, x, ctx.num_groups, weight, bias, mean, rstd, wanted, ctx.swish_scale
    )
    dx, dweight, dbias = (gradient if want else None for gradient, want in zip(found, wanted, strict=True))
    return dx, None, dweight, dbias, None, None


differentiable("npu_group_norm_swish", _setup_context, _backward)
once_differentiable("npu_group_norm_swish", "npu_group_norm_swish_grad")
