"""The ops that need more than the rule that serves all others."""

from __future__ import annotations

# Functional overloads that are written by hand elsewhere in csrc/aten.
HAND_WRITTEN: frozenset[str] = frozenset()

# Arguments replaced before anything else looks at them: op -> argument -> C++ expression.
PREPARED_ARGUMENTS: dict[str, dict[str, str]] = {
    "index.Tensor": {"indices": "indices_on_device(self, indices)"},
}

# What meta() gets instead of an argument: op -> argument -> C++ expression.
META_ARGUMENTS: dict[str, dict[str, str]] = {
    # With beta != 0 meta() already copies `self` into the result; the kernel does it anyway.
    "baddbmm": {"beta": "at::Scalar(0)"},
}

# Ops whose meta() sets the output's size for reduction=none first and shrinks it afterwards.  Memory is allocated when
# the final size is known.
SHRINKING_OUTPUT: frozenset[str] = frozenset({"mse_loss", "smooth_l1_loss"})

# Final size of outputs that torch's CPU kernel resizes after meta(): op -> C++ expression.
FINAL_SIZE: dict[str, str] = {
    "isin.Scalar_Tensor": "{}",  # one truth value; meta() says no element
}

# Ops whose out= kernel cannot be used: under the condition the engine calls the functional one and copies its result.
COPIED_RESULT: dict[str, str] = {
    # These change the size of the output they are given, which must not happen to an alias of memory of a fixed size.
    "mse_loss": "reduction != at::Reduction::None",
    "smooth_l1_loss": "reduction != at::Reduction::None",
    "isin.Scalar_Tensor": "true",
    # The kernel marks its output as conjugated instead of conjugating it: the mark on an alias would be lost.
    "linalg_lu_solve": "!left",
    # This one writes wrong values into a contiguous output when an operand is channels-last (also on the CPU).
    "slow_conv_transpose2d": "self.suggest_memory_format() != at::MemoryFormat::Contiguous ||"
    " weight.suggest_memory_format() != at::MemoryFormat::Contiguous",
}

# Ops whose CPU kernel gives the output the memory format of an input, which meta() does not say: op -> input.
# tests/test_structured_ops.py finds such kernels: on an alias the change would be lost and the values misplaced.
OUTPUT_FORMAT_FROM: dict[str, str] = {
    "reflection_pad3d": "self",
    "reflection_pad3d_backward": "self",
    "replication_pad2d": "self",
    "replication_pad3d": "self",
}

# Matrix products whose float16 CPU kernels are scalar loops on most CPUs: the engine computes them in float32.
FLOAT_ACCUMULATION: frozenset[str] = frozenset({"mm", "bmm", "addmm", "addmv", "baddbmm", "_addmm_activation"})
