"""npu/kernels/*.h, what operator wheels build their kernels from, compiled for every instruction set of this CPU."""

import ctypes
import math
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
SOURCE = Path(__file__).parent / "kernels" / "lanes_probe.cpp"
# As in cmake/npu_op_library.cmake.
FLAGS = {
    "base": ["-march=x86-64"],
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    "avx512_bf16": ["-march=x86-64-v4", "-mprefer-vector-width=512", "-mavx512bf16", "-mavx512vnni"],
}
NEEDED = {"base": (), "avx2": ("avx2", "fma", "f16c"), "avx512": ("avx512bw", "avx512vl", "avx512dq", "avx512cd")}
NEEDED["avx512_bf16"] = (*NEEDED["avx512"], "avx512_bf16", "avx512_vnni")


def _instruction_sets() -> list[str]:
    flags = set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            flags = set(line.split(":")[1].split())
            break
    return [name for name, needed in NEEDED.items() if flags.issuperset(needed)]


@pytest.fixture(scope="module", params=_instruction_sets())
def probe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The building blocks compiled for one instruction set."""
    library = tmp_path_factory.mktemp("lanes") / f"lanes_{request.param}.so"
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O3", "-shared", "-fPIC", "-Wno-psabi", "-w"]
    command += [*FLAGS[request.param], f"-I{ROOT / 'include'}", str(SOURCE), "-o", str(library)]
    subprocess.run(command, check=True, timeout=300)
    return ctypes.CDLL(str(library))


def run(probe: ctypes.CDLL, name: str, x: Tensor, dtype: torch.dtype, count: int | None = None) -> Tensor:
    """Apply `probe_<name>` to the elements of x."""
    n = x.numel() if count is None else count
    y = torch.full((n + 64,), 77).to(dtype)  # the tail shows writes beyond the end
    function = getattr(probe, f"probe_{name}")
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    x = x.contiguous()
    function(x.data_ptr(), y.data_ptr(), x.numel() if count is None else max(n, x.numel()))
    assert (y[n:].double() == torch.tensor(77).to(dtype).double()).all()
    return y[:n]


def units_in_the_last_place(actual: Tensor, expected: Tensor) -> float:
    """Largest error in units of float32, `expected` being float64."""
    magnitude = expected.float().abs()
    unit = torch.nextafter(magnitude, torch.tensor(math.inf)) - magnitude
    return float(((actual.double() - expected).abs() / unit.double()).max())


SPECIAL = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 3.4e38, -3.4e38])


@pytest.mark.parametrize(
    ("name", "function", "low", "high", "units"),
    [
        ("exponential", torch.exp, -103.0, 88.7, 1.2),
        ("sigmoid", torch.sigmoid, -86.0, 30.0, 2.5),
        ("logarithm", torch.log, 1e-38, 100.0, 1.0),
        ("square_root", torch.sqrt, 0.0, 1e6, 0.5001),
    ],
)
def test_functions(
    probe: ctypes.CDLL, name: str, function: Callable[[Tensor], Tensor], low: float, high: float, units: float
) -> None:
    x = torch.cat([torch.linspace(low, high, 200_001), torch.linspace(max(low, 0.5), 2.0, 100_001)])
    assert units_in_the_last_place(run(probe, name, x, torch.float32), function(x.double())) < units
    torch.testing.assert_close(run(probe, name, SPECIAL, torch.float32), function(SPECIAL), equal_nan=True)


def test_logarithm_over_all_exponents(probe: ctypes.CDLL) -> None:
    x = torch.logspace(-44.5, 38.5, 300_001, dtype=torch.float64).float()
    assert units_in_the_last_place(run(probe, "logarithm", x, torch.float32), x.double().log()) < 1.0


VALUES = torch.cat(
    [
        SPECIAL,
        torch.arange(-1200, 1200) / 4,  # every tie
        torch.tensor([2.0**31, -(2.0**31), 2147483520.0, 2.0**30 + 64, 2.0**23 + 1, -(2.0**22) - 0.5, 3e9, -3e9]),
        torch.randn(20_000, generator=torch.Generator().manual_seed(1)) * 200,
    ]
)


def test_round_even(probe: ctypes.CDLL) -> None:
    actual, expected = run(probe, "round_even", VALUES, torch.float32), VALUES.round()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(actual.signbit(), expected.signbit())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_integers_round_and_saturate(probe: ctypes.CDLL, dtype: torch.dtype) -> None:
    limits = torch.iinfo(dtype)
    finite = VALUES.double().nan_to_num(0, math.inf, -math.inf)
    expected = finite.round().clamp(limits.min, limits.max).to(dtype)
    name = str(dtype).removeprefix("torch.")
    assert torch.equal(run(probe, f"to_{name}", VALUES, dtype), expected)
    back = run(probe, f"from_{name}", expected, torch.float32)
    assert torch.equal(back, expected.float())


def test_int4(probe: ctypes.CDLL) -> None:
    x = torch.cat([VALUES[: len(VALUES) // 2 * 2], torch.tensor([1.0, -1, 7, -8, 0, 2, -3, 4])])
    quantised = x.nan_to_num(0, math.inf, -math.inf).round().clamp(-8, 7).int()
    packed = run(probe, "to_int4", x, torch.uint8, len(x) // 2)
    assert torch.equal(packed.int(), (quantised[0::2] & 15) | (quantised[1::2] & 15) << 4)
    assert packed[-4:].view(torch.int32).item() == 0x4D2087F1
    assert torch.equal(run(probe, "from_int4", packed, torch.float32, len(x)), quantised.float())


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float8_e4m3fn, 448.0), (torch.float8_e5m2, 57344.0)])
def test_float8(probe: ctypes.CDLL, dtype: torch.dtype, largest: float) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    name = str(dtype).removeprefix("torch.")
    widened = run(probe, f"from_{name}", every, torch.float32)
    torch.testing.assert_close(widened, every.float(), rtol=0, atol=0, equal_nan=True)
    finite = widened[widened.isfinite()].sort().values
    middles = (finite[1:] + finite[:-1]) / 2
    up, down = torch.tensor(math.inf), torch.tensor(-math.inf)
    x = torch.cat([finite, middles, torch.nextafter(middles, up), torch.nextafter(middles, down), VALUES])
    actual = run(probe, f"to_{name}", x, dtype)
    torch.testing.assert_close(
        actual.float(), x.clamp(-largest, largest).to(dtype).float(), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_floats(probe: ctypes.CDLL, dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    name = str(dtype).removeprefix("torch.")
    widened = run(probe, f"from_{name}", every, torch.float32)
    torch.testing.assert_close(widened, every.float(), rtol=0, atol=0, equal_nan=True)
    finite = widened[widened.isfinite()].sort().values
    middles = ((finite[1:].double() + finite[:-1].double()) / 2).float()
    up, down = torch.tensor(math.inf), torch.tensor(-math.inf)
    x = torch.cat([finite, middles, torch.nextafter(middles, up), torch.nextafter(middles, down), SPECIAL])
    torch.testing.assert_close(run(probe, f"to_{name}", x, dtype), x.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 15, 16, 17, 63, 64, 65, 8191, 8192, 8193, 40_000])
def test_row_reductions(probe: ctypes.CDLL, count: int) -> None:
    x = torch.randn(count, generator=torch.Generator().manual_seed(count)) - 3
    probe.probe_sum.restype = ctypes.c_double
    probe.probe_max.restype = ctypes.c_float
    total = probe.probe_sum(ctypes.c_void_p(x.data_ptr()), ctypes.c_int64(count))
    assert total == pytest.approx(float(x.double().sum()), rel=1e-6, abs=1e-6)
    most = probe.probe_max(ctypes.c_void_p(x.data_ptr()), ctypes.c_float(-100.0), ctypes.c_int64(count))
    assert most == (float(x.max()) if count else -100.0)
