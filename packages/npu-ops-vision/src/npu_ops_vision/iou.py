"""Overlap of boxes.  Schema and kernels: ``csrc/ops/iou.cpp``, ``csrc/kernels/iou.inc``."""

import torch
from torch import Tensor

from npu_ops_vision.registration import fake


def _check_boxes(argument: str, boxes: Tensor) -> None:
    torch._check(
        boxes.dim() == 2 and boxes.shape[1] == 4,
        lambda: (
            f"npu_iou: argument {argument}: expected shape [n, 4] with rows x1, y1, x2, y2, got {list(boxes.shape)}"
        ),
    )


@fake
def npu_iou(bboxes: Tensor, gtboxes: Tensor, mode: int = 0) -> Tensor:
    """Overlap of every pair of boxes.

    ``out[j, i]`` is the area of the intersection of box i and ground truth j, over the area of their union (mode 0) or
    of the ground truth (other modes).  0.01 is added to the sides in the areas.  Computed in float32.

    Parameters
    ----------
    bboxes, gtboxes : Tensor
        (n, 4) and (m, 4), rows x1, y1, x2, y2; float16, bfloat16, float32 or float64.
    mode : int
        0 for intersection over union, else intersection over ground truth.

    Returns
    -------
    Tensor
        (m, n), dtype of `bboxes`.

    Raises
    ------
    RuntimeError
        If a shape or dtype does not fit, or the tensors are on different devices.
    """
    _check_boxes("bboxes", bboxes)
    _check_boxes("gtboxes", gtboxes)
    return bboxes.new_empty((gtboxes.shape[0], bboxes.shape[0]))
