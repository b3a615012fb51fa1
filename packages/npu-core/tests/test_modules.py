"""Modules of torch.nn whose kernels on accelerators are not those of the CPU."""

import copy

import pytest
import torch


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("module", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
def test_recurrent(module: type, bias: bool):
    torch.manual_seed(0)
    on_cpu = module(5, 7, num_layers=2, bidirectional=True, bias=bias)
    on_npu = copy.deepcopy(on_cpu).npu()
    x = torch.randn(4, 3, 5)
    inputs = x.clone().requires_grad_(), x.npu().requires_grad_()
    outputs = [m(i)[0] for m, i in zip((on_cpu, on_npu), inputs, strict=True)]
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(outputs[1].cpu(), outputs[0])
    torch.testing.assert_close(inputs[1].grad.cpu(), inputs[0].grad)
    for ours, theirs in zip(on_npu.parameters(), on_cpu.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("module", [torch.nn.LSTMCell, torch.nn.GRUCell])
def test_gradients_reach_the_states(module: type, dtype: torch.dtype):
    torch.manual_seed(1)
    on_cpu = module(5, 7).to(dtype)
    on_npu = copy.deepcopy(on_cpu).npu()
    count = 2 if module is torch.nn.LSTMCell else 1
    states = [torch.randn(3, 7, dtype=dtype) for _ in range(count)]
    x = torch.randn(3, 5, dtype=dtype)
    gradients = []
    for cell, device in ((on_cpu, "cpu"), (on_npu, "npu")):
        leaves = [t.clone().to(device).requires_grad_() for t in states]
        result = cell(x.to(device), tuple(leaves) if count == 2 else leaves[0])
        results = result if count == 2 else (result,)
        sum((i + 1) * r.square().sum() for i, r in enumerate(results)).backward()
        only_last = torch.autograd.grad(
            (cell(x.to(device), tuple(leaves)) if count == 2 else (cell(x.to(device), leaves[0]),))[-1].sum(), leaves
        )
        gradients.append([t.grad.cpu() for t in leaves] + [t.cpu() for t in only_last])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_recurrent_cells_check_their_operands():
    gates, state = torch.ones(2, 12, device="npu"), torch.ones(2, 5, device="npu")
    with pytest.raises(RuntimeError, match=r"_thnn_fused_lstm_cell: the state must be \(2, 3\)"):
        torch.ops.aten._thnn_fused_lstm_cell(gates, gates, state)
    with pytest.raises(RuntimeError, match="_thnn_fused_gru_cell: input_gates and hidden_gates"):
        torch.ops.aten._thnn_fused_gru_cell(gates, gates[:1], state)


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_group_norm(format: torch.memory_format):
    x = torch.randn(2, 4, 9, 9).contiguous(memory_format=format)
    weight, bias = torch.randn(4), torch.randn(4)
    inputs = x.clone().requires_grad_(), x.npu().requires_grad_()
    outputs = [torch.nn.functional.group_norm(i, 2, weight.to(i.device), bias.to(i.device)) for i in inputs]
    for output in outputs:
        output.square().sum().backward()
    assert outputs[1].stride() == outputs[0].stride()
    torch.testing.assert_close(outputs[1].cpu(), outputs[0])
    torch.testing.assert_close(inputs[1].grad.cpu(), inputs[0].grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("other", [torch.float32, torch.bfloat16])
def test_products_need_one_dtype(other: torch.dtype):
    with pytest.raises(RuntimeError, match="same dtype"):
        torch.ones(2, 2, device="npu", dtype=torch.float16) @ torch.ones(2, 2, device="npu", dtype=other)


def test_half_products_round_once():
    a, b = torch.randn(33, 65).half(), torch.randn(65, 17).half()
    expected = (a.double() @ b.double()).half()
    torch.testing.assert_close((a.npu() @ b.npu()).cpu(), expected, rtol=1e-3, atol=1e-3)


def test_moving_a_module_keeps_its_parameters():
    """An optimizer made before the move still trains the module, and gradients move along."""
    module = torch.nn.Linear(3, 2)
    weight = module.weight
    before = weight.detach().clone()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    module(torch.ones(4, 3)).sum().backward()
    version = weight._version
    module.npu()
    assert module.weight is weight and weight.device.type == weight.grad.device.type == "npu"
    assert weight._version == version
    module(torch.ones(4, 3, device="npu")).sum().backward()
    optimizer.step()
    assert torch.equal(weight.detach().cpu(), before - 4)
    module.cpu()
    assert module.weight is weight and weight.device.type == weight.grad.device.type == "cpu"
    optimizer.zero_grad()
    module(torch.ones(4, 3)).sum().backward()
    assert weight.grad.unique().tolist() == [4.0]


def test_data_of_a_parameter_may_change_its_device_but_not_its_layout():
    parameter = torch.nn.Parameter(torch.arange(3.0))
    alias = parameter.data
    parameter.data = parameter.data.npu()
    assert parameter.device.type == "npu" and parameter.is_leaf and parameter.requires_grad
    assert parameter.tolist() == [0.0, 1.0, 2.0] and alias.device.type == "cpu"
    with pytest.raises(RuntimeError, match="incompatible tensor type"):
        parameter.data = torch.eye(2, device="npu").to_sparse()
    with pytest.raises(RuntimeError, match="incompatible tensor type"):
        parameter.data = torch.empty(3, device="meta")
