"""One rank of a test: loads a test file and runs functions of it, as told by the parent over a pipe.

Forked by hccl_testing/rank_server.py, or started as
``python rank_worker.py <test file> <rank> <size> <store file> <command fd> <answer fd>``.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import json
import os
import signal
import sys
import traceback
from datetime import timedelta


def main() -> None:
    path, rank, size, store, commands, answers = sys.argv[1], *map(str, sys.argv[2:])
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)  # the parent asks where we hang
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["LOCAL_WORLD_SIZE"] = size
    os.environ["LOCAL_RANK"] = os.environ["RANK"] = rank
    os.environ["WORLD_SIZE"] = size
    if places := os.environ.get("TEST_HOSTS"):
        from hccl_testing.hosts import enter

        enter(json.loads(places)[int(rank)])

    import torch
    import torch.distributed as dist

    torch.npu.set_device(int(rank))
    seconds = float(os.environ.get("TEST_GROUP_TIMEOUT", "120"))
    dist.init_process_group(
        "hccl",
        store=dist.FileStore(store, int(size)),
        rank=int(rank),
        world_size=int(size),
        timeout=timedelta(seconds=seconds),
    )
    spec = importlib.util.spec_from_file_location("distributed_test_functions", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)

    with os.fdopen(int(commands)) as requests, os.fdopen(int(answers), "w") as replies:
        for line in requests:
            request = json.loads(line)
            try:
                value = getattr(module, request["function"])(int(rank), int(size), *request["arguments"])
                answer = {"value": value}
            except Exception:
                answer = {"error": traceback.format_exc()}
            replies.write(json.dumps(answer) + "\n")
            replies.flush()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
