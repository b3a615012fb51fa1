"""What collectives must give, computed in one process with plain torch and numpy; inputs that are hard to get right.

Where the contract fixes the bits they are compared: 16-bit floats are combined in rank order in float32 and rounded
once, the others in their own type in rank order, integers wrap.  Of a NaN only that it is one is compared, and the sign
of a zero is not where MIN and MAX choose between two zeros.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence

import numpy as np
import torch

FLOATS = ("float32", "float64", "float16", "bfloat16")
SIGNED = ("int8", "int16", "int32", "int64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
INTEGERS = (*SIGNED, *UNSIGNED)
REDUCED = (*FLOATS, *INTEGERS, "bool")
TRANSPORT = (*REDUCED, "float8_e4m3fn", "float8_e5m2")

POOL_BYTES = 1 << 22
STEP = 4099  # between the contributions of neighbouring ranks: no multiple of a vector or a page


@functools.cache
def pool(dtype: torch.dtype) -> torch.Tensor:
    """Values of a type, the same on every rank: every bit pattern, and for floats mostly numbers of like size."""
    generator = torch.Generator().manual_seed(20)
    if dtype == torch.bool:
        return torch.randint(0, 2, (POOL_BYTES,), dtype=torch.bool, generator=generator)
    bits = torch.randint(0, 256, (POOL_BYTES,), dtype=torch.uint8, generator=generator)
    values = bits.view(dtype)
    if dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        usual = torch.randn(values.numel(), generator=generator, dtype=torch.float32).to(dtype)
        special = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, torch.finfo(dtype).max, torch.finfo(dtype).tiny]
        usual[3::97] = torch.tensor(special, dtype=dtype).repeat(usual.numel() // 97 // 7 + 1)[: usual[3::97].numel()]
        # Every 61st value has random bits: subnormals, extremes, NaN of all kinds.
        usual[::61] = values[::61]
        values = usual
    return values


def contribution(rank: int, count: int, dtype: torch.dtype, salt: int = 0) -> torch.Tensor:
    """What a rank brings: `count` values of the pool, which begins again where it ends."""
    source = pool(dtype)
    begin = (rank * STEP + salt * 104729) % source.numel()
    if begin + count <= source.numel():
        return source[begin : begin + count].clone()
    bits = as_bytes(source)
    rounds = (begin + count) // source.numel() + 1
    return bits.repeat(rounds)[begin * dtype.itemsize :][: count * dtype.itemsize].clone().view(dtype)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of a tensor as uint8."""
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8) if flat.dtype != torch.bool else flat.to(torch.uint8)


def digest(tensor: torch.Tensor) -> int:
    """A number that tells results apart bit by bit."""
    return zlib.crc32(as_bytes(tensor.cpu()).numpy().tobytes())


def assert_same(got: torch.Tensor, expected: torch.Tensor, what: str, signed_zero: bool = True) -> None:
    """The same type, shape and bits, except that any NaN equals any other."""
    got = got.cpu()
    assert got.dtype == expected.dtype and got.shape == expected.shape, f"{what}: {got.dtype}, {got.shape}"
    if got.numel() == 0:
        return
    different = as_bytes(got) != as_bytes(expected)
    if not different.any():
        return
    if got.dtype.is_floating_point and got.element_size() > 1:
        where = different.view(-1, got.element_size()).any(1)
        left, right = got.reshape(-1)[where], expected.reshape(-1)[where]
        excused = left.isnan() & right.isnan()
        if not signed_zero:
            excused |= (left == 0) & (right == 0)
        if excused.all():
            return
        index = where.nonzero()[~excused]
    else:
        index = different.nonzero() // got.element_size()
    first = int(index[0])
    left, right = got.reshape(-1)[first].item(), expected.reshape(-1)[first].item()
    raise AssertionError(f"{what}: {index.numel()} of {got.numel()} differ, element {first} is {left}, not {right}")


def assert_same_copy(got: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Bit for bit, as for bytes that only travel."""
    got = got.cpu()
    assert got.dtype == expected.dtype and got.shape == expected.shape, f"{what}: {got.dtype}, {got.shape}"
    assert torch.equal(as_bytes(got), as_bytes(expected)), what


def reduced(parts: Sequence[torch.Tensor], op: str, factors: Sequence[float] | None = None) -> torch.Tensor:
    """The reduction of one tensor per rank, in rank order."""
    dtype = parts[0].dtype
    if dtype == torch.bool:
        stacked = torch.stack(list(parts))
        return stacked.any(0) if op in ("SUM", "MAX") else stacked.all(0)
    if dtype.is_floating_point:
        return reduced_floats(parts, op, factors)
    return reduced_integers(parts, op)


def reduced_floats(parts: Sequence[torch.Tensor], op: str, factors: Sequence[float] | None) -> torch.Tensor:
    dtype = parts[0].dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    terms = [part.to(wide) for part in parts]
    if factors is not None:
        terms = [term * torch.tensor(factor, dtype=wide) for term, factor in zip(terms, factors, strict=True)]
    total = terms[0]
    for term in terms[1:]:
        if op in ("SUM", "AVG", "PREMUL_SUM"):
            total = total + term
        elif op == "PRODUCT":
            total = total * term
        else:
            total = torch.minimum(total, term) if op == "MIN" else torch.maximum(total, term)
    if op == "AVG":
        total = total / len(parts)
    return total.to(dtype)


def reduced_integers(parts: Sequence[torch.Tensor], op: str) -> torch.Tensor:
    """With numpy, which knows unsigned types; arrays wrap silently.

    AVG divides the sum and truncates towards zero.  Sums of types below 32 bits are taken in 32 bits before, larger
    ones wrap.
    """
    arrays = [part.numpy() for part in parts]
    own = arrays[0].dtype
    if op == "AVG" and own.itemsize < 4:
        arrays = [array.astype(np.int32) for array in arrays]
    total = arrays[0].copy()
    for array in arrays[1:]:
        if op in ("SUM", "AVG"):
            total = total + array
        elif op == "PRODUCT":
            total = total * array
        else:
            total = np.minimum(total, array) if op == "MIN" else np.maximum(total, array)
    if op == "AVG":
        divisor = total.dtype.type(len(parts))
        quotient = total // divisor
        quotient += ((total % divisor != 0) & (total < 0)).astype(total.dtype)  # numpy rounds down
        total = quotient.astype(own)
    return torch.from_numpy(np.ascontiguousarray(total))
