"""What stopping a device means for the groups that use it."""

from __future__ import annotations

import functools
import sys
from typing import Any

from torch.distributed import distributed_c10d


def install() -> None:
    """Let ``torch.npu.stop_device`` end the collectives of this process first.  Idempotent.

    A collective that waits for its peers would keep the device from being restarted, and the peers must learn of the
    stop. Pending works fail with ``FORCE STOP.``, which no watchdog takes for a failure; the communicators are made
    anew by the first collective after ``restart_device`` and ``reinit_process_group``.
    """
    module: Any = sys.modules.get("torch_npu.npu")
    original = getattr(module, "stop_device", None)
    if original is None or hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def stop_device(device_id: int) -> int:
        from npu_distributed.backend import backend_of

        for group in list(distributed_c10d._world.pg_map):
            backend = backend_of(group)
            if hasattr(backend, "abort_hccl_comm"):
                backend.abort_hccl_comm(f"FORCE STOP. hccl: npu:{device_id} of rank {group.rank()} was stopped")
        return original(device_id)

    module.stop_device = stop_device
