"""``torch_npu._C._distributed_c10d``: the compiled class under the name clients know."""

from npu_distributed._C import ProcessGroupHCCL

__all__ = ["ProcessGroupHCCL"]
