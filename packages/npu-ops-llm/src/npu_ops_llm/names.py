"""The operators of this package by family: one module here, one file each in csrc/ops and csrc/kernels.

Importing this module imports nothing else: npu-core asks for the names before it loads the operators.
"""

#: Family -> operators in ``torch.ops.npu``.
FAMILIES: dict[str, tuple[str, ...]] = {
    "rms_norm": ("npu_rms_norm", "npu_rms_norm_backward", "npu_gemma_rms_norm"),
    "add_rms_norm": (
        "npu_add_rms_norm",
        "npu_add_rms_norm_v2",
        "npu_add_rms_norm_v2_functional",
        "npu_add_rms_norm_quant",
        "npu_add_rms_norm_dynamic_quant",
    ),
    "group_norm": ("npu_group_norm_silu", "npu_group_norm_swish", "npu_group_norm_swish_grad"),
    "activation": (
        "npu_fast_gelu",
        "fast_gelu",
        "npu_fast_gelu_backward",
        "npu_gelu",
        "npu_gelu_backward",
        "npu_gelu_mul",
        "npu_silu",
        "npu_silu_",
        "npu_silu_backward",
    ),
    "swiglu": ("npu_swiglu", "npu_swiglu_backward", "npu_swiglu_quant", "npu_dequant_swiglu_quant"),
    "prefetch": ("npu_prefetch",),
    "quantize": ("npu_trans_quant_param", "npu_quantize", "npu_anti_quant", "npu_group_quant"),
    "dynamic_quant": ("npu_dynamic_quant", "npu_dynamic_quant_asymmetric"),
    "top_k_top_p": ("npu_top_k_top_p",),
    "softmax": (
        "npu_scaled_masked_softmax",
        "npu_scaled_masked_softmax_backward",
        "npu_dropout_with_add_softmax",
        "npu_dropout_with_add_softmax_backward",
    ),
    "cross_entropy": ("npu_cross_entropy_loss", "npu_cross_entropy_loss_backward"),
    "rotary": ("npu_rotary_mul", "npu_rotary_mul_backward", "npu_interleave_rope", "npu_apply_rotary_pos_emb"),
    "kv_rmsnorm_rope_cache": ("npu_kv_rmsnorm_rope_cache",),
    "advance_step": ("npu_advance_step_flashattn",),
    "scatter": (
        "scatter_update",
        "scatter_update_",
        "npu_quant_scatter",
        "npu_quant_scatter_",
        "npu_scatter_nd_update",
        "npu_scatter_nd_update_",
    ),
    "gather": ("npu_gather_sparse_index", "npu_gather_sparse_index_backward"),
    "attention_update": ("npu_attention_update",),
    "paged_cache": ("npu_scatter_pa_kv_cache", "npu_scatter_pa_kv_cache_functional"),
    "moe_gating": (
        "npu_moe_compute_expert_tokens",
        "npu_moe_gating_top_k_softmax",
        "npu_moe_gating_top_k_softmax_v2",
        "npu_moe_gating_top_k",
        "npu_moe_gating_top_k_backward",
    ),
    "moe_routing": ("npu_moe_init_routing", "npu_moe_init_routing_v2", "npu_moe_re_routing"),
    "moe_finalize": ("npu_moe_finalize_routing",),
    "moe_permute": (
        "npu_moe_token_permute",
        "npu_moe_token_permute_grad",
        "npu_moe_token_permute_grad_v2",
        "npu_moe_token_unpermute",
        "_npu_moe_token_unpermute",
        "npu_moe_token_unpermute_grad",
        "npu_moe_token_unpermute_grad_v2",
        "npu_moe_token_permute_with_routing_map",
        "npu_moe_token_permute_with_routing_map_grad",
        "npu_moe_token_unpermute_with_routing_map",
        "_npu_moe_token_unpermute_with_routing_map",
        "npu_moe_token_unpermute_with_routing_map_grad",
    ),
}

#: Operators in ``torch.ops.atb`` that ``torch_npu`` offers by the same name.
ATB_OPERATORS: tuple[str, ...] = ("_npu_reshape_and_cache",)

#: Every operator of this package in ``torch.ops.npu``.
OPERATORS: tuple[str, ...] = tuple(name for names in FAMILIES.values() for name in names)
