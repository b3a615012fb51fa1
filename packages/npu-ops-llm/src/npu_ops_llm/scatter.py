"""Writes of slices by index.  Schemas and kernels: ``csrc/ops/scatter.cpp``, ``csrc/ops/scatter_nd.cpp``."""

from typing import Any

from torch import Tensor

from npu_ops_llm.registration import check, documented, fake, writes_arguments


def _check_size(op: str, self: Tensor, updates: Tensor, d: int, is_axis: bool) -> None:
    ours, theirs = self.shape[d], updates.shape[d]
    check(
        theirs <= ours if is_axis else theirs == ours,
        op,
        "updates",
        lambda: (
            f"expected {'at most size' if is_axis else 'size'} {ours} on dim {d}, as self; self has shape "
            f"{list(self.shape)}, updates has shape {list(updates.shape)}"
        ),
    )


def _check_update(op: str, self: Tensor, indices: Tensor, updates: Tensor, axis: int) -> int:
    """Check shapes as the kernel does; return `axis` counted from the front."""
    dims = self.dim()
    check(2 <= dims <= 8, op, "self", lambda: f"expected 2 to 8 dims, got shape {list(self.shape)}")
    check(
        updates.dim() == dims,
        op,
        "updates",
        lambda: f"expected as many dims as self, which has shape {list(self.shape)}, got shape {list(updates.shape)}",
    )
    check(-dims <= axis < dims, op, "axis", lambda: f"expected {-dims} <= axis < {dims}, got {axis}")
    axis %= dims
    check(axis != 0, op, "axis", "dim 0 is the batch, which indices select; expected another dim, got 0")
    check(indices.dim() <= 2, op, "indices", lambda: f"expected at most 2 dims, got shape {list(indices.shape)}")
    if indices.dim() == 2:
        check(
            indices.shape[1] == 2,
            op,
            "indices",
            lambda: f"expected shape (updates, 2), pairs of a batch and an index on axis, got {list(indices.shape)}",
        )
    writers = indices.shape[0] if indices.dim() > 0 else 1
    check(
        updates.shape[0] == writers,
        op,
        "updates",
        lambda: f"expected size {writers} on dim 0, one for each of indices, got shape {list(updates.shape)}",
    )
    if indices.dim() < 2:
        check(
            writers <= self.shape[0],
            op,
            "updates",
            lambda: f"expected at most {self.shape[0]} on dim 0, the batches of self, got shape {list(updates.shape)}",
        )
    for d in range(1, dims):
        _check_size(op, self, updates, d, d == axis)
    return axis


@fake
def scatter_update(self: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
    """A copy of `self` in which slices are replaced: :func:`scatter_update_` on a copy.

    Parameters
    ----------
    self, indices, updates, axis
        As for :func:`scatter_update_`.

    Returns
    -------
    Tensor
        Shape and dtype of `self`, contiguous.

    Raises
    ------
    RuntimeError
        As :func:`scatter_update_`.
    IndexError
        As :func:`scatter_update_`.

    Examples
    --------
    >>> data = torch.tensor([[[[1, 1], [2, 2]]]])
    >>> torch.ops.npu.scatter_update(data, torch.tensor([1]), torch.tensor([[[[3, 3]]]]), -2)
    tensor([[[[1, 1],
              [3, 3]]]])
    """
    _check_update("scatter_update", self, indices, updates, axis)
    return self.new_empty(self.shape)


@fake
def _scatter_update_(self: Tensor, indices: Tensor, updates: Tensor, axis: int) -> None:
    _check_update("scatter_update_", self, indices, updates, axis)


@documented
def scatter_update_(self: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
    """Write slices of a batched tensor, as a step of decoding writes its keys and values into a cache.

    With ``L = updates.size(axis)``, for every i: ``self[i, ..., indices[i] : indices[i] + L, ...] = updates[i]`` where
    the range lies on `axis`; or, with indices of two columns,
    ``self[indices[i, 0], ..., indices[i, 1] : indices[i, 1] + L, ...] = updates[i]``.

    Where slices overlap the last i wins.  All indices are checked before anything is written.

    Parameters
    ----------
    self : Tensor
        2 to 8 dims, of which the first is the batch; any dtype and strides.
    indices : Tensor
        int32 or int64; shape ``(U,)`` or ``(U, 2)``, or no dims for ``U = 1``.
    updates : Tensor
        dtype and dims of `self`; size U on dim 0, at most that of `self` on `axis`, equal elsewhere.
    axis : int
        Not the first dim; negative values count from the end.

    Returns
    -------
    Tensor
        `self`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, the tensors are on different devices, or `self` is expanded.
    IndexError
        If an index is negative or the slice does not fit into `self`; nothing has been written then.  On npu at the
        next synchronisation.

    Examples
    --------
    >>> cache = torch.zeros(2, 3, dtype=torch.int32)
    >>> torch.ops.npu.scatter_update_(cache, torch.tensor([2, 0]), torch.tensor([[5], [6]], dtype=torch.int32), 1)
    tensor([[0, 0, 5],
            [6, 0, 0]], dtype=torch.int32)
    """
    raise NotImplementedError


def _check_columns(op: str, name: str, tensor: Tensor, updates: Tensor) -> None:
    columns = updates.shape[-1]
    check(
        tensor.numel() == columns,
        op,
        name,
        lambda: f"expected {columns} elements, the last size of updates, got shape {list(tensor.shape)}",
    )


def _check_quant(
    op: str, self: Tensor, indices: Tensor, updates: Tensor, axis: int, quant_axis: int, parameters: dict[str, Any]
) -> None:
    dims = self.dim()
    check(3 <= dims <= 8, op, "self", lambda: f"expected 3 to 8 dims, got shape {list(self.shape)}")
    front = _check_update(op, self, indices, updates, axis)
    check(front != dims - 1, op, "axis", lambda: f"expected neither the first nor the last dim, got {axis}")
    check(quant_axis in (-1, dims - 1), op, "quant_axis", lambda: f"expected the last dim, -1, got {quant_axis}")
    for name, tensor in parameters.items():
        if tensor is not None:
            _check_columns(op, name, tensor, updates)


@fake
def npu_quant_scatter(
    self: Tensor,
    indices: Tensor,
    updates: Tensor,
    quant_scales: Tensor,
    quant_zero_points: Tensor | None = None,
    axis: int = -2,
    quant_axis: int = -1,
    reduce: str = "update",
    dst_type: int | None = None,
    round_mode: str | None = "rint",
) -> Tensor:
    """A copy of `self` in which slices are replaced by quantised ones: :func:`npu_quant_scatter_` on a copy.

    Parameters
    ----------
    self, indices, updates, quant_scales, quant_zero_points, axis, quant_axis, reduce, dst_type, round_mode
        As for :func:`npu_quant_scatter_`.

    Returns
    -------
    Tensor
        int8, shape of `self`, contiguous.

    Raises
    ------
    RuntimeError
        As :func:`npu_quant_scatter_`.
    IndexError
        As :func:`npu_quant_scatter_`.

    Examples
    --------
    >>> cache, updates = torch.zeros(1, 2, 2, dtype=torch.int8), torch.tensor([[[1.0, 2.5]]]).half()
    >>> torch.ops.npu.npu_quant_scatter(cache, torch.tensor([1]), updates, torch.tensor([0.5, 0.5]))
    tensor([[[0, 0],
             [2, 5]]], dtype=torch.int8)
    """
    parameters = {"quant_scales": quant_scales, "quant_zero_points": quant_zero_points}
    _check_quant("npu_quant_scatter", self, indices, updates, axis, quant_axis, parameters)
    return self.new_empty(self.shape)


@fake
def _npu_quant_scatter_(
    self: Tensor,
    indices: Tensor,
    updates: Tensor,
    quant_scales: Tensor,
    quant_zero_points: Tensor | None,
    axis: int,
    quant_axis: int,
    dst_type: int | None,
) -> None:
    parameters = {"quant_scales": quant_scales, "quant_zero_points": quant_zero_points}
    _check_quant("npu_quant_scatter_", self, indices, updates, axis, quant_axis, parameters)


@documented
def npu_quant_scatter_(
    self: Tensor,
    indices: Tensor,
    updates: Tensor,
    quant_scales: Tensor,
    quant_zero_points: Tensor | None = None,
    axis: int = -2,
    quant_axis: int = -1,
    reduce: str = "update",
    dst_type: int | None = None,
    round_mode: str | None = "rint",
) -> Tensor:
    """Quantise slices to int8 and write them into a batched tensor.

    ``q = clip(rint(updates / quant_scales + quant_zero_points), -128, 127)`` in float32, half to even, with one scale
    and zero point for each element of the last dim; then :func:`scatter_update_` of `q`.  NaN becomes 0.

    Parameters
    ----------
    self : Tensor
        int8 of 3 to 8 dims; any strides.
    indices : Tensor
        As for :func:`scatter_update_`.
    updates : Tensor
        float16 or bfloat16; shape as for :func:`scatter_update_`.
    quant_scales : Tensor
        float32 or bfloat16; any shape of ``updates.size(-1)`` elements.
    quant_zero_points : Tensor, optional
        int32 or bfloat16, as many elements; None means 0.
    axis : int
        Neither the first nor the last dim.
    quant_axis : int
        The last dim.
    reduce : str
        ``"update"``.
    dst_type : int, optional
        ``torch.int8``, ``torch.qint8`` or None.
    round_mode : str, optional
        ``"rint"`` or None.

    Returns
    -------
    Tensor
        `self`.

    Raises
    ------
    RuntimeError
        If a dtype, shape or mode does not fit, the tensors are on different devices, or `self` is expanded.
    IndexError
        As :func:`scatter_update_`.

    Examples
    --------
    >>> cache = torch.zeros(1, 2, 3, dtype=torch.int8)
    >>> x = torch.tensor([[[1.0, -2.0, 900.0]]], dtype=torch.bfloat16)
    >>> torch.ops.npu.npu_quant_scatter_(cache, torch.tensor([1]), x, torch.full((3,), 0.5))
    tensor([[[  0,   0,   0],
             [  2,  -4, 127]]], dtype=torch.int8)
    """
    raise NotImplementedError


def _check_scatter(op: str, self: Tensor, indices: Tensor, updates: Tensor) -> None:
    dims = self.dim()
    check(1 <= dims <= 8, op, "self", lambda: f"expected 1 to 8 dims, got shape {list(self.shape)}")
    check(
        indices.dim() >= 2,
        op,
        "indices",
        lambda: (
            f"expected at least 2 dims, got shape {list(indices.shape)}; the last dim holds the indices of one place "
            "in self"
        ),
    )
    depth = indices.shape[-1]
    check(
        depth <= dims,
        op,
        "indices",
        lambda: f"expected at most {dims} (the dims of self) on the last dim, got shape {list(indices.shape)}",
    )
    # How many dims self is indexed with decides the dims of updates, so it cannot be a symbol.
    leading = indices.dim() - 1
    fits = updates.dim() == leading + dims - depth and all(
        ours == theirs
        for ours, theirs in zip(
            updates.shape, [*indices.shape[:-1], *self.shape[dims - (updates.dim() - leading) :]], strict=True
        )
    )
    check(
        fits,
        op,
        "updates",
        lambda: (
            f"expected shape {[*indices.shape[:-1], *self.shape[depth:]]} (indices without its last dim, then the "
            f"dims of self that are not indexed), got {list(updates.shape)}"
        ),
    )


@fake
def npu_scatter_nd_update(self: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """A copy of `self` in which rows are replaced: :func:`npu_scatter_nd_update_` on a copy.

    Parameters
    ----------
    self, indices, updates : Tensor
        As for :func:`npu_scatter_nd_update_`.

    Returns
    -------
    Tensor
        Shape and dtype of `self`, contiguous.

    Raises
    ------
    RuntimeError
        As :func:`npu_scatter_nd_update_`.
    IndexError
        As :func:`npu_scatter_nd_update_`.

    Examples
    --------
    >>> index, updates = torch.tensor([[0, 0], [1, 1]]), torch.tensor([10.0, 20.0])
    >>> torch.ops.npu.npu_scatter_nd_update(torch.zeros(3, 2), index, updates)
    tensor([[10.,  0.],
            [ 0., 20.],
            [ 0.,  0.]])
    """
    _check_scatter("npu_scatter_nd_update", self, indices, updates)
    return self.new_empty(self.shape)


@fake
def _npu_scatter_nd_update_(self: Tensor, indices: Tensor, updates: Tensor) -> None:
    _check_scatter("npu_scatter_nd_update_", self, indices, updates)


@documented
def npu_scatter_nd_update_(self: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Write rows at places that several indices name: ScatterND.

    For every position i of the leading dims of `indices`: ``self[indices[i, 0], ..., indices[i, a - 1]] = updates[i]``
    with ``a = indices.size(-1)``.  Where places repeat the last i wins.  All indices are checked before anything is
    written.

    Parameters
    ----------
    self : Tensor
        1 to 8 dims; any dtype and strides.
    indices : Tensor
        int32 or int64, at least 2 dims, at most ``self.dim()`` on the last.
    updates : Tensor
        dtype of `self`, shape ``indices.shape[:-1] + self.shape[a:]``.

    Returns
    -------
    Tensor
        `self`.

    Raises
    ------
    RuntimeError
        If a dtype or shape does not fit, the tensors are on different devices, or `self` is expanded.
    IndexError
        If an index is negative or too large; nothing has been written then.  On npu at the next synchronisation.

    Notes
    -----
    Source: the operator ScatterND of the ONNX specification.

    Examples
    --------
    >>> x = torch.zeros(2, 2)
    >>> torch.ops.npu.npu_scatter_nd_update_(x, torch.tensor([[1], [1]]), torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
    tensor([[0., 0.],
            [2., 2.]])
    """
    raise NotImplementedError


writes_arguments("_scatter_update_", public="scatter_update_")
writes_arguments("_npu_quant_scatter_", public="npu_quant_scatter_")
writes_arguments("_npu_scatter_nd_update_", public="npu_scatter_nd_update_")
