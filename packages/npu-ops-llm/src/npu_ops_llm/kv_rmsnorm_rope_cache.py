"""Writer of latent key-value caches.

Schemas and kernels: ``csrc/ops/kv_rmsnorm_rope_cache.cpp``, ``csrc/kernels/kv_rmsnorm_rope_cache.inc``.
"""

from torch import Tensor

from npu_ops_llm.registration import check, documented, fake, writes_arguments

_OP = "npu_kv_rmsnorm_rope_cache"
#: Cache modes by their number in the internal operator.
_MODES = ("Norm", "PA", "PA_BNSD", "PA_NZ", "PA_BLK_BNSD", "PA_BLK_NZ")


def _check_index(index: Tensor, kv: Tensor, k_cache: Tensor, mode: str) -> None:
    batches, length = kv.shape[0], kv.shape[2]
    sizes = [batches * length]
    if mode == "Norm":
        sizes = [batches, length]
    elif mode.startswith("PA_BLK"):
        sizes = [batches * ((length + k_cache.shape[1] - 1) // k_cache.shape[1])]
    fits = index.dim() == len(sizes) and all(a == b for a, b in zip(index.shape, sizes, strict=True))
    check(fits, _OP, "index", f"expected shape {sizes}, got {list(index.shape)}")


@fake
def _npu_kv_rmsnorm_rope_cache(
    kv: Tensor,
    gamma: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    k_cache: Tensor,
    ckv_cache: Tensor,
    k_rope_scale: Tensor | None,
    c_kv_scale: Tensor | None,
    k_rope_offset: Tensor | None,
    c_kv_offset: Tensor | None,
    v: Tensor | None,
    epsilon: float,
    cache_mode: int,
    is_output_kv: bool,
) -> tuple[Tensor, Tensor]:
    """What :func:`npu_kv_rmsnorm_rope_cache` writes, and its last two outputs."""
    mode = _MODES[cache_mode]
    shape = list(kv.shape)
    if kv.dim() != 4 or kv.shape[1] != 1:
        check(False, _OP, "kv", f"expected 4 dims (B, 1, S, D), got shape {shape}")
    check(gamma.dim() == 1, _OP, "gamma", f"expected 1 dim, got shape {list(gamma.shape)}")
    batches, _, length, columns = kv.shape
    fits = cos.dim() == 4 and (cos.shape[0] == batches or cos.shape[0] == 1) and cos.shape[1] == 1
    fits = fits and (cos.shape[2] == length or cos.shape[2] == 1) and cos.shape[3] % 2 == 0
    check(
        fits,
        _OP,
        "cos",
        f"expected 4 dims (B, 1, S, Dr) with an even Dr; kv has shape {shape}, cos has shape {list(cos.shape)}",
    )
    check(sin.shape == cos.shape, _OP, "sin", f"expected shape {list(cos.shape)} (as cos), got {list(sin.shape)}")
    norm, rope = gamma.shape[0], cos.shape[3]
    k_columns, ckv_columns = rope, norm
    if v is not None:
        fits = v.dim() == 4 and all(a == b for a, b in zip(v.shape[:3], kv.shape[:3], strict=True))
        check(
            fits,
            _OP,
            "v",
            f"expected shape (B, 1, S, Dv); kv has shape {shape}, v has shape {list(v.shape)}",
        )
        check(
            norm == columns and rope <= columns,
            _OP,
            "gamma",
            "expected as many elements as kv has columns with v, and cos at most as many; "
            f"kv has {columns}, gamma {norm}, cos {rope}",
        )
        k_columns, ckv_columns = columns, v.shape[3]
    else:
        check(
            norm + rope == columns,
            _OP,
            "kv",
            "expected as many columns as gamma has elements and cos has columns together "
            f"({norm} + {rope}), got {columns}",
        )
    heads = 1 if mode == "Norm" else 2
    fits = k_cache.dim() == 4 and k_cache.shape[heads] == 1 and k_cache.shape[3] == k_columns
    check(
        fits and (mode != "Norm" or k_cache.shape[0] == batches),
        _OP,
        "k_cache",
        f"expected shape {'(B, 1, rows' if mode == 'Norm' else '(blocks, block_size, 1'}, {k_columns}) "
        f"for cache_mode {mode}, got {list(k_cache.shape)}",
    )
    expected = [*k_cache.shape[:3], ckv_columns]
    check(
        ckv_cache.dim() == 4 and all(a == b for a, b in zip(ckv_cache.shape, expected, strict=True)),
        _OP,
        "ckv_cache",
        f"expected shape {expected} (as k_cache but for the last dim), got {list(ckv_cache.shape)}",
    )
    _check_index(index, kv, k_cache, mode)
    return kv.new_empty((batches, 1, length, k_columns)), kv.new_empty((batches, 1, length, ckv_columns))


@documented
def npu_kv_rmsnorm_rope_cache(
    kv: Tensor,
    gamma: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    k_cache: Tensor,
    ckv_cache: Tensor,
    *,
    k_rope_scale: Tensor | None = None,
    c_kv_scale: Tensor | None = None,
    k_rope_offset: Tensor | None = None,
    c_kv_offset: Tensor | None = None,
    v: Tensor | None = None,
    epsilon: float = 1e-5,
    cache_mode: str = "Norm",
    is_output_kv: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Norm and rotate latent key-values of new tokens and write them into the caches of multi-head latent attention.

    With ``[x | r] = kv`` of Hr and Dr columns, in float32::

        y = x / sqrt(mean(x^2) + epsilon) * gamma                             -> ckv_cache
        k = de * cos + [-de[Dr/2:], de[:Dr/2]] * sin,  de = [r[0::2], r[1::2]]  -> k_cache

    With `v`: ``y`` is the norm of all columns of `kv`, the first Dr columns of ``y`` are rotated in the same way and
    the result goes to `k_cache`; `v` goes to `ckv_cache`.

    Values are rounded once to the dtype of the cache; with a scale, the int8 cache gets
    ``clip(rint(value * scale + offset), -128, 127)``.

    **Writes** `k_cache` and `ckv_cache`, of any strides, and returns the same tensors, although the schema does not say
    so.  Under ``torch.compile`` the operator is traced as one whose schema does say so: the writes are kept, in order,
    and the first two results are the arguments.

    Parameters
    ----------
    kv : Tensor
        (B, 1, S, Hr + Dr), any strides; float16, bfloat16 or float32.  With `v`: (B, 1, S, D), Dr <= D.
    gamma : Tensor
        (Hr,), with `v` (D,); dtype of `kv`.
    cos, sin : Tensor
        (B, 1, S, Dr), B and S may be 1; dtype of `kv`.
    index : Tensor
        int64; see `cache_mode`.  Tokens of a negative index are not written.
    k_cache, ckv_cache : Tensor
        Last sizes Dr and Hr, with `v` D and Dv; float16, bfloat16 or float32, or int8 with a scale.
    k_rope_scale, c_kv_scale, k_rope_offset, c_kv_offset : Tensor, optional
        float32, one element per column of the cache.
    v : Tensor, optional
        (B, 1, S, Dv), dtype of `kv`.
    epsilon : float
        Added to the mean of squares.
    cache_mode : str
        - ``"Norm"``: caches (B, 1, rows, columns), `index` (B, S) the row in the batch's part.
        - ``"PA"``, ``"PA_BNSD"``: caches (blocks, P, 1, columns), `index` (B * S,) the slot ``block * P + row``.
        - ``"PA_NZ"``: as ``"PA"``, but the memory of a block is laid out as (columns / c, P, c), c = 16, for a cache
          with a scale 32.
        - ``"PA_BLK_BNSD"``, ``"PA_BLK_NZ"``: `index` (B * ceil(S / P),); token s of batch b goes to row ``s % P`` of
          block ``index[b * ceil(S / P) + s // P] // P``.
    is_output_kv : bool
        Whether the last two outputs are wanted (not with ``"Norm"``).

    Returns
    -------
    k_cache, ckv_cache : Tensor
        The arguments.
    k_embed_out, y_out : Tensor
        (B, 1, S, columns of `k_cache`) and (B, 1, S, columns of `ckv_cache`), dtype of `kv`: what went into the caches,
        not quantised; zeros where not wanted.

    Raises
    ------
    RuntimeError
        If a dtype, a shape or `cache_mode` does not fit, a cache is an expanded tensor, or the tensors are on different
        devices.
    IndexError
        If an index is beyond the cache; nothing is written then.  For npu tensors at the next synchronisation.

    Examples
    --------
    >>> rope, cos, sin = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.5, 0.6, 0.5, 0.6], [0.8, 0.7, 0.8, 0.7]])
    >>> kv, cos, sin = (t.view(1, 1, 1, -1) for t in (torch.cat([torch.ones(2), rope]), cos, sin))
    >>> k_cache, ckv_cache = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 2)
    >>> index = torch.tensor([[1]])
    >>> _ = torch.ops.npu.npu_kv_rmsnorm_rope_cache(kv, torch.ones(2), cos, sin, index, k_cache, ckv_cache)
    >>> k_cache[0, 0]
    tensor([[ 0.0000,  0.0000,  0.0000,  0.0000],
            [-1.1000, -1.0000,  1.8000,  4.5000]])
    """
    raise NotImplementedError  # documentation only: the operator is a composite in C++


writes_arguments("_npu_kv_rmsnorm_rope_cache", public="npu_kv_rmsnorm_rope_cache")
