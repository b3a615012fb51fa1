"""Calls of npu_prefetch for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments."""
    yield "npu_prefetch", (torch.randn(64, 32), None, 1024), {}
    yield "npu_prefetch", (torch.randn(64, 32), torch.randn(3), 10**9, 100), {}
