"""Sampling by top-k and top-p.  Kernels: ``csrc/kernels/top_k_top_p.inc``, ``npu/kernels/top_k_top_p.h``."""

from torch import Tensor

from npu_ops_llm.registration import check, fake


@fake
def npu_top_k_top_p(logits: Tensor, p: Tensor | None = None, k: Tensor | None = None) -> Tensor:
    """Logits with -infinity for what top-k and top-p sampling leave out.

    Each row is taken in ascending order, equal logits in the order of their indices.  First all logits below the k-th
    largest become -infinity; those that equal it stay.  Then, with the softmax of what is left in float32, the smallest
    ones become -infinity as long as their probabilities sum to ``1 - p`` or less, except the very largest.  Logits that
    stay keep their value.

    Parameters
    ----------
    logits : Tensor
        (B, V); float32, float16 or bfloat16.
    p : Tensor, optional
        (B,), in [0, 1]; float32, float16 or bfloat16, ``1 - p`` is formed in float32.
    k : Tensor, optional
        (B,); int32 or int64.  Values below 1 count as 1, values above V as V.

    Returns
    -------
    Tensor
        Shape and dtype of `logits`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, or the tensors are on different devices.

    Notes
    -----
    Only some thousand logits near the cut are sorted.  Probabilities are summed in double, compared as float32: where
    a float32 running sum would reach ``1 - p`` up to its rounding, it may cut one logit away from here.  NaN counts as
    larger than every number and stays; a row with NaN or +infinity has no probabilities: there `p` changes nothing.

    Source: A. Fan, M. Lewis, Y. Dauphin, "Hierarchical Neural Story Generation", ACL 2018 (top-k); A. Holtzman et al.,
    "The Curious Case of Neural Text Degeneration", ICLR 2020 (top-p).

    Examples
    --------
    >>> logits = torch.tensor([[1.0, 2.0, 3.0, 4.0, 3.0]])
    >>> torch.ops.npu.npu_top_k_top_p(logits, torch.tensor([0.6]), torch.tensor([2]))
    tensor([[-inf, -inf, -inf, 4., 3.]])
    """
    op = "npu_top_k_top_p"
    check(logits.dim() == 2, op, "logits", lambda: f"expected shape [batch, vocabulary], got {list(logits.shape)}")
    for name, numbers in (("p", p), ("k", k)):
        if numbers is not None:
            check(
                numbers.dim() == 1 and numbers.shape[0] == logits.shape[0],
                op,
                name,
                f"expected shape [{logits.shape[0]}] (one for each row of logits), got {list(numbers.shape)}",
            )
    return logits.new_empty(logits.shape)
