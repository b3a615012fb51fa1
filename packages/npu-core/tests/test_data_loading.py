"""Pinned memory and torch.utils.data on the way to npu."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

#: Datasets are pickled by name for spawned workers, so the programs below are files of their own.
PROGRAM = """
import sys
import torch
from torch.utils.data import DataLoader, Dataset

class Numbers(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        assert not torch.npu.is_initialized(), "a worker must not touch the device"
        return torch.full((3,), float(index)), index

class Resident(Dataset):
    def __init__(self, tensors):
        self.tensors = tensors

    def __len__(self):
        return len(self.tensors)

    def __getitem__(self, index):
        return self.tensors[index]

class Produced(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.full((2,), float(index), device="npu")

def same(batch):
    return batch

def error_of(function):
    try:
        function()
    except Exception as error:
        return str(error)
    return "no error"

if __name__ == "__main__":
    BODY
"""


@pytest.fixture
def run_program(run_python, tmp_path):
    """Run statements after the datasets above, in a file, so that spawned workers find them."""

    def run(*body: str) -> list[str]:
        path = tmp_path / "program.py"
        path.write_text(PROGRAM.replace("BODY", "\n    ".join(body)))
        starter = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, {str(path)!r}]).returncode)"
        return run_python(starter).stdout.splitlines()

    return run


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("options", [{}, {"pin_memory_device": "npu"}])
def test_pinned_batches(workers, options):
    inputs, labels = torch.arange(12.0).view(6, 2), torch.arange(6)
    loader = DataLoader(
        TensorDataset(inputs, labels),
        batch_size=2,
        num_workers=workers,
        pin_memory=True,
        timeout=60 * bool(workers),
        **options,
    )
    seen = []
    for x, y in loader:
        assert x.is_pinned() and y.is_pinned() and x.device.type == "cpu"
        on_device = x.to("npu", non_blocking=True)
        seen.append((on_device.tolist(), y.npu(non_blocking=True).tolist()))
    assert [row for batch, _ in seen for row in batch] == inputs.tolist()
    assert [label for _, batch in seen for label in batch] == labels.tolist()


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.parametrize("before", [True, False], ids=["device in use", "device unused"])
def test_workers_leave_the_device_alone(run_program, context, before):
    lines = run_program(
        "torch.npu.init()" if before else "pass",
        f"loader = DataLoader(Numbers(), batch_size=4, num_workers=2, multiprocessing_context={context!r},",
        "                    pin_memory=True, persistent_workers=True, timeout=90)",
        "for epoch in range(2):",
        "    for x, index in loader:",
        "        print(x.npu().sum(1).tolist(), index.tolist(), x.is_pinned())",
    )
    expected = ["[0.0, 3.0, 6.0, 9.0] [0, 1, 2, 3] True", "[12.0, 15.0, 18.0, 21.0] [4, 5, 6, 7] True"]
    assert lines == expected * 2


def test_npu_tensors_of_a_forked_worker(run_program):
    lines = run_program(
        "tensors = list(torch.arange(4.0, device='npu'))",
        "for collate in (None, same):",
        "    loader = DataLoader(Resident(tensors), batch_size=2, num_workers=1, collate_fn=collate, timeout=90,",
        "                        multiprocessing_context='fork')",
        "    text = error_of(lambda: list(loader))",
        "    print('Cannot re-initialize NPU in forked subprocess' in text and 'spawn' in text)",
    )
    assert lines == ["True", "True"]


def test_npu_tensors_of_a_spawned_worker(run_program):
    lines = run_program(
        "loader = DataLoader(Produced(), batch_size=2, num_workers=1, multiprocessing_context='spawn', timeout=90,",
        "                    persistent_workers=True)",
        "for batch in loader:",
        "    print(batch.device, batch.tolist())",
    )
    assert lines == ["npu:0 [[0.0, 0.0], [1.0, 1.0]]", "npu:0 [[2.0, 2.0], [3.0, 3.0]]"]


def test_resident_tensors_reach_a_spawned_worker(run_program):
    lines = run_program(
        "tensors = list(torch.arange(4.0, device='npu'))",
        "loader = DataLoader(Resident(tensors), batch_size=4, num_workers=1, multiprocessing_context='spawn',",
        "                    timeout=90, persistent_workers=True)",
        "for batch in loader:",
        "    print(batch.device, batch.tolist())",
    )
    assert lines == ["npu:0 [0.0, 1.0, 2.0, 3.0]"]


def test_resident_tensors_without_workers():
    loader = DataLoader(TensorDataset(torch.arange(4, device="npu")), batch_size=2)
    assert [batch[0].tolist() for batch in loader] == [[0, 1], [2, 3]]
    pinned = DataLoader(TensorDataset(torch.arange(4, device="npu")), batch_size=2, pin_memory=True)
    with pytest.raises(RuntimeError, match="cannot pin .* only dense CPU tensors can be pinned"):
        list(pinned)


def test_pin_memory():
    tensor = torch.arange(6.0).view(2, 3)
    assert not tensor.is_pinned()
    pinned = tensor.pin_memory()
    assert pinned.is_pinned() and pinned.is_pinned("npu") and pinned.pin_memory() is pinned
    assert pinned.tolist() == tensor.tolist() and pinned.data_ptr() != tensor.data_ptr()
    assert tensor.t().pin_memory().tolist() == tensor.t().tolist()
    assert torch.empty(3, pin_memory=True).is_pinned()
    assert not torch.ones(2, device="npu").is_pinned()
    assert torch.nn.utils.rnn.pack_padded_sequence(tensor, [3, 3], batch_first=True).pin_memory().is_pinned()
    with pytest.raises(RuntimeError, match="only dense CPU tensors can be pinned"):
        torch.ones(2, device="npu").pin_memory()
