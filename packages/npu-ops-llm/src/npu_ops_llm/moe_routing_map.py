"""Permuting tokens by a map of tokens and experts.  Schemas and tasks: ``csrc/ops/moe_routing_map.cpp``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from npu_ops_llm.moe_shapes import is_empty
from npu_ops_llm.registration import check, differentiable_with_keywords, fake, once_differentiable


def _check_shape(op: str, argument: str, tensor: Tensor, expected: Sequence[Any], meaning: str) -> None:
    check(
        tensor.dim() == len(expected) and all(a == b for a, b in zip(tensor.shape, expected, strict=True)),
        op,
        argument,
        lambda: f"expected shape {list(expected)} ({meaning}), got {list(tensor.shape)}",
    )


def _check_dims(op: str, argument: str, tensor: Tensor, dims: int) -> None:
    check(tensor.dim() == dims, op, argument, lambda: f"expected {dims} dims, got shape {list(tensor.shape)}")


def _check_multiple(op: str, argument: str, rows: int | torch.SymInt, parts: int | torch.SymInt) -> None:
    if isinstance(parts, int) and parts == 0:
        whole = rows == 0
    else:
        whole = rows % parts == 0
    check(whole, op, argument, lambda: f"expected a multiple of {parts} rows, got {rows}")


@fake
def npu_moe_token_permute_with_routing_map(
    tokens: Tensor,
    routing_map: Tensor,
    *,
    probs: Tensor | None = None,
    num_out_tokens: int | None = None,
    drop_and_pad: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Copy every token to the experts that a map selects for it.

    Rows are listed expert by expert, in each by token.  ``permuted_tokens[i] = tokens[token of i]`` and
    ``permuted_probs[i] = probs[token of i, expert of i]``.  Differentiable in `tokens` and `probs`.

    Parameters
    ----------
    tokens : Tensor
        ``(tokens, hidden)``; float16, bfloat16 or float32.
    routing_map : Tensor
        bool, int8 or uint8, ``(tokens, experts)``; anything but 0 selects.
    probs : Tensor, optional
        Shape of `routing_map`, any floating dtype.
    num_out_tokens : int, optional
        Number of rows, the number of tokens by default.  It is rounded down to the same number ``K`` of rows for every
        token, which must have exactly ``K`` experts; with `drop_and_pad` to the same number for every expert.
    drop_and_pad : bool
        Give every expert the same number of rows: the tokens that selected it, then others, each by number.

    Returns
    -------
    permuted_tokens : Tensor
        ``(rows, hidden)``, dtype of `tokens`.
    permuted_probs : Tensor or None
        ``(rows,)``, dtype of `probs`; None without `probs`.
    sorted_indices : Tensor
        int32, ``(rows,)``.  Element ``t * K + k`` is the row of the k-th copy of token t; with `drop_and_pad` element i
        is the token of row i.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, or a token has not K experts; the latter on npu at the next synchronisation.

    Examples
    --------
    >>> tokens = torch.tensor([[0.0], [1.0], [2.0]])
    >>> chosen = torch.tensor([[0, 1, 1], [1, 1, 0], [1, 0, 1]], dtype=torch.bool)
    >>> torch.ops.npu.npu_moe_token_permute_with_routing_map(tokens, chosen, num_out_tokens=6)[2]
    tensor([2, 4, 0, 3, 1, 5], dtype=torch.int32)
    """
    op = "npu_moe_token_permute_with_routing_map"
    _check_dims(op, "tokens", tokens, 2)
    _check_dims(op, "routing_map", routing_map, 2)
    count, experts = tokens.shape[0], routing_map.shape[1]
    check(
        routing_map.shape[0] == count,
        op,
        "routing_map",
        lambda: f"expected {count} rows, one for each token, got shape {list(routing_map.shape)}",
    )
    if probs is not None and not is_empty(count):
        _check_shape(op, "probs", probs, routing_map.shape, "tokens, experts")
    wanted = count if num_out_tokens is None else num_out_tokens
    check(wanted >= 0, op, "num_out_tokens", lambda: f"expected a number of rows, got {wanted}")
    parts = experts if drop_and_pad else count
    each = 0 if isinstance(parts, int) and parts == 0 else wanted // parts
    check(
        not drop_and_pad or each <= count,
        op,
        "num_out_tokens",
        lambda: f"expected a capacity of at most {count} tokens for each of {experts} experts, got {each}",
    )
    rows = each * parts
    permuted_probs = None if probs is None else probs.new_empty(rows)
    return (
        tokens.new_empty(rows, tokens.shape[1]),
        permuted_probs,
        tokens.new_empty(rows, dtype=torch.int32),
    )


@fake
def npu_moe_token_permute_with_routing_map_grad(
    permuted_token_out_grad: Tensor,
    probs_grad: Tensor | None,
    sorted_indices: Tensor,
    routing_map: Tensor,
    experts_num: int,
    tokens_num: int,
    drop_and_pad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of :func:`npu_moe_token_permute_with_routing_map`.

    Every token gets the sum, in float32, of the gradients of its copies; every probability that of its row, 0 where
    none was used.

    Parameters
    ----------
    permuted_token_out_grad : Tensor
        ``(rows, hidden)``.
    probs_grad : Tensor, optional
        ``(rows,)``.
    sorted_indices : Tensor
        Third output of :func:`npu_moe_token_permute_with_routing_map`.
    routing_map, drop_and_pad
        As given to :func:`npu_moe_token_permute_with_routing_map`.
    experts_num, tokens_num : int
        Sizes of `routing_map`.

    Returns
    -------
    grad_tokens : Tensor
        ``(tokens_num, hidden)``, dtype of `permuted_token_out_grad`.
    grad_probs : Tensor or None
        ``(tokens_num, experts_num)``, dtype of `probs_grad`; None without `probs_grad`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, or a token has not as many experts as rows.
    IndexError
        If an index is out of range.  What depends on values is reported on npu at the next synchronisation.
    """
    op = "npu_moe_token_permute_with_routing_map_grad"
    _check_dims(op, "permuted_token_out_grad", permuted_token_out_grad, 2)
    rows, columns = permuted_token_out_grad.shape
    _check_shape(op, "routing_map", routing_map, (tokens_num, experts_num), "tokens_num, experts_num")
    _check_shape(op, "sorted_indices", sorted_indices, (rows,), "rows of permuted_token_out_grad")
    _check_multiple(op, "permuted_token_out_grad", rows, experts_num if drop_and_pad else tokens_num)
    grad_tokens = permuted_token_out_grad.new_empty(tokens_num, columns)
    if probs_grad is None:
        return grad_tokens, None
    if not (is_empty(tokens_num) and is_empty(rows)):
        _check_shape(op, "probs_grad", probs_grad, (rows,), "rows of permuted_token_out_grad")
    return grad_tokens, probs_grad.new_empty(tokens_num, experts_num)


def _check_unpermute(
    op: str,
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    restore_shape: Sequence[int],
    probs: Tensor | None,
    routing_map: Tensor | None,
    padded: bool,
) -> None:
    _check_dims(op, "permuted_tokens", permuted_tokens, 2)
    rows, columns = permuted_tokens.shape
    check(
        len(restore_shape) >= 2 and restore_shape[1] == columns,
        op,
        "restore_shape",
        lambda: f"expected [tokens, {columns}], got {list(restore_shape)}",
    )
    _check_shape(op, "sorted_indices", sorted_indices, (rows,), "rows of permuted_tokens")
    check(
        probs is None or routing_map is not None,
        op,
        "routing_map",
        "expected the map of tokens and experts, which probs needs, got None",
    )
    tokens = restore_shape[0]
    if is_empty(tokens) and is_empty(rows):
        return
    if routing_map is not None:
        _check_dims(op, "routing_map", routing_map, 2)
        check(
            routing_map.shape[0] == tokens,
            op,
            "routing_map",
            lambda: f"expected {tokens} rows, one for each token, got shape {list(routing_map.shape)}",
        )
        if probs is not None:
            _check_shape(op, "probs", probs, routing_map.shape, "tokens, experts")
    if not padded:
        _check_multiple(op, "permuted_tokens", rows, tokens)
    elif routing_map is not None:
        _check_multiple(op, "permuted_tokens", rows, routing_map.shape[1])


@fake
def npu_moe_token_unpermute_with_routing_map(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    restore_shape: Sequence[int],
    *,
    probs: Tensor | None = None,
    routing_map: Tensor | None = None,
    drop_and_pad: bool = False,
) -> Tensor:
    """Bring rows of :func:`npu_moe_token_permute_with_routing_map` back to their tokens and sum them.

    ``out[t] = sum over k < K of weight * permuted_tokens[sorted_indices[t * K + k]]`` with ``K = rows // tokens``; the
    weight is the probability of the k-th expert that the map selects for token t.  With `drop_and_pad`
    ``out[sorted_indices[i]] += probs[sorted_indices[i], expert of i] * permuted_tokens[i]``.  Without `probs` weights
    are 1.  In float32.  Differentiable in `permuted_tokens` and `probs`.

    Parameters
    ----------
    permuted_tokens : Tensor
        ``(rows, hidden)``; float16, bfloat16 or float32.
    sorted_indices : Tensor
        int32 or int64, ``(rows,)``: third output of :func:`npu_moe_token_permute_with_routing_map`.
    restore_shape : sequence of int
        ``(tokens, hidden)``.
    probs : Tensor, optional
        ``(tokens, experts)``, any floating dtype.  Needs `routing_map`.
    routing_map : Tensor, optional
        bool, int8 or uint8, ``(tokens, experts)``.
    drop_and_pad : bool
        As given to :func:`npu_moe_token_permute_with_routing_map`.

    Returns
    -------
    Tensor
        ``(tokens, hidden)``, dtype of `permuted_tokens`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, or a token has not K experts.
    IndexError
        If an index is out of range.  What depends on values is reported on npu at the next synchronisation.

    Examples
    --------
    >>> rows = torch.tensor([[1.0], [2.0], [0.0], [1.0], [0.0], [2.0]])
    >>> index = torch.tensor([2, 4, 0, 3, 1, 5], dtype=torch.int32)
    >>> torch.ops.npu.npu_moe_token_unpermute_with_routing_map(rows, index, [3, 1])
    tensor([[0.],
            [2.],
            [4.]])
    """
    op = "npu_moe_token_unpermute_with_routing_map"
    _check_unpermute(op, permuted_tokens, sorted_indices, restore_shape, probs, routing_map, drop_and_pad)
    return permuted_tokens.new_empty(restore_shape[0], permuted_tokens.shape[1])


@fake
def _npu_moe_token_unpermute_with_routing_map(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    restore_shape: Sequence[int],
    *,
    probs: Tensor | None = None,
    routing_map: Tensor | None = None,
    drop_and_pad: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`npu_moe_token_unpermute_with_routing_map` together with what its gradient needs.

    Parameters
    ----------
    permuted_tokens, sorted_indices, restore_shape, probs, routing_map, drop_and_pad
        As for :func:`npu_moe_token_unpermute_with_routing_map`.

    Returns
    -------
    out : Tensor
        ``(tokens, hidden)``, dtype of `permuted_tokens`.
    out_index : Tensor
        int32, ``(rows,)``.  With `drop_and_pad` the stable argsort of `sorted_indices`, else -1.
    permuted_token_id : Tensor
        int32, ``(rows,)``.  With `drop_and_pad` `sorted_indices` sorted, else -1.
    permute_probs : Tensor
        ``(rows,)``: the weights, in the order of rows with `drop_and_pad`, else token by token; 1 without `probs`.
        dtype of `probs` or of `permuted_tokens`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, or a token has not K experts.
    IndexError
        If an index is out of range.  What depends on values is reported on npu at the next synchronisation.
    """
    op = "_npu_moe_token_unpermute_with_routing_map"
    _check_unpermute(op, permuted_tokens, sorted_indices, restore_shape, probs, routing_map, drop_and_pad)
    rows, columns = permuted_tokens.shape
    return (
        permuted_tokens.new_empty(restore_shape[0], columns),
        permuted_tokens.new_empty(rows, dtype=torch.int32),
        permuted_tokens.new_empty(rows, dtype=torch.int32),
        (permuted_tokens if probs is None else probs).new_empty(rows),
    )


@fake
def npu_moe_token_unpermute_with_routing_map_grad(
    unpermuted_tokens_grad: Tensor,
    out_index: Tensor,
    permuted_token_id: Tensor,
    routing_map: Tensor | None,
    permuted_tokens: Tensor | None,
    probs: Tensor | None,
    drop_and_pad: bool,
    restore_shape: Sequence[int],
) -> tuple[Tensor, Tensor | None]:
    """Gradients of :func:`npu_moe_token_unpermute_with_routing_map`.

    Every row gets its weight times the gradient of its token; every probability the product of the row it weighed with
    the gradient of the token, 0 where it weighed none.  In float32.

    Parameters
    ----------
    unpermuted_tokens_grad : Tensor
        ``(tokens, hidden)``.
    out_index, permuted_token_id : Tensor
        int32, ``(rows,)``.  With `drop_and_pad` the outputs of :func:`_npu_moe_token_unpermute_with_routing_map`, else
        both `sorted_indices`.
    routing_map, probs, drop_and_pad, restore_shape
        As given to :func:`npu_moe_token_unpermute_with_routing_map`.
    permuted_tokens : Tensor, optional
        Rows that were unpermuted; needed with `probs`, then of the dtype of `unpermuted_tokens_grad`.

    Returns
    -------
    grad_permuted_tokens : Tensor
        ``(rows, hidden)``, dtype of `unpermuted_tokens_grad`.
    grad_probs : Tensor or None
        Shape of `probs`, dtype of `unpermuted_tokens_grad`; None without `probs`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, or a token has not as many experts as rows.
    IndexError
        If an index is out of range.  What depends on values is reported on npu at the next synchronisation.
    """
    op = "npu_moe_token_unpermute_with_routing_map_grad"
    grad = unpermuted_tokens_grad
    _check_dims(op, "unpermuted_tokens_grad", grad, 2)
    tokens, columns = grad.shape
    check(
        len(restore_shape) >= 2 and all(a == b for a, b in zip(restore_shape, grad.shape, strict=False)),
        op,
        "restore_shape",
        lambda: f"expected {list(grad.shape)} as unpermuted_tokens_grad has, got {list(restore_shape)}",
    )
    _check_dims(op, "out_index", out_index, 1)
    rows = out_index.shape[0]
    _check_shape(op, "permuted_token_id", permuted_token_id, (rows,), "as out_index")
    grad_permuted = grad.new_empty(rows, columns)
    if probs is None:
        if not drop_and_pad:
            _check_multiple(op, "out_index", rows, tokens)
        return grad_permuted, None
    check(
        routing_map is not None,
        op,
        "routing_map",
        "expected the map of tokens and experts, which probs needs, got None",
    )
    check(
        permuted_tokens is not None,
        op,
        "permuted_tokens",
        "expected the tensor that was unpermuted, which the gradient of probs needs, got None",
    )
    assert routing_map is not None and permuted_tokens is not None
    if is_empty(tokens) and is_empty(rows):
        return grad_permuted, grad.new_empty(probs.shape)
    _check_dims(op, "routing_map", routing_map, 2)
    experts = routing_map.shape[1]
    _check_shape(op, "routing_map", routing_map, (tokens, experts), "tokens, experts")
    _check_shape(op, "probs", probs, (tokens, experts), "tokens, experts")
    _check_shape(op, "permuted_tokens", permuted_tokens, (rows, columns), "rows, hidden")
    _check_multiple(op, "out_index", rows, experts if drop_and_pad else tokens)
    return grad_permuted, grad.new_empty(probs.shape)


def _save_permute(ctx: Any, inputs: dict[str, Any], output: tuple[Tensor, Tensor | None, Tensor]) -> None:
    sorted_indices = output[2]
    ctx.mark_non_differentiable(sorted_indices)
    ctx.save_for_backward(sorted_indices, inputs["routing_map"])
    ctx.drop_and_pad = inputs["drop_and_pad"]
    ctx.probs_shape = None if inputs["probs"] is None else inputs["probs"].shape


def _permute_gradient(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    sorted_indices, routing_map = ctx.saved_tensors
    tokens, experts = routing_map.shape
    grad_tokens, grad_probs = torch.ops.npu.npu_moe_token_permute_with_routing_map_grad(
        gradients[0], gradients[1], sorted_indices, routing_map, experts, tokens, ctx.drop_and_pad
    )
    if grad_probs is not None and is_empty(tokens):  # probs may have any shape
        grad_probs = grad_probs.new_zeros(ctx.probs_shape)
    return grad_tokens, grad_probs


def _save_unpermute(ctx: Any, inputs: dict[str, Any], output: Any) -> None:
    permuted, probs = inputs["permuted_tokens"], inputs["probs"]
    if isinstance(output, tuple):
        ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(inputs["sorted_indices"], None if probs is None else permuted, probs, inputs["routing_map"])
    ctx.restore_shape, ctx.drop_and_pad = inputs["restore_shape"], inputs["drop_and_pad"]


def _unpermute_gradient(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None]:
    sorted_indices, permuted, probs, routing_map = ctx.saved_tensors
    if ctx.drop_and_pad:
        token, row = sorted_indices.sort(stable=True)
    else:
        token = row = sorted_indices
    grad_permuted, grad_probs = torch.ops.npu.npu_moe_token_unpermute_with_routing_map_grad(
        gradients[0],
        row.to(torch.int32),
        token.to(torch.int32),
        routing_map,
        permuted,
        probs,
        ctx.drop_and_pad,
        ctx.restore_shape,
    )
    return grad_permuted, grad_probs.to(probs.dtype) if "probs" in ctx.needed else None


differentiable_with_keywords(
    "npu_moe_token_permute_with_routing_map", ("tokens", "probs"), _save_permute, _permute_gradient
)
for _name in ("npu_moe_token_unpermute_with_routing_map", "_npu_moe_token_unpermute_with_routing_map"):
    differentiable_with_keywords(_name, ("permuted_tokens", "probs"), _save_unpermute, _unpermute_gradient)
once_differentiable("npu_moe_token_permute_with_routing_map", "npu_moe_token_permute_with_routing_map_grad")
once_differentiable("npu_moe_token_unpermute_with_routing_map", "npu_moe_token_unpermute_with_routing_map_grad")
