"""The operators of this package by family: one module here, one file each in csrc/ops and csrc/kernels.

Importing this module imports nothing else: npu-core asks for the names before it loads the operators.
"""

#: Family -> operators in ``torch.ops.npu``.
FAMILIES: dict[str, tuple[str, ...]] = {"iou": ("npu_iou",)}

#: Every operator of this package.
OPERATORS: tuple[str, ...] = tuple(name for names in FAMILIES.values() for name in names)
