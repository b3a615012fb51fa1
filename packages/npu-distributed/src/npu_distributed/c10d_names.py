"""``torch_npu._C._distributed_c10d``: the compiled classes under the names clients know."""

from npu_distributed._C import ProcessGroupHCCL, ProcessGroupLCCL

__all__ = ["ProcessGroupHCCL", "ProcessGroupLCCL"]
