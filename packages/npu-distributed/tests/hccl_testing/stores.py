"""Stores that the ranks of a test make for themselves."""

from __future__ import annotations

import time
from pathlib import Path

import torch.distributed as dist


def tcp_store(rank: int, size: int, folder: str) -> dist.TCPStore:
    """Return a TCPStore as torchrun makes one: rank 0 keeps it, in a thread, and tells its port in `folder`."""
    port = Path(folder, "port")
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)
        Path(folder, "new").write_text(str(store.port))
        Path(folder, "new").rename(port)
        return store
    while not port.exists():
        time.sleep(0.01)
    return dist.TCPStore("127.0.0.1", int(port.read_text()), size)


def use_tcp_store(rank: int, size: int, folder: str) -> None:
    """Make the world anew on such a store."""
    dist.destroy_process_group()
    dist.init_process_group("hccl", store=tcp_store(rank, size, folder), rank=rank, world_size=size)
