"""Facts of the machine and what it can do at best: copy bandwidth and matrix multiplication."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

# Keep freed memory instead of returning it: stock PyTorch on the CPU then pays no page fault per temporary.
ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    "tuned": {
        "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),
        "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30),
        "MALLOC_TOP_PAD_": str(256 * 2**20),
    },
}


def facts() -> dict[str, object]:
    """What the figures depend on: processor, memory, versions, device."""
    processor: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        processor.setdefault(key.strip(), value.strip())
    flags = processor.get("flags", "").split()
    interesting = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_bf16", "amx_int8")
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "processor": processor.get("model name", platform.processor()),
        "family_model": f"{processor.get('cpu family', '?')}/{processor.get('model', '?')}",
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "instruction_sets": [name for name in interesting if name in flags],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": head.stdout.strip() or "unknown",
        "device": device_name(),
    }


def device_name() -> str:
    """Name of npu:0 and whether it is emulated."""
    if not hasattr(torch, "npu") or not torch.npu.is_available():
        return "none"
    properties = torch.npu.get_device_properties(0)
    emulated = getattr(properties, "is_emulated", False)
    return f"{properties.name}{' (emulated on the CPU)' if emulated else ''}"


def best_time(work: Callable[[], object], seconds: float) -> float:
    """Shortest of the calls of `work` that fit into `seconds`, at least one."""
    work()
    best = float("inf")
    end = time.perf_counter() + seconds
    while True:
        begin = time.perf_counter()
        work()
        now = time.perf_counter()
        best = min(best, now - begin)
        if now >= end:
            return best


def copy_bandwidth(footprint: int, seconds: float) -> float:
    """GB/s of a plain copy of `footprint` bytes, bytes read plus bytes written, both buffers already mapped."""
    source = torch.ones(footprint, dtype=torch.uint8)
    target = torch.zeros_like(source)
    return 2 * footprint / best_time(lambda: target.copy_(source), seconds) * 1e-9


def matmul_peak(dtype: torch.dtype, sizes: tuple[int, ...], seconds: float) -> float:
    """GFLOP/s of the best square matrix multiplication of stock PyTorch in `dtype`."""
    best = 0.0
    for size in sizes:
        a = torch.randn(size, size).to(dtype)
        b = torch.randn(size, size).to(dtype)
        out = torch.empty(size, size, dtype=dtype)
        best = max(best, 2 * size**3 / best_time(partial(torch.mm, a, b, out=out), seconds) * 1e-9)
    return best
