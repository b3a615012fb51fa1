"""What importing the wheel does, and what it says when it does not fit."""

from __future__ import annotations

import subprocess
import sys

import pytest

from npu_distributed.plugin import check_torch


def test_other_torch_is_an_import_error() -> None:
    with pytest.raises(ImportError, match=r"built for torch 2\.13.*torch 2\.14\.0\+cpu is installed"):
        check_torch("2.14.0+cpu")
    check_torch("2.13.1+cpu")


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_registers_the_backend() -> None:
    pytest.importorskip("torch_npu")
    output = run(
        "import torch, torch.distributed as dist, torch_npu\n"
        "from torch_npu.distributed import is_hccl_available\n"
        "assert dist.Backend.HCCL == 'hccl' and dist.is_hccl_available() and is_hccl_available()\n"
        "assert dist.Backend.default_device_backend_map['npu'] == 'hccl'\n"
        "assert torch_npu._C._distributed_c10d.ProcessGroupHCCL is dist.ProcessGroupHCCL\n"
        "assert torch_npu.distributed.is_available()\n"
        "print('initialized', torch.npu.is_initialized())\n"
    )
    assert output.strip() == "initialized False"


def test_a_group_of_one_works() -> None:
    pytest.importorskip("torch_npu")
    output = run(
        "import torch, torch.distributed as dist\n"
        "dist.init_process_group('hccl', store=dist.HashStore(), rank=0, world_size=1)\n"
        "t = torch.arange(5., device='npu')\n"
        "dist.all_reduce(t)\n"
        "out = torch.empty(5, device='npu')\n"
        "dist.all_gather_into_tensor(out, t)\n"
        "dist.barrier()\n"
        "print(out.tolist())\n"
    )
    assert output.strip() == "[0.0, 1.0, 2.0, 3.0, 4.0]"
