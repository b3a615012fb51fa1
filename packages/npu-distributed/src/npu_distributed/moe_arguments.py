"""The arguments of the MoE operators, checked as ``csrc/mc2/moe_arguments.h`` and the operators there check them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from npu_distributed.argument_checks import check, check_sizes, type_name

Size: TypeAlias = int | torch.SymInt

#: Numbers of dtypes as arguments carry them: torch's own, and from 256 on those of torch_npu.
_DTYPES = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    11: torch.bool,
    12: torch.int8,
    14: torch.int32,
    15: torch.bfloat16,
    23: torch.float8_e5m2,
    291: torch.float8_e5m2,
    24: torch.float8_e4m3fn,
    292: torch.float8_e4m3fn,
}


def check_type(op: str, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Check that `tensor` has `dtype`."""
    check(tensor.dtype == dtype, op, name, lambda: f"expected {type_name(dtype)}, got {type_name(tensor.dtype)}")


def check_shape(op: str, name: str, tensor: Tensor, *shape: Size) -> None:
    """Check that `tensor` has `shape`."""
    check_sizes(op, name, tensor, shape, lambda: f"expected shape {list(shape)}, got {list(tensor.shape)}")


def check_not_negative(op: str, **numbers: int) -> None:
    """Check numbers, given by their names."""
    for name, number in numbers.items():
        check(number >= 0, op, name, f"expected 0 or more, got {number}")


def check_dtype_number(op: str, name: str, number: int | None, accepted: tuple[torch.dtype, ...]) -> torch.dtype:
    """Return the dtype of `accepted` that `number` names, the first one if it is None."""
    if number is None:
        return accepted[0]
    dtype = _DTYPES.get(int(number))
    names = ", ".join(sorted(str(one).removeprefix("torch.") for one in accepted))
    check(
        dtype in accepted,
        op,
        name,
        f"expected one of {names}, got {str(dtype).removeprefix('torch.') if dtype else f'number {number}'}",
    )
    assert dtype is not None
    return dtype


@dataclass(repr=False, eq=False, match_args=False)
class Placement:
    """Where the experts of a call live: ``MoeGroupArguments`` and ``MoePlacement``."""

    op: str
    world: int
    rank: int
    experts: int
    shared_experts: int
    shared_ranks: int
    tp_world_size: int
    shard_type: int
    is_first_version: bool = False

    @property
    def shared(self) -> int:
        """Shared experts that some rank holds."""
        return self.shared_experts if self.shared_ranks else 0

    @property
    def is_shared(self) -> bool:
        """Whether this rank holds a shared expert."""
        if self.shard_type == 1:
            return self.rank >= self.world - self.shared_ranks
        return self.rank < self.shared_ranks

    @property
    def local_experts(self) -> int:
        """Experts of this rank."""
        return 1 if self.is_shared else self.experts // (self.world - self.shared_ranks)

    def check(self, shard_types: tuple[int, ...] = (0,), tp_world_sizes: tuple[int, ...] = (0, 1)) -> None:
        """Check that the numbers fit together; dispatch has shapes for some that no kernel serves."""
        op, world, shared = self.op, self.world, self.shared_ranks
        check(world >= 1, op, "ep_world_size", f"expected at least 1, got {world}")
        check(0 <= self.rank < world, op, "ep_rank_id", f"expected a rank in [0, {world}), got {self.rank}")
        check(self.tp_world_size in tp_world_sizes, op, "tp_world_size", f"expected 0 or 1, got {self.tp_world_size}")
        check(
            self.shard_type in shard_types,
            op,
            "expert_shard_type",
            f"expected 0 (shared experts on the first ranks), got {self.shard_type}",
        )
        check(0 <= shared < world, op, "shared_expert_rank_num", f"expected a number in [0, {world}), got {shared}")
        self._check_shared_experts()
        check(
            self.experts > 0 and self.experts % (world - shared) == 0,
            op,
            "moe_expert_num",
            f"expected a multiple of ep_world_size - shared_expert_rank_num = {world - shared}, got {self.experts}",
        )

    def _check_shared_experts(self) -> None:
        op, name, experts, ranks = self.op, "shared_expert_num", self.shared_experts, self.shared_ranks
        if ranks == 0:
            check(experts in (0, 1), op, name, f"expected 0 or 1 with shared_expert_rank_num=0, got {experts}")
            return
        check(
            0 < experts <= ranks and ranks % experts == 0,
            op,
            name,
            f"expected a divisor of shared_expert_rank_num={ranks}, got {experts}",
        )
        check(
            not self.is_first_version or experts == 1,
            op,
            name,
            f"expected 1, got {experts}; for more use the operators whose names end in _v2",
        )


def check_expert_ids(op: str, expert_ids: Tensor) -> None:
    """Check the expert ids, (tokens, slots) int32."""
    text = f"expected 2 dims, (tokens, experts per token), got shape {list(expert_ids.shape)}"
    check(expert_ids.dim() == 2, op, "expert_ids", text)
    check(expert_ids.size(1) > 0, op, "expert_ids", text)
    check_type(op, "expert_ids", expert_ids, torch.int32)


def check_global_batch(op: str, global_bs: Any, tokens: Size, world: int) -> Size:
    """Check `global_bs` and return the most tokens of any rank."""
    if global_bs == 0:
        return tokens
    text = "expected 0 or the most tokens of any rank times ep_world_size, "
    check(global_bs >= 0, op, "global_bs", lambda: f"{text}got {global_bs}")
    check(
        tokens <= global_bs // world,
        op,
        "global_bs",
        lambda: f"{text}at least {tokens * world} with the tokens of this rank, got {global_bs}",
    )
    return global_bs // world


def check_mask(op: str, mask: Tensor | None, expert_ids: Tensor) -> None:
    """Check x_active_mask."""
    if mask is None:
        return
    check_type(op, "x_active_mask", mask, torch.bool)
    tokens, slots = expert_ids.shape
    check_sizes(
        op,
        "x_active_mask",
        mask,
        [tokens] if mask.dim() == 1 else [tokens, slots],
        lambda: f"expected shape [{tokens}] or {[tokens, slots]}, got {list(mask.shape)}",
    )


def check_reports(op: str, elastic_info: Tensor | None, performance_info: Tensor | None, world: int) -> None:
    """Check elastic_info and performance_info."""
    if elastic_info is not None:
        check_type(op, "elastic_info", elastic_info, torch.int32)
        lengths = (4 + 2 * world, 4 + world)
        check(
            elastic_info.dim() == 1 and elastic_info.size(0) in lengths,
            op,
            "elastic_info",
            lambda: f"expected shape [{lengths[0]}], got {list(elastic_info.shape)}",
        )
    if performance_info is not None:
        check_type(op, "performance_info", performance_info, torch.int64)
        check_shape(op, "performance_info", performance_info, world)
        check(
            performance_info.is_contiguous(),
            op,
            "performance_info",
            lambda: f"it is written to, so it should be contiguous, got strides {list(performance_info.stride())}",
        )


def check_algorithm(op: str, comm_alg: str) -> None:
    """Check comm_alg, which has no effect."""
    check(
        comm_alg in ("", "fullmesh", "fullmesh_v1", "fullmesh_v2", "hierarchy"),
        op,
        "comm_alg",
        f'expected "", "fullmesh", "fullmesh_v1", "fullmesh_v2" or "hierarchy", got "{comm_alg}"',
    )


@dataclass(repr=False, eq=False, match_args=False)
class DispatchArguments:
    """What dispatch sends and how: ``DispatchArguments`` of ``moe_dispatch_ops.cpp``."""

    placement: Placement
    x: Tensor
    expert_ids: Tensor
    scales: Tensor | None
    x_active_mask: Tensor | None
    expert_scales: Tensor | None
    quant_mode: int
    global_bs: Any
    expert_token_nums_type: int
    elastic_info: Tensor | None = None
    performance_info: Tensor | None = None
    y_dtype: int | None = None
    x_dtype: int | None = None
    scales_dtype: int | None = None

    @property
    def batch(self) -> Size:
        """Tokens of all ranks at most."""
        return self.global_bs or self.x.size(0) * self.placement.world

    @property
    def rows(self) -> Size:
        """Rows that this rank gets at most."""
        place = self.placement
        if not place.is_shared:
            return self.batch * torch.sym_min(place.local_experts, self.expert_ids.size(1))
        if place.is_first_version and place.world % place.shared_ranks == 0:
            return self.batch // place.shared_ranks
        replicas = place.shared_ranks // place.shared_experts
        tokens = self.global_bs // place.world if self.global_bs else self.x.size(0)
        return tokens * ((place.world + replicas - 1) // replicas)

    def check(self) -> None:
        """Check everything but the communicator."""
        op, place = self.placement.op, self.placement
        self._check_tokens()
        check(
            self.expert_token_nums_type in (0, 1),
            op,
            "expert_token_nums_type",
            f"expected 0 (running sum) or 1 (numbers), got {self.expert_token_nums_type}",
        )
        # Shapes are known for two tensor-parallel ranks, and for shared experts on the last ranks.
        place.check((0, 1) if place.is_first_version else (0,), (0, 1, 2))
        self._check_quantisation()
        self._check_scales()
        check_global_batch(op, self.global_bs, self.x.size(0), place.world)
        if self.expert_scales is not None:
            check_type(op, "expert_scales", self.expert_scales, torch.float32)
            check_shape(op, "expert_scales", self.expert_scales, *self.expert_ids.shape)
        check_reports(op, self.elastic_info, self.performance_info, place.world)
        check_mask(op, self.x_active_mask, self.expert_ids)

    def _check_tokens(self) -> None:
        op, x, ids, both = self.placement.op, self.x, self.expert_ids, "x and expert_ids should be 2D"
        text = f"{both}, (tokens, hidden), got shape {list(x.shape)}"
        check(x.dim() == 2, op, "x", text)
        check(x.size(1) > 0, op, "x", text)
        check(ids.dim() == 2, op, "expert_ids", f"{both}, (tokens, experts per token), got shape {list(ids.shape)}")
        check_expert_ids(op, ids)
        check(
            ids.size(0) == x.size(0),
            op,
            "expert_ids",
            lambda: f"expected as many rows as x has, {x.size(0)}, got {ids.size(0)}",
        )

    def _check_quantisation(self) -> None:
        op, mode, is_first = self.placement.op, self.quant_mode, self.placement.is_first_version
        floats, got = (torch.bfloat16, torch.float16), self.x.dtype
        wanted = "bfloat16 or float16" if is_first else "bfloat16, float16 or int32 (packed int4)"
        check(
            got in (floats if is_first else (*floats, torch.int32)),
            op,
            "x",
            f"expected {wanted}, got {type_name(got)}",
        )
        check(
            0 <= mode <= (2 if is_first else 5),
            op,
            "quant_mode",
            "expected 0 (none), 1 (static), 2 (dynamic per token)"
            f"{'' if is_first else ', 3 (float8 in groups of 128), 4 or 5 (MX float8)'}, got {mode}",
        )
        check(got != torch.int32 or mode == 0, op, "quant_mode", f"expected 0 with x of int32, got {mode}")
        self.output_dtype()
        check_dtype_number(op, "x_dtype", self.x_dtype, (got,))
        check_dtype_number(op, "scales_dtype", self.scales_dtype, (torch.float32,))

    def output_dtype(self) -> torch.dtype:
        """Type of the rows as they travel."""
        float8 = (torch.float8_e4m3fn, torch.float8_e5m2)
        accepted = {0: (self.x.dtype,), 3: float8, 4: float8, 5: float8[::-1]}.get(int(self.quant_mode), (torch.int8,))
        return check_dtype_number(self.placement.op, "y_dtype", self.y_dtype, accepted)

    def _check_scales(self) -> None:
        op, mode, scales = self.placement.op, self.quant_mode, self.scales
        is_packed = self.x.dtype == torch.int32
        if scales is None:
            what = "x of int32" if is_packed else "quant_mode=1"
            check(mode != 1 and not is_packed, op, "scales", f"is needed with {what}")
            return
        check(
            is_packed or 1 <= mode <= 3,
            op,
            "scales",
            f"has no meaning with quant_mode={mode}; pass None{', or quant_mode=1 or 2' if mode == 0 else ''}",
        )
        check_type(op, "scales", scales, torch.float32)
        if is_packed:
            check_shape(op, "scales", scales, self.x.size(0))
        else:
            check_shape(op, "scales", scales, self.placement.experts + self.placement.shared, self.x.size(1))


@dataclass(repr=False, eq=False, match_args=False)
class CombineArguments:
    """What combine adds up: ``CombineArguments`` of ``moe_combine_ops.cpp``."""

    placement: Placement
    expand_x: Tensor
    expert_ids: Tensor
    metadata: Tensor
    metadata_name: str
    ep_send_counts: Tensor
    expert_scales: Tensor
    x_active_mask: Tensor | None
    shared_expert_x: Tensor | None
    global_bs: Any
    comm_quant_mode: int
    out_dtype: int = 0
    elastic_info: Tensor | None = None
    performance_info: Tensor | None = None
    ori_x: Tensor | None = None
    constants: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
    special_experts: tuple[int, int, int] = (0, 0, 0)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the result."""
        if self.expand_x.dtype != torch.int32:
            return self.expand_x.dtype
        return torch.float16 if self.out_dtype == 1 else torch.bfloat16

    @property
    def tokens(self) -> Size:
        """Tokens of this rank."""
        return self.expert_ids.size(0)

    @property
    def columns(self) -> Size:
        """Hidden size."""
        return self.expand_x.size(1)

    def check(self) -> None:
        """Check everything but the communicator and the lengths of metadata."""
        op, rows = self.placement.op, self.expand_x
        text = f"expected 2 dims, (rows, hidden), got shape {list(rows.shape)}"
        check(rows.dim() == 2, op, "expand_x", text)
        check(rows.size(1) > 0, op, "expand_x", text)
        check_expert_ids(op, self.expert_ids)
        self._check_output()
        self.placement.check(tp_world_sizes=(0, 1, 2))  # the partner of a dispatch with that number
        check_type(op, "ep_send_counts", self.ep_send_counts, torch.int32)
        check_type(op, self.metadata_name, self.metadata, torch.int32)
        check_type(op, "expert_scales", self.expert_scales, torch.float32)
        check_shape(op, "expert_scales", self.expert_scales, *self.expert_ids.shape)
        self._check_shared_result()
        self._check_special_experts()
        check_reports(op, self.elastic_info, self.performance_info, self.placement.world)
        check_global_batch(op, self.global_bs, self.tokens, self.placement.world)
        check_mask(op, self.x_active_mask, self.expert_ids)

    def _check_output(self) -> None:
        op, got, transit = self.placement.op, self.expand_x.dtype, self.comm_quant_mode
        check(
            got in (torch.bfloat16, torch.float16, torch.int32),
            op,
            "expand_x",
            f"expected bfloat16, float16 or int32, got {type_name(got)}",
        )
        text = f"expected 0 (bfloat16) or 1 (float16), got {self.out_dtype}"
        check(self.out_dtype in (0, 1), op, "out_dtype", text)
        check(transit in (0, 2), op, "comm_quant_mode", f"expected 0 (none) or 2 (int8), got {transit}")
        text = f"expected 0 with expand_x of int32, got {transit}"
        check(got != torch.int32 or transit == 0, op, "comm_quant_mode", text)

    def _check_rows(self, name: str, tensor: Tensor | None, rows: Size) -> None:
        if tensor is not None:
            check_type(self.placement.op, name, tensor, self.dtype)
            check_shape(self.placement.op, name, tensor, rows, self.columns)

    def _check_shared_result(self) -> None:
        op, shared, tokens, columns = self.placement.op, self.shared_expert_x, self.tokens, self.columns
        if shared is None:
            return
        check_type(op, "shared_expert_x", shared, self.dtype)
        text = (
            f"expected shape [{tokens}, {columns}] or [a, b, {columns}] with a * b = {tokens}, got {list(shared.shape)}"
        )
        check(shared.dim() in (2, 3), op, "shared_expert_x", text)
        check(shared.size(-1) == columns, op, "shared_expert_x", text)
        check(shared.numel() == tokens * columns, op, "shared_expert_x", text)

    def _check_special_experts(self) -> None:
        op, (zero, copy, const) = self.placement.op, self.special_experts
        check_not_negative(op, zero_expert_num=zero, copy_expert_num=copy, const_expert_num=const)
        check(
            self.ori_x is not None or copy + const == 0,
            op,
            "ori_x",
            f"is needed with copy_expert_num={copy}, const_expert_num={const}",
        )
        self._check_rows("ori_x", self.ori_x, self.tokens)
        names = ("const_expert_alpha_1", "const_expert_alpha_2", "const_expert_v")
        for name, tensor in zip(names, self.constants, strict=True):
            check(tensor is not None or const == 0, op, name, f"is needed with const_expert_num={const}")
            if const > 0:
                self._check_rows(name, tensor, const)

    def check_norm(self, residual_x: Tensor, gamma: Tensor) -> None:
        """Check what combine with a norm has beside."""
        op, tokens, columns = self.placement.op, self.tokens, self.columns
        check_type(op, "residual_x", residual_x, self.dtype)
        check_sizes(
            op,
            "residual_x",
            residual_x,
            [tokens, columns] if residual_x.dim() == 2 else [tokens, 1, columns],
            lambda: f"expected shape [{tokens}, 1, {columns}] or [{tokens}, {columns}], got {list(residual_x.shape)}",
        )
        check_type(op, "gamma", gamma, self.dtype)
        check_shape(op, "gamma", gamma, columns)
