"""Operators that carry the tokens of a mixture of experts to the experts' ranks and back.

Schemas and checks: ``csrc/mc2/moe_*_ops.cpp``; the calls themselves: ``csrc/mc2/moe_dispatch.cpp`` and
``csrc/mc2/moe_combine.cpp``; who gets what: ``csrc/mc2/moe_layout.h``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from npu_distributed.fused_operators import fake
from npu_distributed.moe_arguments import (
    CombineArguments,
    DispatchArguments,
    Placement,
    Size,
    check_algorithm,
    check_not_negative,
)

Seven: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _dispatched(
    arguments: DispatchArguments, metadata: Callable[[], Size], more_counts: Callable[[], Size] = lambda: 0
) -> Seven:
    """Check the arguments of dispatch and return its results; two tensor-parallel ranks share what both get.

    Results 2 and 4 depend on the version: the length of the former, and what the latter has more than counts.
    """
    arguments.check()
    x, rows, place, quant_mode = arguments.x, arguments.rows, arguments.placement, int(arguments.quant_mode)
    shared_rows = rows * torch.sym_max(1, place.tp_world_size)
    columns = x.size(1)
    scales = {3: ((columns + 127) // 128,), 4: ((columns + 63) // 64 * 2,), 5: ((columns + 63) // 64 * 2,)}
    counts = place.world * place.local_experts * (2 if place.tp_world_size == 2 else 1)
    return (
        x.new_empty((shared_rows, columns), dtype=arguments.output_dtype()),
        x.new_empty(
            (shared_rows, *scales.get(quant_mode, ())), dtype=torch.uint8 if quant_mode in (4, 5) else torch.float32
        ),
        x.new_empty((metadata(),), dtype=torch.int32),
        x.new_empty((place.local_experts,), dtype=torch.int64),
        x.new_empty((counts + more_counts(),), dtype=torch.int32),
        x.new_empty((place.tp_world_size,), dtype=torch.int32),
        x.new_empty((rows,), dtype=torch.float32),
    )


@fake
def npu_moe_distribute_dispatch_v2(
    x: Tensor,
    expert_ids: Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    scales: Tensor | None = None,
    x_active_mask: Tensor | None = None,
    expert_scales: Tensor | None = None,
    elastic_info: Tensor | None = None,
    performance_info: Tensor | None = None,
    group_tp: str = "",
    tp_world_size: int = 0,
    tp_rank_id: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    quant_mode: int = 0,
    global_bs: int = 0,
    expert_token_nums_type: int = 1,
    comm_alg: str = "",
    zero_expert_num: int = 0,
    copy_expert_num: int = 0,
    const_expert_num: int = 0,
    y_dtype: int | None = None,
    x_dtype: int | None = None,
    scales_dtype: int | None = None,
) -> Seven:
    """Send every token to the ranks of its experts.

    Every rank of the group calls it.  Ranks below `shared_expert_rank_num` (SR) hold shared experts, of which every
    token visits all; rank r of the others holds the L = `moe_expert_num` / (W - SR) experts from (r - SR) * L on.  The
    rows that a rank gets are sorted by local expert, then by source rank, token and slot; npu_moe_distribute_combine_v2
    brings back what the experts make of them.

    Below: W = `ep_world_size`, G = `global_bs` or, if that is 0, ``tokens * W``; A = ``G * min(L, k)`` rows on a rank
    of the experts, ``G / W * ceil(W / replicas)`` on a rank of shared experts (replicas = SR / `shared_expert_num`).

    Parameters
    ----------
    x : Tensor
        ``(tokens, hidden)``, bfloat16 or float16; int32 carries eight int4 each and needs `scales`.  The number of
        tokens may differ between ranks if `global_bs` is given, and may be 0.
    expert_ids : Tensor
        ``(tokens, k)``, int32, distinct in a row.  From `moe_expert_num` on follow the zero, copy and constant experts,
        which combine evaluates and nothing is sent to.
    group_ep : str
        Name of the communicator on this rank, as ``get_hccl_comm_name()`` of the group's backend returns it.
    ep_world_size, ep_rank_id : int
        Number of its ranks, and this rank in it.
    moe_expert_num : int
        Experts that are not shared; a multiple of W - SR.
    scales : Tensor, optional
        float32.  quant_mode 1 (needed), 2 and 3: ``(moe_expert_num, hidden)``, multiplied with the tokens that go to
        the expert; with shared experts their rows come first.  x of int32: ``(tokens,)``, travels with the tokens.
    x_active_mask : Tensor, optional
        bool, ``(tokens,)`` or ``(tokens, k)``: what is sent at all.  Shared experts get tokens with any active slot.
    expert_scales : Tensor, optional
        ``(tokens, k)``, float32, travels with the tokens.
    elastic_info : Tensor, optional
        ``(4 + 2 * W,)``, int32; the first element must be 0.
    performance_info : Tensor, optional
        ``(W,)``, int64; the microseconds that this rank has waited for each rank are added to it.
    group_tp, tp_world_size, tp_rank_id : str, int, int
        `tp_world_size` must be 0 or 1; 2, where two ranks share what both get, is known where only shapes are asked for
        (fake tensors).
    expert_shard_type : int
        Must be 0.
    shared_expert_num, shared_expert_rank_num : int
        Shared experts and the ranks that hold them.  No shared experts: 0 or 1, and 0.
    quant_mode : int
        How rows travel: 0 as they are, 1 int8 ``rint(x * scales)``, 2 int8 with a scale per row, 3 float8 with a scale
        for every 128 columns, 4 and 5 float8 with an e8m0 scale for every 32 columns.
    global_bs : int
        0, or W times the most tokens of any rank, the same on all ranks.
    expert_token_nums_type : int
        0 running sums, 1 numbers.
    comm_alg : str
        "", "fullmesh", "fullmesh_v1", "fullmesh_v2" or "hierarchy"; without effect.
    zero_expert_num, copy_expert_num, const_expert_num : int
        Special experts behind the others.
    y_dtype : int, optional
        quant_mode 3, 4 and 5: ``torch.float8_e4m3fn`` or ``torch.float8_e5m2`` (default of 5, the former of 3 and 4).
    x_dtype, scales_dtype : int, optional
        Must be those of the tensors.

    Returns
    -------
    expand_x : Tensor
        ``(A, hidden)``, dtype of `x`, int8 or float8; rows beyond those received are 0.
    dynamic_scales : Tensor
        ``(A,)``, float32; quant_mode 3: ``(A, ceil(hidden / 128))``, float32; 4 and 5: ``(A, ceil(hidden / 32))``,
        uint8, the second number rounded up to an even one.
    assist_info_for_combine : Tensor
        ``(max(tokens * k, 128 * A),)``, int32: source rank, token and slot of every row, then 0.  The slot of shared
        expert number q is k + q.
    expert_token_nums : Tensor
        ``(L,)``, int64: rows of the local experts, as `expert_token_nums_type` says.
    ep_recv_counts : Tensor
        ``(W * L,)``, int32: running number of rows by local expert and source rank.
    tp_recv_counts : Tensor
        ``(tp_world_size,)``, int32: the number of rows.
    expand_scales : Tensor
        ``(A,)``, float32: `expert_scales` of every row; 0 without them, for shared experts, and beyond the rows.

    Raises
    ------
    RuntimeError
        If an argument does not fit; at the next synchronisation, on every rank, if ranks disagree about one or an
        expert id is out of range.

    Examples
    --------
    >>> name = group._get_backend(torch.device("npu")).get_hccl_comm_name(rank)  # doctest: +SKIP
    >>> rows, _, assist, numbers, counts, _, _ = torch.ops.npu.npu_moe_distribute_dispatch_v2(
    ...     x, expert_ids, name, world, rank, experts
    ... )  # doctest: +SKIP
    """
    op = "npu_moe_distribute_dispatch_v2"
    check_algorithm(op, comm_alg)
    check_not_negative(
        op, zero_expert_num=zero_expert_num, copy_expert_num=copy_expert_num, const_expert_num=const_expert_num
    )
    place = Placement(
        op,
        ep_world_size,
        ep_rank_id,
        moe_expert_num,
        shared_expert_num,
        shared_expert_rank_num,
        tp_world_size,
        expert_shard_type,
    )
    arguments = DispatchArguments(
        place,
        x,
        expert_ids,
        scales,
        x_active_mask,
        expert_scales,
        quant_mode,
        global_bs,
        expert_token_nums_type,
        elastic_info,
        performance_info,
        y_dtype,
        x_dtype,
        scales_dtype,
    )
    return _dispatched(arguments, lambda: torch.sym_max(expert_ids.numel(), arguments.rows * 128))


@fake
def npu_moe_distribute_dispatch(
    x: Tensor,
    expert_ids: Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    scales: Tensor | None = None,
    x_active_mask: Tensor | None = None,
    expert_scales: Tensor | None = None,
    group_tp: str = "",
    tp_world_size: int = 0,
    tp_rank_id: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    quant_mode: int = 0,
    global_bs: int = 0,
    expert_token_nums_type: int = 1,
) -> Seven:
    """Send every token to the ranks of its experts; for npu_moe_distribute_combine.

    Parameters and results are those of npu_moe_distribute_dispatch_v2 except for what follows.

    Parameters
    ----------
    x : Tensor
        ``(tokens, hidden)``, bfloat16 or float16.
    quant_mode : int
        0, 1 or 2.  0 beside `scales` is 1.
    shared_expert_num : int
        1 with shared ranks, else 0 or 1.
    expert_shard_type : int
        Must be 0; 1, shared experts on the last ranks, is known where only shapes are asked for (fake tensors).

    Returns
    -------
    expand_idx : Tensor
        The third result. ``(tokens * k,)``, int32: how many slots before this one have the same expert.
    ep_recv_counts : Tensor
        With `expert_scales` longer by ``2 * G * k * (W // 8)`` elements, which are 0.
    expand_x, dynamic_scales, expand_scales : Tensor
        On a rank of shared experts A is G / SR if W is a multiple of SR.
    """
    op = "npu_moe_distribute_dispatch"
    place = Placement(
        op,
        ep_world_size,
        ep_rank_id,
        moe_expert_num,
        shared_expert_num,
        shared_expert_rank_num,
        tp_world_size,
        expert_shard_type,
        is_first_version=True,
    )
    if scales is not None and quant_mode == 0:
        quant_mode = 1
    arguments = DispatchArguments(
        place, x, expert_ids, scales, x_active_mask, expert_scales, quant_mode, global_bs, expert_token_nums_type
    )
    return _dispatched(
        arguments,
        expert_ids.numel,
        lambda: 0 if expert_scales is None else 2 * arguments.batch * expert_ids.size(1) * (ep_world_size // 8),
    )


@fake
def npu_moe_distribute_combine_v2(
    expand_x: Tensor,
    expert_ids: Tensor,
    assist_info_for_combine: Tensor,
    ep_send_counts: Tensor,
    expert_scales: Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    tp_send_counts: Tensor | None = None,
    x_active_mask: Tensor | None = None,
    expand_scales: Tensor | None = None,
    shared_expert_x: Tensor | None = None,
    elastic_info: Tensor | None = None,
    ori_x: Tensor | None = None,
    const_expert_alpha_1: Tensor | None = None,
    const_expert_alpha_2: Tensor | None = None,
    const_expert_v: Tensor | None = None,
    performance_info: Tensor | None = None,
    group_tp: str = "",
    tp_world_size: int = 0,
    tp_rank_id: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    global_bs: int = 0,
    comm_quant_mode: int = 0,
    comm_alg: str = "",
    zero_expert_num: int = 0,
    copy_expert_num: int = 0,
    const_expert_num: int = 0,
) -> Tensor:
    """Bring back what the experts have made of the rows of npu_moe_distribute_dispatch_v2, and add it up.

    ``out[t] = sum over j of expert_scales[t, j] * Y[t, j] + sum over shared experts + shared_expert_x[t]`` in float32,
    in this order, rounded once.  Y is the row that comes back for slot j; 0 for a zero expert; ``ori_x[t]`` for a copy
    expert; for constant expert c ``p1 * ori_x[t] + p2 * const_expert_v[c]`` with ``(p1, p2)`` the softmax of the
    products of ``ori_x[t]`` with ``const_expert_alpha_1[c]`` and ``const_expert_alpha_2[c]``.  Inactive slots add
    nothing; a token without active slots gives a row of 0.

    Every rank of the group calls it, also those that have got no rows.  The arguments that
    npu_moe_distribute_dispatch_v2 has too must be those it got.

    Parameters
    ----------
    expand_x : Tensor
        ``(rows, hidden)``, bfloat16, float16 or int32: results of the experts for the rows of dispatch, not weighted.
    assist_info_for_combine, ep_send_counts : Tensor
        Third and fifth result of dispatch.
    expert_scales : Tensor
        ``(tokens, k)``, float32.
    shared_expert_x : Tensor, optional
        ``(tokens, hidden)`` or ``(a, b, hidden)`` with ``a * b = tokens``, dtype of the result.
    ori_x : Tensor, optional
        ``(tokens, hidden)``, dtype of the result; needed with copy and constant experts.
    const_expert_alpha_1, const_expert_alpha_2, const_expert_v : Tensor, optional
        ``(const_expert_num, hidden)``, dtype of the result; needed with constant experts.
    comm_quant_mode : int
        0, or 2: rows travel as int8 with a scale for every 8 elements.
    tp_send_counts, expand_scales : Tensor, optional
        Without effect.

    Returns
    -------
    Tensor
        ``(tokens, hidden)``, dtype of `expand_x`; bfloat16 if that is int32.

    Raises
    ------
    RuntimeError
        If an argument does not fit; at the next synchronisation, on every rank, if ranks disagree about one, the
        triples name ranks, tokens or slots that do not exist, or a slot gets no row or two.
    """
    op = "npu_moe_distribute_combine_v2"
    check_algorithm(op, comm_alg)
    place = Placement(
        op,
        ep_world_size,
        ep_rank_id,
        moe_expert_num,
        shared_expert_num,
        shared_expert_rank_num,
        tp_world_size,
        expert_shard_type,
    )
    arguments = CombineArguments(
        place,
        expand_x,
        expert_ids,
        assist_info_for_combine,
        "assist_info_for_combine",
        ep_send_counts,
        expert_scales,
        x_active_mask,
        shared_expert_x,
        global_bs,
        comm_quant_mode,
        elastic_info=elastic_info,
        performance_info=performance_info,
        ori_x=ori_x,
        constants=(const_expert_alpha_1, const_expert_alpha_2, const_expert_v),
        special_experts=(zero_expert_num, copy_expert_num, const_expert_num),
    )
    arguments.check()
    return expand_x.new_empty((arguments.tokens, arguments.columns), dtype=arguments.dtype)


@fake
def npu_moe_distribute_combine(
    expand_x: Tensor,
    expert_ids: Tensor,
    expand_idx: Tensor,
    ep_send_counts: Tensor,
    expert_scales: Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    tp_send_counts: Tensor | None = None,
    x_active_mask: Tensor | None = None,
    activation_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    group_list: Tensor | None = None,
    expand_scales: Tensor | None = None,
    shared_expert_x: Tensor | None = None,
    group_tp: str = "",
    tp_world_size: int = 0,
    tp_rank_id: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    global_bs: int = 0,
    out_dtype: int = 0,
    comm_quant_mode: int = 0,
    group_list_type: int = 0,
) -> Tensor:
    """Bring back what the experts have made of the rows of npu_moe_distribute_dispatch, and add it up.

    The sum of npu_moe_distribute_combine_v2 without special experts; parameters as there except for what follows.

    Parameters
    ----------
    expand_idx, ep_send_counts : Tensor
        Third and fifth result of npu_moe_distribute_dispatch.
    out_dtype : int
        `expand_x` of int32: 0 gives bfloat16, 1 float16.
    activation_scale, weight_scale, group_list, group_list_type : Tensor, Tensor, Tensor, int
        Without effect.

    Returns
    -------
    Tensor
        ``(tokens, hidden)``, dtype of `expand_x` unless that is int32.
    """
    op = "npu_moe_distribute_combine"
    place = Placement(
        op,
        ep_world_size,
        ep_rank_id,
        moe_expert_num,
        shared_expert_num,
        shared_expert_rank_num,
        tp_world_size,
        expert_shard_type,
        is_first_version=True,
    )
    arguments = CombineArguments(
        place,
        expand_x,
        expert_ids,
        expand_idx,
        "expand_idx",
        ep_send_counts,
        expert_scales,
        x_active_mask,
        shared_expert_x,
        global_bs,
        comm_quant_mode,
        out_dtype=out_dtype,
    )
    arguments.check()
    return expand_x.new_empty((arguments.tokens, arguments.columns), dtype=arguments.dtype)


@fake
def npu_moe_distribute_combine_add_rms_norm(
    expand_x: Tensor,
    expert_ids: Tensor,
    expand_idx: Tensor,
    ep_send_counts: Tensor,
    expert_scales: Tensor,
    residual_x: Tensor,
    gamma: Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    tp_send_counts: Tensor | None = None,
    x_active_mask: Tensor | None = None,
    activation_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    group_list: Tensor | None = None,
    expand_scales: Tensor | None = None,
    shared_expert_x: Tensor | None = None,
    elastic_info: Tensor | None = None,
    ori_x: Tensor | None = None,
    const_expert_alpha_1: Tensor | None = None,
    const_expert_alpha_2: Tensor | None = None,
    const_expert_v: Tensor | None = None,
    group_tp: str = "",
    tp_world_size: int = 0,
    tp_rank_id: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    global_bs: int = 0,
    out_dtype: int = 0,
    comm_quant_mode: int = 0,
    group_list_type: int = 0,
    comm_alg: str = "",
    norm_eps: float = 1e-06,
    zero_expert_num: int = 0,
    copy_expert_num: int = 0,
    const_expert_num: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Bring back the rows of npu_moe_distribute_dispatch_v2, add them up, add a residual and normalise.

    With c the sum of npu_moe_distribute_combine_v2 in float32, before it is rounded:
    ``z = c + residual_x``, ``rstd = 1 / sqrt(mean(z ** 2) + norm_eps)``, ``y = z * rstd * gamma``.
    Parameters as there except for what follows.

    Parameters
    ----------
    expand_idx : Tensor
        In spite of its name assist_info_for_combine, the third result of npu_moe_distribute_dispatch_v2.
    residual_x : Tensor
        ``(tokens, 1, hidden)`` or ``(tokens, hidden)``, dtype of the result.
    gamma : Tensor
        ``(hidden,)``, dtype of the result.
    norm_eps : float
        Added to the mean.

    Returns
    -------
    y : Tensor
        ``(tokens, 1, hidden)``, dtype of `expand_x`.
    rstd : Tensor
        ``(tokens, 1, 1)``, float32.
    x : Tensor
        ``(tokens, 1, hidden)``, dtype of `expand_x`: z rounded.  A token without active slots has z = residual_x.
    """
    op = "npu_moe_distribute_combine_add_rms_norm"
    check_algorithm(op, comm_alg)
    place = Placement(
        op,
        ep_world_size,
        ep_rank_id,
        moe_expert_num,
        shared_expert_num,
        shared_expert_rank_num,
        tp_world_size,
        expert_shard_type,
    )
    arguments = CombineArguments(
        place,
        expand_x,
        expert_ids,
        expand_idx,
        "expand_idx",
        ep_send_counts,
        expert_scales,
        x_active_mask,
        shared_expert_x,
        global_bs,
        comm_quant_mode,
        out_dtype=out_dtype,
        elastic_info=elastic_info,
        ori_x=ori_x,
        constants=(const_expert_alpha_1, const_expert_alpha_2, const_expert_v),
        special_experts=(zero_expert_num, copy_expert_num, const_expert_num),
    )
    arguments.check()
    arguments.check_norm(residual_x, gamma)
    tokens, hidden, dtype = arguments.tokens, arguments.columns, arguments.dtype
    return (
        expand_x.new_empty((tokens, 1, hidden), dtype=dtype),
        expand_x.new_empty((tokens, 1, 1), dtype=torch.float32),
        expand_x.new_empty((tokens, 1, hidden), dtype=dtype),
    )
