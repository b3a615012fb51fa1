// npu_swiglu_quant and npu_dequant_swiglu_quant: schemas, checks and tasks.  Fakes, and the kernel of npu_swiglu_quant
// over npu::_npu_swiglu_quant: src/npu_ops_llm/swiglu.py.
#include "../kernels/swiglu_quant.h"

#include <cmath>
#include <cstdio>
#include <tuple>
#include <vector>

#include "npu/kernels/dtype_argument.h"
#include "npu/kernels/isa.h"
#include "npu/kernels/launch.h"
#include "npu/kernels/parallel.h"
#include "npu/kernels/stable_tensor.h"
#include "npu/kernels/strided_tensor.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

const KernelTables<SwigluQuantKernels> kTables = {{
    &swiglu_quant_kernels_base,
#if defined(__x86_64__)
    &swiglu_quant_kernels_avx2,
    &swiglu_quant_kernels_avx512,
    &swiglu_quant_kernels_avx512_bf16,
#endif
}};

struct Task {
  const SwigluQuantKernels* kernels;
  SwigluQuantWork work;
};

npu_status check_groups(const SwigluQuantWork& work, npu_error* error) {
  int64_t end = 0;
  for (int64_t g = 0; g < work.groups; ++g) {
    int64_t value = work.group_dtype == NPU_INT64 ? static_cast<const int64_t*>(work.group_list)[g]
                                                  : static_cast<const int32_t*>(work.group_list)[g];
    // Without overflow for any value: end is at most rows.
    bool fits = work.group_is_count ? value >= 0 && value <= work.rows - end : value >= end && value <= work.rows;
    if (!fits) {
      std::snprintf(error->message, sizeof(error->message),
                    "argument group_index: group %lld is %s %lld, but the groups before it end at row %lld of %lld; "
                    "pass a list of %s that fits the rows of x",
                    static_cast<long long>(g), work.group_is_count ? "a count of" : "the end", (long long)value,
                    static_cast<long long>(end), static_cast<long long>(work.rows),
                    work.group_is_count ? "row counts" : "ends of rows");
      return NPU_ERROR_INVALID_ARGUMENT;
    }
    end = work.group_is_count ? end + value : value;
  }
  return NPU_OK;
}

npu_status run(void* payload, npu_error* error) {
  const auto& task = *static_cast<const Task*>(payload);
  if (task.work.group_list != nullptr) {
    npu_status status = check_groups(task.work, error);
    if (status != NPU_OK) return status;
  }
  auto rows = [&](int64_t begin, int64_t end) { task.kernels->quantize(&task.work, begin, end); };
  return parallel_for(task.work.rows, grain_for(2 * task.work.columns), rows, error);
}

/// A parameter of `groups` groups and `columns` columns: (G, N), (1, N), (N,), and where `per_tensor` (G,), (G, 1),
/// (1,).
GroupParameter parameter(const char* op, const char* argument, const OptionalTensor& given, int64_t groups,
                         int64_t columns, bool per_tensor) {
  if (!given.has_value()) return {nullptr, 0, 0, NPU_FLOAT32};
  const Tensor& tensor = *given;
  GroupParameter result{tensor.data_ptr(), 0, 0, dtype_of(tensor)};
  Sizes sizes = tensor.sizes();
  bool one = per_tensor && tensor.numel() == 1;
  if (one) return result;
  if (sizes.size() == 1 && sizes[0] == columns && !(per_tensor && groups > 1 && groups == columns)) {
    result.column_step = 1;
    return result;
  }
  if (sizes.size() == 1 && per_tensor && sizes[0] == groups) {
    result.group_step = 1;
    return result;
  }
  if (sizes.size() == 2 && (sizes[0] == groups || sizes[0] == 1)) {
    result.group_step = sizes[0] == 1 ? 0 : sizes[1];
    result.column_step = 1;
    if (sizes[1] == columns) return result;
    result.column_step = 0;
    if (per_tensor && sizes[1] == 1) return result;
  }
  NPU_CHECK_ARG(false, op, argument, "expected shape [", groups, ", ", columns, "]",
                per_tensor ? text(" (per channel) or [", groups, "] (per tensor)") : "",
                " for the groups of group_index, got ", shape_text(sizes));
  return result;
}

/// x, its rows and the outputs, common to both operators.
struct Call {
  Device device;
  Tensor x, y, scale;
  Task task;
};

Call prepare(const char* op, const Tensor& x, const OptionalTensor& group_index, npu_dtype y_dtype) {
  Sizes sizes = x.sizes();
  NPU_CHECK_ARG(sizes.size() > 1, op, "x", "x dim should larger than 1, got shape ", shape_text(sizes));
  int64_t width = sizes[sizes.size() - 1];
  NPU_CHECK_ARG(width % 2 == 0, op, "x", "x last dim should be even, got shape ", shape_text(sizes));
  bool packed = y_dtype == NPU_QUINT4X2;
  NPU_CHECK_ARG(!packed || width % 4 == 0, op, "x",
                "last dim should be a multiple of 4 for int4 results (two per byte), got shape ", shape_text(sizes));
  Device device = device_of(x);
  if (group_index.has_value()) {
    check_same_device(op, device, "group_index", *group_index);
    check_dtype(op, "group_index", *group_index, {NPU_INT32, NPU_INT64});
    NPU_CHECK_ARG(group_index->dim() == 1, op, "group_index", "expected 1 dim (groups), got shape ",
                  shape_text(group_index->sizes()));
  }
  Sizes leading(sizes.data(), sizes.size() - 1);
  std::vector<int64_t> out(sizes.begin(), sizes.end());
  out.back() = packed ? width / 4 : width / 2;
  Call call{device, with_contiguous_rows(x),
            allocate(Sizes(out.data(), out.size()), packed ? static_cast<npu_dtype>(NPU_INT8) : y_dtype, device),
            allocate(leading, NPU_FLOAT32, device), Task{}};
  call.task.kernels = &kTables.active();
  SwigluQuantWork& work = call.task.work;
  work.x = rows_of(call.x, leading, 1);
  work.dtype = dtype_of(x);
  work.rows = count_of(leading);
  work.columns = width / 2;
  work.groups = 1;
  if (group_index.has_value()) {
    work.group_list = group_index->data_ptr();
    work.group_dtype = dtype_of(*group_index);
    work.groups = group_index->size(0);
    // An empty list may have no address; no group then owns a row.
    static const int64_t kNothing = 0;
    if (work.groups == 0) work.group_list = &kNothing;
  }
  work.y_dtype = y_dtype;
  work.y = call.y.data_ptr();
  work.scale = static_cast<float*>(call.scale.data_ptr());
  return call;
}

std::tuple<Tensor, Tensor> swiglu_quant(const Tensor& x, OptionalTensor smooth_scales, OptionalTensor offsets,
                                        OptionalTensor group_index, bool activate_left, int64_t quant_mode,
                                        int64_t group_list_type, int64_t dst_type) {
  constexpr const char* kOp = "npu_swiglu_quant";
  check_dtype(kOp, "x", x, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
  NPU_CHECK_ARG(quant_mode == 0 || quant_mode == 1, kOp, "quant_mode",
                "quant_mode should be 0 (static) or 1 (dynamic), got ", quant_mode);
  NPU_CHECK_ARG(group_list_type == 0 || group_list_type == 1, kOp, "group_list_type",
                "group_list_type should be 0 (ends of rows) or 1 (row counts), got ", group_list_type);
  npu_dtype y_dtype = dtype_argument(kOp, "dst_type", dst_type, NPU_INT8, {NPU_INT8, NPU_QUINT4X2});
  Device device = device_of(x);
  for (auto [argument, tensor] : {std::pair{"smooth_scales", &smooth_scales}, std::pair{"offsets", &offsets}}) {
    if (!tensor->has_value()) continue;
    check_same_device(kOp, device, argument, **tensor);
    check_dtype(kOp, argument, **tensor, {NPU_FLOAT32});
  }
  bool dynamic = quant_mode == 1;
  if (!dynamic) {
    NPU_CHECK_ARG(smooth_scales.has_value(), kOp, "smooth_scales", "static quantisation needs it, got None");
    NPU_CHECK_ARG(offsets.has_value(), kOp, "offsets", "static quantisation needs it, got None");
    NPU_CHECK_ARG(same_sizes(smooth_scales->sizes(), offsets->sizes()), kOp, "offsets",
                  "expected the shape of smooth_scales, ", shape_text(smooth_scales->sizes()), ", got ",
                  shape_text(offsets->sizes()));
  }
  OptionalTensor list = as_contiguous(group_index), smooth = as_contiguous(smooth_scales);
  OptionalTensor shift = dynamic ? std::nullopt : as_contiguous(offsets);
  Call call = prepare(kOp, x, list, y_dtype);
  SwigluQuantWork& work = call.task.work;
  work.factor = parameter(kOp, "smooth_scales", smooth, work.groups, work.columns, true);
  work.offset = parameter(kOp, "offsets", shift, work.groups, work.columns, true);
  work.group_is_count = group_list_type == 1;
  work.activate_left = activate_left;
  work.dynamic = dynamic;
  work.reciprocal_scale = 1;
  work.largest = y_dtype == NPU_INT8 ? 127.0f : 7.0f;
  if (work.rows > 0) {
    launch(device, "npu::npu_swiglu_quant", run, call.task,
           {reads(call.x), reads(list), reads(smooth), reads(shift), writes(call.y), writes(call.scale)});
  }
  return {call.y, call.scale};
}

struct Gate {
  int64_t mode;
  double clamp_limit, glu_alpha, glu_bias;
};

void check_gate(const char* op, const Gate& gate) {
  NPU_CHECK_ARG(gate.mode >= 0 && gate.mode <= 2, op, "swiglu_mode", "swiglu_mode should be 0, 1 or 2, got ",
                gate.mode);
  NPU_CHECK_ARG(std::isfinite(gate.clamp_limit) && gate.clamp_limit > 0, op, "clamp_limit",
                "clamp_limit should be positive finite, got ", gate.clamp_limit);
  NPU_CHECK_ARG(std::isfinite(gate.glu_alpha), op, "glu_alpha", "glu_alpha should be finite, got ", gate.glu_alpha);
  NPU_CHECK_ARG(std::isfinite(gate.glu_bias), op, "glu_bias", "glu_bias should be finite, got ", gate.glu_bias);
}

float largest_of(npu_dtype dtype) {
  if (dtype == NPU_INT8) return 127.0f;
  return dtype == NPU_FLOAT8_E4M3FN ? 448.0f : 57344.0f;
}

std::tuple<Tensor, Tensor> dequant_swiglu_quant(const Tensor& x, OptionalTensor weight_scale,
                                                OptionalTensor activation_scale, OptionalTensor bias,
                                                OptionalTensor quant_scale, OptionalTensor quant_offset,
                                                OptionalTensor group_index, bool activate_left, int64_t quant_mode,
                                                std::optional<int64_t> dst_type, std::optional<int64_t> round_mode,
                                                std::optional<int64_t> activate_dim, int64_t swiglu_mode,
                                                double clamp_limit, double glu_alpha, double glu_bias) {
  constexpr const char* kOp = "npu_dequant_swiglu_quant";
  check_dtype(kOp, "x", x, {NPU_INT32, NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
  NPU_CHECK_ARG(quant_mode == 0 || quant_mode == 1, kOp, "quant_mode",
                "quant_mode should be 0 (static) or 1 (dynamic), got ", quant_mode);
  check_gate(kOp, {swiglu_mode, clamp_limit, glu_alpha, glu_bias});
  int64_t rounding = round_mode.value_or(0);
  NPU_CHECK_ARG(rounding >= 0 && rounding <= 4, kOp, "round_mode",
                "round_mode should be 0 (rint), 1 (round), 2 (floor), 3 (ceil) or 4 (trunc), got ", rounding);
  npu_dtype y_dtype =
      dtype_argument(kOp, "dst_type", dst_type, NPU_INT8, {NPU_INT8, NPU_FLOAT8_E4M3FN, NPU_FLOAT8_E5M2});
  int64_t rank = x.dim();
  NPU_CHECK_ARG(rank > 1, kOp, "x", "x dim should larger than 1, got shape ", shape_text(x.sizes()));
  int64_t dim = activate_dim.value_or(-1);
  NPU_CHECK_ARG(dim == -1 || dim == rank - 1, kOp, "activate_dim", "another dim than the last (", dim,
                ") is not supported on this device; move the dim to the end first");
  Device device = device_of(x);
  bool whole = dtype_of(x) == NPU_INT32, dynamic = quant_mode == 1;
  if (whole) {
    NPU_CHECK_ARG(weight_scale.has_value(), kOp, "weight_scale", "x of dtype int32 needs it, got None");
    check_same_device(kOp, device, "weight_scale", weight_scale);
    check_same_device(kOp, device, "activation_scale", activation_scale);
    check_same_device(kOp, device, "bias", bias);
    check_dtype(kOp, "weight_scale", *weight_scale, {NPU_FLOAT32});
    if (activation_scale.has_value()) {
      check_dtype(kOp, "activation_scale", *activation_scale, {NPU_FLOAT32});
      int64_t rows = x.size(rank - 1) == 0 ? activation_scale->numel() : x.numel() / x.size(rank - 1);
      NPU_CHECK_ARG(activation_scale->numel() == rows, kOp, "activation_scale", "expected ", rows,
                    " values, one for each row of x, got shape ", shape_text(activation_scale->sizes()));
    }
    if (bias.has_value()) check_dtype(kOp, "bias", *bias, {NPU_INT32, NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
  }
  for (auto [argument, tensor] : {std::pair{"quant_scale", &quant_scale}, std::pair{"quant_offset", &quant_offset}}) {
    if (!tensor->has_value()) continue;
    check_same_device(kOp, device, argument, **tensor);
    check_dtype(kOp, argument, **tensor, {NPU_FLOAT32, NPU_FLOAT16, NPU_BFLOAT16});
  }
  OptionalTensor none, list = as_contiguous(group_index), scale = as_contiguous(quant_scale);
  OptionalTensor shift = dynamic ? none : as_contiguous(quant_offset);
  OptionalTensor weight = whole ? as_contiguous(weight_scale) : none, added = whole ? as_contiguous(bias) : none;
  OptionalTensor per_row = whole ? as_contiguous(activation_scale) : none;
  Call call = prepare(kOp, x, list, y_dtype);
  SwigluQuantWork& work = call.task.work;
  work.weight_scale = parameter(kOp, "weight_scale", weight, work.groups, 2 * work.columns, false);
  work.bias = parameter(kOp, "bias", added, work.groups, 2 * work.columns, false);
  work.activation_scale = static_cast<const float*>(pointer_or_null(per_row));
  (dynamic ? work.factor : work.divisor) = parameter(kOp, "quant_scale", scale, work.groups, work.columns, true);
  work.offset = parameter(kOp, "quant_offset", shift, work.groups, work.columns, true);
  work.group_is_count = 1;
  work.interleaved = swiglu_mode == 1;
  work.activate_left = activate_left;
  work.clamped = swiglu_mode != 0;
  work.clamp_limit = static_cast<float>(clamp_limit);
  work.glu_alpha = static_cast<float>(glu_alpha);
  work.glu_bias = static_cast<float>(glu_bias);
  work.dynamic = dynamic;
  work.largest = largest_of(y_dtype);
  work.round_mode = static_cast<int32_t>(rounding);
  if (work.rows > 0) {
    launch(device, "npu::npu_dequant_swiglu_quant", run, call.task,
           {reads(call.x), reads(weight), reads(per_row), reads(added), reads(scale), reads(shift), reads(list),
            writes(call.y), writes(call.scale)});
  }
  return {call.y, call.scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def(
      "npu_swiglu_quant(Tensor x, *, Tensor? smooth_scales=None, Tensor? offsets=None, Tensor? group_index=None, "
      "bool activate_left=False, int quant_mode=0, int group_list_type=0, ScalarType? dst_type=None) -> "
      "(Tensor, Tensor)");
  m.def(
      "_npu_swiglu_quant(Tensor x, Tensor? smooth_scales, Tensor? offsets, Tensor? group_index, bool activate_left, "
      "int quant_mode, int group_list_type, int dst_type) -> (Tensor, Tensor)");
  m.def(
      "npu_dequant_swiglu_quant(Tensor x, *, Tensor? weight_scale=None, Tensor? activation_scale=None, "
      "Tensor? bias=None, Tensor? quant_scale=None, Tensor? quant_offset=None, Tensor? group_index=None, "
      "bool activate_left=False, int quant_mode=0, int? dst_type=None, int? round_mode=None, int? activate_dim=None, "
      "int swiglu_mode=0, float clamp_limit=7.0, float glu_alpha=1.702, float glu_bias=1.0) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) {
  m.impl("_npu_swiglu_quant", TORCH_BOX(&swiglu_quant));
  m.impl("npu_dequant_swiglu_quant", TORCH_BOX(&dequant_swiglu_quant));
}

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) {
  m.impl("_npu_swiglu_quant", TORCH_BOX(&swiglu_quant));
  m.impl("npu_dequant_swiglu_quant", TORCH_BOX(&dequant_swiglu_quant));
}

}  // namespace npu::ops_llm
