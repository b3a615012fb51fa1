"""``torch_npu._C._distributed_c10d``: the compiled names under which clients know them, and torch's parts of DDP.

Torch's own reducer serves npu modules: it knows devices by their guards and streams only.
"""

from torch.distributed import (
    Reducer,
    _broadcast_coalesced,
    _compute_bucket_assignment_by_size,
    _register_builtin_comm_hook,
    _register_comm_hook,
)

from npu_distributed._C import ProcessGroupHCCL, ProcessGroupLCCL, _dump_hccl_trace, _dump_hccl_trace_json
from npu_distributed.parallel_store import ParallelStore

__all__ = [
    "ParallelStore",
    "ProcessGroupHCCL",
    "ProcessGroupLCCL",
    "Reducer",
    "_broadcast_coalesced",
    "_compute_bucket_assignment_by_size",
    "_dump_hccl_trace",
    "_dump_hccl_trace_json",
    "_register_builtin_comm_hook",
    "_register_comm_hook",
]
