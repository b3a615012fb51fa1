"""Importing this module registers the operators of this package, once."""

from npu_ops_vision import iou, library

#: Names of the operators in ``torch.ops.npu``.
OPERATORS: tuple[str, ...] = ("npu_iou",)

library.load()
iou.register()
