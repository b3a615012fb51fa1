"""Jobs as users start them: torchrun, the environment rendezvous, every spelling of the backend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch_npu")

SPELLINGS = """
import os
import torch, torch.distributed as dist
rank = int(os.environ["LOCAL_RANK"])
torch.npu.set_device(rank)
for backend in (None, "hccl", "npu:hccl", "cpu:gloo,npu:hccl", *["hccl"] * 8):
    dist.init_process_group(backend)
    t = torch.full((3,), 1.0 + rank, device="npu")
    dist.all_reduce(t)
    assert t.tolist() == [3.0] * 3, t
    assert backend is None or dist.get_backend() in (backend, "hccl"), dist.get_backend()
    inherited = dist.new_group()
    dist.all_reduce(t, group=inherited)
    assert t.tolist() == [6.0] * 3
    if backend and "gloo" in backend:
        c = torch.ones(2)
        dist.all_reduce(c)
        assert c.tolist() == [2.0, 2.0]
    dist.barrier()
    dist.destroy_process_group()
dist.init_process_group(device_id=torch.device("npu", rank))
dist.barrier()
try:
    dist.init_process_group("hccl")
except ValueError as error:
    assert "trying to initialize the default process group twice!" in str(error)
# One write for the line and its end: print() makes two, and the ranks share one pipe.
os.write(1, f"rank {rank} done\\n".encode())
"""


def torchrun(script: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", str(script), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment.pop("NPU_HOST_DEVICE_COUNT", None)  # torchrun's LOCAL_WORLD_SIZE says how many devices there are
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_spellings_of_the_backend(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(SPELLINGS)
    assert sorted(torchrun(script).splitlines()) == ["rank 0 done", "rank 1 done"]
