"""ParallelStore, and the rendezvous that makes one: ``parallel://host:port`` and, if asked for, ``env://``."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch.distributed as dist

#: "True": env:// makes a ParallelStore, as parallel://MASTER_ADDR:MASTER_PORT would.
USE_VARIABLE = "TORCH_NPU_USE_PARALLEL_TCPSTORE"
#: "True": the stores of a job are tiered; set for the processes that ``torch_npu_run`` starts.
TIERED_VARIABLE = "TORCH_NPU_ENABLE_TIERED_PARALLEL_TCPSTORE"

_TIMEOUT = timedelta(seconds=300)


class ParallelStore(dist.TCPStore):
    """Key-value store of a job: a TCPStore under the name and with the arguments of Ascend programs.

    Torch's server already serves its clients in parallel from one event loop, so nothing is added to it.

    Parameters
    ----------
    host : str, default "127.0.0.1"
        Address of the server.
    port : int, default 29500
        Its port; 0 lets a server choose one, which attribute `port` then tells.
    world_size : int, default -1
        How many processes use the store, the server's own included; -1 if not known.
    agent_run : bool, default False
        Whether the process that launches the workers makes the store.
    agent_pid : int, default -1
        Process id of that launcher, -1 if there is none.
    is_server : bool, default False
        Whether this process holds the data.
    enable_tiered : bool, default False
        Whether the processes of a host may share a connection. Accepted: every client has its own here, with the same
        results.
    timeout : timedelta, default 300 s
        How long `get` and `wait` wait for a key, and a client for the server.
    wait_workers : bool, default True
        Whether the server waits in its constructor until `world_size` processes have come.
    multi_tenant : bool, default False
        Whether several stores of this process may share one server.

    Raises
    ------
    ValueError
        For a port that is none, and for a server that shall wait for an unknown number of workers.
    torch.distributed.DistNetworkError
        When the server does not answer within `timeout`, or the port of a server is taken.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 29500,
        world_size: int = -1,
        agent_run: bool = False,
        agent_pid: int = -1,
        is_server: bool = False,
        enable_tiered: bool = False,
        timeout: timedelta = _TIMEOUT,
        wait_workers: bool = True,
        multi_tenant: bool = False,
    ) -> None:
        if not 0 <= port < 2**16:
            raise ValueError(f"ParallelStore: expected a port from 0 to 65535, got port={port}")
        super().__init__(
            host,
            port,
            world_size if world_size > 0 else None,
            is_server,
            timeout,
            # Without a number of workers there is nothing to wait for.
            wait_for_workers=wait_workers and world_size > 0,
            multi_tenant=multi_tenant,
        )
        self.agent_run = agent_run
        self.agent_pid = agent_pid
        self.enable_tiered = enable_tiered


def register() -> None:
    """Make ``parallel://`` a rendezvous of torch.distributed, and let env:// become it on demand.  Idempotent."""
    # By its full name: the package has a function of the same name as the module.
    rendezvous = importlib.import_module("torch.distributed.rendezvous")
    handlers = rendezvous._rendezvous_handlers
    if "parallel" in handlers:
        return
    rendezvous.register_rendezvous_handler("parallel", _parallel_rendezvous)
    handlers["env"] = _env_or_parallel(handlers["env"])


def is_asked_for(variable: str) -> bool:
    """Return whether an environment variable says "True", in any case, or "1"."""
    return os.environ.get(variable, "").lower() in ("true", "1")


def _env_or_parallel(env_rendezvous: Callable[..., Any]) -> Callable[..., Any]:
    def rendezvous(url: str, timeout: timedelta = _TIMEOUT, **keywords: Any) -> Any:
        if not is_asked_for(USE_VARIABLE):
            return env_rendezvous(url, timeout=timeout, **keywords)
        host, port = (_setting(name) for name in ("MASTER_ADDR", "MASTER_PORT"))
        if ":" in host:
            host = f"[{host}]"
        return _parallel_rendezvous(f"parallel://{host}:{port}?{urlsplit(url).query}", timeout=timeout)

    return rendezvous


def _parallel_rendezvous(
    url: str, timeout: timedelta = _TIMEOUT, **keywords: Any
) -> Iterator[tuple[dist.Store, int, int]]:
    """Yield store, rank and size for ``parallel://host:port?rank=r&world_size=n``; RANK and WORLD_SIZE may say them."""
    parts = urlsplit(url)
    if parts.hostname is None or parts.port is None:
        raise ValueError(f"parallel:// rendezvous: expected parallel://host:port, got {url!r}")
    query = parse_qs(parts.query)
    rank = int(query["rank"][0] if "rank" in query else _setting("RANK"))
    size = int(query["world_size"][0] if "world_size" in query else _setting("WORLD_SIZE"))
    # Under torchrun the launcher holds the data, otherwise rank 0 does.
    by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = ParallelStore(
        parts.hostname,
        parts.port,
        size,
        agent_pid=os.getppid() if by_launcher else -1,
        is_server=rank == 0 and not by_launcher,
        enable_tiered=is_asked_for(TIERED_VARIABLE),
        timeout=timeout,
        multi_tenant=True,
    )
    yield store, rank, size
    raise RuntimeError("parallel:// rendezvous: a job cannot meet a second time, start it again")


def _setting(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ValueError(f"parallel:// rendezvous: environment variable {name} expected, but not set")
    return value
