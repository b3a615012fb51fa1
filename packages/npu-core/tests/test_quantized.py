"""Quantised tensors on npu, against the CPU."""

from __future__ import annotations

import pytest
import torch

import torch_npu  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:.*quant.*", "ignore:.*TypedStorage.*")

DTYPES = (torch.qint8, torch.quint8, torch.qint32)


def _values() -> torch.Tensor:
    return torch.linspace(-2, 2, 12).reshape(3, 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_per_tensor(dtype: torch.dtype) -> None:
    theirs = torch.quantize_per_tensor(_values(), 0.05, 20, dtype)
    for ours in (torch.quantize_per_tensor(_values().npu(), 0.05, 20, dtype), theirs.npu()):
        assert ours.device.type == "npu" and ours.is_quantized and ours.dtype == dtype
        assert (ours.q_scale(), ours.q_zero_point(), ours.qscheme()) == (0.05, 20, torch.per_tensor_affine)
        assert torch.equal(ours.int_repr().cpu(), theirs.int_repr())
        assert torch.equal(ours.dequantize().cpu(), theirs.dequantize())
        assert torch.equal(ours.cpu().int_repr(), theirs.int_repr())
        assert torch.equal(ours.reshape(4, 3).clone().int_repr().cpu(), theirs.reshape(4, 3).int_repr())
        assert torch.equal(torch.cat([ours, ours]).int_repr().cpu(), torch.cat([theirs, theirs]).int_repr())


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.float64], ids=str)
def test_per_channel_keeps_its_scales(scale_dtype: torch.dtype) -> None:
    scales, points = torch.tensor([0.1, 0.2, 0.4], dtype=scale_dtype), torch.tensor([1, 2, 3])
    theirs = torch.quantize_per_channel(_values(), scales, points, 0, torch.qint8)
    on_npu = scales.npu()
    ours = torch.quantize_per_channel(_values().npu(), on_npu, points.npu(), 0, torch.qint8)
    on_npu.zero_()  # the quantizer must have a copy
    torch.npu.synchronize()
    assert ours.q_per_channel_axis() == 0
    assert torch.equal(ours.q_per_channel_scales().cpu(), theirs.q_per_channel_scales())
    assert torch.equal(ours.dequantize().cpu(), theirs.dequantize())


def test_fake_quantisation_trains() -> None:
    gradients = []
    for device in ("cpu", "npu"):
        x = _values().to(device).requires_grad_()
        torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -5, 5).square().sum().backward()
        gradients.append(x.grad.cpu())
    assert torch.equal(*gradients)


def test_copy_of_another_kind_is_refused() -> None:
    quantized = torch.quantize_per_tensor(_values().npu(), 0.1, 0, torch.qint8)
    with pytest.raises(RuntimeError, match="quantized tensors must agree"):
        quantized.copy_(torch.quantize_per_tensor(_values()[:2].npu(), 0.1, 0, torch.qint8))
