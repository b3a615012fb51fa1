"""``torch_npu._C._distributed_c10d``: the compiled names under which clients know them."""

from npu_distributed._C import ProcessGroupHCCL, ProcessGroupLCCL, _dump_hccl_trace, _dump_hccl_trace_json

__all__ = ["ProcessGroupHCCL", "ProcessGroupLCCL", "_dump_hccl_trace", "_dump_hccl_trace_json"]
