"""Cross entropy of class numbers.  Kernels: ``csrc/ops/cross_entropy.cpp``, ``csrc/kernels/cross_entropy.inc``."""

from typing import Any

import torch
from torch import Tensor

from npu_ops_llm.registration import check, differentiable, fake, once_differentiable


def _check(
    op: str, name: str, logits: Tensor, target: Tensor, weight: Tensor | None, reduction: str, label_smoothing: float
) -> None:
    check(
        reduction in ("mean", "sum", "none"),
        op,
        "reduction",
        lambda: f"expected 'mean', 'sum' or 'none', got '{reduction}'",
    )
    check(logits.dim() == 2, op, name, lambda: f"expected shape (N, C), got {list(logits.shape)}")
    for argument, tensor, dim in (("target", target, 0), ("weight", weight, 1)):
        if tensor is not None:
            check(tensor.dim() == 1, op, argument, "expected 1 dim")
            check(
                tensor.shape[0] == logits.shape[dim],
                op,
                argument,
                f"expected one element per {('row', 'class')[dim]} of {name}",
            )
    check(
        0 <= label_smoothing < 1,
        op,
        "label_smoothing",
        lambda: f"expected a number in [0, 1), got {label_smoothing}",
    )


@fake
def npu_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    lse_square_scale_for_zloss: float = 0.0,
    return_zloss: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cross entropy of logits and class numbers, with z-loss.

    With ``lp = log_softmax(input, -1)``, ``w`` the weights (1 without), ``m_n`` 0 for ignored rows and 1 for others,
    ``e = label_smoothing``: a row's loss is
    ``m_n * ((1 - e) * -w[t_n] * lp[n, t_n] + e / C * -sum_c(w_c * lp[n, c]))``.  "sum" adds the rows, "mean" divides
    their sum by ``sum_n(w[t_n] * m_n)``.  A row's z-loss is ``m_n * lse_square_scale_for_zloss * lse_n**2`` with
    ``lse_n = log(sum_c(exp(input[n, c])))``; its "mean" divides by ``sum_n(m_n)``.  In float32, each output rounded
    once.
    Differentiable in `input` through `loss` and `zloss`.

    Parameters
    ----------
    input : Tensor
        Logits, shape (N, C); float16, bfloat16 or float32.
    target : Tensor
        Class numbers, shape (N,), int64.
    weight : Tensor, optional
        Weights of the classes, shape (C,), float32; not differentiable.
    reduction : str
        ``"mean"``, ``"sum"`` or ``"none"``.
    ignore_index : int
        Rows with this target count for nothing, if it is 0 or more.  A negative number ignores nothing.
    label_smoothing : float
        In [0, 1).
    lse_square_scale_for_zloss : float
        Factor of the z-loss.
    return_zloss : bool
        Whether `zloss` is wanted.

    Returns
    -------
    loss : Tensor
        Shape (N,) for "none", else (1,); dtype of `input`.
    log_prob : Tensor
        ``lp``: shape and dtype of `input`; not differentiable.
    zloss : Tensor
        Like `loss`; shape (0,) without `return_zloss`.
    lse_for_zloss : Tensor
        ``lse``: shape (N,), dtype of `input`; shape (0,) if `lse_square_scale_for_zloss` is 0.  Not differentiable.

    Raises
    ------
    RuntimeError
        If a dtype, shape or `reduction` does not fit, `label_smoothing` is not in [0, 1), or the tensors are on
        different devices.
    IndexError
        If a target that counts is not in [0, C); for npu tensors at the next synchronisation.

    Notes
    -----
    Source of the z-loss: A. Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", JMLR 2023, section 5.
    Source of label smoothing: C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR
    2016.

    Examples
    --------
    >>> logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])
    >>> torch.ops.npu.npu_cross_entropy_loss(logits, torch.tensor([2, 0]))[0]
    tensor([0.7531])
    """
    op = "npu_cross_entropy_loss"
    _check(op, "input", input, target, weight, reduction, label_smoothing)
    rows = input.shape[0]
    losses = rows if reduction == "none" else 1
    return (
        input.new_empty((losses,)),
        input.new_empty(input.shape),
        input.new_empty((losses if return_zloss else 0,)),
        input.new_empty((rows if lse_square_scale_for_zloss != 0 else 0,)),
    )


@fake
def npu_cross_entropy_loss_backward(
    grad_loss: Tensor,
    log_prob: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    grad_zloss: Tensor | None = None,
    lse_for_zloss: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    lse_square_scale_for_zloss: float = 0.0,
) -> Tensor:
    """Gradient of :func:`npu_cross_entropy_loss`.

    With ``g = grad_loss`` (divided by ``sum_n(w[t_n] * m_n)`` for "mean"), ``A_n = g * (1 - e) * w[t_n] * m_n``,
    ``B_n = g * e / C * m_n``, ``p = exp(log_prob)``:
    ``p[n, c] * (A_n + B_n * sum_c(w_c)) - A_n * (c == t_n) - B_n * w_c``, and for the z-loss
    ``p[n, c] * 2 * lse_square_scale_for_zloss * lse_n * grad_zloss * m_n`` (divided by ``sum_n(m_n)`` for "mean").  In
    float32.

    Parameters
    ----------
    grad_loss : Tensor
        Upstream gradient of the loss: shape (1,), or (N,) for "none"; dtype of `log_prob`.
    log_prob : Tensor
        Second output of :func:`npu_cross_entropy_loss`.
    target : Tensor
        As given to :func:`npu_cross_entropy_loss`.
    weight : Tensor, optional
        As given to :func:`npu_cross_entropy_loss`.
    grad_zloss : Tensor, optional
        Upstream gradient of the z-loss, like `grad_loss`.  Needs `lse_for_zloss`.
    lse_for_zloss : Tensor, optional
        Fourth output of :func:`npu_cross_entropy_loss`.
    reduction : str
        As given to :func:`npu_cross_entropy_loss`.
    ignore_index : int
        As given to :func:`npu_cross_entropy_loss`.
    label_smoothing : float
        As given to :func:`npu_cross_entropy_loss`.
    lse_square_scale_for_zloss : float
        As given to :func:`npu_cross_entropy_loss`.

    Returns
    -------
    Tensor
        Gradient of `input`: shape and dtype of `log_prob`.

    Raises
    ------
    RuntimeError
        If a dtype, shape or `reduction` does not fit, `label_smoothing` is not in [0, 1), or the tensors are on
        different devices.
    IndexError
        If a target that counts is not in [0, C); for npu tensors at the next synchronisation.
    """
    op = "npu_cross_entropy_loss_backward"
    _check(op, "log_prob", log_prob, target, weight, reduction, label_smoothing)
    for argument, grad in (("grad_loss", grad_loss), ("grad_zloss", grad_zloss)):
        if grad is None or (argument == "grad_zloss" and lse_square_scale_for_zloss == 0):
            continue
        check(grad.dim() <= 1, op, argument, "expected at most 1 dim")
        if grad.dim() == 1:
            rows = log_prob.shape[0] if reduction == "none" else 1
            fits = grad.shape[0] == rows or grad.shape[0] == 1
            check(fits, op, argument, "expected the shape of the loss")
    return log_prob.new_empty(log_prob.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    _, target, weight, ctx.reduction, ctx.ignore_index, ctx.label_smoothing, ctx.zloss_scale, ctx.with_zloss = inputs
    loss, log_prob, _, lse = output
    ctx.mark_non_differentiable(log_prob, lse)
    ctx.set_materialize_grads(False)
    ctx.loss_shape = loss.shape
    ctx.save_for_backward(log_prob, target, weight, lse)


def _backward(
    ctx: Any, grad_loss: Tensor | None, _log_prob: Tensor | None, grad_zloss: Tensor | None, _lse: Tensor | None
) -> tuple[Tensor | None, ...]:
    log_prob, target, weight, lse = ctx.saved_tensors
    nothing = (None,) * 7
    if not ctx.with_zloss:
        grad_zloss = None
    if grad_loss is None and grad_zloss is None:
        return None, *nothing
    if grad_loss is None:
        grad_loss = log_prob.new_zeros(ctx.loss_shape)
    grad = torch.ops.npu.npu_cross_entropy_loss_backward(
        grad_loss,
        log_prob,
        target,
        weight,
        grad_zloss,
        lse if grad_zloss is not None else None,
        ctx.reduction,
        ctx.ignore_index,
        ctx.label_smoothing,
        ctx.zloss_scale,
    )
    return grad, *nothing


differentiable("npu_cross_entropy_loss", _setup_context, _backward)
once_differentiable("npu_cross_entropy_loss", "npu_cross_entropy_loss_backward")
