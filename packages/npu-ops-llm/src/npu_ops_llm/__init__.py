"""Operators of large language models, as ``torch.ops.npu.<name>``.

Importing this package registers the operators.  They serve CPU tensors anywhere, and npu tensors when npu-core is
installed (``import torch_npu`` then loads this package by itself).
"""

import importlib.metadata

# First: it loads torch_npu where that is installed, which comes back here through plugin.py.
import torch  # noqa: F401

import npu_ops_llm.operators  # noqa: F401
from npu_ops_llm.names import ATB_OPERATORS, OPERATORS

__all__ = ["ATB_OPERATORS", "OPERATORS", "__version__"]

__version__ = importlib.metadata.version("npu-ops-llm")
