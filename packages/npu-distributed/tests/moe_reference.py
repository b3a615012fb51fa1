"""What dispatch and combine should give, in plain torch, loop by loop, with the inputs of all ranks at hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "int32": torch.int32}


@dataclass
class Case:
    """One call on all ranks.  Plain values, so that it travels as JSON."""

    world: int
    tokens: list[int]
    k: int
    experts: int
    hidden: int = 24
    shared_experts: int = 1
    shared_ranks: int = 0
    version: int = 2
    dtype: str = "bf16"
    mask: str = "none"  # none, prefix, slots
    quant: int = 0
    scales: bool = False
    expert_scales: bool = False
    special: list[int] = field(default_factory=lambda: [0, 0, 0])  # zero, copy, constant experts
    global_bs: int = 0
    nums_type: int = 1
    transit: int = 0  # comm_quant_mode
    shared_x: bool = False
    norm: bool = False
    y_dtype: str = ""
    tp_world_size: int = 0
    seed: int = 0

    @property
    def shared(self) -> int:
        """Shared experts that some rank holds."""
        return self.shared_experts if self.shared_ranks else 0

    @property
    def replicas(self) -> int:
        """Ranks with the same shared expert."""
        return self.shared_ranks // self.shared_experts

    @property
    def batch(self) -> int:
        """The G of the specification."""
        return self.global_bs or self.tokens[0] * self.world

    def local_experts(self, rank: int) -> int:
        """Experts of a rank."""
        return 1 if rank < self.shared_ranks else self.experts // (self.world - self.shared_ranks)

    def bound(self, rank: int) -> int:
        """Rows of expand_x."""
        if rank >= self.shared_ranks:
            return self.batch * min(self.local_experts(rank), self.k)
        if self.version == 1 and self.world % self.shared_ranks == 0:
            return self.batch // self.shared_ranks
        return self.batch // self.world * -(-self.world // self.replicas)


class Inputs:
    """The inputs of one rank, the same wherever they are made."""

    def __init__(self, case: Case, rank: int) -> None:
        generator = torch.Generator().manual_seed(1000 * case.seed + rank)
        common = torch.Generator().manual_seed(1000 * case.seed + 999)
        tokens, k = case.tokens[rank], case.k
        dtype = torch.bfloat16 if case.dtype == "int32" else DTYPES[case.dtype]

        def normal(*shape: int, source: torch.Generator = generator) -> Tensor:
            return torch.randn(*shape, generator=source).to(dtype)

        self.x = normal(tokens, case.hidden)
        if tokens > 2:
            self.x[1] = 0  # a scale of 0
        if case.dtype == "int32":
            self.x = torch.randint(-(2**31), 2**31, (tokens, case.hidden), generator=generator, dtype=torch.int32)
        ids = case.experts + sum(case.special)
        chosen = [torch.randperm(ids, generator=generator)[:k] for _ in range(tokens)]
        self.ids = torch.stack(chosen).int() if chosen else torch.empty(0, k, dtype=torch.int32)
        self.weights = torch.rand(tokens, k, generator=generator)
        self.mask: Tensor | None = None
        if case.mask == "prefix":
            self.mask = torch.arange(tokens) < int(torch.randint(0, tokens + 1, (), generator=generator))
        elif case.mask == "slots":
            self.mask = torch.rand(tokens, k, generator=generator) < 0.6
            if tokens:
                self.mask[-1] = False
        self.scales: Tensor | None = None
        if case.dtype == "int32":
            self.scales = torch.rand(tokens, generator=generator)
        elif case.scales:
            factor = 20.0 if case.quant == 1 else 1.0
            self.scales = factor * (0.5 + torch.rand(case.experts + case.shared, case.hidden, generator=generator))
        self.shared_x = normal(tokens, case.hidden) if case.shared_x else None
        self.residual, self.gamma = normal(tokens, 1, case.hidden), normal(case.hidden, source=common)
        self.alpha1, self.alpha2, self.const_v = (normal(case.special[2], case.hidden, source=common) for _ in range(3))
        self.ori_x = self.x

    def active(self, token: int, slot: int) -> bool:
        """Whether a slot counts."""
        if self.mask is None:
            return True
        return bool(self.mask[token] if self.mask.dim() == 1 else self.mask[token, slot])

    def token_active(self, token: int) -> bool:
        """Whether shared experts get the token."""
        return any(self.active(token, slot) for slot in range(self.ids.shape[1]))


def all_inputs(case: Case) -> list[Inputs]:
    """The inputs of all ranks."""
    return [Inputs(case, rank) for rank in range(case.world)]


def layout(case: Case, inputs: list[Inputs], rank: int) -> tuple[list[tuple[int, int, int]], list[int], list[int]]:
    """Rows (source, token, slot) in order, ep_recv_counts, rows per local expert."""
    rows: list[tuple[int, int, int]] = []
    counts: list[int] = []
    if rank < case.shared_ranks:
        for source, given in enumerate(inputs):
            if source % case.replicas == rank % case.replicas:
                slot = case.k + rank // case.replicas
                rows += [(source, t, slot) for t in range(case.tokens[source]) if given.token_active(t)]
            counts.append(len(rows))
        return rows, counts, [len(rows)]
    numbers = []
    for local in range(case.local_experts(rank)):
        before = len(rows)
        expert = (rank - case.shared_ranks) * case.local_experts(rank) + local
        for source, given in enumerate(inputs):
            for token in range(case.tokens[source]):
                for slot in range(case.k):
                    if given.active(token, slot) and given.ids[token, slot] == expert:
                        rows.append((source, token, slot))
            counts.append(len(rows))
        numbers.append(len(rows) - before)
    return rows, counts, numbers


def float8(case: Case) -> tuple[torch.dtype, float]:
    """Type and largest value of quantisation to 8-bit floats."""
    if case.y_dtype == "e5m2" or (case.quant == 5 and not case.y_dtype):
        return torch.float8_e5m2, 57344.0
    return torch.float8_e4m3fn, 448.0


def quantised(case: Case, given: Inputs, token: int, slot: int) -> tuple[Tensor, Tensor | None]:
    """A row of expand_x and its dynamic_scales."""
    x = given.x[token]
    if case.dtype == "int32":
        assert given.scales is not None
        return x, given.scales[token]
    if case.quant == 0:
        return x, None
    value = x.float()
    if given.scales is not None:
        expert = slot - case.k if slot >= case.k else int(given.ids[token, slot]) + case.shared
        value = value * given.scales[expert]
    if case.quant == 1:
        return value.round().clamp(-128, 127).to(torch.int8), None
    if case.quant == 2:
        largest = value.abs().max()
        if largest == 0:
            return torch.zeros(case.hidden, dtype=torch.int8), torch.tensor(0.0)
        rounded = (value * torch.tensor(127.0).div(largest)).round().clamp(-128, 127)  # 127 / x has two roundings
        exact = value.double() * 127 / largest.double()
        assert (rounded.double() - exact).abs().max() < 0.5001
        return rounded.to(torch.int8), largest / 127
    dtype, limit = float8(case)
    length = 128 if case.quant == 3 else 32
    rows, scales = [], []
    for part in value.split(length):
        largest = part.abs().max()
        if case.quant == 3:
            scale = largest / limit
        else:
            if case.dtype == "fp16":  # counts as truncated to bfloat16
                largest = (largest.view(torch.int32) & -65536).view(torch.float32)
            exponent = max(-126, int((largest / limit).log2().ceil())) if largest > 0 else -127
            scale = torch.tensor(2.0**exponent)
            scales.append(torch.tensor(exponent + 127, dtype=torch.uint8))
        if case.quant == 3:
            scales.append(scale)
        rows.append(torch.where(largest > 0, part / scale, 0.0).clamp(-limit, limit).to(dtype))
    if case.quant != 3 and len(scales) % 2:
        scales.append(torch.tensor(0, dtype=torch.uint8))
    return torch.cat(rows), torch.stack(scales)


def dequantised(case: Case, rows: Tensor, scales: Tensor) -> Tensor:
    """What the caller of dispatch computes with: float32."""
    value = rows.float()
    if case.quant == 2:
        return value * scales[:, None]
    if case.quant == 3:
        return value * scales.repeat_interleave(128, dim=1)[:, : case.hidden]
    if case.quant in (4, 5):
        return value * (2.0 ** (scales.float() - 127)).repeat_interleave(32, dim=1)[:, : case.hidden]
    return value


def expert(case: Case, number: int, rows: Tensor) -> Tensor:
    """The experts of the tests: each multiplies by a number of its own.  Shared expert q has the number -1 - q."""
    return (rows * (1 + number / 8)).to(torch.float16 if case.dtype == "fp16" else torch.bfloat16)


def in_transit(case: Case, row: Tensor) -> Tensor:
    """A row after the way back."""
    if case.transit == 0:
        return row
    parts = []
    for part in row.split(8):
        step = part.float().abs().max() / 127
        whole = (part.float() / step).round() if step > 0 else torch.zeros(len(part))
        parts.append((whole * step.to(row.dtype).float()).to(row.dtype))
    return torch.cat(parts)


def combined(case: Case, inputs: list[Inputs], rank: int) -> tuple[Tensor, Tensor]:
    """The sums of combine for the tokens of a rank: float32 step by step, and float64."""
    given = inputs[rank]
    narrow = torch.zeros(case.tokens[rank], case.hidden)
    wide = torch.zeros(case.tokens[rank], case.hidden, dtype=torch.float64)

    def visit(number: int, token: int, slot: int) -> Tensor:
        row, scale = quantised(case, given, token, slot)
        scales = torch.zeros(1) if scale is None else scale[None]
        return in_transit(case, expert(case, number, dequantised(case, row[None], scales))[0])

    zero, copy, _ = case.special
    for token in range(case.tokens[rank]):
        terms: list[tuple[Tensor, Tensor]] = []
        for slot in range(case.k):
            if not given.active(token, slot):
                continue
            number, weight = int(given.ids[token, slot]), given.weights[token, slot]
            special = number - case.experts
            if special < 0:
                terms.append((weight, visit(number, token, slot)))
            elif zero <= special < zero + copy:
                terms.append((weight, given.ori_x[token]))
            elif special >= zero + copy:
                c = special - zero - copy
                x = given.ori_x[token].double()
                gates = torch.stack([given.alpha1[c].double() @ x, given.alpha2[c].double() @ x]).softmax(0)
                terms.append((weight, gates[0] * x + gates[1] * given.const_v[c].double()))
        if given.token_active(token):
            one = torch.tensor(1.0)
            terms += [(one, visit(-1 - q, token, case.k + q)) for q in range(case.shared)]
            if given.shared_x is not None:
                terms.append((one, given.shared_x[token]))
        for weight, row in terms:
            narrow[token] += weight * row.float()
            wide[token] += weight.double() * row.double()
    return narrow, wide
