"""Permuting tokens by expert and back.  Schemas and tasks: ``csrc/ops/moe_permute.cpp``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from npu_ops_llm import moe_routing_map  # noqa: F401  the second half of this family
from npu_ops_llm.moe_shapes import is_empty
from npu_ops_llm.registration import check, differentiable, fake, once_differentiable


def _check_dims(op: str, argument: str, tensor: Tensor, dims: int) -> None:
    check(tensor.dim() == dims, op, argument, lambda: f"expected {dims} dims, got shape {list(tensor.shape)}")


@fake
def npu_moe_token_permute(
    tokens: Tensor, indices: Tensor, num_out_tokens: int | None = None, padded_mode: bool = False
) -> tuple[Tensor, Tensor]:
    """Copy every token to its experts: rows sorted by expert.

    With ``K = indices.size(1)`` and ``order`` the stable argsort of the flattened `indices`,
    ``permuted_tokens[i] = tokens[order[i] // K]`` and ``sorted_indices = argsort(order)``: the row of each copy.
    Differentiable in `tokens`.

    Parameters
    ----------
    tokens : Tensor
        ``(tokens, hidden)``; float16, bfloat16 or float32.
    indices : Tensor
        int32 or int64, ``(tokens, K)`` or ``(tokens,)``: the experts of each token.
    num_out_tokens : int, optional
        Number of rows to keep, the others are dropped; from 0 downwards the number of rows to drop at the end.
    padded_mode : bool
        `indices` holds, for each expert, the tokens it takes: ``permuted_tokens = tokens[indices.flatten()]``, and the
        second result is `indices`.

    Returns
    -------
    permuted_tokens : Tensor
        ``(rows, hidden)``, dtype of `tokens`.
    sorted_indices : Tensor
        int32, ``(tokens * K,)``; entries that are no row of `permuted_tokens` belong to dropped copies.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, or more rows are to be dropped than there are.
    IndexError
        If `padded_mode` is set and an index is no token; on npu at the next synchronisation.

    Examples
    --------
    >>> tokens = torch.tensor([[0.0], [1.0], [2.0]])
    >>> torch.ops.npu.npu_moe_token_permute(tokens, torch.tensor([[1, 2], [0, 1], [0, 2]]))[1]
    tensor([2, 4, 0, 3, 1, 5], dtype=torch.int32)
    """
    op = "npu_moe_token_permute"
    _check_dims(op, "tokens", tokens, 2)
    check(indices.dim() in (1, 2), op, "indices", lambda: f"expected 1 or 2 dims, got shape {list(indices.shape)}")
    slots, limit = indices.numel(), num_out_tokens or 0
    if padded_mode:
        return tokens.new_empty(slots, tokens.shape[1]), indices.new_empty(indices.shape, dtype=torch.int32)
    check(
        indices.shape[0] == tokens.shape[0],
        op,
        "indices",
        lambda: f"expected {tokens.shape[0]} rows, one for each token, got shape {list(indices.shape)}",
    )
    rows = torch.sym_min(limit, slots) if limit > 0 else slots + limit
    check(rows >= 0, op, "num_out_tokens", lambda: f"expected at least {-slots}, which drops every row, got {limit}")
    return tokens.new_empty(rows, tokens.shape[1]), indices.new_empty(slots, dtype=torch.int32)


def _check_permute_grad(
    op: str, grad: Tensor, sorted_indices: Tensor, tokens: int | torch.SymInt, top_k: int | torch.SymInt, padded: bool
) -> None:
    _check_dims(op, "grad_permuted_tokens", grad, 2)
    expected = grad.shape[0] if padded else tokens * top_k
    what = "one for each row of grad_permuted_tokens" if padded else "tokens times top-k"
    check(
        sorted_indices.numel() == expected,
        op,
        "sorted_indices",
        lambda: f"expected {expected} elements, {what}, got {sorted_indices.numel()}",
    )


@fake
def npu_moe_token_permute_grad(
    tokens: Tensor, grad_permuted_tokens: Tensor, indices: Tensor, sorted_indices: Tensor, padded_mode: bool = False
) -> Tensor:
    """Gradient of :func:`npu_moe_token_permute` from what its forward got.

    ``grad[t] = sum over k of grad_permuted_tokens[sorted_indices[t * K + k]]``, in float32; copies that were dropped
    add nothing.

    Parameters
    ----------
    tokens, indices : Tensor
        As given to :func:`npu_moe_token_permute`.
    grad_permuted_tokens : Tensor
        ``(rows, hidden)``.
    sorted_indices : Tensor
        Second output of :func:`npu_moe_token_permute`.
    padded_mode : bool
        As given to :func:`npu_moe_token_permute`.

    Returns
    -------
    Tensor
        Shape and dtype of `tokens`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit.
    IndexError
        If an index is negative; on npu at the next synchronisation.
    """
    op = "npu_moe_token_permute_grad"
    _check_dims(op, "tokens", tokens, 2)
    top_k = indices.shape[1] if indices.dim() == 2 else 1
    _check_permute_grad(op, grad_permuted_tokens, sorted_indices, tokens.shape[0], top_k, padded_mode)
    return tokens.new_empty(tokens.shape)


@fake
def npu_moe_token_permute_grad_v2(
    grad_permuted_tokens: Tensor,
    sorted_indices: Tensor,
    tokens_size_0: int,
    tokens_dtype: torch.dtype,
    num_topK: int,
    padded_mode: bool = False,
) -> Tensor:
    """Gradient of :func:`npu_moe_token_permute` from shapes alone.

    Parameters
    ----------
    grad_permuted_tokens : Tensor
        ``(rows, hidden)``.
    sorted_indices : Tensor
        Second output of :func:`npu_moe_token_permute`.
    tokens_size_0 : int
        Number of tokens.
    tokens_dtype : torch.dtype
        dtype of the result: float16, bfloat16 or float32.
    num_topK : int
        Experts of each token.
    padded_mode : bool
        As given to :func:`npu_moe_token_permute`.

    Returns
    -------
    Tensor
        ``(tokens_size_0, hidden)`` of `tokens_dtype`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit.
    IndexError
        If an index is negative; on npu at the next synchronisation.
    """
    op = "npu_moe_token_permute_grad_v2"
    _check_permute_grad(op, grad_permuted_tokens, sorted_indices, tokens_size_0, num_topK, padded_mode)
    return grad_permuted_tokens.new_empty(tokens_size_0, grad_permuted_tokens.shape[1], dtype=tokens_dtype)


def _tokens_of_unpermute(
    op: str,
    rows: int | torch.SymInt,
    columns: int | torch.SymInt,
    sorted_indices: Tensor,
    probs: Tensor | None,
    padded: bool,
    restore_shape: Sequence[int] | None,
) -> int | torch.SymInt:
    """Check what unpermute and its gradient have in common; return the number of tokens."""
    slots = sorted_indices.numel()
    if padded:
        shape = restore_shape
        check(
            shape is not None and len(shape) == 2 and shape[1] == columns,
            op,
            "restore_shape",
            lambda: f"expected [tokens, {columns}], which padded_mode needs, got {shape}",
        )
        check(
            slots == rows,
            op,
            "sorted_indices",
            lambda: f"expected {rows} elements, one for each row, got {slots}",
        )
        assert shape is not None
        if probs is not None and not (is_empty(shape[0]) and is_empty(rows)):
            _check_dims(op, "probs", probs, 2)
            check(
                probs.numel() == rows,
                op,
                "probs",
                lambda: f"expected {rows} elements, one for each row, got shape {list(probs.shape)}",
            )
        return shape[0]
    _check_dims(op, "sorted_indices", sorted_indices, 1)
    if probs is None:
        return slots
    # Without slots the shape of probs does not matter, unless it says that tokens have no experts.
    if is_empty(slots) and (probs.dim() != 2 or not is_empty(probs.shape[1])):
        return slots
    _check_dims(op, "probs", probs, 2)
    check(probs.shape[1] > 0, op, "probs", lambda: f"expected at least one column, got shape {list(probs.shape)}")
    check(
        probs.numel() == slots,
        op,
        "probs",
        lambda: f"expected {slots} elements, as sorted_indices has, got shape {list(probs.shape)}",
    )
    return probs.shape[0]


@fake
def npu_moe_token_unpermute(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: Sequence[int] | None = None,
) -> Tensor:
    """Bring rows sorted by expert back to their tokens and sum them.

    ``out[t] = sum over k < K of probs[t, k] * permuted_tokens[sorted_indices[t * K + k]]`` in float32, with
    ``K = probs.size(1)``.  Indices that are no row stand for zeros.  Without `probs` K is 1: every copy comes back by
    itself.  Differentiable in `permuted_tokens` and `probs`.

    Parameters
    ----------
    permuted_tokens : Tensor
        ``(rows, hidden)``; float16, bfloat16 or float32.
    sorted_indices : Tensor
        int32 or int64, ``(tokens * K,)``: the second output of :func:`npu_moe_token_permute`.
    probs : Tensor, optional
        ``(tokens, K)``, any floating dtype.
    padded_mode : bool
        ``out[sorted_indices[i]] += probs.flatten()[i] * permuted_tokens[i]`` on zeros of `restore_shape`.
    restore_shape : sequence of int, optional
        ``(tokens, hidden)``; needed and used in padded mode only.

    Returns
    -------
    Tensor
        ``(tokens, hidden)``, dtype of `permuted_tokens`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit.
    IndexError
        If an index is negative, or no token in padded mode; on npu at the next synchronisation.

    Examples
    --------
    >>> rows = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    >>> index = torch.tensor([2, 0, 1, 3], dtype=torch.int32)
    >>> torch.ops.npu.npu_moe_token_unpermute(rows, index, torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    tensor([[2.],
            [2.]])
    """
    op = "npu_moe_token_unpermute"
    _check_dims(op, "permuted_tokens", permuted_tokens, 2)
    rows, columns = permuted_tokens.shape
    tokens = _tokens_of_unpermute(op, rows, columns, sorted_indices, probs, padded_mode, restore_shape)
    return permuted_tokens.new_empty(tokens, columns)


@fake
def _npu_moe_token_unpermute(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """:func:`npu_moe_token_unpermute` together with what its gradient needs.

    Parameters
    ----------
    permuted_tokens, sorted_indices, probs, padded_mode, restore_shape
        As for :func:`npu_moe_token_unpermute`.

    Returns
    -------
    unpermuted_tokens : Tensor
        ``(tokens, hidden)``, dtype of `permuted_tokens`.
    permuted_tokens_for_backward : Tensor or None
        A copy of `permuted_tokens`; None without `probs`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit.
    IndexError
        If an index is negative, or no token in padded mode; on npu at the next synchronisation.
    """
    op = "_npu_moe_token_unpermute"
    _check_dims(op, "permuted_tokens", permuted_tokens, 2)
    rows, columns = permuted_tokens.shape
    tokens = _tokens_of_unpermute(op, rows, columns, sorted_indices, probs, padded_mode, restore_shape)
    kept = torch.empty_like(permuted_tokens) if probs is not None else None
    return permuted_tokens.new_empty(tokens, columns), kept


def _unpermute_grad(
    op: str,
    grad: Tensor,
    sorted_indices: Tensor,
    rows: int | torch.SymInt,
    dtype: torch.dtype,
    probs: Tensor | None,
    padded: bool,
    restore_shape: Sequence[int] | None,
    permuted_tokens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    _check_dims(op, "grad_unpermuted_tokens", grad, 2)
    columns = grad.shape[1]
    tokens = _tokens_of_unpermute(op, rows, columns, sorted_indices, probs, padded, restore_shape)
    check(
        grad.shape[0] == tokens,
        op,
        "grad_unpermuted_tokens",
        lambda: f"expected {tokens} rows, one for each token, got shape {list(grad.shape)}",
    )
    check(
        probs is None or permuted_tokens is not None,
        op,
        "permuted_tokens",
        "expected the tensor that was unpermuted, which the gradient of probs needs, got None",
    )
    grad_probs = grad.new_empty((), dtype=dtype) if probs is None else probs.new_empty(probs.shape)
    return grad.new_empty(rows, columns, dtype=dtype), grad_probs


@fake
def npu_moe_token_unpermute_grad(
    permuted_tokens: Tensor,
    grad_unpermuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`npu_moe_token_unpermute` from what its forward got.

    With ``r = sorted_indices[t * K + k]``: ``grad_permuted_tokens[r] = probs[t, k] * grad_unpermuted_tokens[t]``, zero
    for rows that no index names, a sum for rows that several name; ``grad_probs[t, k]`` is the product of
    ``grad_unpermuted_tokens[t]`` with ``permuted_tokens[r]``, zero for indices that are no row.  In float32.

    Parameters
    ----------
    permuted_tokens, sorted_indices, probs, padded_mode, restore_shape
        As given to :func:`npu_moe_token_unpermute`.
    grad_unpermuted_tokens : Tensor
        ``(tokens, hidden)``.

    Returns
    -------
    grad_permuted_tokens : Tensor
        Shape and dtype of `permuted_tokens`.
    grad_probs : Tensor
        Shape and dtype of `probs`; without `probs` one zero without dims, of the dtype of `permuted_tokens`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit.
    IndexError
        If an index is negative, or no token in padded mode; on npu at the next synchronisation.
    """
    op = "npu_moe_token_unpermute_grad"
    _check_dims(op, "permuted_tokens", permuted_tokens, 2)
    return _unpermute_grad(
        op,
        grad_unpermuted_tokens,
        sorted_indices,
        permuted_tokens.shape[0],
        permuted_tokens.dtype,
        probs,
        padded_mode,
        restore_shape,
        permuted_tokens,
    )


@fake
def npu_moe_token_unpermute_grad_v2(
    grad_unpermuted_tokens: Tensor,
    sorted_indices: Tensor,
    permuted_tokens_size_0: int,
    permuted_tokens_dtype: torch.dtype,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: Sequence[int] | None = None,
    permuted_tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`npu_moe_token_unpermute_grad`, without the permuted tokens where there are no `probs`.

    Parameters
    ----------
    grad_unpermuted_tokens : Tensor
        ``(tokens, hidden)``.
    sorted_indices, probs, padded_mode, restore_shape
        As given to :func:`npu_moe_token_unpermute`.
    permuted_tokens_size_0 : int
        Rows of the permuted tokens.
    permuted_tokens_dtype : torch.dtype
        dtype of the permuted tokens: float16, bfloat16 or float32.
    permuted_tokens : Tensor, optional
        The permuted tokens; needed with `probs`.

    Returns
    -------
    grad_permuted_tokens : Tensor
        ``(permuted_tokens_size_0, hidden)`` of `permuted_tokens_dtype`.
    grad_probs : Tensor
        Shape and dtype of `probs`; without `probs` one zero without dims, of `permuted_tokens_dtype`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit.
    IndexError
        If an index is negative, or no token in padded mode; on npu at the next synchronisation.
    """
    return _unpermute_grad(
        "npu_moe_token_unpermute_grad_v2",
        grad_unpermuted_tokens,
        sorted_indices,
        permuted_tokens_size_0,
        permuted_tokens_dtype,
        probs,
        padded_mode,
        restore_shape,
        permuted_tokens,
    )


# ---- autograd ---------------------------------------------------------------------------------------------------


def _permute_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tokens, indices, _, padded = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])
    ctx.tokens, ctx.dtype, ctx.padded = tokens.shape[0], tokens.dtype, padded
    ctx.top_k = indices.shape[1] if indices.dim() == 2 else 1


def _permute_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    (sorted_indices,) = ctx.saved_tensors
    gradient = torch.ops.npu.npu_moe_token_permute_grad_v2(
        grad, sorted_indices, ctx.tokens, ctx.dtype, ctx.top_k, ctx.padded
    )
    return gradient, None, None, None


def _unpermute_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    permuted, sorted_indices, probs, padded, restore_shape = inputs
    if isinstance(output, tuple) and output[1] is not None:
        ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(permuted if probs is not None else None, sorted_indices, probs)
    ctx.rows, ctx.dtype, ctx.padded, ctx.restore_shape = permuted.shape[0], permuted.dtype, padded, restore_shape


def _unpermute_backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    permuted, sorted_indices, probs = ctx.saved_tensors
    grad_permuted, grad_probs = torch.ops.npu.npu_moe_token_unpermute_grad_v2(
        grad, sorted_indices, ctx.rows, ctx.dtype, probs, ctx.padded, ctx.restore_shape, permuted
    )
    needs_tokens, needs_probs = ctx.needs_input_grad[0], probs is not None and ctx.needs_input_grad[2]
    return grad_permuted if needs_tokens else None, None, grad_probs if needs_probs else None, None, None


differentiable("npu_moe_token_permute", _permute_context, _permute_backward)
once_differentiable("npu_moe_token_permute", "npu_moe_token_permute_grad")
once_differentiable("npu_moe_token_permute", "npu_moe_token_permute_grad_v2")
differentiable("npu_moe_token_unpermute", _unpermute_context, _unpermute_backward)
differentiable("_npu_moe_token_unpermute", _unpermute_context, _unpermute_backward)
once_differentiable("npu_moe_token_unpermute", "npu_moe_token_unpermute_grad")
once_differentiable("npu_moe_token_unpermute", "npu_moe_token_unpermute_grad_v2")
