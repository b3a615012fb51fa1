"""Tensors on npu between processes; `torch.multiprocessing` uses it by itself."""

from __future__ import annotations

from torch_npu.multiprocessing.reductions import register

__all__ = ["register"]
