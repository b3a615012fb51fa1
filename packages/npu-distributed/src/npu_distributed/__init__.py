"""Backend "hccl" of torch.distributed for npu devices.

Nothing here needs to be imported by hand: ``import torch`` finds the wheel through npu-core and registers the backend.
"""

from npu_distributed.version import __version__

__all__ = ["__version__"]
