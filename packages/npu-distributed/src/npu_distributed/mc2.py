"""Matrix products fused with communication.  Schemas and kernels: ``csrc/mc2``.

To its caller such an operator is work of the current stream: the host does not wait, and nothing needs to be
synchronised.  Inside, products and communication overlap.  None of them is differentiable: results are detached.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from npu_distributed.argument_checks import check, check_comm_mode, check_comm_turn, check_reduce_op, check_world_size
from npu_distributed.fused_operators import fake
from npu_distributed.product_arguments import GroupedOperands, ReducedOperands, check_inner, check_scaled_operands


@fake
def npu_all_gather_base_mm(
    self: Tensor,
    x2: Tensor,
    hcom: str,
    world_size: int,
    *,
    bias: Tensor | None = None,
    x1_scale: Tensor | None = None,
    x2_scale: Tensor | None = None,
    gather_index: int = 0,
    gather_output: bool = True,
    comm_turn: int = 0,
    output_dtype: torch.dtype | None = None,
    comm_mode: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Multiply the rows of all ranks by an own matrix: ``G = cat(self of all ranks)``, ``output = G @ x2 + bias``.

    Quantised: ``output = (G @ x2 + bias) * cat(x1_scale of all ranks) * x2_scale``, in float32 and rounded once; the
    sum of int8 products is exact.

    Parameters
    ----------
    self : Tensor
        Shape ``[m, k]``, the same on all ranks; float16, bfloat16 or int8.
    x2 : Tensor
        Shape ``[k, n]``, a transposed view allowed; dtype of `self`.
    hcom : str
        Name of the communicator on this rank, as ``get_hccl_comm_name()`` of the group's backend returns it.
    world_size : int
        Number of its ranks.
    bias : Tensor, optional
        Shape ``[n]``; dtype of `self`, or for int8 one of int32, float32, float16, bfloat16.
    x1_scale : Tensor, optional
        float32 ``[m, 1]``, the scales of this rank's rows; needs `x2_scale`.
    x2_scale : Tensor, optional
        ``[1, n]``; float32, or int64 as ``npu_trans_quant_param`` makes it.  Required for int8.
    gather_index : int, default 0
        0 gathers `self`; 1 gathers `x2`, ``output = self @ cat(x2 of all ranks) + bias``, where `self` is
        ``[m, world_size * k]``.
    gather_output : bool, default True
        Whether the gathered matrix is returned.
    comm_turn : int
        0; without effect.
    output_dtype : torch.dtype, optional
        Beside a float32 `x2_scale`: float16, bfloat16 (default) or float32.  Else without effect.
    comm_mode : {None, "ai_cpu", "aiv"}
        Without effect.

    Returns
    -------
    output : Tensor
        ``[world_size * m, n]``, or ``[m, n]`` when `gather_index` is 1.  The dtype of `self`; with an int64 `x2_scale`
        float16, with a float32 one `output_dtype`.
    gathered : Tensor
        The gathered matrix, or an empty tensor of shape ``[0]``.

    Raises
    ------
    RuntimeError
        If an argument does not fit, or there is no communicator `hcom` with `world_size` ranks on the current device.
        What ranks get wrong together fails the stream.
    NotImplementedError
        For float8 and float4 tensors.
    """
    op = "npu_all_gather_base_mm"
    dtype = check_scaled_operands(op, self, x2, bias, x1_scale, x2_scale, output_dtype)
    check(gather_index in (0, 1), op, "gather_index", lambda: f"expected 0 or 1, but got {gather_index}")
    check_comm_turn(op, comm_turn)
    check_comm_mode(op, comm_mode)
    check_world_size(op, "world_size", world_size)
    if gather_index == 0:
        check_inner(op, "self", self.size(1), x2)
        gathered = [world_size * self.size(0), self.size(1)]
        rows = gathered[0]
    else:
        gathered = [world_size * x2.size(0), x2.size(1)]
        check(
            self.size(1) == gathered[0],
            op,
            "self",
            lambda: f"expected {gathered[0]} columns, the rows of x2 on all ranks, but got {self.size(1)}",
        )
        rows = self.size(0)
    output = self.new_empty([rows, x2.size(1)], dtype=dtype)
    return output, self.new_empty(gathered if gather_output else [0])


@fake
def npu_mm_reduce_scatter_base(
    self: Tensor,
    x2: Tensor,
    hcom: str,
    world_size: int,
    *,
    reduce_op: str = "sum",
    bias: Tensor | None = None,
    x1_scale: Tensor | None = None,
    x2_scale: Tensor | None = None,
    comm_turn: int = 0,
    output_dtype: torch.dtype | None = None,
    comm_mode: str | None = None,
) -> Tensor:
    """Sum products over ranks and give each rank its rows: ``output = rows of sum(self @ x2 + bias)``.

    Quantised, every rank's term is ``(self @ x2 + bias) * x1_scale * x2_scale``.  The bias of every rank counts.

    Terms are summed in float32, those of a machine in rank order and then the machines' sums in their order, and the
    result is rounded once: nothing is rounded to 16 bits before.

    Parameters
    ----------
    self : Tensor
        Shape ``[m, k]`` with `m` divisible by `world_size`; float16, bfloat16 or int8.
    x2 : Tensor
        Shape ``[k, n]``, a transposed view allowed; dtype of `self`.
    hcom : str
        Name of the communicator on this rank, as ``get_hccl_comm_name()`` of the group's backend returns it.
    world_size : int
        Number of its ranks.
    reduce_op : {"sum"}
        The reduction.
    bias : Tensor, optional
        Shape ``[n]``; dtype of `self`, or for int8 one of int32, float32, float16, bfloat16.
    x1_scale : Tensor, optional
        float32 ``[m, 1]``; needs `x2_scale`.
    x2_scale : Tensor, optional
        ``[1, n]``; float32, or int64 as ``npu_trans_quant_param`` makes it.  Required for int8.
    comm_turn : int
        0; without effect.
    output_dtype : torch.dtype, optional
        Beside a float32 `x2_scale`: float16, bfloat16 (default) or float32.  Else without effect.
    comm_mode : {None, "ai_cpu", "aiv"}
        Without effect.

    Returns
    -------
    Tensor
        ``[m / world_size, n]``, on rank r the rows from ``r * m / world_size`` on.  The dtype of `self`; with an int64
        `x2_scale` float16, with a float32 one `output_dtype`.

    Raises
    ------
    RuntimeError
        If an argument does not fit, or there is no communicator `hcom` with `world_size` ranks on the current device.
        What ranks get wrong together fails the stream.
    NotImplementedError
        For float8 and float4 tensors.
    """
    op = "npu_mm_reduce_scatter_base"
    dtype = check_scaled_operands(op, self, x2, bias, x1_scale, x2_scale, output_dtype)
    check_inner(op, "self", self.size(1), x2)
    check_reduce_op(op, reduce_op)
    check_comm_turn(op, comm_turn)
    check_comm_mode(op, comm_mode)
    check_world_size(op, "world_size", world_size)
    check(
        self.size(0) % world_size == 0,
        op,
        "self",
        lambda: f"expected a number of rows divisible by the {world_size} ranks, but got {self.size(0)}",
    )
    return self.new_empty([self.size(0) // world_size, x2.size(1)], dtype=dtype)


@fake
def npu_mm_all_reduce_base(
    x1: Tensor,
    x2: Tensor,
    hcom: str,
    *,
    reduce_op: str = "sum",
    bias: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    x3: Tensor | None = None,
    dequant_scale: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    comm_quant_scale_1: Tensor | None = None,
    comm_quant_scale_2: Tensor | None = None,
    antiquant_group_size: int = 0,
    comm_turn: int = 0,
    group_sizes: Sequence[int] | None = None,
    y_dtype: int | None = None,
    x1_dtype: int | None = None,
    x2_dtype: int | None = None,
    dequant_scale_dtype: int | None = None,
    pertoken_scale_dtype: int | None = None,
    comm_quant_mode: int = 0,
    comm_mode: str | None = None,
) -> Tensor:
    """Sum products over ranks: ``output = sum over ranks of P``.

    ``P = x1 @ x2 + bias + x3``, or with an int8 `x2` beside a float `x1`
    ``P = x1 @ ((x2 + antiquant_offset) * antiquant_scale) + bias + x3``, or with both int8
    ``P = (x1 @ x2 + bias) * dequant_scale * pertoken_scale[:, None] + x3``.  `bias` and `x3` of every rank count.

    The terms P are summed in float32, those of a machine in rank order and then the machines' sums in their order, and
    the result is rounded once: nothing is rounded to 16 bits before, not even a dequantised `x2`.

    Parameters
    ----------
    x1 : Tensor
        Shape ``[m, k]`` or ``[b, s, k]``; float16, bfloat16 or int8.
    x2 : Tensor
        Shape ``[k, n]``, a transposed view allowed; dtype of `x1` or int8.
    hcom : str
        Name of the communicator on this rank, as ``get_hccl_comm_name()`` of the group's backend returns it.
    reduce_op : {"sum"}
        The reduction.
    bias : Tensor, optional
        Shape ``[n]``; int32 for an int8 `x1`, else the dtype of `x1`.
    antiquant_scale, antiquant_offset : Tensor, optional
        Dtype of `x1`; ``[1]``, ``[n]`` or ``[1, n]``, or ``[ceil(k / antiquant_group_size), n]``.
    x3 : Tensor, optional
        Shape and dtype of the output.
    dequant_scale : Tensor, optional
        ``[1]``, ``[n]`` or ``[1, n]``; bfloat16, float32, or int64 or uint64 as ``npu_trans_quant_param`` makes it.
        Required when both are int8.
    pertoken_scale : Tensor, optional
        float32, one number per row of `x1`.
    comm_quant_scale_1, comm_quant_scale_2 : Tensor, optional
        ``[n]`` or ``[1, n]``, dtype of the output, the same on all ranks; both or none, with int8 tensors only.  Terms
        then travel as ``q = clip(rint(P / s1), -128, 127)``, and the output is
        ``clip(rint(sum of q * s1 / s2), -128, 127) * s2``.
    antiquant_group_size : int, default 0
        Rows of `x2` that share a scale, a multiple of 32 less than `k`; 0 = no groups.
    comm_turn : int
        0; without effect.
    group_sizes : sequence of int, optional
        Empty or 3 numbers; without effect.
    y_dtype, comm_quant_mode : int
        Without effect.
    x1_dtype, x2_dtype, dequant_scale_dtype, pertoken_scale_dtype : int, optional
        For types that are not supported; None.
    comm_mode : {None, "ai_cpu", "aiv"}
        Without effect.

    Returns
    -------
    Tensor
        The shape of `x1` with `n` for the last dim.  Dtype of `x1`; for int8 bfloat16 when `dequant_scale` is, else
        float16.

    Raises
    ------
    RuntimeError
        If an argument does not fit, or there is no communicator `hcom` on the current device.  What ranks get wrong
        together fails the stream.
    NotImplementedError
        For float8, hifloat8 and float4 tensors.
    """
    op = "npu_mm_all_reduce_base"
    if any(one is not None for one in (x1_dtype, x2_dtype, dequant_scale_dtype, pertoken_scale_dtype)):
        raise NotImplementedError(
            f"{op}: x1_dtype, x2_dtype, dequant_scale_dtype and pertoken_scale_dtype describe float8, hifloat8 and "
            "float4 tensors, which this version does not support; pass None"
        )
    operands = ReducedOperands(
        op,
        x1,
        x2,
        bias,
        antiquant_scale,
        antiquant_offset,
        x3,
        dequant_scale,
        pertoken_scale,
        comm_quant_scale_1,
        comm_quant_scale_2,
        antiquant_group_size,
    )
    operands.check()
    check_reduce_op(op, reduce_op)
    check_comm_turn(op, comm_turn)
    check_comm_mode(op, comm_mode)
    check(
        len(group_sizes or ()) in (0, 3),
        op,
        "group_sizes",
        lambda: f"expected no or 3 numbers, but got {len(group_sizes or ())}",
    )
    return x1.new_empty(operands.shape, dtype=operands.dtype)


def _check_grouped(
    operands: GroupedOperands,
    send_counts_tensor: Tensor | None,
    recv_counts_tensor: Tensor | None,
    comm_mode: str | None,
) -> None:
    op = operands.op
    operands.check()
    for name, tensor in (("send_counts", send_counts_tensor), ("recv_counts", recv_counts_tensor)):
        check(tensor is None, op, f"{name}_tensor", f"it is reserved; pass None and the list {name}")
    check_comm_mode(op, comm_mode)


@fake
def npu_alltoallv_gmm(
    gmm_x: Tensor,
    gmm_weight: Tensor,
    hcom: str,
    ep_world_size: int,
    send_counts: Sequence[int],
    recv_counts: Sequence[int],
    *,
    send_counts_tensor: Tensor | None = None,
    recv_counts_tensor: Tensor | None = None,
    mm_x: Tensor | None = None,
    mm_weight: Tensor | None = None,
    trans_gmm_weight: bool = False,
    trans_mm_weight: bool = False,
    permute_out_flag: bool = False,
    comm_mode: str | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Send rows to the ranks of their experts and multiply them there, each by its expert's matrix.

    With ``e = gmm_weight.size(0)`` experts per rank, global expert ``d * e + j`` is local expert j of rank d.  The rows
    that arrive are ordered by local expert, then by source rank; those of expert j are multiplied by ``gmm_weight[j]``.

    Parameters
    ----------
    gmm_x : Tensor
        Shape ``[sum(send_counts), H1]``, rows ordered by global expert; float16 or bfloat16.
    gmm_weight : Tensor
        Shape ``[e, H1, N1]``, or ``[e, N1, H1]`` with `trans_gmm_weight`; dtype of `gmm_x`.
    hcom : str
        Name of the communicator on this rank, as ``get_hccl_comm_name()`` of the group's backend returns it.
    ep_world_size : int
        Number of its ranks.
    send_counts : sequence of int
        ``send_counts[d * e + j]`` rows of this rank go to expert j of rank d.
    recv_counts : sequence of int
        ``recv_counts[s * e + j]`` rows come from rank s for expert j.
    send_counts_tensor, recv_counts_tensor : None
        Reserved.
    mm_x : Tensor, optional
        Shape ``[BS, H2]``: a local product, independent of the rest.
    mm_weight : Tensor, optional
        Shape ``[H2, N2]``, or ``[N2, H2]`` with `trans_mm_weight`.
    trans_gmm_weight, trans_mm_weight : bool, default False
        Whether the matrices are given transposed.
    permute_out_flag : bool, default False
        Whether the rows that arrived are returned.
    comm_mode : {None, "ai_cpu", "aiv"}
        Without effect.

    Returns
    -------
    gmm_y : Tensor
        ``[sum(recv_counts), N1]``, dtype of `gmm_x`.
    mm_y : Tensor or None
        ``[BS, N2]``, or None without `mm_x`.
    permute_out : Tensor or None
        ``[sum(recv_counts), H1]``: the rows that arrived, or None without `permute_out_flag`.

    Raises
    ------
    RuntimeError
        If an argument does not fit, or there is no communicator `hcom` with `ep_world_size` ranks on the current
        device.  Counts of two ranks that do not fit together fail the stream of every rank.
    """
    operands = GroupedOperands(
        "npu_alltoallv_gmm",
        gmm_x,
        gmm_weight,
        ep_world_size,
        send_counts,
        recv_counts,
        mm_x,
        mm_weight,
        trans_gmm_weight,
        trans_mm_weight,
    )
    _check_grouped(operands, send_counts_tensor, recv_counts_tensor, comm_mode)
    rows = sum(recv_counts)
    return (
        gmm_x.new_empty([rows, operands.columns()]),
        operands.local_product(),
        gmm_x.new_empty([rows, gmm_x.size(1)]) if permute_out_flag else None,
    )


@fake
def npu_gmm_alltoallv(
    gmm_x: Tensor,
    gmm_weight: Tensor,
    hcom: str,
    ep_world_size: int,
    send_counts: Sequence[int],
    recv_counts: Sequence[int],
    *,
    send_counts_tensor: Tensor | None = None,
    recv_counts_tensor: Tensor | None = None,
    mm_x: Tensor | None = None,
    mm_weight: Tensor | None = None,
    trans_gmm_weight: bool = False,
    trans_mm_weight: bool = False,
    comm_mode: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Multiply rows by their experts' matrices and send them back: the way of :func:`npu_alltoallv_gmm`, backwards.

    Parameters
    ----------
    gmm_x : Tensor
        Shape ``[sum(send_counts), H1]``, rows ordered by local expert, then by the rank they go to; float16 or
        bfloat16.
    gmm_weight : Tensor
        Shape ``[e, H1, N1]``, or ``[e, N1, H1]`` with `trans_gmm_weight`; dtype of `gmm_x`.
    hcom : str
        Name of the communicator on this rank, as ``get_hccl_comm_name()`` of the group's backend returns it.
    ep_world_size : int
        Number of its ranks.
    send_counts : sequence of int
        ``send_counts[s * e + j]`` rows of local expert j go to rank s: `recv_counts` of :func:`npu_alltoallv_gmm`.
    recv_counts : sequence of int
        ``recv_counts[d * e + j]`` rows come from expert j of rank d: `send_counts` of :func:`npu_alltoallv_gmm`.
    send_counts_tensor, recv_counts_tensor : None
        Reserved.
    mm_x : Tensor, optional
        Shape ``[BS, H2]``: a local product, independent of the rest.
    mm_weight : Tensor, optional
        Shape ``[H2, N2]``, or ``[N2, H2]`` with `trans_mm_weight`.
    trans_gmm_weight, trans_mm_weight : bool, default False
        Whether the matrices are given transposed.
    comm_mode : {None, "ai_cpu", "aiv"}
        Without effect.

    Returns
    -------
    y : Tensor
        ``[sum(recv_counts), N1]``, rows ordered by global expert; dtype of `gmm_x`.
    mm_y : Tensor or None
        ``[BS, N2]``, or None without `mm_x`.

    Raises
    ------
    RuntimeError
        If an argument does not fit, or there is no communicator `hcom` with `ep_world_size` ranks on the current
        device.  Counts of two ranks that do not fit together fail the stream of every rank.
    """
    operands = GroupedOperands(
        "npu_gmm_alltoallv",
        gmm_x,
        gmm_weight,
        ep_world_size,
        send_counts,
        recv_counts,
        mm_x,
        mm_weight,
        trans_gmm_weight,
        trans_mm_weight,
    )
    _check_grouped(operands, send_counts_tensor, recv_counts_tensor, comm_mode)
    return gmm_x.new_empty([sum(recv_counts), operands.columns()]), operands.local_product()


@fake
def _npu_distribute_barrier(
    x_ref: Tensor, group: str, world_size: int, *, time_out: Tensor | None = None, elastic_info: Tensor | None = None
) -> Tensor:
    """Wait on the current stream until every rank of the group has come here.

    The host does not wait.

    Parameters
    ----------
    x_ref : Tensor
        Any shape and dtype.
    group : str
        Name of the communicator on this rank, as ``get_hccl_comm_name()`` of the group's backend returns it.
    world_size : int
        Number of its ranks.
    time_out, elastic_info : Tensor, optional
        Accepted without effect.

    Returns
    -------
    Tensor
        A contiguous copy of `x_ref`, made behind the barrier.

    Raises
    ------
    RuntimeError
        If there is no communicator `group` on the current device, or it has not `world_size` ranks.
    """
    check_world_size("_npu_distribute_barrier", "world_size", world_size)
    return x_ref.new_empty(x_ref.shape)
