"""The table of `torch.npu.memory_summary`."""

from __future__ import annotations

from collections.abc import Mapping

_WIDTH = 75
_BYTE_UNITS = ("B ", "KB", "MB", "GB", "TB", "PB")
_COUNT_UNITS = ("  ", "K ", "M ")

_METRICS = (
    ("allocated_bytes", "Allocated memory", True),
    ("active_bytes", "Active memory", True),
    ("reserved_bytes", "NPU reserved memory", True),
    ("inactive_split_bytes", "Non-releasable memory", True),
    ("allocation", "Allocations", False),
    ("active", "Active allocs", False),
    ("segment", "NPU reserved segments", False),
    ("inactive_split", "Non-releasable allocs", False),
)
_OVERSIZE = (("oversize_allocations", "Oversize allocations"), ("oversize_segments", "Oversize NPU segments"))
_COUNTERS = ("current", "peak", "allocated", "freed")


def _format(value: int, scale: int, is_bytes: bool) -> str:
    """Write `value` in the unit that suits `scale`, the value for all pools of the same row."""
    units, limit, step = (_BYTE_UNITS, 768 * 1024, 1024) if is_bytes else (_COUNT_UNITS, 750 * 1000, 1000)
    unit = units[0]
    for following in units[1:]:
        if scale < limit:
            break
        scale //= step
        value //= step
        unit = following
    return f"{value:7d} {unit}"


def _row(name: str, cells: list[str]) -> str:
    return f" {name:<21} | " + " | ".join(f"{cell:>10}" for cell in cells) + " "


def format_summary(device: int, stats: Mapping[str, int], abbreviated: bool) -> str:
    """Return the summary of one device's counters (as `memory_stats` names them)."""
    lines = [
        "=" * _WIDTH,
        f" PyTorch NPU memory summary, device ID {device} ".ljust(_WIDTH),
        "-" * _WIDTH,
        f"  NPU OOMs: {stats['num_ooms']:<12} | npuMalloc retries: {stats['num_alloc_retries']:<8}".ljust(_WIDTH),
        "=" * _WIDTH,
        _row("       Metric", ["Cur Usage ", "Peak Usage", "Tot Alloc ", "Tot Freed "]),
    ]
    pools = (
        [("all", "")]
        if abbreviated
        else [("all", ""), ("large_pool", "from large pool"), ("small_pool", "from small pool")]
    )
    for metric, title, is_bytes in _METRICS:
        lines.append("-" * _WIDTH)
        scales = [stats[f"{metric}.all.{counter}"] for counter in _COUNTERS]
        for pool, name in pools:
            values = [stats[f"{metric}.{pool}.{counter}"] for counter in _COUNTERS]
            cells = [_format(value, scale, is_bytes) for value, scale in zip(values, scales, strict=True)]
            lines.append(_row(f"      {name}" if name else title, cells))
    for metric, title in _OVERSIZE:
        lines.append("-" * _WIDTH)
        values = [stats[f"{metric}.{counter}"] for counter in _COUNTERS]
        lines.append(_row(title, [_format(value, value, False) for value in values]))
    lines.append("=" * _WIDTH)
    return "".join(f"|{line}|\n" for line in lines)
