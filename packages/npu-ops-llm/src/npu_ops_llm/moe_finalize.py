"""Merging the outputs of experts.  Schema and task: ``csrc/ops/moe_finalize.cpp``."""

from functools import partial

from torch import Tensor

from npu_ops_llm.moe_shapes import is_empty
from npu_ops_llm.registration import check, fake

_OP = "npu_moe_finalize_routing"


@fake
def npu_moe_finalize_routing(
    expanded_permuted_rows: Tensor,
    skip1: Tensor | None,
    skip2: Tensor | None,
    bias: Tensor | None,
    scales: Tensor | None,
    expanded_src_to_dst_row: Tensor,
    export_for_source_row: Tensor | None,
    drop_pad_mode: int | None = 0,
    k: int | None = 1,
) -> Tensor:
    """Weighted sum of the rows that the experts of each token made.

    With `rows` the input seen as ``(-1, hidden)`` and ``index = expanded_src_to_dst_row``::

        out[i] = skip1[i] + skip2[i] + sum over j < K of
                 scales[i, j] * (rows[index[slot(i, j)]] + bias[export_for_source_row[i, j]])

    in float32 with one rounding at the end.  Slots are numbered by columns (``slot(i, j) = j * tokens + i``) in modes 0
    and 1 and by rows (``i * K + j``) in modes 2 and 3.  The row of a slot whose index is -1 is zero; its bias counts.

    Parameters
    ----------
    expanded_permuted_rows : Tensor
        ``(rows, hidden)`` or ``(experts, capacity, hidden)``; float16, bfloat16 or float32.
    skip1, skip2 : Tensor, optional
        ``(tokens, hidden)``, dtype of the rows.  `skip2` needs `skip1`.
    bias : Tensor, optional
        ``(experts, hidden)``, dtype of the rows.  Needs `export_for_source_row`.
    scales : Tensor, optional
        ``(tokens, K)``, any floating dtype; 1 by default.
    expanded_src_to_dst_row : Tensor
        int32 or int64, ``(tokens * K,)``: the row of every slot, or -1.
    export_for_source_row : Tensor, optional
        int32 or int64, ``(tokens, K)``: the expert of every slot.
    drop_pad_mode : int, optional
        0 dropless and 1 drop/pad, slots numbered by columns; 2 dropless and 3 drop/pad, numbered by rows.
    k : int, optional
        K where `scales` is None.

    Returns
    -------
    Tensor
        ``(tokens, hidden)``, dtype of the rows.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, `drop_pad_mode` is none of the four, or an argument that another one needs is
        missing.
    IndexError
        If an index is below -1 or no row, or an expert is no row of `bias`; on npu at the next synchronisation.

    Examples
    --------
    >>> rows = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]])
    >>> scales = torch.tensor([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
    >>> index = torch.tensor([2, 0, 1, 4, 3, 5], dtype=torch.int32)
    >>> torch.ops.npu.npu_moe_finalize_routing(rows, None, None, None, scales, index, None)
    tensor([[4.0000],
            [3.2500],
            [2.0000]])
    """
    rows = expanded_permuted_rows
    check(
        rows.dim() in (2, 3),
        _OP,
        "expanded_permuted_rows",
        lambda: f"expected (rows, hidden) or (experts, capacity, hidden), got shape {list(rows.shape)}",
    )
    mode = drop_pad_mode or 0
    check(mode in (0, 1, 2, 3), _OP, "drop_pad_mode", f"expected 0, 1, 2 or 3, got {mode}")
    slots = expanded_src_to_dst_row.numel()
    # Without tokens the shapes of what is optional do not matter.
    if scales is not None and (scales.dim() == 2 or not is_empty(slots)):
        check(scales.dim() == 2, _OP, "scales", lambda: f"expected 2 dims, got shape {list(scales.shape)}")
        tokens, ranks = scales.shape
    else:
        ranks = k if k is not None and k > 0 else 1
        check(
            slots % ranks == 0,
            _OP,
            "expanded_src_to_dst_row",
            lambda: f"expected a multiple of k = {ranks} elements, got {slots}",
        )
        tokens = slots // ranks
    check(
        slots == tokens * ranks,
        _OP,
        "expanded_src_to_dst_row",
        lambda: f"expected {tokens * ranks} elements, one for each element of scales, got {slots}",
    )
    check(
        skip2 is None or skip1 is not None,
        _OP,
        "skip2",
        "expected None without skip1; pass the tensor as skip1",
    )
    empty = is_empty(tokens)
    for name, skip in (("skip1", skip1), ("skip2", skip2)):
        if skip is not None and not empty:
            same = skip.dim() == 2 and skip.shape[0] == tokens and skip.shape[1] == rows.shape[-1]
            message = partial(
                "expected shape {} (tokens, hidden), got {}".format, [tokens, rows.shape[-1]], list(skip.shape)
            )
            check(same, _OP, name, message)
    if bias is not None:
        check(
            export_for_source_row is not None,
            _OP,
            "export_for_source_row",
            "expected the expert of every slot, which a bias needs, got None",
        )
        assert export_for_source_row is not None
        experts = export_for_source_row
        check(
            empty or bias.dim() == 2 and bias.shape[1] == rows.shape[-1],
            _OP,
            "bias",
            lambda: f"expected shape (experts, {rows.shape[-1]}), got {list(bias.shape)}",
        )
        check(
            empty or experts.dim() == 2 and experts.shape[0] == tokens and experts.shape[1] == ranks,
            _OP,
            "export_for_source_row",
            lambda: f"expected shape {[tokens, ranks]} (tokens, k), got {list(experts.shape)}",
        )
    return rows.new_empty(tokens, rows.shape[-1])
