"""The arguments of products with communication, checked as ``csrc/mc2`` checks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npu_distributed.argument_checks import (
    check,
    check_number_or_row,
    check_row,
    check_sizes,
    check_world_size,
    refuse_float8,
    type_name,
)

_FLOATS = (torch.float16, torch.bfloat16)


def check_scaled_operands(
    op: str,
    self: Tensor,
    x2: Tensor,
    bias: Tensor | None,
    x1_scale: Tensor | None,
    x2_scale: Tensor | None,
    output_dtype: torch.dtype | None,
) -> torch.dtype:
    """Check types and shapes of all_gather + mm and mm + reduce_scatter, inner sizes apart; return the result's type.

    ``ScaledOperands::Check`` of ``scaled_operands.h``.
    """
    refuse_float8(op, "self", self)
    refuse_float8(op, "x2", x2)
    check(self.dim() == 2, op, "self", lambda: f"expected 2 dims [m, k], but got the shape {list(self.shape)}")
    check(x2.dim() == 2, op, "x2", lambda: f"expected 2 dims [k, n], but got the shape {list(x2.shape)}")
    dtype, is_int8, columns = self.dtype, self.dtype == torch.int8, x2.size(1)
    check(
        dtype in _FLOATS or is_int8,
        op,
        "self",
        lambda: f"expected float16, bfloat16 or int8, but got {type_name(dtype)}",
    )
    check(
        x2.dtype == dtype,
        op,
        "x2",
        lambda: f"expected {type_name(dtype)} like self, but got {type_name(x2.dtype)}",
    )
    if bias is not None:
        check_sizes(op, "bias", bias, [columns], lambda: f"expected the shape [{columns}], but got {list(bias.shape)}")
        expected = (torch.int32, torch.float32, *_FLOATS) if is_int8 else (dtype,)
        wanted = "int32, float32, float16 or bfloat16" if is_int8 else "the type of self"
        check(bias.dtype in expected, op, "bias", lambda: f"expected {wanted}, but got {type_name(bias.dtype)}")
    if x2_scale is not None:
        _check_x2_scale(op, x2_scale, columns, output_dtype)
    check(
        not is_int8 or x2_scale is not None,
        op,
        "x2_scale",
        lambda: f"int8 tensors need it; pass float32 or int64 [1, {columns}]",
    )
    if x1_scale is not None:
        check(
            x2_scale is not None,
            op,
            "x1_scale",
            "it has a meaning beside x2_scale only; pass x2_scale as well",
        )
        _check_x1_scale(op, x1_scale, self.size(0))
    if x2_scale is None:
        return dtype
    return torch.float16 if x2_scale.dtype == torch.int64 else output_dtype or torch.bfloat16


def _check_x2_scale(op: str, x2_scale: Tensor, columns: Any, output_dtype: torch.dtype | None) -> None:
    check_row(op, "x2_scale", x2_scale, columns)
    check(
        x2_scale.dtype in (torch.float32, torch.int64),
        op,
        "x2_scale",
        lambda: f"expected float32 or int64, but got {type_name(x2_scale.dtype)}",
    )
    check(
        x2_scale.dtype == torch.int64 or output_dtype in (None, torch.float32, *_FLOATS),
        op,
        "output_dtype",
        lambda: f"expected float16, bfloat16 or float32, but got {output_dtype and type_name(output_dtype)}",
    )


def _check_x1_scale(op: str, x1_scale: Tensor, rows: Any) -> None:
    dtype = x1_scale.dtype
    check(dtype == torch.float32, op, "x1_scale", lambda: f"expected float32, but got {type_name(dtype)}")
    check_sizes(
        op,
        "x1_scale",
        x1_scale,
        [rows] if x1_scale.dim() == 1 else [rows, 1],
        lambda: f"expected the shape [{rows}, 1], but got {list(x1_scale.shape)}",
    )


def check_inner(op: str, name: str, columns: Any, x2: Tensor) -> None:
    """Check that `x2` has as many rows as the left matrix has columns."""
    check(
        x2.size(0) == columns,
        op,
        "x2",
        lambda: f"expected {columns} rows, as many as {name} has columns, but got {x2.size(0)}",
    )


@dataclass(repr=False, eq=False, match_args=False)
class ReducedOperands:
    """What npu_mm_all_reduce_base multiplies, adds and scales: ``Operands`` of ``mm_all_reduce.cpp``."""

    op: str
    x1: Tensor
    x2: Tensor
    bias: Tensor | None
    antiquant_scale: Tensor | None
    antiquant_offset: Tensor | None
    x3: Tensor | None
    dequant_scale: Tensor | None
    pertoken_scale: Tensor | None
    comm_quant_scale_1: Tensor | None
    comm_quant_scale_2: Tensor | None
    antiquant_group_size: int

    @property
    def is_full_quant(self) -> bool:
        """Whether both matrices are int8."""
        return self.x1.dtype == torch.int8

    @property
    def dtype(self) -> torch.dtype:
        """Type of the result."""
        if not self.is_full_quant:
            return self.x1.dtype
        is_bfloat16 = self.dequant_scale is not None and self.dequant_scale.dtype == torch.bfloat16
        return torch.bfloat16 if is_bfloat16 else torch.float16

    @property
    def shape(self) -> list[Any]:
        """Shape of the result."""
        return [*self.x1.shape[:-1], self.x2.size(1)]

    def check(self) -> None:
        """Check types and shapes."""
        op, x1, x2 = self.op, self.x1, self.x2
        refuse_float8(op, "x1", x1)
        refuse_float8(op, "x2", x2)
        check(x2.dim() == 2, op, "x2", lambda: f"expected 2 dims [k, n], but got the shape {list(x2.shape)}")
        check(
            x1.dim() >= 2,
            op,
            "x1",
            lambda: f"expected 2 dims [m, k] or 3 dims [b, s, k], but got the shape {list(x1.shape)}",
        )
        check_inner(op, "x1", x1.size(-1), x2)
        check(
            x1.dtype in _FLOATS or self.is_full_quant,
            op,
            "x1",
            lambda: f"expected float16, bfloat16 or int8, but got {type_name(x1.dtype)}",
        )
        group, depth = self.antiquant_group_size, x2.size(0)
        if group != 0:
            text = f"expected 0 or a multiple of 32 in [32, k - 1] with k = {depth}, but got {group}"
            check(group >= 32 and group % 32 == 0, op, "antiquant_group_size", text)
            check(group < depth, op, "antiquant_group_size", text)
        if self.is_full_quant:
            self._check_full_quant()
        elif x2.dtype == torch.int8:
            self._check_weight_quant()
        else:
            self._check_float()
        self._check_added()
        check(
            self.pertoken_scale is None or self.is_full_quant,
            op,
            "pertoken_scale",
            lambda: f"it has a meaning for int8 x1 and x2 only, but x1 is {type_name(x1.dtype)}",
        )
        self._check_comm_scales()

    def _check_added(self) -> None:
        op, type1, columns, bias, x3 = self.op, self.x1.dtype, self.x2.size(1), self.bias, self.x3
        if bias is not None:
            check_sizes(
                op, "bias", bias, [columns], lambda: f"expected the shape [{columns}], but got {list(bias.shape)}"
            )
            expected = torch.int32 if self.is_full_quant else type1
            check(
                bias.dtype == expected,
                op,
                "bias",
                lambda: (
                    f"expected {type_name(expected)} beside x1 of type {type_name(type1)}, but got "
                    f"{type_name(bias.dtype)}"
                ),
            )
        if x3 is not None:
            check_sizes(
                op,
                "x3",
                x3,
                self.shape,
                lambda: f"expected the shape of the output, {self.shape}, but got {list(x3.shape)}",
            )
            check(
                x3.dtype == self.dtype,
                op,
                "x3",
                lambda: f"expected the type of the output, {type_name(self.dtype)}, but got {type_name(x3.dtype)}",
            )

    def _check_float(self) -> None:
        type1, type2 = type_name(self.x1.dtype), type_name(self.x2.dtype)
        check(
            self.x2.dtype == self.x1.dtype,
            self.op,
            "x2",
            lambda: f"expected {type1} like x1, or int8 with antiquant_scale, but got {type2}",
        )
        for name in ("antiquant_scale", "antiquant_offset", "dequant_scale"):
            check(
                getattr(self, name) is None,
                self.op,
                name,
                f"it has a meaning for an int8 x2 only, but x2 is {type2}; pass None",
            )

    def _check_weight_quant(self) -> None:
        op, type1 = self.op, self.x1.dtype
        check(
            self.dequant_scale is None,
            op,
            "dequant_scale",
            f"it has a meaning for int8 x1 and x2 only, but x1 is {type_name(type1)}; pass antiquant_scale for an int8 "
            "x2",
        )
        check(
            self.antiquant_scale is not None,
            op,
            "antiquant_scale",
            f"an int8 x2 beside x1 of type {type_name(type1)} needs it",
        )
        group, (depth, columns) = self.antiquant_group_size, self.x2.shape
        for name in ("antiquant_scale", "antiquant_offset"):
            tensor = getattr(self, name)
            if tensor is None:
                continue
            text = f"expected {type_name(type1)} like x1, but got {type_name(tensor.dtype)}"
            check(tensor.dtype == type1, op, name, text)
            if group == 0:
                check_number_or_row(op, name, tensor, columns)
                continue
            shape = [(depth + group - 1) // group, columns]
            text = f"expected the shape [ceil(k / antiquant_group_size), n] = {shape}, but got {list(tensor.shape)}"
            check_sizes(op, name, tensor, shape, text)

    def _check_full_quant(self) -> None:
        op, scale, pertoken = self.op, self.dequant_scale, self.pertoken_scale
        type2 = type_name(self.x2.dtype)
        check(self.x2.dtype == torch.int8, op, "x2", lambda: f"expected int8 like x1, but got {type2}")
        text = "it has a meaning for a float x1 only, but x1 is int8"
        check(self.antiquant_scale is None, op, "antiquant_scale", text + "; pass dequant_scale")
        check(self.antiquant_offset is None, op, "antiquant_offset", text)
        if scale is None:
            check(pertoken is None, op, "pertoken_scale", "it needs dequant_scale beside it")
            check(False, op, "dequant_scale", "int8 x1 and x2 need it")
            return
        check(
            scale.dtype in (torch.int64, torch.uint64, torch.bfloat16, torch.float32),
            op,
            "dequant_scale",
            lambda: f"expected int64, uint64, bfloat16 or float32, but got {type_name(scale.dtype)}",
        )
        check_number_or_row(op, "dequant_scale", scale, self.x2.size(1))
        if pertoken is None:
            return
        rows = self.x1.shape[:-1].numel()
        check_sizes(
            op,
            "pertoken_scale",
            pertoken,
            [rows],
            lambda: f"expected the shape [{rows}], one number per row of x1, but got {list(pertoken.shape)}",
        )
        check(
            pertoken.dtype == torch.float32,
            op,
            "pertoken_scale",
            lambda: f"expected float32, but got {type_name(pertoken.dtype)}",
        )

    def _check_comm_scales(self) -> None:
        op, names = self.op, ("comm_quant_scale_1", "comm_quant_scale_2")
        given = [name for name in names if getattr(self, name) is not None]
        if not given:
            return
        check(
            len(given) == 2,
            op,
            names[1] if given[0] == names[0] else names[0],
            "comm_quant_scale_1 and comm_quant_scale_2 belong together; pass both or none",
        )
        check(
            self.is_full_quant,
            op,
            names[0],
            lambda: f"it has a meaning for int8 x1 and x2 only, but x1 is {type_name(self.x1.dtype)}",
        )
        for name in names:
            tensor = getattr(self, name)
            check_row(op, name, tensor, self.x2.size(1))
            text = f"expected the type of the output, {type_name(self.dtype)}, but got {type_name(tensor.dtype)}"
            check(tensor.dtype == self.dtype, op, name, text)


@dataclass(repr=False, eq=False, match_args=False)
class GroupedOperands:
    """The arguments of both operators with experts' products: ``Arguments`` of ``alltoallv_gmm.cpp``."""

    op: str
    gmm_x: Tensor
    gmm_weight: Tensor
    ep_world_size: int
    send_counts: Sequence[Any]
    recv_counts: Sequence[Any]
    mm_x: Tensor | None
    mm_weight: Tensor | None
    trans_gmm_weight: bool
    trans_mm_weight: bool

    def columns(self) -> Any:
        """Columns of the grouped product."""
        return self.gmm_weight.size(1 if self.trans_gmm_weight else 2)

    def local_product(self) -> Tensor | None:
        """Return an empty tensor for the product of `mm_x` and `mm_weight`, or None."""
        if self.mm_x is None or self.mm_weight is None:
            return None
        return self.mm_x.new_empty([self.mm_x.size(0), self.mm_weight.size(0 if self.trans_mm_weight else 1)])

    def check(self) -> None:
        """Check types, shapes and counts."""
        op, x, weight = self.op, self.gmm_x, self.gmm_weight
        refuse_float8(op, "gmm_x", x)
        check(
            x.dtype in _FLOATS,
            op,
            "gmm_x",
            lambda: f"expected float16 or bfloat16, but got {type_name(x.dtype)}",
        )
        check(x.dim() == 2, op, "gmm_x", lambda: f"expected 2 dims [rows, H1], but got the shape {list(x.shape)}")
        form = "[experts, N1, H1]" if self.trans_gmm_weight else "[experts, H1, N1]"
        text = f"expected 3 dims {form}, but got the shape {list(weight.shape)}"
        check(weight.dim() == 3, op, "gmm_weight", text)
        check(weight.size(0) > 0, op, "gmm_weight", text)
        self._check_type("gmm_weight", weight)
        check(
            weight.size(2 if self.trans_gmm_weight else 1) == x.size(1),
            op,
            "gmm_weight",
            lambda: (
                f"expected the shape {form} with H1 = {x.size(1)}, the columns of gmm_x, but got {list(weight.shape)}"
            ),
        )
        check_world_size(op, "ep_world_size", self.ep_world_size)
        self._check_counts("send_counts", self.send_counts)
        self._check_counts("recv_counts", self.recv_counts)
        sent = sum(self.send_counts)
        check(
            sent == x.size(0),
            op,
            "send_counts",
            lambda: f"expected a sum of {x.size(0)}, the rows of gmm_x, but got {sent}",
        )
        self._check_local()

    def _check_type(self, name: str, tensor: Tensor) -> None:
        wanted, got = type_name(self.gmm_x.dtype), type_name(tensor.dtype)
        check(tensor.dtype == self.gmm_x.dtype, self.op, name, lambda: f"expected {wanted} like gmm_x, but got {got}")

    def _check_counts(self, name: str, counts: Sequence[Any]) -> None:
        ranks, experts = self.ep_world_size, self.gmm_weight.size(0)
        check(
            len(counts) == ranks * experts,
            self.op,
            name,
            lambda: (
                f"expected {ranks * experts} numbers, one for each of {experts} experts on each of {ranks} ranks, but "
                f"got {len(counts)}"
            ),
        )
        for i, count in enumerate(counts):
            text = f"expected no negative number, but element {i} is {count}"
            check(count >= 0, self.op, name, text)

    def _check_local(self) -> None:
        op, x, weight = self.op, self.mm_x, self.mm_weight
        check(
            (x is None) == (weight is None),
            op,
            "mm_x" if x is None else "mm_weight",
            "mm_x and mm_weight belong together; pass both or none",
        )
        if x is None or weight is None:
            return
        check(x.dim() == 2, op, "mm_x", lambda: f"expected 2 dims [rows, H2], but got the shape {list(x.shape)}")
        self._check_type("mm_x", x)
        self._check_type("mm_weight", weight)
        form = "[N2, H2]" if self.trans_mm_weight else "[H2, N2]"
        text = f"expected the shape {form} with H2 = {x.size(1)}, the columns of mm_x, but got {list(weight.shape)}"
        check(weight.dim() == 2, op, "mm_weight", text)
        check(weight.size(1 if self.trans_mm_weight else 0) == x.size(1), op, "mm_weight", text)
