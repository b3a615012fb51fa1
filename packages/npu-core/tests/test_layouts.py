"""Operands that are not contiguous, share memory or are expanded; layouts of results, against the CPU."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import torch_npu  # noqa: F401

LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "permuted": lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "half of the channels": lambda x: torch.cat([x, x + 1], 1).chunk(2, 1)[1],
    "every second column": lambda x: x.repeat_interleave(2, 3)[..., ::2],
}


def _input(layout: str, seed: int = 0) -> torch.Tensor:
    return LAYOUTS[layout](torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(seed)))


def _on_npu(x: torch.Tensor) -> torch.Tensor:
    """The same strides over npu memory."""
    storage = torch.empty(x.untyped_storage().nbytes() // x.element_size(), dtype=x.dtype)
    storage.copy_(torch.as_strided(x, storage.shape, (1,), 0))
    return torch.as_strided(storage.npu(), x.size(), x.stride(), x.storage_offset())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_norm(layout: str, training: bool) -> None:
    x = _input(layout)
    on_cpu = torch.nn.BatchNorm2d(4).train(training)
    with torch.no_grad():
        on_cpu.weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
    on_npu = copy.deepcopy(on_cpu).npu()
    leaf, npu_leaf = x.clone().requires_grad_(), _on_npu(x).detach().requires_grad_()
    ours, theirs = on_npu(npu_leaf), on_cpu(leaf)
    torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=1e-5)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(on_npu, name).cpu(), getattr(on_cpu, name))
    (ours * ours).sum().backward()
    (theirs * theirs).sum().backward()
    torch.testing.assert_close(npu_leaf.grad.cpu(), leaf.grad, rtol=1e-3, atol=1e-4)


def test_batch_norm_of_a_transposed_sequence() -> None:
    x = torch.randn(8, 16, 32, generator=torch.Generator().manual_seed(3)).transpose(1, 2)
    on_cpu = torch.nn.BatchNorm1d(32)
    on_npu = copy.deepcopy(on_cpu).npu()
    torch.testing.assert_close(on_npu(x.npu()).cpu(), on_cpu(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(on_npu.running_var.cpu(), on_cpu.running_var)


POINTWISE: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "abs": lambda x, y: x.abs(),
    "add": torch.add,
    "isinf": lambda x, y: x.isinf(),
    "isnan": lambda x, y: x.isnan(),
    "logical_and": torch.logical_and,
    "logical_not": lambda x, y: x.logical_not(),
    "where": lambda x, y: torch.where(x > 0, x, y),
    "where a number": lambda x, y: torch.where(x > 0, x, 2.0),
    "complex": torch.complex,
    "polar": lambda x, y: torch.polar(x.abs(), y),
    "nan_to_num": lambda x, y: x.nan_to_num(),
    "relu": lambda x, y: x.relu(),
    "exp": lambda x, y: x.exp(),
    "log_sigmoid": lambda x, y: F.hardswish(x),
    "reflection_pad2d": lambda x, y: F.pad(x, (1, 1, 1, 1), mode="reflect"),
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "permuted"])
@pytest.mark.parametrize("name", POINTWISE)
def test_results_keep_the_layout(name: str, layout: str) -> None:
    x, y = _input(layout), _input(layout, 1)
    ours, theirs = POINTWISE[name](_on_npu(x), _on_npu(y)), POINTWISE[name](x, y)
    assert ours.stride() == theirs.stride()
    torch.testing.assert_close(ours.cpu(), theirs)


def test_where_broadcasts() -> None:
    condition, a, b = torch.rand(4, 1) > 0.5, torch.randn(3), torch.tensor(2.0)
    assert torch.equal(torch.where(condition.npu(), a.npu(), b.npu()).cpu(), torch.where(condition, a, b))
    assert torch.equal(torch.where(condition.npu(), a.npu(), b).cpu(), torch.where(condition, a, b))


OVERLAPPING: dict[str, Callable[[torch.Tensor], object]] = {
    "copy_": lambda z: z[1:].copy_(z[:-1]),
    "assignment": lambda z: z.__setitem__(slice(1, None), z[:-1]),
    "cumsum": lambda z: torch.cumsum(z[:8], 0, out=z[2:10]),
    "index_select": lambda z: torch.index_select(z, 0, torch.tensor([3, 2, 1, 0], device=z.device), out=z[:4]),
    "take": lambda z: torch.take(z, torch.tensor([3, 2, 1, 0], device=z.device), out=z[:4]),
    "nan_to_num": lambda z: torch.nan_to_num(z[:8], out=z[2:10]),
    "angle": lambda z: torch.angle(z[:8], out=z[2:10]),
    "add": lambda z: torch.add(z[:8], 1, out=z[2:10]),
    "index_select of itself": lambda z: torch.index_select(z, 0, torch.arange(11, -1, -1, device=z.device), out=z),
    "mul_": lambda z: z[1:].mul_(z[:-1]),
}


def test_pointwise_operators_on_themselves_do_not_wait() -> None:
    flags = torch.tensor([True, False], device="npu")
    values = [torch.ones(3, device="npu") for _ in range(3)]
    torch.npu.set_sync_debug_mode("error")
    try:
        flags.logical_not_()
        torch._foreach_mul_(values, values)
    finally:
        torch.npu.set_sync_debug_mode("default")
    assert flags.tolist() == [False, True] and values[0].tolist() == [1.0] * 3


@pytest.mark.parametrize("name", OVERLAPPING)
def test_outputs_must_not_overlap_inputs(name: str) -> None:
    for device in ("cpu", "npu"):
        z = torch.arange(12.0, device=device)
        with pytest.raises(RuntimeError, match="single memory location"):
            OVERLAPPING[name](z)
        assert torch.equal(z.cpu(), torch.arange(12.0))


def test_an_operand_may_be_the_output() -> None:
    for device in ("cpu", "npu"):
        z = torch.arange(4.0, device=device)
        assert torch.cumsum(z, 0, out=z).tolist() == [0, 1, 3, 6]
        assert torch.nan_to_num(z, out=z).tolist() == [0, 1, 3, 6]


def test_expanded_tensors_can_be_filled() -> None:
    for device in ("cpu", "npu"):
        assert torch.ones(1, device=device).expand(4).fill_(2.0).tolist() == [2.0] * 4
        assert torch.ones(1, device=device).expand(4).zero_().tolist() == [0.0] * 4


def test_fill_takes_a_value_of_another_device() -> None:
    assert torch.empty(3).fill_(torch.tensor(1.0, device="npu")).tolist() == [1.0] * 3
    assert torch.empty(3, device="npu").fill_(torch.tensor(2.0)).tolist() == [2.0] * 3
    assert torch.empty(3, device="npu:0").fill_(torch.tensor(3.0, device="npu:1")).tolist() == [3.0] * 3


def test_quantized_tensors_are_copied_and_pickled() -> None:
    quantized = torch.quantize_per_tensor(torch.arange(4.0, device="npu"), 0.1, 0, torch.qint8)
    for again in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        assert again.device.type == "npu" and again.q_scale() == 0.1
        assert torch.equal(again.int_repr().cpu(), quantized.int_repr().cpu())
    empty = torch._empty_affine_quantized([2], scale=0.1, zero_point=0, dtype=torch.qint8, device="npu")
    assert empty.device.type == "npu" and empty.dtype == torch.qint8


def test_a_transformer_encoder_takes_a_padding_mask() -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    on_cpu = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    on_npu = torch.nn.TransformerEncoder(layer, 2).eval()
    on_npu.load_state_dict(on_cpu.state_dict())
    on_npu.npu()
    x, mask = torch.randn(2, 5, 8), torch.tensor([[False, False, False, True, True]] * 2)
    with torch.no_grad():
        ours, theirs = on_npu(x.npu(), src_key_padding_mask=mask.npu()).cpu(), on_cpu(x, src_key_padding_mask=mask)
    torch.testing.assert_close(ours[:, :3], theirs[:, :3], rtol=1e-4, atol=1e-5)


def test_strided_nested_tensors_are_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"layout=torch\.jagged"), pytest.warns(UserWarning):
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], device="npu").cos()
    jagged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], device="npu", layout=torch.jagged)
    assert [t.tolist() for t in (jagged * 2).unbind()] == [[2.0] * 2, [2.0] * 3]


def test_multinomial_fills_up_with_impossible_categories() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        drawn = torch.multinomial(torch.tensor([0.0, 1.0, 0.0, 2.0], device="npu"), 3).tolist()
        assert sorted(drawn[:2]) == [1, 3] and drawn[2] in (0, 2)
