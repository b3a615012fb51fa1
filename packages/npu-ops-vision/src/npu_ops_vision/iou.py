"""Shape (fake kernel) of ``npu_iou``.  Schema and kernels: ``csrc/ops/iou.cpp``."""

import torch
from torch import Tensor


def _check_boxes(argument: str, boxes: Tensor) -> None:
    torch._check(
        boxes.dim() == 2 and boxes.shape[1] == 4,
        lambda: (
            f"npu_iou: argument {argument}: expected shape [n, 4] with rows x1, y1, x2, y2, got {list(boxes.shape)}"
        ),
    )


def _iou_fake(bboxes: Tensor, gtboxes: Tensor, mode: int = 0) -> Tensor:
    _check_boxes("bboxes", bboxes)
    _check_boxes("gtboxes", gtboxes)
    return bboxes.new_empty((gtboxes.shape[0], bboxes.shape[0]))


def register() -> None:
    """Register the fake kernel of this family.  None of its operators has a gradient."""
    torch.library.register_fake("npu::npu_iou", _iou_fake)
