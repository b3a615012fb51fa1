"""Importing this module registers the operators of this package, once."""

from npu_ops_llm import library, rms_norm

#: Names of the operators in ``torch.ops.npu``.
OPERATORS: tuple[str, ...] = ("npu_rms_norm", "npu_rms_norm_backward")

library.load()
rms_norm.register()
