"""What the fake kernels of operators on tokens and experts share."""

import torch
from torch.fx.experimental.symbolic_shapes import guard_or_false


def is_empty(*sizes: int | torch.SymInt) -> bool:
    """Whether a size is 0.  Without tokens the operators do not check the shapes of optional tensors.

    Sizes that only the run can tell count as not 0.
    """
    return any(guard_or_false(size == 0) for size in sizes)
