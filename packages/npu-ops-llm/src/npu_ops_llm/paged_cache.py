"""Writes into paged caches of keys and values.  Schemas and kernels: ``csrc/ops/paged_cache.cpp``."""

import functools

from torch import Tensor

from npu_ops_llm.registration import check, fake, writes_arguments


def _is_norm(tokens: Tensor, cache: Tensor) -> bool:
    return cache.dim() == 4 and bool(cache.shape[2] == tokens.shape[1] and cache.shape[3] == tokens.shape[2])


def _is_nz(tokens: Tensor, cache: Tensor) -> bool:
    return cache.dim() == 4 and bool(cache.shape[1] * cache.shape[3] == tokens.shape[1] * tokens.shape[2])


def _check_caches(
    op: str,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Tensor,
    slots_name: str,
    nz: bool,
) -> None:
    check(key.dim() == 3, op, "key", lambda: f"expected shape (tokens, heads, head size), got {list(key.shape)}")
    check(
        value.dim() == 3 and value.shape[0] == key.shape[0],
        op,
        "value",
        lambda: f"expected shape ({key.shape[0]}, heads, head size), one row per token of key, got {list(value.shape)}",
    )
    for name, tokens, cache in (("key", key, key_cache), ("value", value, value_cache)):
        if nz:
            expected = (
                "(blocks, heads * head size / c, block size, c) with "
                f"{tokens.shape[1] * tokens.shape[2]} elements of a token on dims 1 and 3, because {name} has shape "
                f"{list(tokens.shape)}"
            )
        else:
            expected = f"(blocks, block size, {tokens.shape[1]}, {tokens.shape[2]}), the last two as in {name}"
        fits = _is_nz(tokens, cache) if nz else _is_norm(tokens, cache)
        check(fits, op, f"{name}_cache", f"expected shape {expected}, got {list(cache.shape)}")
    check(
        slots.dim() == 1 and slots.shape[0] == key.shape[0],
        op,
        slots_name,
        lambda: f"expected shape [{key.shape[0]}], one slot per token of key, got {list(slots.shape)}",
    )
    row_dim = 2 if nz else 1
    check(
        value_cache.shape[0] == key_cache.shape[0] and value_cache.shape[row_dim] == key_cache.shape[row_dim],
        op,
        "value_cache",
        lambda: (
            f"expected {key_cache.shape[0]} blocks of {key_cache.shape[row_dim]} tokens, as key_cache of shape "
            f"{list(key_cache.shape)}, got shape {list(value_cache.shape)}"
        ),
    )


def _check_modes(op: str, key: Tensor, others: tuple[Tensor | None, ...], cache_mode: str | None) -> bool:
    """Return whether the caches have the layout PA_NZ."""
    check(
        key.dim() == 3 and all(other is None for other in others),
        op,
        "key" if key.dim() == 4 else "compress_lens",
        lambda: (
            "compressed heads (key of 4 dims with compress_lens and seq_lens) are not supported on this device; "
            f"expected key of shape (tokens, heads, head size), got {list(key.shape)}, and None for compress_lens, "
            "compress_seq_offsets and seq_lens"
        ),
    )
    check(
        cache_mode in (None, "Norm", "PA_NZ"),
        op,
        "cache_mode",
        lambda: f"expected 'PA_NZ', 'Norm' or None, got '{cache_mode}'",
    )
    return cache_mode == "PA_NZ"


@fake
def npu_scatter_pa_kv_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    compress_lens: Tensor | None = None,
    compress_seq_offsets: Tensor | None = None,
    seq_lens: Tensor | None = None,
    cache_mode: str | None = "PA_NZ",
) -> None:
    """Write keys and values of tokens into paged caches, in place.

    Token t goes to row ``slot_mapping[t] % block_size`` of block ``slot_mapping[t] // block_size``; a negative slot
    skips the token.  Where slots repeat the last token wins.  All slots are checked before anything is written.

    Parameters
    ----------
    key, value : Tensor
        Shapes ``(tokens, heads, head size)``; heads, head size and dtype may differ between the two.  Any strides.
    key_cache, value_cache : Tensor
        dtype of `key` or `value`; any strides.  Shape with `cache_mode` ``"Norm"`` or None:
        ``(blocks, block_size, heads, head size)``; with ``"PA_NZ"``:
        ``(blocks, heads * head size / c, block_size, c)``, where element h of a token's ``heads * head size`` is at
        ``[block, h // c, row, h % c]``.
    slot_mapping : Tensor
        int32 or int64, shape ``(tokens,)``.
    compress_lens, compress_seq_offsets, seq_lens : Tensor, optional
        None: compressed heads are not supported on this device.
    cache_mode : str, optional
        ``"PA_NZ"``, ``"Norm"`` or None.

    Returns
    -------
    None

    Raises
    ------
    RuntimeError
        If a dtype, shape or mode does not fit, the tensors are on different devices, or a cache is expanded.
    IndexError
        If a slot is too large; nothing has been written then.  On npu at the next synchronisation.

    Examples
    --------
    >>> key = torch.arange(4.0).reshape(2, 1, 2)
    >>> key_cache, value_cache = torch.zeros(2, 2, 1, 2), torch.zeros(2, 2, 1, 2)
    >>> slots = torch.tensor([3, -1])
    >>> torch.ops.npu.npu_scatter_pa_kv_cache(key, key, key_cache, value_cache, slots, cache_mode="Norm")
    >>> key_cache.view(4, 2)
    tensor([[0., 0.],
            [0., 0.],
            [0., 0.],
            [0., 1.]])
    """
    op = "npu_scatter_pa_kv_cache"
    nz = _check_modes(op, key, (compress_lens, compress_seq_offsets, seq_lens), cache_mode)
    _check_caches(op, key, value, key_cache, value_cache, slot_mapping, "slot_mapping", nz)


@fake
def npu_scatter_pa_kv_cache_functional(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    compress_lens: Tensor | None = None,
    compress_seq_offsets: Tensor | None = None,
    seq_lens: Tensor | None = None,
    cache_mode: str | None = "PA_NZ",
) -> tuple[Tensor, Tensor]:
    """Copies of paged caches with the keys and values of tokens: :func:`npu_scatter_pa_kv_cache` on copies.

    Parameters
    ----------
    key, value, key_cache, value_cache, slot_mapping, compress_lens, compress_seq_offsets, seq_lens, cache_mode
        As for :func:`npu_scatter_pa_kv_cache`.

    Returns
    -------
    key_cache, value_cache : Tensor
        Shapes and dtypes of the caches, contiguous.

    Raises
    ------
    RuntimeError
        As :func:`npu_scatter_pa_kv_cache`.
    IndexError
        As :func:`npu_scatter_pa_kv_cache`.

    Examples
    --------
    >>> key, caches = torch.ones(1, 1, 2), torch.zeros(1, 2, 1, 2)
    >>> slots, scatter = torch.tensor([1]), torch.ops.npu.npu_scatter_pa_kv_cache_functional
    >>> scatter(key, key, caches, caches, slots, cache_mode="Norm")[0].view(2, 2)
    tensor([[0., 0.],
            [1., 1.]])
    """
    op = "npu_scatter_pa_kv_cache_functional"
    nz = _check_modes(op, key, (compress_lens, compress_seq_offsets, seq_lens), cache_mode)
    _check_caches(op, key, value, key_cache, value_cache, slot_mapping, "slot_mapping", nz)
    return key_cache.new_empty(key_cache.shape), value_cache.new_empty(value_cache.shape)


@functools.partial(fake, namespace="atb")
def _npu_reshape_and_cache(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_indices: Tensor
) -> None:
    """Write keys and values of tokens into paged caches, in place, as :func:`npu_scatter_pa_kv_cache` does.

    The sizes of the caches say how they are laid out: plain, or both in the blocks of the format NZ (29).  Caches of
    which the sizes allow both (heads of c elements, blocks of as many tokens as there are heads) are taken as plain.

    Parameters
    ----------
    key, value : Tensor
        Shapes ``(tokens, heads, head size)``; heads, head size and dtype may differ between the two.  Any strides.
    key_cache, value_cache : Tensor
        dtype of `key` or `value`, any strides; both of shape ``(blocks, block_size, heads, head size)``, or both
        ``(blocks, heads * head size / c, block_size, c)``.
    slot_indices : Tensor
        int32 or int64, shape ``(tokens,)``; negative slots are skipped.

    Returns
    -------
    None

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, the tensors are on different devices, or a cache is expanded.
    IndexError
        If a slot is too large; nothing has been written then.  On npu at the next synchronisation.
    """
    pairs = ((key, key_cache), (value, value_cache))
    nz = (
        key.dim() == value.dim() == 3
        and not all(_is_norm(tokens, cache) for tokens, cache in pairs)
        and all(_is_nz(tokens, cache) for tokens, cache in pairs)
    )
    _check_caches("_npu_reshape_and_cache", key, value, key_cache, value_cache, slot_indices, "slot_indices", nz)


writes_arguments("npu_scatter_pa_kv_cache")
writes_arguments("_npu_reshape_and_cache", namespace="atb")
