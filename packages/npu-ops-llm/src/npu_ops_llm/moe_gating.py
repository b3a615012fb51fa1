"""Gating of mixtures of experts.  Schemas and kernels: ``csrc/ops/moe_gating.cpp``, ``csrc/kernels/moe_gating.inc``."""

from typing import Any

import torch
from torch import Tensor

from npu_ops_llm.moe_shapes import is_empty
from npu_ops_llm.registration import check, differentiable_with_keywords, fake, once_differentiable


@fake
def npu_moe_compute_expert_tokens(sorted_expert_for_source_row: Tensor, num_expert: int) -> Tensor:
    """Position past the last row of each expert.

    ``out[i]`` is the number of elements that are at most i: the inclusive prefix sums of the rows per expert.

    Parameters
    ----------
    sorted_expert_for_source_row : Tensor
        1-D, int32, in ascending order; third output of :func:`npu_moe_init_routing`.  Values from `num_expert` on are
        not counted.
    num_expert : int
        Number of experts.

    Returns
    -------
    Tensor
        ``(num_expert,)``, int32.

    Raises
    ------
    RuntimeError
        If the tensor is not 1-D or not int32, or `num_expert` is not positive.

    Examples
    --------
    >>> torch.ops.npu.npu_moe_compute_expert_tokens(torch.tensor([0, 0, 0, 1, 1, 2], dtype=torch.int32), 3)
    tensor([3, 5, 6], dtype=torch.int32)
    """
    op = "npu_moe_compute_expert_tokens"
    check(sorted_expert_for_source_row.dim() == 1, op, "sorted_expert_for_source_row", "expected 1 dim")
    check(num_expert > 0, op, "num_expert", lambda: f"expected a positive number, got {num_expert}")
    return sorted_expert_for_source_row.new_empty((num_expert,))


def _softmax_shape(op: str, x: Tensor, finished: Tensor | None, k: int) -> list[int | torch.SymInt]:
    check(x.dim() in (2, 3), op, "x", lambda: f"expected 2 or 3 dims, got shape {list(x.shape)}")
    experts = x.shape[-1]
    check(k >= 0, op, "k", lambda: f"expected 0 to {experts} (the experts of x), got {k}")
    check(k <= experts, op, "k", lambda: f"expected 0 to {experts} (the experts of x), got {k}")
    if finished is not None and not is_empty(*x.shape[:-1]):
        check(
            finished.dim() == x.dim() - 1
            and all(ours == theirs for ours, theirs in zip(finished.shape, x.shape[:-1], strict=True)),
            op,
            "finished",
            lambda: f"expected shape {list(x.shape[:-1])} (x without its last dim), got {list(finished.shape)}",
        )
    return [*x.shape[:-1], k]


@fake
def npu_moe_gating_top_k_softmax(
    x: Tensor, finished: Tensor | None = None, k: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the `k` experts of largest probability for each token.

    ``p = softmax(x, -1)`` in float32; ``y`` and ``expert_idx`` are the `k` largest of ``p``, descending; among equal
    probabilities the lower index comes first.

    Parameters
    ----------
    x : Tensor
        Scores, ``(tokens, experts)`` or ``(batch, sequence, experts)``; float16, bfloat16 or float32.
    finished : Tensor, optional
        bool, shape of `x` without its last dim.  Tokens for which it is true get the expert number ``experts``, which
        is no expert.
    k : int
        Experts per token, from 0 to ``experts``.

    Returns
    -------
    y : Tensor
        Probabilities: shape of `x` with `k` for the last dim; dtype of `x`.
    expert_idx : Tensor
        Same shape, int32.
    row_idx : Tensor
        Same shape, int32: ``row_idx[n, j] = j * tokens + n``, as :func:`npu_moe_init_routing` takes it.

    Raises
    ------
    RuntimeError
        If a dtype, a shape or `k` does not fit, or the tensors are on different devices.

    Notes
    -----
    Source: N. Shazeer et al., "Outrageously large neural networks: the sparsely-gated mixture-of-experts layer",
    ICLR 2017.

    Examples
    --------
    >>> torch.ops.npu.npu_moe_gating_top_k_softmax(torch.tensor([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]]), None, 2)[1:]
    (tensor([[2, 1],
            [0, 2]], dtype=torch.int32), tensor([[0, 2],
            [1, 3]], dtype=torch.int32))
    """
    shape = _softmax_shape("npu_moe_gating_top_k_softmax", x, finished, k)
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int32), x.new_empty(shape, dtype=torch.int32)


@fake
def npu_moe_gating_top_k_softmax_v2(
    x: Tensor,
    *,
    k: int = 1,
    finished: Tensor | None = None,
    renorm: int | None = 0,
    output_softmax: bool | None = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the `k` experts of largest score for each token, with the softmax before or after the choice.

    Parameters
    ----------
    x : Tensor
        Scores, ``(tokens, experts)`` or ``(batch, sequence, experts)``; float16, bfloat16 or float32.
    k : int
        Experts per token, from 0 to ``experts``.
    finished : Tensor, optional
        As for :func:`npu_moe_gating_top_k_softmax`.
    renorm : int, optional
        0: softmax over all experts, then the `k` largest.  1: the `k` largest scores, then the softmax of those.
    output_softmax : bool, optional
        Whether to return the softmax over all experts; only with `renorm` 0.

    Returns
    -------
    y : Tensor
        Probabilities: shape of `x` with `k` for the last dim; dtype of `x`.
    expert_idx : Tensor
        Same shape, int32.
    softmax_result : Tensor
        float32, shape of `x`; shape ``(0,)`` where it is not wanted.

    Raises
    ------
    RuntimeError
        If a dtype, a shape, `k` or `renorm` does not fit, or the tensors are on different devices.

    Examples
    --------
    >>> torch.ops.npu.npu_moe_gating_top_k_softmax_v2(torch.tensor([[1.0, 2.0, 3.0]]), k=2, renorm=1)[:2]
    (tensor([[0.7311, 0.2689]]), tensor([[2, 1]], dtype=torch.int32))
    """
    op = "npu_moe_gating_top_k_softmax_v2"
    shape = _softmax_shape(op, x, finished, k)
    check(
        renorm in (None, 0, 1),
        op,
        "renorm",
        lambda: f"expected 0 (softmax, then top-k) or 1 (top-k, then softmax), got {renorm}",
    )
    probabilities = x.new_empty(x.shape if output_softmax and renorm != 1 else (0,), dtype=torch.float32)
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int32), probabilities


@fake
def npu_moe_gating_top_k(
    x: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    input_ids: Tensor | None = None,
    tid2eid: Tensor | None = None,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = 0,
    renorm: int = 0,
    norm_type: int = 0,
    out_flag: bool = False,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the `k` experts of each token from its best groups of experts.

    ``p`` is the softmax, the sigmoid or ``sqrt(log(1 + exp(x)))`` of the scores, by `norm_type`.  Experts are ranked by
    ``p + bias``, descending, among equals the lower index first.  With `group_count` groups of neighbouring experts,
    only those of the `k_group` best groups count.  The weights are ``p`` of the chosen experts, without the bias,
    divided by their sum plus `eps` (always, except for the softmax with `renorm` 0), times `routed_scaling_factor`.
    In float32.  Differentiable in `x` through `y`.

    Parameters
    ----------
    x : Tensor
        Scores, ``(tokens, experts)``; float16, bfloat16 or float32.
    k : int
        Experts per token: 1 to the experts of `k_group` groups.
    bias : Tensor, optional
        ``(experts,)``, dtype of `x`; steers the choice only.
    input_ids, tid2eid : Tensor, optional
        ``(tokens,)`` and ``(any, k)``, int32 or int64, both or neither: the experts of token n are then
        ``tid2eid[input_ids[n]]``, and nothing is ranked.
    k_group, group_count : int
        How many groups to keep, of how many.
    group_select_mode : int
        A group is worth 0: its largest ``p + bias``; 1: the sum of its two largest.
    renorm : int
        1 normalises the weights of a softmax.
    norm_type : int
        0 softmax, 1 sigmoid, 2 square root of softplus.
    out_flag : bool
        No effect: the third output is always written.
    routed_scaling_factor, eps : float
        See above.

    Returns
    -------
    y : Tensor
        Weights, ``(tokens, k)``, dtype of `x`.
    expert_idx : Tensor
        ``(tokens, k)``, int32.
    norm_out : Tensor
        ``p``, ``(tokens, experts)``, float32.

    Raises
    ------
    RuntimeError
        If a dtype, a shape or a number does not fit, or the tensors are on different devices.
    IndexError
        If an element of `input_ids` or `tid2eid` is out of range; on npu at the next synchronisation.

    Notes
    -----
    Source: DeepSeek-AI, "DeepSeek-V3 technical report", 2024, sections 2.1.2 and 3.2 (bias, groups of experts).

    Examples
    --------
    >>> x, bias = torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([5.0, 0.0, 0.0, 0.0])
    >>> torch.ops.npu.npu_moe_gating_top_k(x, 2, bias=bias, group_count=2, norm_type=1, routed_scaling_factor=2.5)[:2]
    (tensor([[1.0154, 1.4846]]), tensor([[0, 1]], dtype=torch.int32))
    """
    op = "npu_moe_gating_top_k"
    check(x.dim() == 2, op, "x", lambda: f"expected 2 dims, (rows, experts), got shape {list(x.shape)}")
    rows, experts = x.shape
    if bias is not None and not is_empty(rows):
        check(
            bias.dim() == 1 and bias.shape[0] == experts,
            op,
            "bias",
            lambda: f"expected shape [{experts}] (experts), got {list(bias.shape)}",
        )
    check(group_count >= 1, op, "group_count", lambda: f"expected a divisor of the {experts} experts")
    check(experts % group_count == 0, op, "group_count", lambda: f"expected a divisor of the {experts} experts")
    check(
        1 <= k_group <= group_count, op, "k_group", lambda: f"expected 1 to {group_count} (group_count), got {k_group}"
    )
    most = experts // group_count * k_group
    check(k >= 1, op, "k", lambda: f"expected 1 to {most} (the experts of k_group groups), got {k}")
    check(k <= most, op, "k", lambda: f"expected 1 to {most} (the experts of k_group groups), got {k}")
    check(
        (input_ids is None) == (tid2eid is None), op, "input_ids", "expected input_ids and tid2eid together or neither"
    )
    return x.new_empty((rows, k)), x.new_empty((rows, k), dtype=torch.int32), x.new_empty(x.shape, dtype=torch.float32)


@fake
def npu_moe_gating_top_k_backward(
    x_norm: Tensor,
    grad_y: Tensor,
    expertIdx: Tensor,
    *,
    renorm: int = 0,
    norm_type: int = 0,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> Tensor:
    """Gradient of :func:`npu_moe_gating_top_k` in its scores.

    With ``g = x_norm[expertIdx]``, ``u = grad_y * routed_scaling_factor`` and ``s = sum(g) + eps``: the gradient of g
    is ``u / s - sum(u * g) / s^2`` where the weights were normalised, else ``u``; it is added up per expert to ``dp``
    and passed through the softmax, ``p * (dp - sum(dp * p))``, the sigmoid, ``dp * p * (1 - p)``, or the square root of
    softplus, ``dp * (1 - exp(-p^2)) / (2 p)``.  In float32.

    Parameters
    ----------
    x_norm : Tensor
        Third output of the forward operator, ``(tokens, experts)``, float32.
    grad_y : Tensor
        ``(tokens, k)``; float16, bfloat16 or float32.
    expertIdx : Tensor
        Second output of the forward operator, ``(tokens, k)``, int32.
    renorm, norm_type, routed_scaling_factor, eps
        As in the forward call.

    Returns
    -------
    Tensor
        Shape of `x_norm`, dtype of `grad_y`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, or the tensors are on different devices.
    IndexError
        If an element of `expertIdx` is out of range; on npu at the next synchronisation.
    """
    op = "npu_moe_gating_top_k_backward"
    check(x_norm.dim() == 2, op, "x_norm", lambda: f"expected 2 dims, (rows, experts), got shape {list(x_norm.shape)}")
    check(
        grad_y.dim() == 2 and grad_y.shape[0] == x_norm.shape[0],
        op,
        "grad_y",
        lambda: f"expected shape [{x_norm.shape[0]}, k], got {list(grad_y.shape)}",
    )
    check(
        expertIdx.dim() == 2 and all(a == b for a, b in zip(expertIdx.shape, grad_y.shape, strict=True)),
        op,
        "expertIdx",
        lambda: f"expected shape {list(grad_y.shape)} (as grad_y), got {list(expertIdx.shape)}",
    )
    return grad_y.new_empty(x_norm.shape)


def _save_gating(ctx: Any, inputs: dict[str, Any], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, expert_idx, probabilities = output
    ctx.mark_non_differentiable(expert_idx, probabilities)
    ctx.save_for_backward(expert_idx, probabilities)
    ctx.keywords = {name: inputs[name] for name in ("renorm", "norm_type", "routed_scaling_factor", "eps")}


def _gating_gradient(ctx: Any, *gradients: Tensor) -> tuple[Tensor]:
    expert_idx, probabilities = ctx.saved_tensors
    backward = torch.ops.npu.npu_moe_gating_top_k_backward
    return (backward(probabilities, gradients[0], expert_idx, **ctx.keywords),)


differentiable_with_keywords("npu_moe_gating_top_k", ("x",), _save_gating, _gating_gradient)
once_differentiable("npu_moe_gating_top_k", "npu_moe_gating_top_k_backward")
