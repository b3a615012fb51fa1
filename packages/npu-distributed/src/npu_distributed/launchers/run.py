"""``torch_npu_run``, also ``python -m torch_npu.distributed.run``: torchrun whose processes meet in a ParallelStore."""

from __future__ import annotations

import argparse
import os
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, Store, run
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.elastic.rendezvous import (
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from npu_distributed.parallel_store import TIERED_VARIABLE, USE_VARIABLE, ParallelStore, is_asked_for

BACKEND = "parallel"
_TIMEOUT_SECONDS = 600


class ParallelRendezvous(StaticTCPRendezvous):
    """Nodes of known ranks meet in a ParallelStore that node 0 serves."""

    _store: Store | None

    def get_backend(self) -> str:
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        if self._store is None:
            self._store = ParallelStore(
                self.master_addr,
                self.master_port,
                self.world_size,
                agent_run=True,
                agent_pid=os.getpid(),
                is_server=self.rank == 0,
                enable_tiered=is_asked_for(TIERED_VARIABLE),
                timeout=self.timeout,
                multi_tenant=True,
            )
        return RendezvousInfo(
            PrefixStore(self.run_id, self._store),
            self.rank,
            self.world_size,
            RendezvousStoreInfo(self.master_addr, self.master_port),
        )


def create_handler(parameters: RendezvousParameters) -> ParallelRendezvous:
    """Make the rendezvous of a node from torchrun's parameters: endpoint, and "rank" of --rdzv-conf."""
    rank = parameters.get_as_int("rank")
    host, port = parse_rendezvous_endpoint(parameters.endpoint, -1)
    if rank is None or port < 0:
        raise ValueError(
            "torch_npu_run: rendezvous backend parallel expects --rdzv-endpoint host:port and --rdzv-conf rank=<node "
            f"rank>, got endpoint {parameters.endpoint!r} and rank {rank}"
        )
    timeout = parameters.get_as_int("timeout", _TIMEOUT_SECONDS) or _TIMEOUT_SECONDS
    handler = ParallelRendezvous(host, port, rank, parameters.max_nodes, parameters.run_id, timeout)
    handler.timeout = timedelta(seconds=timeout)
    return handler


def parser() -> argparse.ArgumentParser:
    """Return torchrun's parser with the switch for tiered stores."""
    made = run.get_args_parser()
    made.add_argument(
        "--enable-tiered-parallel-tcpstore",
        "--enable_tiered_parallel_tcpstore",
        default="false",
        type=str.lower,
        choices=("true", "false"),
        help="Let the processes of a node share what they say to the store.",
    )
    return made


def use_parallel_store(arguments: argparse.Namespace) -> None:
    """Have the launcher and its processes meet in a ParallelStore."""
    if BACKEND not in rendezvous_handler_registry._registry:
        rendezvous_handler_registry.register(BACKEND, create_handler)
    os.environ[USE_VARIABLE] = "True"
    os.environ[TIERED_VARIABLE] = arguments.enable_tiered_parallel_tcpstore.capitalize()
    _, most_nodes = run.parse_min_max_nnodes(arguments.nnodes)
    says_where = arguments.rdzv_endpoint or arguments.master_port is not None or most_nodes > 1
    if arguments.rdzv_backend == "static" and says_where and not arguments.standalone:
        arguments.rdzv_backend = BACKEND
        arguments.rdzv_endpoint = run.get_rdzv_endpoint(
            argparse.Namespace(
                rdzv_backend="static",
                rdzv_endpoint=arguments.rdzv_endpoint,
                master_addr=arguments.master_addr,
                master_port=arguments.master_port if arguments.master_port is not None else 29500,
            )
        )
        rank = f"rank={arguments.node_rank}"
        arguments.rdzv_conf = f"{arguments.rdzv_conf},{rank}" if arguments.rdzv_conf else rank


@record
def main(arguments: list[str] | None = None) -> Any:
    """Start a job as torchrun does."""
    parsed = parser().parse_args(arguments)
    use_parallel_store(parsed)
    run.run(parsed)


if __name__ == "__main__":
    main()
