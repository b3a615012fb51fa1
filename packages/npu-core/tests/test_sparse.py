"""Sparse COO and compressed tensors on npu, against the CPU."""

from __future__ import annotations

import threading

import pytest
import torch

import torch_npu  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:Sparse", "ignore:.*sparse.*:UserWarning")

LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


def _dense(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor([[0, 1, 0, 2], [3, 0, 0, 0], [0, 0, 0, 4]], dtype=dtype)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.complex64], ids=str)
def test_conversions(layout: torch.layout, dtype: torch.dtype) -> None:
    dense = _dense(dtype)
    from_npu = dense.npu().to_sparse(layout=layout)
    uploaded = dense.to_sparse(layout=layout).npu()
    for sparse in (from_npu, uploaded):
        assert sparse.device.type == "npu" and sparse.layout == layout and sparse.values().device.type == "npu"
        assert torch.equal(sparse.to_dense().cpu(), dense)
        assert torch.equal(sparse.cpu().to_dense(), dense)
    if dtype == torch.float32:
        assert torch.equal(from_npu.double().cpu().to_dense(), dense.double())


def test_second_device() -> None:
    sparse = _dense().to_sparse().to("npu:1")
    assert sparse.device == torch.device("npu", 1) and sparse._indices().device == sparse.device
    assert torch.equal((sparse * 2).to_dense().cpu(), _dense() * 2)
    assert torch.equal(sparse.to("npu:0").to_dense().cpu(), _dense())


def test_construction_and_parts() -> None:
    x = torch.sparse_coo_tensor([[0, 0, 1], [1, 1, 2]], [3.0, 4.0, 5.0], (2, 3), device="npu")
    assert x._nnz() == 3 and not x.is_coalesced() and x.sparse_dim() == 2 and x.dense_dim() == 0
    merged = x.coalesce()
    assert merged.is_coalesced() and merged.values().tolist() == [7.0, 5.0]
    assert merged.indices().tolist() == [[0, 1], [1, 2]]
    csr = torch.sparse_csr_tensor([0, 1, 2], [0, 1], [1.0, 2.0], (2, 2), device="npu")
    assert csr.crow_indices().tolist() == [0, 1, 2] and csr.col_indices().tolist() == [0, 1]
    with pytest.raises((RuntimeError, ValueError)):
        torch.sparse_coo_tensor([[0], [9]], [1.0], (2, 3), device="npu", check_invariants=True)
    assert torch.zeros_like(x)._nnz() == 0
    assert "device='npu:0'" in repr(x) and "layout=torch.sparse_coo" in repr(x)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_products(layout: torch.layout) -> None:
    other = torch.arange(8.0).reshape(4, 2)
    sparse = _dense().to_sparse(layout=layout).npu()
    assert torch.equal((sparse @ other.npu()).cpu(), _dense() @ other)
    assert torch.equal(torch.mv(sparse, other[:, 1].contiguous().npu()).cpu(), _dense() @ other[:, 1])


def test_arithmetic_and_in_place() -> None:
    a, b = _dense().to_sparse().npu(), (_dense().flip(0)).to_sparse().npu()
    assert torch.equal((a + b).to_dense().cpu(), _dense() + _dense().flip(0))
    assert torch.equal((a * 3).to_dense().cpu(), _dense() * 3)
    assert torch.sparse.sum(a).item() == 10
    a.mul_(2)
    assert torch.equal(a.to_dense().cpu(), _dense() * 2)
    a.copy_(b)
    assert torch.equal(a.to_dense().cpu(), _dense().flip(0))
    a.zero_()
    assert not a.to_dense().cpu().any()
    target = torch.ones(3, 4, device="npu")
    target.add_(b, alpha=2)
    assert torch.equal(target.cpu(), 1 + 2 * _dense().flip(0))


def test_gradients() -> None:
    other = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    results = []
    for device in ("cpu", "npu"):
        sparse = _dense().to_sparse().to(device).requires_grad_()
        dense = other.clone().to(device).requires_grad_()
        torch.sparse.mm(sparse, dense).square().sum().backward()
        results.append((sparse.grad.to_dense().cpu(), dense.grad.cpu()))
    torch.testing.assert_close(results[1], results[0])


def test_sparse_embedding_trains() -> None:
    weights = []
    for device in ("cpu", "npu"):
        torch.manual_seed(1)
        embedding = torch.nn.Embedding(10, 4, sparse=True).to(device)
        optimizers = [
            torch.optim.SGD(embedding.parameters(), lr=0.1),
            torch.optim.SparseAdam(list(embedding.parameters())),
        ]
        for optimizer in optimizers:
            optimizer.zero_grad()
            embedding(torch.tensor([1, 2, 1, 7], device=device)).square().sum().backward()
            assert embedding.weight.grad.is_sparse
            optimizer.step()
        weights.append(embedding.weight.detach().cpu())
    torch.testing.assert_close(weights[1], weights[0])


def test_copy_between_layouts_is_refused() -> None:
    with pytest.raises(RuntimeError, match="convert it first"):
        _dense().to_sparse().npu().copy_(_dense().npu())


def test_inputs_in_flight(hold) -> None:
    """The parts of a sparse tensor may still be on their way when an operator is called."""
    dense, other = _dense().to_sparse(), torch.ones(4, 2).npu()
    torch.npu.synchronize()
    hold(match="copy")
    values = dense.values().pin_memory().to("npu", non_blocking=True)
    indices = dense.indices().pin_memory().to("npu", non_blocking=True)
    sparse = torch.sparse_coo_tensor(indices, values, dense.shape, check_invariants=False, is_coalesced=True)
    assert not torch.npu.current_stream().query()
    released = threading.Timer(0.05, hold.release)
    released.start()
    result = torch.sparse.mm(sparse, other)  # waits
    released.join()
    assert torch.equal(result.cpu(), _dense() @ torch.ones(4, 2))
