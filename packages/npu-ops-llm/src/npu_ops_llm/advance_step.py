"""Inputs of the next decode step.  Schema and kernel: ``csrc/ops/advance_step.cpp``."""

from torch import Tensor

from npu_ops_llm.registration import check, fake, writes_arguments


@fake
def npu_advance_step_flashattn(
    input_tokens: Tensor,
    sampled_token_ids: Tensor,
    input_positions: Tensor,
    seq_lens: Tensor,
    slot_mapping: Tensor,
    block_tables: Tensor,
    num_seqs: int,
    num_queries: int,
    block_size: int,
    *,
    spec_token: Tensor | None = None,
    accepted_num: Tensor | None = None,
) -> None:
    """Advance the inputs of a paged decode step by one step, in place.

    Without speculation, for sequence ``i < num_queries``, with ``p = seq_lens[i]``::

        input_tokens[i] = sampled_token_ids[i, 0]
        input_positions[i] = p
        seq_lens[i] = p + 1
        slot_mapping[i] = block_tables[i, p // block_size] * block_size + p % block_size

    Padding rows ``num_queries <= i < num_seqs`` get token 0, position 0 and slot -1; their `seq_lens` stay.

    With `spec_token` and `accepted_num` a sequence has ``1 + k`` elements; for element e of sequence r::

        input_positions[e] += 1 + accepted_num[r]
        seq_lens[e] = input_positions[e] + 1
        slot_mapping[e] = block_tables[r, input_positions[e] // block_size] * block_size
                          + input_positions[e] % block_size
        input_tokens.view(num_seqs, 1 + k)[r] = [last[r], *spec_token[r]]

    where ``last[r]`` is the token before the first minimum of ``[*sampled_token_ids[r], -1]``: the last sampled one,
    -1 if there is none.

    Parameters
    ----------
    input_tokens, input_positions, seq_lens, slot_mapping : Tensor
        (num_seqs,), with speculation (num_seqs * (1 + k),).  **Written.**  All tensors are int64, of any strides.
    sampled_token_ids : Tensor
        (num_queries, 1), with speculation (num_seqs, 1 + k), -1 where no token was accepted.
    block_tables : Tensor
        (num_seqs, blocks): the numbers of each sequence's blocks.
    num_seqs, num_queries : int
        ``num_queries <= num_seqs``, equal with speculation.
    block_size : int
        Tokens of a block.
    spec_token : Tensor, optional
        (num_seqs, k): tokens proposed for the next step.
    accepted_num : Tensor, optional
        (num_seqs,): how many of the last step's proposals were accepted.

    Returns
    -------
    None

    Raises
    ------
    RuntimeError
        If a dtype, a shape or a number does not fit, one of `spec_token` and `accepted_num` is missing, a written
        tensor is expanded, or the tensors are on different devices.
    IndexError
        If a position is outside the blocks of its sequence; nothing is written then.  For npu tensors at the next
        synchronisation.

    Examples
    --------
    >>> tokens, positions, slots = (torch.zeros(1, dtype=torch.int64) for _ in range(3))
    >>> lens, sampled, tables = torch.tensor([4]), torch.tensor([[7]]), torch.tensor([[5, 9]])
    >>> torch.ops.npu.npu_advance_step_flashattn(tokens, sampled, positions, lens, slots, tables, 1, 1, 4)
    >>> tokens, positions, lens, slots
    (tensor([7]), tensor([4]), tensor([5]), tensor([36]))
    """
    op = "npu_advance_step_flashattn"
    tokens = 1
    if (spec_token is None) != (accepted_num is None):
        missing = "spec_token" if spec_token is None else "accepted_num"
        check(False, op, missing, "expected spec_token and accepted_num together or neither, got None")
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "block_tables": (block_tables, (num_seqs, block_tables.shape[-1]))
    }
    if spec_token is not None and accepted_num is not None:
        tokens += spec_token.shape[-1]
        expected["spec_token"] = (spec_token, (num_seqs, spec_token.shape[-1]))
        expected["accepted_num"] = (accepted_num, (num_seqs,))
    expected["sampled_token_ids"] = (sampled_token_ids, (num_queries, tokens))
    for name, tensor in (
        ("input_tokens", input_tokens),
        ("input_positions", input_positions),
        ("seq_lens", seq_lens),
        ("slot_mapping", slot_mapping),
    ):
        expected[name] = (tensor, (num_seqs * tokens,))
    for name, (tensor, sizes) in expected.items():
        check(
            tensor.dim() == len(sizes) and all(a == b for a, b in zip(tensor.shape, sizes, strict=True)),
            op,
            name,
            f"expected shape {list(sizes)}, got {list(tensor.shape)}",
        )


writes_arguments("npu_advance_step_flashattn")
