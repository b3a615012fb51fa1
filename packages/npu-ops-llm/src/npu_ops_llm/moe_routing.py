"""Routing of tokens to experts.

Schemas and kernels: ``csrc/ops/moe_routing.cpp``, ``csrc/ops/moe_re_routing.cpp``, ``csrc/kernels/moe_routing.inc``.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from npu_ops_llm.moe_shapes import is_empty
from npu_ops_llm.registration import check, fake

Size: TypeAlias = int | torch.SymInt


def _check_tokens(op: str, x: Tensor, expert_idx: Tensor) -> None:
    check(x.dim() == 2, op, "x", lambda: f"expected 2 dims, (tokens, hidden), got shape {list(x.shape)}")
    check(
        expert_idx.dim() == 2,
        op,
        "expert_idx",
        lambda: f"expected 2 dims, (tokens, k), got shape {list(expert_idx.shape)}",
    )
    check(
        x.shape[0] == expert_idx.shape[0],
        op,
        "expert_idx",
        lambda: f"expected as many rows as x has, {x.shape[0]}, got {expert_idx.shape[0]}",
    )


@fake
def npu_moe_init_routing(
    x: Tensor, row_idx: Tensor, expert_idx: Tensor, active_num: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Copy each token once for each of its experts, sorted by expert.

    With ``order`` the stable argsort of `expert_idx` read row by row and ``src = row_idx.flatten()[order]``: expanded
    row i is the token ``src[i] % tokens``, and ``expanded_row_idx[src[i]] = i``.  Deprecated in favour of
    :func:`npu_moe_init_routing_v2`.

    Parameters
    ----------
    x : Tensor
        ``(tokens, hidden)``; float16, bfloat16 or float32.
    row_idx : Tensor
        ``(tokens, k)``, int32: a permutation of the slots with ``row_idx[t, j] % tokens == t``; third output of
        :func:`npu_moe_gating_top_k_softmax`.
    expert_idx : Tensor
        ``(tokens, k)``, int32: any numbers.
    active_num : int
        Only ``min(active_num, tokens) * k`` expanded rows are made.

    Returns
    -------
    expanded_x : Tensor
        ``(min(active_num, tokens) * k, hidden)``, dtype of `x`.
    expanded_row_idx : Tensor
        ``(tokens * k,)``, int32: where the slot ``j * tokens + t`` went.
    expanded_expert_idx : Tensor
        ``(tokens * k,)``, int32: the sorted experts.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, `active_num` is negative, or the tensors are on different devices.
    IndexError
        If an element of `row_idx` is no slot; on npu at the next synchronisation.

    Examples
    --------
    >>> x = torch.tensor([[0.1], [0.2], [0.3]])
    >>> row_idx = torch.tensor([[0, 3], [1, 4], [2, 5]], dtype=torch.int32)
    >>> experts = torch.tensor([[1, 2], [0, 1], [0, 2]], dtype=torch.int32)
    >>> torch.ops.npu.npu_moe_init_routing(x, row_idx, experts, 3)[1]
    tensor([2, 0, 1, 4, 3, 5], dtype=torch.int32)
    """
    op = "npu_moe_init_routing"
    _check_tokens(op, x, expert_idx)
    check(
        row_idx.dim() == 2 and all(a == b for a, b in zip(row_idx.shape, expert_idx.shape, strict=True)),
        op,
        "row_idx",
        lambda: f"expected shape {list(expert_idx.shape)} (as expert_idx), got {list(row_idx.shape)}",
    )
    check(active_num >= 0, op, "active_num", lambda: f"expected 0 or more tokens, got {active_num}")
    tokens, k = expert_idx.shape
    slots = row_idx.new_empty((tokens * k,))
    return x.new_empty((torch.sym_min(active_num, tokens) * k, x.shape[1])), slots, torch.empty_like(slots)


_E5M2_MODES = (2, 4, 11, 14, 16)
_BYTE_TYPES = (torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2)


def _row_format(
    op: str, quant_mode: int, x: Tensor, scale: Tensor | None, x_dtype: int | None
) -> tuple[torch.dtype, Size, torch.dtype, list[Size]]:
    """Dtype and length of the expanded rows, dtype and sizes of the scales of one row."""
    columns = x.shape[1]
    float8 = torch.float8_e5m2 if quant_mode in _E5M2_MODES else torch.float8_e4m3fn
    if quant_mode == -1:
        if scale is None or scale.dim() != 3 or x.dtype not in _BYTE_TYPES:
            check(
                scale is None or is_empty(x.shape[0]) or (scale.dim() == 1 and scale.shape[0] == x.shape[0]),
                op,
                "scale",
                lambda: f"expected shape [{x.shape[0]}] (tokens), got {list(scale.shape)}",  # type: ignore[union-attr]
            )
            return x.dtype, columns, torch.float32, []
        if is_empty(x.shape[0]) and scale.dtype not in (torch.uint8, torch.float8_e8m0fnu):
            return x.dtype, columns, torch.float32, []
        blocks = ((2 * columns if x_dtype in (296, 297) else columns) + 63) // 64
        check(
            is_empty(x.shape[0]) or (scale.shape[0] == x.shape[0] and scale.shape[1] == blocks and scale.shape[2] == 2),
            op,
            "scale",
            lambda: f"expected shape {[x.shape[0], blocks, 2]} (tokens, blocks of 64, 2), got {list(scale.shape)}",
        )
        return x.dtype, columns, scale.dtype, [blocks, 2]
    if quant_mode in (0, 1):
        return torch.int8, columns, torch.float32, []
    if quant_mode == 13:
        check(columns % 2 == 0, op, "x", "expected an even hidden size for quant_mode 13 (int4)")
        return torch.uint8, columns // 2, torch.float32, []
    if quant_mode in (2, 3, 16, 17):
        return float8, columns, torch.float8_e8m0fnu, [((columns + 31) // 32 + 1) // 2 * 2]
    if quant_mode in (4, 5, 14, 15):
        return float8, columns, torch.float32, [(columns + 127) // 128]
    check(
        quant_mode in (11, 12),
        op,
        "quant_mode",
        f"{quant_mode} is not supported on this device"
        if 6 <= quant_mode <= 9
        else f"expected -1, 0 to 5 or 11 to 17 except 9, got {quant_mode}",
    )
    return float8, columns, torch.float32, [(columns + 255) // 256, 2]


@fake
def npu_moe_init_routing_v2(
    x: Tensor,
    expert_idx: Tensor,
    *,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    active_num: int = -1,
    expert_capacity: int = -1,
    expert_num: int = -1,
    drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0,
    expert_tokens_num_flag: bool = False,
    quant_mode: int = -1,
    active_expert_range: Sequence[int] = (),
    row_idx_type: int = 0,
    x_dtype: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Copy each token once for each of its experts, sorted by expert, and quantise the copies.

    The slots ``t * k + j`` of `expert_idx` are sorted by expert, equal experts in order of slots; only experts in
    ``[begin, end)`` of `active_expert_range` take part.  Expanded row i is token ``order[i] // k``.

    Parameters
    ----------
    x : Tensor
        ``(tokens, hidden)``; float16, bfloat16 or float32, with `quant_mode` -1 also int8, uint8 and float8.
    expert_idx : Tensor
        ``(tokens, k)``, int32.
    scale : Tensor, optional
        `quant_mode` -1: ``(tokens,)``, float32, expanded like the rows (for 8-bit `x` also ``(tokens, blocks, 2)``);
        0: ``(1,)``, float32, required; 1: ``(1, hidden)`` or ``(end - begin, hidden)``, float32, multiplied into the
        rows (of each expert); 13: ``(1, hidden)``.
    offset : Tensor, optional
        ``(1,)``, float32; required with `quant_mode` 0.
    active_num : int
        Number of expanded rows, when that is less than ``tokens * k``; -1 and 0: all.
    expert_capacity : int
        With `drop_pad_mode` 1 the rows of each expert, from 1 to ``tokens``.
    expert_num : int
        Number of experts.
    drop_pad_mode : int
        0: the rows of all experts one after the other.  1: `expert_capacity` rows for each expert; slots beyond that
        are dropped, missing rows are 0.
    expert_tokens_num_type : int
        0: cumulative sums of the slots per expert; 1: the slots per expert, before dropping; 2: pairs of expert and
        slots of the experts that have any.
    expert_tokens_num_flag : bool
        Whether these are wanted; zeros otherwise.
    quant_mode : int
        -1 none; 0 int8 with one given scale and offset, ``clip(rint(r * scale + offset))`` in float16; 1 int8 with one
        scale per row, ``d = max|r| / 127``; 13 int4 likewise, two per byte; 2 and 3 (e5m2 and e4m3fn) one e8m0 scale
        for 32 columns, 16 and 17 likewise with ``max|r|`` at least 1e-4; 4 and 5 a power of two for 128 columns, 14
        and 15 likewise with ``max|r|`` at least 1e-4; 11 and 12 ``max|r|`` over the largest float8 for 128 columns.
    active_expert_range : sequence of int
        ``[begin, end)``; empty: all experts.
    row_idx_type : int
        0: ``expanded_row_idx[slot]`` is the expanded row, -1 for none; 1: ``expanded_row_idx[row]`` is the slot.
    x_dtype : int, optional
        What a uint8 `x` holds (hifloat8, float4); only moved.

    Returns
    -------
    expanded_x : Tensor
        ``(rows, hidden)``, or ``(expert_num, expert_capacity, hidden)``; rows nobody is routed to are 0.
    expanded_row_idx : Tensor
        ``(tokens * k,)``, int32.
    expert_token_cumsum_or_count : Tensor
        ``(end - begin,)`` or ``(expert_num, 2)``, int64.
    expanded_scale : Tensor
        Scales of the expanded rows: float32, ``(rows,)``; of float8 blocks ``(rows, blocks)``, or ``(rows, blocks, 2)``
        for the modes 11 and 12.

    Raises
    ------
    RuntimeError
        If a dtype, a shape or a number does not fit, the tensors are on different devices, or `quant_mode` is 6 to 9
        (hifloat8 and float4), which are not supported.

    Notes
    -----
    Source of the block formats: Open Compute Project, "OCP Microscaling Formats (MX) Specification", version 1.0.

    Examples
    --------
    >>> x = torch.tensor([[0.1], [0.2], [0.3]])
    >>> experts = torch.tensor([[1, 2], [0, 1], [0, 2]], dtype=torch.int32)
    >>> torch.ops.npu.npu_moe_init_routing_v2(x, experts, expert_num=3, active_expert_range=[0, 2])[1]
    tensor([ 2, -1,  0,  3,  1, -1], dtype=torch.int32)
    """
    op = "npu_moe_init_routing_v2"
    _check_tokens(op, x, expert_idx)
    first, last = active_expert_range if len(active_expert_range) == 2 else (0, expert_num)
    check(
        len(active_expert_range) in (0, 2) and 0 <= first < last <= expert_num,
        op,
        "active_expert_range",
        f"expected 0 <= begin < end <= expert_num, got {list(active_expert_range)} with expert_num {expert_num}",
    )
    tokens, k = expert_idx.shape
    slots = tokens * k
    dtype, columns, scale_dtype, scale_sizes = _row_format(op, quant_mode, x, scale, x_dtype)
    leading: list[Size] = [torch.sym_min(active_num, slots) if active_num > 0 else slots]
    rows = leading[0]
    if drop_pad_mode == 1:
        leading, rows = [expert_num, expert_capacity], expert_num * expert_capacity
    return (
        x.new_empty([*leading, columns], dtype=dtype),
        x.new_empty((slots,), dtype=torch.int32),
        x.new_empty((expert_num, 2) if expert_tokens_num_type == 2 else (last - first,), dtype=torch.int64),
        x.new_empty([rows, *scale_sizes], dtype=scale_dtype),
    )


@fake
def npu_moe_re_routing(
    tokens: Tensor,
    expert_token_num_per_rank: Tensor,
    *,
    per_token_scales: Tensor | None = None,
    expert_token_num_type: int = 1,
    idx_type: int = 0,
    tokens_dtype: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort tokens that lie rank by rank, and within a rank expert by expert, expert by expert instead.

    Parameters
    ----------
    tokens : Tensor
        ``(rows, ...)``, any dtype.
    expert_token_num_per_rank : Tensor
        ``(ranks, experts)``, int32 or int64: how many of the tokens came from each rank for each expert.
    per_token_scales : Tensor, optional
        ``(rows, ...)``, moved like the tokens.
    expert_token_num_type : int
        The fourth output holds 0: cumulative sums; 1: counts.
    idx_type : int
        0: ``index[new] = old``, so ``permute_tokens == tokens[index]``; 1: ``index[old] = new``.
    tokens_dtype : int, optional
        What uint8 tokens hold (hifloat8, float4); only moved.

    Returns
    -------
    permute_tokens : Tensor
        Shape and dtype of `tokens`.  Rows beyond the sum of the counts are 0.
    permute_per_token_scales : Tensor
        Shape and dtype of `per_token_scales`; without those zeros, ``(rows,)``, float32.
    permute_token_idx : Tensor
        ``(rows,)``, int32; -1 beyond the sum of the counts.
    expert_token_num : Tensor
        ``(experts,)``, dtype of `expert_token_num_per_rank`.

    Raises
    ------
    RuntimeError
        If a dtype, a shape or a number does not fit, or the tensors are on different devices; on npu at the next
        synchronisation if the counts are negative or add up to more than the rows.

    Examples
    --------
    >>> numbers = torch.tensor([[1, 2], [3, 1]])
    >>> torch.ops.npu.npu_moe_re_routing(torch.zeros(7, 4), numbers)[2:]
    (tensor([0, 3, 4, 5, 1, 2, 6], dtype=torch.int32), tensor([4, 3]))
    """
    op = "npu_moe_re_routing"
    check(tokens.dim() > 1, op, "tokens", lambda: f"expected 2 dims or more, got shape {list(tokens.shape)}")
    check(
        expert_token_num_per_rank.dim() == 2,
        op,
        "expert_token_num_per_rank",
        lambda: f"expected 2 dims, (ranks, experts), got shape {list(expert_token_num_per_rank.shape)}",
    )
    rows, experts = tokens.shape[0], expert_token_num_per_rank.shape[1]
    if per_token_scales is None:
        scales = tokens.new_empty((rows,), dtype=torch.float32)
    else:
        check(
            is_empty(rows) or (per_token_scales.dim() >= 1 and per_token_scales.shape[0] == rows),
            op,
            "per_token_scales",
            lambda: f"expected one row for each of the {rows} tokens, got shape {list(per_token_scales.shape)}",
        )
        scales = per_token_scales.new_empty((rows, *per_token_scales.shape[1:]))
    return (
        tokens.new_empty(tokens.shape),
        scales,
        tokens.new_empty((rows,), dtype=torch.int32),
        expert_token_num_per_rank.new_empty((experts,)),
    )
