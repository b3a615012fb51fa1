"""Ring attention for the attention operator of npu, which torch's ``context_parallel`` does not know."""

from __future__ import annotations

import functools
import threading
from typing import Any

import torch

from npu_core.late_import import after_import

_ATTENTION = "torch.distributed.tensor.experimental._context_parallel._attention"
_SEQUENCE = 2  # the dimension that torch's ring walks along


def register() -> None:
    """Extend context parallelism when a program imports it."""
    after_import(_ATTENTION, _extend)


class _Call(threading.local):
    """The attention call of this thread."""

    in_ring = False


def _extend() -> None:
    from torch.distributed.tensor.experimental._context_parallel import _attention

    aten = torch.ops.aten
    call = _Call()

    def locals_of(tensors: tuple[Any, ...]) -> tuple[Any, list[torch.Tensor]]:
        from torch.distributed.tensor import Shard

        mesh = tensors[0].device_mesh
        for tensor in tensors:
            if tensor.device_mesh != mesh or tuple(tensor.placements) != (Shard(_SEQUENCE),):
                raise NotImplementedError(
                    "context_parallel on npu: query, key and value should be sharded along dimension 2 of one mesh of "
                    f"one dimension, but got {tensor.placements}"
                )
        return mesh, [tensor.to_local() for tensor in tensors]

    def wrap(mesh: Any, results: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
        from torch.distributed.tensor import DTensor, Shard

        return tuple(DTensor.from_local(result, mesh, [Shard(_SEQUENCE)], run_check=False) for result in results)

    def forward(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        _require_no_mask(kwargs.get("attn_mask"))
        mesh, (query, key, value) = locals_of(args[:3])
        dropout = args[3] if len(args) > 3 else 0.0
        causal = args[4] if len(args) > 4 else False
        call.in_ring = True
        results = _attention._templated_ring_attention(
            mesh.get_group(),
            _SEQUENCE,
            aten._scaled_dot_product_flash_attention_for_cpu,
            query=query,
            key=key,
            value=value,
            is_causal=causal,
            dropout_p=dropout,
            scale=kwargs.get("scale"),
        )
        return wrap(mesh, results)

    def backward(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        mesh, (gradient, query, key, value, out, logsumexp) = locals_of(args[:6])
        dropout, causal = args[6:]
        results = _attention._templated_ring_attention_backward(
            mesh.get_group(),
            _SEQUENCE,
            aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
            grad_out=gradient,
            grad_out_name="grad_out",
            query=query,
            key=key,
            value=value,
            out=out,
            logsumexp=logsumexp,
            is_causal=causal,
            dropout_p=dropout,
            scale=kwargs.get("scale"),
        )
        return wrap(mesh, results)

    _attention.custom_ops[aten._scaled_dot_product_flash_attention_for_cpu.default] = forward
    _attention.custom_ops[aten._scaled_dot_product_flash_attention_for_cpu_backward.default] = backward
    _require_ring(_attention._ContextParallel, call)


def _require_no_mask(mask: Any) -> None:
    if mask is not None:
        raise NotImplementedError("context_parallel on npu: attention with attn_mask is not supported; use is_causal")


def _require_ring(style: Any, call: _Call) -> None:
    """Refuse attention that does not go round the ring: the plain operators would see the shards in another order."""
    before, after = style.sdpa_input_fn, style.sdpa_output_fn

    @functools.wraps(before)
    def enter(self: Any, module: Any, args: Any, kwargs: Any, mesh: Any) -> Any:
        if mesh.device_type == "npu":
            _require_no_mask(args[3] if len(args) > 3 else kwargs.get("attn_mask"))
        call.in_ring = False
        return before(self, module, args, kwargs, mesh)

    @functools.wraps(after)
    def leave(self: Any, module: Any, inputs: Any, outputs: Any, mesh: Any) -> Any:
        if mesh.device_type == "npu" and not call.in_ring:
            raise NotImplementedError(
                "context_parallel on npu: only the fused attention without dropout is supported; pass dropout_p=0.0 "
                "and query, key and value of one type and head size, outside sdpa_kernel(SDPBackend.MATH)"
            )
        return after(self, module, inputs, outputs, mesh)

    style.sdpa_input_fn, style.sdpa_output_fn = enter, leave
