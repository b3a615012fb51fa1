"""Detection and vision operators, as ``torch.ops.npu.<name>``.

Importing this package registers the operators.  They serve CPU tensors anywhere, and npu tensors when npu-core is
installed (``import torch_npu`` then loads this package by itself).
"""

import importlib.metadata

# First: it loads torch_npu where that is installed, which comes back here through plugin.py.
import torch  # noqa: F401

import npu_ops_vision.operators  # noqa: F401
from npu_ops_vision.names import OPERATORS

__all__ = ["OPERATORS", "__version__"]

__version__ = importlib.metadata.version("npu-ops-vision")
