"""Measures the npu device against stock PyTorch on the CPU of the same machine: ``python -m benchmarks``."""
