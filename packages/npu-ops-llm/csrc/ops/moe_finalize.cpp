// npu_moe_finalize_routing: schema, checks and task.  Fake: src/npu_ops_llm/moe_finalize.py.
#include <optional>

#include "moe_rows.h"

namespace npu::ops_llm {
namespace {

constexpr const char* kFinalize = "npu_moe_finalize_routing";

struct FinalizeTask {
  const MoeRowsKernels* kernels;
  MoeCombine work;
  int64_t tokens, experts;
  bool biased;  // an empty tensor may have no address: work.bias does not tell
};

npu_status run_finalize(void* payload, npu_error* error) {
  const auto& task = *static_cast<const FinalizeTask*>(payload);
  const MoeCombine& work = task.work;
  const int64_t slots = task.tokens * work.ranks;
  npu_status status =
      check_index("expanded_src_to_dst_row", work.index, work.index_dtype, slots, -1, work.row_count, error);
  if (status == NPU_OK && task.biased) {
    status = check_index("export_for_source_row", work.experts, work.experts_dtype, slots, 0, task.experts, error);
  }
  if (status != NPU_OK) return status;
  return run_combine(*task.kernels, work, task.tokens, task.biased ? 2 * slots : slots, error);
}

Tensor finalize_routing(const Tensor& rows, const OptionalTensor& skip1, const OptionalTensor& skip2,
                        const OptionalTensor& bias, const OptionalTensor& scales, const Tensor& index,
                        const OptionalTensor& experts, std::optional<int64_t> drop_pad_mode, std::optional<int64_t> k) {
  const Device device = device_of(rows);
  check_same_device(kFinalize, device, "skip1", skip1);
  check_same_device(kFinalize, device, "skip2", skip2);
  check_same_device(kFinalize, device, "bias", bias);
  check_same_device(kFinalize, device, "scales", scales);
  check_same_device(kFinalize, device, "expanded_src_to_dst_row", index);
  check_same_device(kFinalize, device, "export_for_source_row", experts);
  check_float_rows(kFinalize, "expanded_permuted_rows", rows);
  const npu_dtype dtype = dtype_of(rows);
  Sizes sizes = rows.sizes();
  NPU_CHECK_ARG(sizes.size() == 2 || sizes.size() == 3, kFinalize, "expanded_permuted_rows",
                "expected (rows, hidden) or (experts, capacity, hidden), got shape ", shape_text(sizes));
  const int64_t columns = sizes[sizes.size() - 1];
  const int64_t row_count = sizes.size() == 3 ? sizes[0] * sizes[1] : sizes[0];
  const int64_t mode = drop_pad_mode.value_or(0);
  NPU_CHECK_ARG(mode >= 0 && mode <= 3, kFinalize, "drop_pad_mode", "expected 0, 1, 2 or 3, got ", mode);
  check_dtype(kFinalize, "expanded_src_to_dst_row", index, {NPU_INT32, NPU_INT64});
  check_dims(kFinalize, "expanded_src_to_dst_row", index, 1);
  int64_t ranks = k.value_or(1) > 0 ? k.value_or(1) : 1;
  const int64_t slots = index.numel();
  // Without tokens the shapes of what is optional do not matter.
  const bool shaped = scales.has_value() && (slots > 0 || scales->dim() == 2);
  if (scales.has_value()) check_weights(kFinalize, "scales", *scales);
  if (shaped) {
    check_dims(kFinalize, "scales", *scales, 2);
    ranks = scales->size(1);
  }
  NPU_CHECK_ARG(ranks == 0 ? slots == 0 : slots % ranks == 0, kFinalize, "expanded_src_to_dst_row",
                "expected a multiple of k = ", ranks, " elements, got ", slots);
  const int64_t tokens = shaped ? scales->size(0) : slots / ranks;
  NPU_CHECK_ARG(slots == tokens * ranks, kFinalize, "expanded_src_to_dst_row", "expected ", tokens * ranks,
                " elements, one for each element of scales, got ", slots);
  NPU_CHECK_ARG(!skip2.has_value() || skip1.has_value(), kFinalize, "skip2",
                "expected None without skip1; pass the tensor as skip1");
  const int64_t token_sizes[] = {tokens, columns};
  for (const auto& [name, skip] : {std::pair{"skip1", &skip1}, std::pair{"skip2", &skip2}}) {
    if (!skip->has_value()) continue;
    check_dtype(kFinalize, name, **skip, {dtype});
    if (tokens > 0) check_sizes(kFinalize, name, **skip, Sizes(token_sizes, 2), "(tokens, hidden)");
  }
  if (bias.has_value()) {
    check_dtype(kFinalize, "bias", *bias, {dtype});
    NPU_CHECK_ARG(tokens == 0 || (bias->dim() == 2 && bias->size(1) == columns), kFinalize, "bias",
                  "expected shape (experts, ", columns, "), got ", shape_text(bias->sizes()));
    NPU_CHECK_ARG(experts.has_value(), kFinalize, "export_for_source_row",
                  "expected the expert of every slot, which a bias needs, got None");
    check_dtype(kFinalize, "export_for_source_row", *experts, {NPU_INT32, NPU_INT64});
    const int64_t expert_sizes[] = {tokens, ranks};
    if (tokens > 0) check_sizes(kFinalize, "export_for_source_row", *experts, Sizes(expert_sizes, 2), "(tokens, k)");
  }

  Tensor packed_rows = as_contiguous(rows), packed_index = as_contiguous(index);
  OptionalTensor packed_skip1 = as_contiguous(skip1), packed_skip2 = as_contiguous(skip2),
                 packed_bias = as_contiguous(bias), packed_scales = as_contiguous(scales),
                 packed_experts = bias.has_value() ? as_contiguous(experts) : std::nullopt;
  Tensor out = allocate({tokens, columns}, dtype, device);
  if (tokens > 0) {
    FinalizeTask task{&kRowsTables.active(), {}, tokens, bias.has_value() ? bias->size(0) : 0, bias.has_value()};
    MoeCombine& work = task.work;
    work.rows = packed_rows.data_ptr();
    work.index = packed_index.data_ptr();
    work.weights = pointer_or_null(packed_scales);
    work.skip1 = pointer_or_null(packed_skip1);
    work.skip2 = pointer_or_null(packed_skip2);
    work.bias = pointer_or_null(packed_bias);
    work.experts = pointer_or_null(packed_experts);
    work.out = out.data_ptr();
    work.row_count = row_count;
    work.columns = columns;
    work.ranks = ranks;
    const bool column_major = mode < 2;
    work.token_step = column_major ? 1 : ranks;
    work.rank_step = column_major ? tokens : 1;
    work.dtype = work.out_dtype = dtype;
    work.index_dtype = dtype_of(packed_index);
    work.weights_dtype = dtype_or(packed_scales, NPU_FLOAT32);
    work.experts_dtype = dtype_or(packed_experts, NPU_INT32);
    launch(device, "npu::npu_moe_finalize_routing", run_finalize, task,
           {reads(packed_rows), reads(packed_skip1), reads(packed_skip2), reads(packed_bias), reads(packed_scales),
            reads(packed_index), reads(packed_experts), writes(out)});
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def(
      "npu_moe_finalize_routing(Tensor expanded_permuted_rows, Tensor? skip1, Tensor? skip2, Tensor? bias, "
      "Tensor? scales, Tensor expanded_src_to_dst_row, Tensor? export_for_source_row, int? drop_pad_mode=0, "
      "int? k=1) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) { m.impl("npu_moe_finalize_routing", TORCH_BOX(&finalize_routing)); }

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) { m.impl("npu_moe_finalize_routing", TORCH_BOX(&finalize_routing)); }

}  // namespace npu::ops_llm
