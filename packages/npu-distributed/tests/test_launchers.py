"""Jobs started by torchrun, torch_npu_run and multiprocessing: stores, restarts after a killed rank, checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest.importorskip("torch_npu")

import torch
import torch.distributed as dist

from npu_distributed.launchers import run
from torch_npu.distributed import ParallelStore


def environment(**changes: str) -> dict[str, str]:
    """A job's own environment: its launcher says how many devices there are."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NPU_HOST_")}
    return kept | {"OMP_NUM_THREADS": "1"} | changes


def launch(*command: str | Path, status: int = 0, **changes: str) -> str:
    result = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=180, env=environment(**changes)
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout + result.stderr


# ---- ParallelStore --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiered", [False, True])
def test_parallel_store_does_what_a_tcp_store_does(tiered: bool) -> None:
    make = {"enable_tiered": tiered, "timeout": timedelta(seconds=30)}
    server = ParallelStore("127.0.0.1", 0, is_server=True, wait_workers=False, **make)
    clients = [ParallelStore("127.0.0.1", server.port, **make) for _ in range(4)]
    assert isinstance(server, dist.Store) and server.port > 0 and server.enable_tiered is tiered
    clients[0].set("key", "value")
    assert server.get("key") == b"value" and clients[3].check(["key"]) and not clients[3].check(["key", "other"])
    assert [client.add("count", 2) for client in clients] == [2, 4, 6, 8]
    assert clients[1].compare_set("key", "value", "changed") == b"changed"
    assert clients[1].compare_set("key", "value", "again") == b"changed"
    clients[2].append("key", "!")
    clients[2].multi_set(["a", "b"], ["1", "2"])
    assert server.multi_get(["a", "b", "key"]) == [b"1", b"2", b"changed!"]
    before = server.num_keys()
    assert server.delete_key("a") and not server.delete_key("a") and server.num_keys() == before - 1
    clients[0].wait(["b"], timedelta(seconds=5))
    with pytest.raises(dist.DistStoreError, match="timeout"):
        clients[0].wait(["never"], timedelta(milliseconds=50))
    server.set_timeout(timedelta(milliseconds=50))
    with pytest.raises(dist.DistStoreError, match="timeout"):
        server.get("never")
    again = clients[0].clone()
    again.set("from a clone", "yes")
    assert dist.PrefixStore("from", server).underlying_store.get("from a clone") == b"yes"


def test_parallel_store_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="port from 0 to 65535, got port=70000"):
        ParallelStore(port=70000)
    server = ParallelStore("127.0.0.1", 0, 1, is_server=True)
    with pytest.raises(dist.DistNetworkError, match="address already in use"):
        ParallelStore("127.0.0.1", server.port, 1, is_server=True)
    shared = ParallelStore("127.0.0.1", 0, 1, is_server=True, multi_tenant=True)
    second = ParallelStore("127.0.0.1", shared.port, 1, is_server=True, multi_tenant=True)
    second.set("a", "b")
    assert shared.get("a") == b"b"
    with pytest.raises(ValueError, match="expected parallel://host:port"):
        next(dist.rendezvous("parallel://host?rank=0&world_size=1"))


def test_rendezvous_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    for variable, url, kind in (
        ("True", "env://", ParallelStore),
        ("False", "env://", dist.TCPStore),
        ("False", "parallel://127.0.0.1:0", ParallelStore),
        ("False", "parallel://127.0.0.1:0?rank=0&world_size=1", ParallelStore),
    ):
        monkeypatch.setenv("TORCH_NPU_USE_PARALLEL_TCPSTORE", variable)
        store, rank, size = next(dist.rendezvous(url))
        assert type(store) is kind and (rank, size) == (0, 1)
    monkeypatch.setenv("TORCH_NPU_USE_PARALLEL_TCPSTORE", "True")
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(ValueError, match="MASTER_PORT expected, but not set"):
        next(dist.rendezvous("env://"))


# ---- launchers ------------------------------------------------------------------------------------------------------

JOB = """
import os
import torch, torch.distributed as dist
rank = int(os.environ["LOCAL_RANK"])
torch.npu.set_device(rank)
dist.init_process_group("hccl")
store, _, _ = next(dist.rendezvous("env://"))  # as init_process_group made one
t = torch.full((3,), 1.0 + rank, device="npu")
dist.all_reduce(t)
tiered = getattr(store, "enable_tiered", None)
# One write for the line and its end: the ranks share one pipe.
os.write(1, f"rank {rank} {type(store).__name__} {tiered} {t.tolist()}\\n".encode())
dist.destroy_process_group()
"""


@pytest.fixture
def free_port() -> int:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False).port


def lines(output: str) -> list[str]:
    return sorted(line for line in output.splitlines() if line.startswith("rank "))


def test_torch_npu_run(tmp_path: Path, free_port: int) -> None:
    job = tmp_path / "job.py"
    job.write_text(JOB)
    module = ("-m", "torch_npu.distributed.run")
    output = launch(*module, "--nproc-per-node", "2", "--master-port", str(free_port), job)
    assert lines(output) == [f"rank {rank} ParallelStore False [3.0, 3.0, 3.0]" for rank in range(2)]
    output = launch(*module, "--standalone", "--nproc-per-node", "2", "--enable-tiered-parallel-tcpstore", "true", job)
    assert lines(output) == [f"rank {rank} ParallelStore True [3.0, 3.0, 3.0]" for rank in range(2)]


def test_torch_npu_run_is_a_program() -> None:
    (script,) = entry_points(group="console_scripts", name="torch_npu_run")
    assert callable(script.load())
    options = run.parser().parse_args(["--enable_tiered_parallel_tcpstore=True", "job.py", "-x"])
    assert options.enable_tiered_parallel_tcpstore == "true" and options.training_script_args == ["-x"]


RESTARTED = """
import os, signal, sys
import torch, torch.distributed as dist
from torch import nn
rank, attempt, path = int(os.environ["LOCAL_RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"]), sys.argv[1]
torch.npu.set_device(rank)
dist.init_process_group("hccl")
torch.manual_seed(0)
model = nn.parallel.DistributedDataParallel(nn.Linear(4, 1).npu(), device_ids=[rank])
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
first = 0
if os.path.exists(path):
    saved = torch.load(path, map_location="npu", weights_only=True)
    model.module.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    first = saved["step"]
losses = []
for step in range(first, 6):
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step)).chunk(2)[rank].npu()
    loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if attempt == 0 and step == 3 and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    mean = loss.detach().clone()
    dist.all_reduce(mean, op=dist.ReduceOp.AVG)
    losses.append(round(mean.item(), 5))
    if rank == 0:
        state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
        torch.save(state, path + ".new")
        os.replace(path + ".new", path)
    dist.barrier()
if rank == 0:
    print("attempt", attempt, "from", first, "losses", losses, flush=True)
dist.destroy_process_group()
"""


def uninterrupted() -> list[float]:
    """The losses of the job above, by one process on the CPU."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    losses = []
    for step in range(6):
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_killed_rank_is_restarted_and_resumes(tmp_path: Path) -> None:
    job = tmp_path / "job.py"
    job.write_text(RESTARTED)
    output = launch(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"),
        *(job, tmp_path / "state.pt"),
    )
    line = next(line for line in output.splitlines() if line.startswith("attempt "))
    assert line.startswith("attempt 1 from 3 losses [")
    resumed = [float(value) for value in line.split("[")[1].rstrip("]").split(",")]
    assert resumed == pytest.approx(uninterrupted()[3:], rel=1e-3, abs=1e-4)


SPAWN = """
import sys
import torch, torch.distributed as dist, torch.multiprocessing as mp

def work(rank, size, path, results):
    torch.npu.set_device(rank)
    dist.init_process_group("hccl", init_method=f"file://{path}", rank=rank, world_size=size)
    t = torch.full((3,), 1.0 + rank, device="npu")
    dist.all_reduce(t)
    objects = [None] * size
    dist.all_gather_object(objects, {"rank": rank})
    results.put((rank, t.tolist(), objects))
    dist.barrier()
    dist.destroy_process_group()
    if len(sys.argv) > 2 and rank == 1:
        raise ValueError("rank 1 fails on purpose")

if __name__ == "__main__":
    results = mp.get_context("spawn").SimpleQueue()
    try:
        mp.spawn(work, args=(2, sys.argv[1], results), nprocs=2)
    except mp.ProcessRaisedException as error:
        assert "rank 1 fails on purpose" in str(error)
        print("raised")
    print(sorted([results.get() for _ in range(2)]))
"""


def test_spawn(tmp_path: Path) -> None:
    job = tmp_path / "job.py"
    job.write_text(SPAWN)
    said = [(rank, [3.0, 3.0, 3.0], [{"rank": 0}, {"rank": 1}]) for rank in range(2)]
    output = launch(job, tmp_path / "store", "fail", NPU_HOST_DEVICE_COUNT="2")
    assert output.splitlines()[:2] == ["raised", str(said)], output
