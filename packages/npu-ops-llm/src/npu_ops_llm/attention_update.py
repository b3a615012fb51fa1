"""Combination of attention over parts of the keys.  Kernels: ``csrc/kernels/attention_update.inc``."""

import torch
from torch import Tensor

from npu_ops_llm.registration import check, fake

_OP = "npu_attention_update"


@fake
def npu_attention_update(lse: list[Tensor], local_out: list[Tensor], update_type: int) -> tuple[Tensor, Tensor]:
    """Combine attention results of the same queries over different keys.

    ``lse_m = max(lse) + log(sum_i exp(lse_i - max(lse)))`` and ``out = sum_i local_out_i * exp(lse_i - lse_m)``, in
    float32 with one rounding.  A part whose lse is +inf or -inf is absent; where all are, `out` is 0, ``lse_m`` -inf.

    Parameters
    ----------
    lse : list of Tensor
        Logarithms of the sums of exponentials, 1 to 64 tensors of shape (rows,), float32.
    local_out : list of Tensor
        As many tensors of shape (rows, columns); float16, bfloat16 or float32.
    update_type : int
        1 to get ``lse_m``, 0 not to.

    Returns
    -------
    out : Tensor
        (rows, columns), dtype of `local_out`.
    lse_m : Tensor
        (rows,), float32; shape (0,) with ``update_type=0``.

    Raises
    ------
    RuntimeError
        If the lists differ in length, or a dtype, shape or device does not fit.

    Notes
    -----
    Source: T. Dao et al., "FlashAttention", 2022 (the combination of blocks).

    Examples
    --------
    >>> lse = [torch.tensor([0.0]), torch.tensor([1.0])]
    >>> torch.ops.npu.npu_attention_update(lse, [torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, 5.0]])], 1)
    (tensor([[2.4621, 3.9242]]), tensor([1.3133]))
    """
    check(update_type in (0, 1), _OP, "update_type", f"expected 0 or 1, got {update_type}")
    check(1 <= len(lse) <= 64, _OP, "lse", f"expected 1 to 64 tensors, got {len(lse)}")
    same = len(lse) == len(local_out)
    check(same, _OP, "local_out", f"expected as many tensors as lse has, {len(lse)}, got {len(local_out)}")
    first = local_out[0]
    check(first.dim() == 2, _OP, "local_out", lambda: f"expected shape (rows, columns), got {list(first.shape)}")
    combined_lse = first.new_empty(first.shape[:1] if update_type == 1 else (0,), dtype=torch.float32)
    return first.new_empty(first.shape), combined_lse
