// npu_quantize, npu_group_quant, npu_anti_quant and npu_trans_quant_param: schemas, checks and tasks.
// Fake kernels: src/npu_ops_llm/quantize.py.
#include <algorithm>
#include <vector>

#include "../kernels/quantize.h"
#include "npu/kernels/dtype_argument.h"
#include "npu/kernels/isa.h"
#include "npu/kernels/launch.h"
#include "npu/kernels/parallel.h"
#include "npu/kernels/row_group_errors.h"
#include "npu/kernels/stable_tensor.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

const KernelTables<QuantizeKernels> kTables = {{
    &quantize_kernels_base,
#if defined(__x86_64__)
    &quantize_kernels_avx2,
    &quantize_kernels_avx512,
    &quantize_kernels_avx512_bf16,
#endif
}};

/// Values that the task converts to float32 before it starts; `to` is NULL when there is nothing to convert.
struct Widening {
  const void* from;
  float* to;
  int64_t count;
  npu_dtype dtype;
};

npu_status widen(const QuantizeKernels* kernels, const Widening& work, npu_error* error) {
  if (work.to == nullptr) return NPU_OK;
  auto body = [&](int64_t begin, int64_t end) { kernels->widen(work.from, work.dtype, work.to, begin, end); };
  return parallel_for(work.count, grain_for(1), body, error);
}

/// A contiguous tensor as float32, converted by the task when it is not.
struct WideTensor {
  OptionalTensor source, converted;
  Widening work{};

  explicit WideTensor(const OptionalTensor& tensor) {
    if (!tensor.has_value()) return;
    source = as_contiguous(*tensor);
    npu_dtype dtype = dtype_of(*source);
    if (dtype == NPU_FLOAT32) return;
    converted = allocate(source->sizes(), NPU_FLOAT32, device_of(*source));
    work = {source->data_ptr(), static_cast<float*>(converted->data_ptr()), source->numel(), dtype};
  }

  const float* data() const {
    return static_cast<const float*>(pointer_or_null(converted.has_value() ? converted : source));
  }
  npu_access access() const { return converted.has_value() ? writes(*converted) : npu_access{nullptr, 0, 0, 0}; }
};

/// A contiguous tensor of the dtype of x or float32.
Tensor in_type_of_x(const Tensor& tensor, npu_dtype x_dtype) {
  npu_dtype dtype = dtype_of(tensor);
  if (dtype == x_dtype || dtype == NPU_FLOAT32) return as_contiguous(tensor);
  return as_contiguous(torch::stable::to(tensor, torch::headeronly::ScalarType::Float));
}

Tensor allocate_quantized(Sizes sizes, npu_dtype dtype, const Device& device) {
  if (dtype != NPU_QUINT4X2) return allocate(sizes, dtype, device);
  std::vector<int64_t> packed(sizes.begin(), sizes.end());
  packed.back() /= 8;
  return allocate(Sizes(packed.data(), packed.size()), NPU_INT32, device);
}

struct QuantizeTask {
  const QuantizeKernels* kernels;
  Quantize work;
  Widening offset;
};

npu_status run_quantize(void* payload, npu_error* error) {
  const auto& task = *static_cast<const QuantizeTask*>(payload);
  const Quantize& work = task.work;
  npu_status status = check_row_groups(work.groups, work.rows, error);
  if (status == NPU_OK) status = widen(task.kernels, task.offset, error);
  if (status != NPU_OK) return status;
  auto body = [&](int64_t begin, int64_t end) { task.kernels->quantize(&work, begin, end); };
  return parallel_for(work.rows, grain_for(work.columns), body, error);
}

// ---- npu_quantize ----

npu_dtype quantized_dtype(const char* op, int64_t number, bool divide) {
  if (!divide) {
    npu_dtype dtype =
        dtype_argument(op, "dtype", number, NPU_INT8,
                       {NPU_INT8, NPU_UINT8, NPU_QUINT4X2, NPU_INT32, NPU_FLOAT8_E4M3FN, NPU_FLOAT8_E5M2});
    return dtype == NPU_INT32 ? NPU_QUINT4X2 : dtype;  // int32 is what int4 is carried in
  }
  switch (number) {
    case 12:  // qint8
    case NPU_INT8:
      return NPU_INT8;
    case 13:  // quint8
    case NPU_UINT8:
      return NPU_UINT8;
    case 14:  // qint32
    case NPU_INT32:
      return NPU_INT32;
    case 292:
    case NPU_FLOAT8_E4M3FN:
      return NPU_FLOAT8_E4M3FN;
    case 291:
    case NPU_FLOAT8_E5M2:
      return NPU_FLOAT8_E5M2;
    default:
      NPU_CHECK_ARG(false, op, "dtype", "Param (dtype) must be Int8, UInt8, Int32, Float8_e4m3fn or Float8_e5m2, got ",
                    dtype_argument_name(number), number == 285 || number == 16 ? "; int4 needs div_mode=False" : "");
      return NPU_INT8;
  }
}

/// Raises unless `tensor` has one value or one per channel; returns the layout of its values.
int32_t layout_of(const char* op, const char* argument, const Tensor& tensor, Sizes self, int64_t dim, bool divide) {
  Sizes sizes = tensor.sizes();
  int64_t channels = self.empty() ? 1 : self[dim];
  bool fits = sizes.size() == 1 && (sizes[0] == channels || sizes[0] == 1);
  if (!fits && !divide && sizes.size() == self.size()) {
    fits = true;
    for (int64_t d = 0; d < static_cast<int64_t>(sizes.size()); ++d) {
      fits = fits && (sizes[d] == 1 || (d == dim && sizes[d] == channels));
    }
  }
  NPU_CHECK_ARG(fits, op, argument, "expected shape [", channels, "] or [1] (dim ", dim, " of self, ", shape_text(self),
                divide ? "" : ", or that rank with 1 in the other dims", "), got ", shape_text(sizes));
  if (tensor.numel() == 1) return NPU_SCALE_ONE;
  return dim + 1 == static_cast<int64_t>(self.size()) ? NPU_SCALE_PER_COLUMN : NPU_SCALE_PER_ROW;
}

Tensor quantize(const Tensor& self, const Tensor& scales, const OptionalTensor& zero_points, int64_t dtype,
                int64_t axis, bool div_mode) {
  constexpr const char* kOp = "npu_quantize";
  Device device = device_of(self);
  check_same_device(kOp, device, "scales", scales);
  check_same_device(kOp, device, "zero_points", zero_points);
  check_dtype(kOp, "self", self, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
  check_dtype(kOp, "scales", scales, {NPU_FLOAT32, NPU_BFLOAT16, NPU_FLOAT16});
  npu_dtype quantized = quantized_dtype(kOp, dtype, div_mode);
  Sizes sizes = self.sizes();
  int64_t dims = static_cast<int64_t>(sizes.size()), dim = axis;
  if (div_mode) {
    int64_t range = std::max<int64_t>(dims, 1);
    NPU_CHECK_ARG(axis >= -range && axis < range, kOp, "axis", "expected a dim of self, between ", -range, " and ",
                  range - 1, ", got ", axis);
    if (dim < 0) dim += range;
  } else {
    dim = std::max<int64_t>(dims, 1) - (axis < -1 ? 2 : 1);
    NPU_CHECK_ARG(dim >= 0, kOp, "axis", "expected self to have a second last dim with axis ", axis, ", got shape ",
                  shape_text(sizes));
  }
  NPU_CHECK_ARG(quantized != NPU_QUINT4X2 || (dims > 0 && sizes[dims - 1] % 8 == 0), kOp, "self",
                "Input shape last dim must be divded by 8, got shape ", shape_text(sizes));
  Quantize work{};
  work.scale_layout = layout_of(kOp, "scales", scales, sizes, dim, div_mode);
  if (zero_points.has_value()) {
    check_dtype(kOp, "zero_points", *zero_points,
                {NPU_INT8, NPU_UINT8, NPU_INT32, NPU_FLOAT32, NPU_BFLOAT16, NPU_FLOAT16});
    work.offset_layout = layout_of(kOp, "zero_points", *zero_points, sizes, dim, div_mode);
  }
  // A row is what lies behind the channel, or the channels themselves when they are last.
  work.channels = dims > 0 ? sizes[dim] : 1;
  work.columns = dims == 0 ? 1 : dim + 1 == dims ? work.channels : 1;
  for (int64_t d = dim + 1; d < dims; ++d) work.columns *= sizes[d];
  int64_t count = count_of(sizes);
  work.rows = count > 0 ? count / work.columns : 0;
  work.dtype = dtype_of(self);
  work.quantized_dtype = quantized;
  work.divide = div_mode;
  Tensor x = as_contiguous(self), scale = in_type_of_x(scales, work.dtype);
  WideTensor offset(zero_points);
  Tensor y = allocate_quantized(sizes, quantized, device);
  static const float kZero = 0;
  work.x = x.data_ptr();
  work.scale = scale.data_ptr();
  work.scale_dtype = dtype_of(scale);
  work.offset = zero_points.has_value() ? offset.data() : &kZero;
  work.y = y.data_ptr();
  if (count > 0) {
    launch(device, "npu::npu_quantize", run_quantize, QuantizeTask{&kTables.active(), work, offset.work},
           {reads(x), reads(scale), reads(offset.source), offset.access(), writes(y)});
  }
  return y;
}

// ---- npu_group_quant ----

Tensor group_quant(const Tensor& x, const Tensor& scale, const Tensor& group_index, const OptionalTensor& offset,
                   std::optional<int64_t> dst_dtype) {
  constexpr const char* kOp = "npu_group_quant";
  Device device = device_of(x);
  check_same_device(kOp, device, "scale", scale);
  check_same_device(kOp, device, "group_index", group_index);
  check_same_device(kOp, device, "offset", offset);
  check_dtype(kOp, "x", x, {NPU_FLOAT32, NPU_FLOAT16, NPU_BFLOAT16});
  check_dtype(kOp, "scale", scale, {NPU_FLOAT32, NPU_FLOAT16, NPU_BFLOAT16});
  check_dtype(kOp, "group_index", group_index, {NPU_INT32, NPU_INT64});
  int64_t number = dst_dtype.value_or(NPU_INT8);
  bool packed = number == NPU_QUINT4X2 || number == 285;
  NPU_CHECK_ARG(packed || number == NPU_INT8 || number == 12, kOp, "dst_dtype", "dst_dtype must be Int8 or Int4, got ",
                dtype_argument_name(number));
  Sizes sizes = x.sizes(), index_sizes = group_index.sizes();
  NPU_CHECK_ARG(sizes.size() == 2, kOp, "x", "expected shape [rows, columns], got shape ", shape_text(sizes));
  NPU_CHECK_ARG(!packed || sizes[1] % 8 == 0, kOp, "x", "input shape last dim must be divded by 8 for int4, got shape ",
                shape_text(sizes));
  NPU_CHECK_ARG(index_sizes.size() == 1, kOp, "group_index", "expected the row end of each group, shape [groups], got ",
                "shape ", shape_text(index_sizes));
  int64_t expected[] = {index_sizes[0], sizes[1]};
  check_sizes(kOp, "scale", scale, Sizes(expected, 2), "(groups, columns of x)");
  if (offset.has_value()) {
    check_dtype(kOp, "offset", *offset, {NPU_FLOAT32, NPU_FLOAT16, NPU_BFLOAT16});
    NPU_CHECK_ARG(offset->dim() <= 1 && offset->numel() == 1, kOp, "offset",
                  "expected one value, shape [1] or [], got ", "shape ", shape_text(offset->sizes()));
  }
  npu_dtype dtype = dtype_of(x), quantized = packed ? NPU_QUINT4X2 : NPU_INT8;
  Tensor rows = as_contiguous(x), factors = in_type_of_x(scale, dtype), ends = as_contiguous(group_index);
  WideTensor shift(offset);
  Tensor y = allocate_quantized(sizes, quantized, device);
  static const float kZero = 0;
  Quantize work{};
  work.x = rows.data_ptr();
  work.scale = factors.data_ptr();
  work.offset = offset.has_value() ? shift.data() : &kZero;
  work.y = y.data_ptr();
  work.groups = {ends.data_ptr(), index_sizes[0], dtype_of(ends)};
  work.rows = sizes[0];
  work.columns = sizes[1];
  work.dtype = dtype;
  work.scale_dtype = dtype_of(factors);
  work.quantized_dtype = quantized;
  work.scale_layout = NPU_SCALE_PER_GROUP;
  work.offset_layout = NPU_SCALE_ONE;
  if (y.numel() > 0) {
    launch(device, "npu::npu_group_quant", run_quantize, QuantizeTask{&kTables.active(), work, shift.work},
           {reads(rows), reads(factors), reads(ends), reads(shift.source), shift.access(), writes(y)});
  }
  return y;
}

// ---- npu_anti_quant ----

struct DequantizeTask {
  const QuantizeKernels* kernels;
  Dequantize work;
  Widening scale, offset;
};

npu_status run_dequantize(void* payload, npu_error* error) {
  const auto& task = *static_cast<const DequantizeTask*>(payload);
  npu_status status = widen(task.kernels, task.scale, error);
  if (status == NPU_OK) status = widen(task.kernels, task.offset, error);
  if (status != NPU_OK) return status;
  auto body = [&](int64_t begin, int64_t end) { task.kernels->dequantize(&task.work, begin, end); };
  return parallel_for(task.work.rows, grain_for(task.work.columns), body, error);
}

npu_dtype source_dtype(const char* op, const Tensor& x, std::optional<int64_t> src_dtype) {
  npu_dtype stored = dtype_of(x);
  bool known = stored == NPU_INT8 || stored == NPU_INT32 || stored == NPU_FLOAT8_E4M3FN || stored == NPU_FLOAT8_E5M2;
  NPU_CHECK_ARG(known, op, "x", "Input x must be int8, int32, float8_e4m3fn or float8_e5m2, got ",
                npu_dtype_name(stored),
                stored == NPU_UINT8 ? "; uint8 as hifloat8 is not supported on this device" : "");
  npu_dtype inferred = stored == NPU_INT32 ? static_cast<npu_dtype>(NPU_QUINT4X2) : stored;
  if (!src_dtype.has_value()) return inferred;
  int64_t number = *src_dtype;
  bool same = number == inferred || (inferred == NPU_QUINT4X2 && number == 285) ||
              (inferred == NPU_INT8 && number == 12) || (inferred == NPU_FLOAT8_E5M2 && number == 291) ||
              (inferred == NPU_FLOAT8_E4M3FN && number == 292);
  NPU_CHECK_ARG(same || stored != NPU_INT32, op, "src_dtype", "src_dtype must be int4 when x is int32, got ",
                dtype_argument_name(number));
  NPU_CHECK_ARG(same, op, "x", "the dtype of x must match src_dtype; x is ", npu_dtype_name(stored), ", src_dtype is ",
                dtype_argument_name(number));
  return inferred;
}

Tensor anti_quant(const Tensor& x, const Tensor& scale, const OptionalTensor& offset, std::optional<int64_t> dst_dtype,
                  std::optional<int64_t> src_dtype) {
  constexpr const char* kOp = "npu_anti_quant";
  Device device = device_of(x);
  check_same_device(kOp, device, "scale", scale);
  check_same_device(kOp, device, "offset", offset);
  npu_dtype source = source_dtype(kOp, x, src_dtype);
  int64_t target = dst_dtype.value_or(NPU_FLOAT16);
  NPU_CHECK_ARG(target == NPU_FLOAT16 || target == NPU_BFLOAT16 || target == NPU_FLOAT32, kOp, "dst_dtype",
                "Input dst_type must be valid, but got UNKNOWN_SCALAR: expected float16, bfloat16 or float32, got ",
                dtype_argument_name(target));
  check_dtype(kOp, "scale", scale, {NPU_FLOAT32, NPU_BFLOAT16, NPU_FLOAT16});
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  NPU_CHECK_ARG(source != NPU_QUINT4X2 || !sizes.empty(), kOp, "x",
                "expected at least one dim of packed int4 values, got a scalar");
  if (source == NPU_QUINT4X2) sizes.back() *= 8;
  int64_t columns = sizes.empty() ? 1 : sizes.back();
  Sizes scale_sizes = scale.sizes();
  NPU_CHECK_ARG(scale_sizes.size() == 1 && (scale_sizes[0] == 1 || scale_sizes[0] == columns), kOp, "scale",
                "expected shape [", columns, "] (values in the last dim of x) or [1], got ", shape_text(scale_sizes));
  if (offset.has_value()) {
    NPU_CHECK_ARG(dtype_of(*offset) == dtype_of(scale), kOp, "offset", "expected dtype ",
                  npu_dtype_name(dtype_of(scale)), " (as scale), got ", npu_dtype_name(dtype_of(*offset)));
    check_sizes(kOp, "offset", *offset, scale_sizes, "(as scale)");
  }
  Tensor values = as_contiguous(x);
  WideTensor factors(scale), shift(offset);
  Sizes y_sizes(sizes.data(), sizes.size());
  Tensor y = allocate(y_sizes, static_cast<npu_dtype>(target), device);
  int64_t count = count_of(y_sizes);
  if (count > 0) {
    bool per_column = scale_sizes[0] > 1;
    Dequantize work{values.data_ptr(),
                    factors.data(),
                    shift.data(),
                    y.data_ptr(),
                    count / columns,
                    columns,
                    static_cast<npu_dtype>(target),
                    source,
                    per_column};
    launch(device, "npu::npu_anti_quant", run_dequantize,
           DequantizeTask{&kTables.active(), work, factors.work, shift.work},
           {reads(values), reads(factors.source), factors.access(), reads(shift.source), shift.access(), writes(y)});
  }
  return y;
}

// ---- npu_trans_quant_param ----

struct PackTask {
  const QuantizeKernels* kernels;
  PackScales work;
  int64_t count;
};

npu_status run_pack(void* payload, npu_error* error) {
  const auto& task = *static_cast<const PackTask*>(payload);
  auto body = [&](int64_t begin, int64_t end) { task.kernels->pack_scales(&task.work, begin, end); };
  return parallel_for(task.count, grain_for(1), body, error);
}

Tensor trans_quant_param(const Tensor& scale, const OptionalTensor& offset, std::optional<int64_t> round_mode) {
  constexpr const char* kOp = "npu_trans_quant_param";
  Device device = device_of(scale);
  check_same_device(kOp, device, "offset", offset);
  check_dtype(kOp, "scale", scale, {NPU_FLOAT32});
  int64_t mode = round_mode.value_or(0);
  NPU_CHECK_ARG(mode == 0 || mode == 1, kOp, "round_mode", "round_mode must be 0 or 1, got ", mode);
  Sizes sizes = scale.sizes();
  NPU_CHECK_ARG(sizes.size() == 1 || sizes.size() == 2, kOp, "scale", "expected one or two dims, got shape ",
                shape_text(sizes));
  std::vector<int64_t> out(sizes.begin(), sizes.end());
  if (offset.has_value()) {
    check_dtype(kOp, "offset", *offset, {NPU_FLOAT32});
    Sizes offset_sizes = offset->sizes();
    if (sizes.size() == 2) {
      check_sizes(kOp, "offset", *offset, sizes, "(as scale)");
    } else {
      NPU_CHECK_ARG(offset_sizes.size() == 1, kOp, "offset", "expected one dim, got shape ", shape_text(offset_sizes));
      NPU_CHECK_ARG(offset_sizes[0] == sizes[0] || offset_sizes[0] == 1 || sizes[0] == 1, kOp, "offset",
                    "expected the length of scale, ", sizes[0], ", or one of them to have length 1, got ",
                    offset_sizes[0]);
      if (sizes[0] == 1) out[0] = offset_sizes[0];
    }
  }
  Tensor scales = as_contiguous(scale);
  OptionalTensor offsets = as_contiguous(offset);
  Tensor y = allocate(Sizes(out.data(), out.size()), NPU_INT64, device);
  int64_t count = y.numel();
  if (count > 0) {
    PackScales work{static_cast<const float*>(scales.data_ptr()),
                    static_cast<const float*>(pointer_or_null(offsets)),
                    static_cast<int64_t*>(y.data_ptr()),
                    scales.numel() == 1 ? 0 : 1,
                    offsets.has_value() && offsets->numel() == 1 ? 0 : 1,
                    mode == 1};
    launch(device, "npu::npu_trans_quant_param", run_pack, PackTask{&kTables.active(), work, count},
           {reads(scales), reads(offsets), writes(y)});
  }
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def("npu_trans_quant_param(Tensor scale, Tensor? offset=None, int? round_mode=0) -> Tensor");
  m.def(
      "npu_quantize(Tensor self, Tensor scales, Tensor? zero_points, int dtype, int axis=1, bool div_mode=True) -> "
      "Tensor");
  m.def(
      "npu_anti_quant(Tensor x, Tensor scale, *, Tensor? offset=None, int? dst_dtype=None, int? src_dtype=None) -> "
      "Tensor");
  // Its kernel is in Python, because torch's stable interface has no quint4x2; it calls the operator below.
  m.def(
      "npu_group_quant(Tensor x, Tensor scale, Tensor group_index, *, Tensor? offset=None, ScalarType? dst_dtype=None) "
      "-> Tensor");
  m.def("_npu_group_quant(Tensor x, Tensor scale, Tensor group_index, Tensor? offset, int? dst_dtype) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) {
  m.impl("npu_trans_quant_param", TORCH_BOX(&trans_quant_param));
  m.impl("npu_quantize", TORCH_BOX(&quantize));
  m.impl("npu_anti_quant", TORCH_BOX(&anti_quant));
  m.impl("_npu_group_quant", TORCH_BOX(&group_quant));
}

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) {
  m.impl("npu_trans_quant_param", TORCH_BOX(&trans_quant_param));
  m.impl("npu_quantize", TORCH_BOX(&quantize));
  m.impl("npu_anti_quant", TORCH_BOX(&anti_quant));
  m.impl("_npu_group_quant", TORCH_BOX(&group_quant));
}

}  // namespace npu::ops_llm
