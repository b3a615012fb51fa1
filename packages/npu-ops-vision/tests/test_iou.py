"""npu_iou against the formula in float64."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

IOU = torch.ops.npu.npu_iou

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# The computation is in float32 for every dtype; 16-bit results add half a unit in the last place.
RTOL = {torch.float32: 2e-5, torch.float64: 2e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}
ATOL = 2e-6


def reference(bboxes: Tensor, gtboxes: Tensor, mode: int = 0) -> Tensor:
    """The formula of the specification: row j is gt j, column i is box i."""
    box, gt = bboxes.double()[None, :, :], gtboxes.double()[:, None, :]
    epsilon = 0.01

    def area(boxes: Tensor) -> Tensor:
        return (boxes[..., 2] - boxes[..., 0] + epsilon) * (boxes[..., 3] - boxes[..., 1] + epsilon)

    width = torch.minimum(box[..., 2], gt[..., 2]) - torch.maximum(box[..., 0], gt[..., 0])
    height = torch.minimum(box[..., 3], gt[..., 3]) - torch.maximum(box[..., 1], gt[..., 1])
    intersection = width.clamp(min=0) * height.clamp(min=0)
    return intersection / (area(gt) if mode == 1 else area(box) + area(gt) - intersection)


def boxes(count: int, dtype: torch.dtype, device: str) -> Tensor:
    corner = torch.rand(count, 2) * 50
    return torch.cat([corner, corner + torch.rand(count, 2) * 40 + 0.5], 1).to(dtype).to(device)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(
        actual.cpu().double(), expected, rtol=RTOL[actual.dtype], atol=ATOL, equal_nan=True, check_dtype=False
    )


@pytest.mark.abi
@pytest.mark.parametrize("mode", [0, 1, 2, -1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 5), (17, 2), (64, 64), (1023, 7), (1025, 3), (2100, 33), (1, 300)])
def test_against_the_formula(n: int, m: int, dtype: torch.dtype, mode: int, device: str) -> None:
    bboxes, gtboxes = boxes(n, dtype, device), boxes(m, dtype, device)
    out = IOU(bboxes, gtboxes, mode)
    assert out.shape == (m, n) and out.dtype == dtype and out.device == bboxes.device
    expected = reference(bboxes.cpu(), gtboxes.cpu(), mode)
    if n * m > 50:
        assert 0.05 < float((expected > 0).double().mean()) < 0.999  # the data tests both cases
    assert_near(out, expected)


@pytest.mark.abi
def test_specification_example(device: str) -> None:
    bboxes = torch.tensor([[0.0, 0, 10, 10], [10, 10, 20, 20], [32, 32, 38, 42]], device=device)
    gtboxes = torch.tensor([[0.0, 0, 10, 20], [0, 10, 10, 10], [10, 10, 20, 20]], device=device)
    iou = torch.tensor([[0.498753, 0, 0], [0, 0, 0], [0, 0.996014, 0]])
    iof = torch.tensor([[0.499251, 0, 0], [0, 0, 0], [0, 0.998003, 0]])
    torch.testing.assert_close(IOU(bboxes, gtboxes).cpu(), iou, rtol=0, atol=2e-6)
    torch.testing.assert_close(IOU(bboxes, gtboxes, 1).cpu(), iof, rtol=0, atol=2e-6)


@pytest.mark.parametrize("gt_dtype", DTYPES)
@pytest.mark.parametrize("box_dtype", DTYPES)
def test_dtype_is_that_of_bboxes(box_dtype: torch.dtype, gt_dtype: torch.dtype, device: str) -> None:
    bboxes, gtboxes = boxes(9, box_dtype, device), boxes(4, gt_dtype, device)
    out = IOU(bboxes, gtboxes)
    assert out.dtype == box_dtype
    assert_near(out, reference(bboxes.cpu(), gtboxes.cpu()))


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_empty(n: int, m: int, device: str) -> None:
    assert IOU(boxes(n, torch.float32, device), boxes(m, torch.float32, device)).shape == (m, n)


def test_non_contiguous(device: str) -> None:
    columns = boxes(40, torch.float32, device).t().contiguous()
    bboxes, gtboxes = columns.t(), boxes(20, torch.float32, device)[::2]
    assert not bboxes.is_contiguous() and not gtboxes.is_contiguous()
    assert_near(IOU(bboxes, gtboxes), reference(bboxes.cpu(), gtboxes.cpu()))


def test_nan_spreads_as_in_the_formula(device: str) -> None:
    bboxes, gtboxes = boxes(6, torch.float32, device), boxes(5, torch.float32, device)
    for i in range(4):
        bboxes[i, i] = float("nan")
        gtboxes[i, i] = float("nan")
    for mode in (0, 1):
        assert_near(IOU(bboxes, gtboxes, mode), reference(bboxes.cpu(), gtboxes.cpu(), mode))


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kernel_table(isa: str, dtype: torch.dtype, mode: int) -> None:
    for n in (*range(1, 36), 1024, 1024 + 13):
        bboxes, gtboxes = boxes(n, dtype, "cpu"), boxes(3, dtype, "cpu")
        assert_near(IOU(bboxes, gtboxes, mode), reference(bboxes, gtboxes, mode))


@pytest.mark.abi
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_opcheck(dtype: torch.dtype, device: str) -> None:
    torch.library.opcheck(IOU.default, (boxes(7, dtype, device), boxes(3, dtype, device)))
    torch.library.opcheck(IOU.default, (boxes(7, dtype, device), boxes(3, dtype, device), 1))


def test_compiled(device: str) -> None:
    compiled = torch.compile(lambda b, g: IOU(b * 2, g) + 1, backend="aot_eager", fullgraph=True, dynamic=True)
    for n, m in ((6, 3), (9, 4)):
        b, g = boxes(n, torch.float32, device), boxes(m, torch.float32, device)
        torch.testing.assert_close(compiled(b, g), IOU(b * 2, g) + 1)


@pytest.mark.abi
def test_errors_name_operator_and_argument(device: str) -> None:
    good = boxes(3, torch.float32, device)
    for call, message in [
        (lambda: IOU(good[:, :3], good), r"npu_iou: argument bboxes: expected shape \[n, 4\] .* got \[3, 3\]"),
        (lambda: IOU(good, good[0]), r"npu_iou: argument gtboxes: expected shape \[n, 4\] .* got \[4\]"),
        (lambda: IOU(good.int(), good), "npu_iou: argument bboxes: expected dtype .* got int32"),
        (lambda: IOU(good, good.long()), "npu_iou: argument gtboxes: expected dtype .* got int64"),
        (lambda: IOU(good.to("meta"), good[0].to("meta")), "npu_iou: argument gtboxes: expected shape"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_devices_must_agree() -> None:
    import torch_npu  # noqa: F401

    b = boxes(2, torch.float32, "cpu")
    message = r"^Expected all tensors to be on the same device, but found at least two devices, npu:0 and cpu!"
    with pytest.raises(RuntimeError, match=message):
        IOU(b.npu(), b)


# ---- deprecation --------------------------------------------------------------------------------------------------

WARNING = "torch_npu.npu_iou is deprecated and will be removed in future version."

RECORD = """
import warnings, torch, npu_ops_vision
b = torch.rand(2, 4)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    torch.ops.npu.npu_iou(b, b)
    torch.ops.npu.npu_iou.default(b, b)
print([(str(w.message), w.category.__name__, w.filename) for w in seen])
"""


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_deprecation_is_a_user_warning_once_per_process() -> None:
    result = run_python(RECORD)
    assert result.stdout.strip() == str([(WARNING, "UserWarning", "<string>")]), result.stderr


@pytest.mark.parametrize("variable", [{"TORCH_NPU_WARNING_DISABLE": "1"}, {"RANK": "1"}], ids=["disabled", "rank"])
def test_deprecation_can_be_silenced(variable: dict[str, str]) -> None:
    result = run_python(RECORD, **variable)
    assert result.stdout.strip() == "[]", result.stderr


def test_deprecation_obeys_an_error_filter() -> None:
    result = run_python(
        "import torch, npu_ops_vision\n" + "import warnings; warnings.simplefilter('error')\n"
        "torch.ops.npu.npu_iou(torch.rand(1, 4), torch.rand(1, 4))"
    )
    assert result.returncode != 0
    assert WARNING in result.stderr
