// The npu_add_rms_norm family: schemas, checks and tasks.  Fake kernels: src/npu_ops_llm/add_rms_norm.py.
#include <cstring>
#include <tuple>
#include <vector>

#include "../kernels/add_rms_norm.h"
#include "npu/kernels/dtype_argument.h"
#include "npu/kernels/isa.h"
#include "npu/kernels/launch.h"
#include "npu/kernels/parallel.h"
#include "npu/kernels/strided_tensor.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

const KernelTables<AddRmsNormKernels> kTables = {{
    &add_rms_norm_kernels_base,
#if defined(__x86_64__)
    &add_rms_norm_kernels_avx2,
    &add_rms_norm_kernels_avx512,
    &add_rms_norm_kernels_avx512_bf16,
#endif
}};

struct Shape {
  Device device;
  npu_dtype dtype, gamma_dtype;
  size_t leading;         // dims before those of gamma
  int64_t rows, columns;  // products of the leading sizes and of gamma's
};

Shape check_inputs(const char* op, const Tensor& x1, const Tensor& x2, const Tensor& gamma) {
  Shape shape{device_of(x1), dtype_of(x1), dtype_of(gamma), 0, 1, 1};
  check_same_device(op, shape.device, "x2", x2);
  check_same_device(op, shape.device, "gamma", gamma);
  check_dtype(op, "x1", x1, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
  NPU_CHECK_ARG(dtype_of(x2) == shape.dtype, op, "x2", "expected dtype ", npu_dtype_name(shape.dtype), " (as x1), got ",
                npu_dtype_name(dtype_of(x2)), "; convert it first");
  NPU_CHECK_ARG(shape.gamma_dtype == shape.dtype || shape.gamma_dtype == NPU_FLOAT32, op, "gamma", "expected dtype ",
                npu_dtype_name(shape.dtype), " (as x1) or float32, got ", npu_dtype_name(shape.gamma_dtype),
                "; convert it first");
  Sizes sizes = x1.sizes(), gamma_sizes = gamma.sizes();
  NPU_CHECK_ARG(same_sizes(x2.sizes(), sizes), op, "x2", "The shape of x1 and x2 must be the same. x1 has shape ",
                shape_text(sizes), ", x2 has shape ", shape_text(x2.sizes()));
  NPU_CHECK_ARG(gamma_sizes.size() <= sizes.size(), op, "gamma",
                "The gamma shape should not be bigger than self shape. x1 has shape ", shape_text(sizes),
                ", gamma has shape ", shape_text(gamma_sizes));
  shape.leading = sizes.size() - gamma_sizes.size();
  for (size_t i = 0; i < shape.leading; ++i) shape.rows *= sizes[i];
  for (size_t i = 0; i < gamma_sizes.size(); ++i) {
    NPU_CHECK_ARG(gamma_sizes[i] == sizes[shape.leading + i], op, "gamma",
                  "expected the shape of x1's last dims; x1 has shape ", shape_text(sizes), ", gamma has shape ",
                  shape_text(gamma_sizes));
    shape.columns *= gamma_sizes[i];
  }
  return shape;
}

/// beta, which belongs to gamma: its shape and dtype, or None.
void check_beta(const char* op, const Shape& shape, const Tensor& gamma, const OptionalTensor& beta) {
  if (!beta.has_value()) return;
  check_same_device(op, shape.device, "beta", *beta);
  NPU_CHECK_ARG(dtype_of(*beta) == shape.gamma_dtype, op, "beta", "expected dtype ", npu_dtype_name(shape.gamma_dtype),
                " (as gamma), got ", npu_dtype_name(dtype_of(*beta)), "; convert it first");
  check_sizes(op, "beta", *beta, gamma.sizes(), "(as gamma)");
}

/// The tensor, or a contiguous copy where the kernels cannot walk its rows.
Tensor with_rows(const Tensor& tensor, const Shape& shape) {
  int64_t row_dims = tensor.dim() - static_cast<int64_t>(shape.leading);
  return shape.leading <= NPU_MAX_DIMS && rows_are_contiguous(tensor, row_dims) ? tensor : as_contiguous(tensor);
}

npu_strided view_of(const Tensor& tensor, const Shape& shape) {
  Sizes sizes = tensor.sizes();
  return rows_of(tensor, Sizes(sizes.data(), shape.leading), tensor.dim() - static_cast<int64_t>(shape.leading));
}

Tensor allocate_rstd(const Tensor& x1, const Shape& shape) {
  std::vector<int64_t> sizes(static_cast<size_t>(x1.dim()), 1);
  for (size_t i = 0; i < shape.leading; ++i) sizes[i] = x1.size(static_cast<int64_t>(i));
  return allocate(Sizes(sizes.data(), sizes.size()), NPU_FLOAT32, shape.device);
}

/// The parts of the work that all operators fill in the same way; x and y are set by those that have them.
AddRmsNorm norm_of(const Tensor& x1, const Tensor& x2, const Tensor& gamma, const OptionalTensor& beta, double epsilon,
                   const Shape& shape) {
  return {view_of(x1, shape), view_of(x2, shape),    nullptr,    nullptr,       nullptr,
          gamma.data_ptr(),   pointer_or_null(beta), shape.rows, shape.columns, static_cast<float>(epsilon),
          shape.dtype,        shape.gamma_dtype};
}

// ---- npu_add_rms_norm and _v2 ------------------------------------------------------------------------------------

struct ForwardTask {
  const AddRmsNormKernels* kernels;
  AddRmsNorm work;
};

npu_status run_forward(void* payload, npu_error* error) {
  const auto& task = *static_cast<const ForwardTask*>(payload);
  auto rows = [&](int64_t begin, int64_t end) { task.kernels->forward(&task.work, begin, end); };
  return parallel_for(task.work.rows, grain_for(task.work.columns), rows, error);
}

struct Result {
  Tensor y, rstd, x;
};

Result forward(const char* op, const char* task_name, const Tensor& x1, const Tensor& x2, const Tensor& gamma,
               double epsilon) {
  Shape shape = check_inputs(op, x1, x2, gamma);
  Tensor a = with_rows(x1, shape), b = with_rows(x2, shape), scale = as_contiguous(gamma);
  Result result{allocate(x1.sizes(), shape.dtype, shape.device), allocate_rstd(x1, shape),
                allocate(x1.sizes(), shape.dtype, shape.device)};
  if (shape.rows > 0) {
    ForwardTask task{&kTables.active(), norm_of(a, b, scale, std::nullopt, epsilon, shape)};
    task.work.x = result.x.data_ptr();
    task.work.y = result.y.data_ptr();
    task.work.rstd = static_cast<float*>(result.rstd.data_ptr());
    launch(shape.device, task_name, run_forward, task,
           {reads(a), reads(b), reads(scale), writes(result.y), writes(result.rstd), writes(result.x)});
  }
  return result;
}

std::tuple<Tensor, Tensor, Tensor> add_rms_norm(const Tensor& x1, const Tensor& x2, const Tensor& gamma,
                                                double epsilon) {
  Result result = forward("npu_add_rms_norm", "npu::npu_add_rms_norm", x1, x2, gamma, epsilon);
  return {result.y, result.rstd, result.x};
}

std::tuple<Tensor, Tensor, Tensor> add_rms_norm_v2_functional(const Tensor& x1, const Tensor& x2, const Tensor& gamma,
                                                              double epsilon) {
  Result result =
      forward("npu_add_rms_norm_v2_functional", "npu::npu_add_rms_norm_v2_functional", x1, x2, gamma, epsilon);
  return {result.rstd, result.y, result.x};
}

/// Raises where writing the tensor would write an element twice.
void check_writable(const char* op, const char* argument, const Tensor& tensor) {
  Sizes sizes = tensor.sizes(), strides = tensor.strides();
  for (size_t i = 0; i < sizes.size(); ++i) {
    NPU_CHECK_ARG(sizes[i] <= 1 || strides[i] != 0, op, argument,
                  "is written in place, but it is an expanded view whose elements share memory; clone it first");
  }
}

Tensor add_rms_norm_v2(const Tensor& x1, const Tensor& x2, const Tensor& gamma, double epsilon) {
  constexpr const char* kOp = "npu_add_rms_norm_v2";
  Shape shape = check_inputs(kOp, x1, x2, gamma);
  check_writable(kOp, "x1", x1);
  check_writable(kOp, "x2", x2);
  Tensor rstd = allocate_rstd(x1, shape);
  if (shape.rows == 0) return rstd;
  const char *first = static_cast<const char*>(x1.data_ptr()), *second = static_cast<const char*>(x2.data_ptr());
  bool apart =
      shape.columns == 0 || (first != second && !(x1.is_contiguous() && x2.is_contiguous() &&
                                                  first < second + bytes_of(x2) && second < first + bytes_of(x1)));
  NPU_CHECK_ARG(apart, kOp, "x2", "shares memory with x1, but both are written; clone one of them first");
  // Only tensors whose rows have gaps are copied, and copied back.
  Tensor a = with_rows(x1, shape), b = with_rows(x2, shape), scale = as_contiguous(gamma);
  ForwardTask task{&kTables.active(), norm_of(a, b, scale, std::nullopt, epsilon, shape)};
  task.work.rstd = static_cast<float*>(rstd.data_ptr());
  launch(shape.device, "npu::npu_add_rms_norm_v2", run_forward, task,
         {reads(scale), writes(a), writes(b), writes(rstd)});
  auto write_back = [](const Tensor& argument, const Tensor& used) {
    if (argument.get() == used.get()) return;
    Tensor target = argument;
    torch::stable::copy_(target, used);
  };
  write_back(x1, a);
  write_back(x2, b);
  return rstd;
}

// ---- npu_add_rms_norm_quant --------------------------------------------------------------------------------------

struct QuantTask {
  const AddRmsNormKernels* kernels;
  AddRmsNormQuant work;
};

npu_status run_quant(void* payload, npu_error* error) {
  const auto& task = *static_cast<const QuantTask*>(payload);
  auto rows = [&](int64_t begin, int64_t end) { task.kernels->quant(&task.work, begin, end); };
  return parallel_for(task.work.norm.rows, grain_for(task.work.norm.columns), rows, error);
}

RowParameter parameter_of(const OptionalTensor& tensor) {
  if (!tensor.has_value()) return {};
  return {tensor->data_ptr(), dtype_of(*tensor), tensor->numel() == 1};
}

void check_quant_parameter(const char* argument, const Shape& shape, const Tensor& gamma, const OptionalTensor& tensor,
                           bool zero_point) {
  constexpr const char* kOp = "npu_add_rms_norm_quant";
  if (!tensor.has_value()) return;
  check_same_device(kOp, shape.device, argument, *tensor);
  if (zero_point) check_dtype(kOp, argument, *tensor, {NPU_INT32, NPU_BFLOAT16, NPU_FLOAT32, NPU_FLOAT16});
  else check_dtype(kOp, argument, *tensor, {NPU_FLOAT32, NPU_BFLOAT16, NPU_FLOAT16});
  NPU_CHECK_ARG(tensor->numel() == 1 || same_sizes(tensor->sizes(), gamma.sizes()), kOp, argument,
                "expected one element or the shape of gamma, ", shape_text(gamma.sizes()), ", got shape ",
                shape_text(tensor->sizes()));
}

std::tuple<Tensor, Tensor, Tensor> add_rms_norm_quant(const Tensor& x1, const Tensor& x2, const Tensor& gamma,
                                                      const Tensor& scales1, const OptionalTensor& zero_points1,
                                                      const OptionalTensor& beta, const OptionalTensor& scales2,
                                                      const OptionalTensor& zero_points2, int64_t axis, double epsilon,
                                                      bool div_mode, std::optional<int64_t> dst_type) {
  constexpr const char* kOp = "npu_add_rms_norm_quant";
  NPU_CHECK_ARG(axis == -1, kOp, "axis", "axis only support -1. Got ", axis);
  npu_dtype quantised =
      dtype_argument(kOp, "dst_type", dst_type, NPU_INT8, {NPU_INT8, NPU_FLOAT8_E4M3FN, NPU_FLOAT8_E5M2});
  Shape shape = check_inputs(kOp, x1, x2, gamma);
  check_beta(kOp, shape, gamma, beta);
  check_quant_parameter("scales1", shape, gamma, scales1, false);
  check_quant_parameter("zero_points1", shape, gamma, zero_points1, true);
  check_quant_parameter("scales2", shape, gamma, scales2, false);
  check_quant_parameter("zero_points2", shape, gamma, zero_points2, true);

  Tensor a = with_rows(x1, shape), b = with_rows(x2, shape), scale = as_contiguous(gamma);
  OptionalTensor shift = as_contiguous(beta);
  OptionalTensor first_scales = as_contiguous(OptionalTensor(scales1)), second_scales = as_contiguous(scales2),
                 first_zeros = as_contiguous(zero_points1), second_zeros = as_contiguous(zero_points2);
  Tensor y1 = allocate(x1.sizes(), quantised, shape.device), y2 = allocate(x1.sizes(), quantised, shape.device),
         x = allocate(x1.sizes(), shape.dtype, shape.device);
  if (shape.rows > 0 && shape.columns > 0) {
    QuantTask task{&kTables.active(),
                   {norm_of(a, b, scale, shift, epsilon, shape),
                    {{y1.data_ptr(), parameter_of(first_scales), parameter_of(first_zeros)},
                     {y2.data_ptr(), parameter_of(second_scales), parameter_of(second_zeros)}},
                    quantised,
                    div_mode}};
    task.work.norm.x = x.data_ptr();
    launch(shape.device, "npu::npu_add_rms_norm_quant", run_quant, task,
           {reads(a), reads(b), reads(scale), reads(shift), reads(first_scales), reads(first_zeros),
            reads(second_scales), reads(second_zeros), writes(y1), writes(y2), writes(x)});
  }
  return {y1, y2, x};
}

// ---- npu_add_rms_norm_dynamic_quant ------------------------------------------------------------------------------

struct DynamicQuantTask {
  const AddRmsNormKernels* kernels;
  AddRmsNormDynamicQuant work;
  void* placeholders[2];  // the one element of a quantised output that is not wanted, and of its scale
  int64_t placeholder_bytes;
};

npu_status run_dynamic_quant(void* payload, npu_error* error) {
  const auto& task = *static_cast<const DynamicQuantTask*>(payload);
  if (task.placeholders[0] != nullptr) {
    std::memset(task.placeholders[0], 0, static_cast<size_t>(task.placeholder_bytes));
    std::memset(task.placeholders[1], 0, sizeof(float));
  }
  auto rows = [&](int64_t begin, int64_t end) { task.kernels->dynamic_quant(&task.work, begin, end); };
  return parallel_for(task.work.norm.rows, grain_for(task.work.norm.columns), rows, error);
}

float largest_of(npu_dtype dtype) {
  if (dtype == NPU_QUINT4X2) return 7;
  if (dtype == NPU_FLOAT8_E4M3FN) return 448;
  return dtype == NPU_FLOAT8_E5M2 ? 57344 : 127;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> add_rms_norm_dynamic_quant(
    const Tensor& x1, const Tensor& x2, const Tensor& gamma, const OptionalTensor& smooth_scale1,
    const OptionalTensor& smooth_scale2, const OptionalTensor& beta, double epsilon,
    std::optional<std::vector<bool>> output_mask, std::optional<int64_t> y_dtype) {
  constexpr const char* kOp = "npu_add_rms_norm_dynamic_quant";
  bool wanted[2] = {true, smooth_scale1.has_value() && smooth_scale2.has_value()};
  if (output_mask.has_value()) {
    NPU_CHECK_ARG(output_mask->size() == 2, kOp, "output_mask", "expected two flags, got ", output_mask->size());
    wanted[0] = (*output_mask)[0];
    wanted[1] = (*output_mask)[1];
    NPU_CHECK_ARG(wanted[0] || wanted[1], kOp, "output_mask", "at least one of y1 and y2 must be output");
  }
  npu_dtype quantised =
      dtype_argument(kOp, "y_dtype", y_dtype, NPU_INT8, {NPU_INT8, NPU_QUINT4X2, NPU_FLOAT8_E4M3FN, NPU_FLOAT8_E5M2});
  NPU_CHECK_ARG(x1.dim() >= 2 && x1.dim() <= 8, kOp, "x1", "The x1 should be in 2~8D, got shape ",
                shape_text(x1.sizes()));
  Shape shape = check_inputs(kOp, x1, x2, gamma);
  int64_t width[] = {x1.size(x1.dim() - 1)};
  check_sizes(kOp, "gamma", gamma, Sizes(width, 1), "(the last dim of x1)");
  check_beta(kOp, shape, gamma, beta);
  for (auto [argument, smooth] : {std::pair{"smooth_scale1", &smooth_scale1}, {"smooth_scale2", &smooth_scale2}}) {
    if (!smooth->has_value()) continue;
    check_same_device(kOp, shape.device, argument, **smooth);
    npu_dtype dtype = dtype_of(**smooth);
    NPU_CHECK_ARG(dtype == shape.dtype || dtype == NPU_FLOAT32, kOp, argument, "expected dtype ",
                  npu_dtype_name(shape.dtype), " (as x1) or float32, got ", npu_dtype_name(dtype),
                  "; convert it first");
    check_sizes(kOp, argument, **smooth, Sizes(width, 1), "(the last dim of x1)");
  }
  bool packed = quantised == NPU_QUINT4X2;
  NPU_CHECK_ARG(!packed || shape.columns % 8 == 0, kOp, "x1",
                "expected a last dim divisible by 8 for an int4 result, got shape ", shape_text(x1.sizes()));

  Tensor a = with_rows(x1, shape), b = with_rows(x2, shape), scale = as_contiguous(gamma);
  OptionalTensor shift = as_contiguous(beta);
  OptionalTensor smooth[2] = {as_contiguous(smooth_scale1), as_contiguous(smooth_scale2)};
  Sizes sizes = x1.sizes();
  std::vector<int64_t> y_sizes(sizes.begin(), sizes.end());
  if (packed) y_sizes.back() /= 8;
  npu_dtype stored = packed ? static_cast<npu_dtype>(NPU_INT32) : quantised;
  auto quantised_output = [&](int branch) {
    return allocate(Sizes(y_sizes.data(), wanted[branch] ? y_sizes.size() : 0), stored, shape.device);
  };
  auto scale_output = [&](int branch) {
    return allocate(Sizes(y_sizes.data(), wanted[branch] ? y_sizes.size() - 1 : 0), NPU_FLOAT32, shape.device);
  };
  Tensor y[2] = {quantised_output(0), quantised_output(1)}, scales[2] = {scale_output(0), scale_output(1)};
  Tensor x = allocate(sizes, shape.dtype, shape.device);
  DynamicQuantTask task{&kTables.active(),
                        {norm_of(a, b, scale, shift, epsilon, shape), {}, quantised, largest_of(quantised)},
                        {nullptr, nullptr},
                        npu_dtype_size(stored)};
  for (int i = 0; i < 2; ++i) {
    if (wanted[i]) {
      task.work.branches[i] = {y[i].data_ptr(), static_cast<float*>(scales[i].data_ptr()), parameter_of(smooth[i])};
    } else {
      task.placeholders[0] = y[i].data_ptr();
      task.placeholders[1] = scales[i].data_ptr();
    }
  }
  task.work.norm.x = x.data_ptr();
  launch(shape.device, "npu::npu_add_rms_norm_dynamic_quant", run_dynamic_quant, task,
         {reads(a), reads(b), reads(scale), reads(shift), reads(smooth[0]), reads(smooth[1]), writes(y[0]),
          writes(y[1]), writes(x), writes(scales[0]), writes(scales[1])});
  return {y[0], y[1], x, scales[0], scales[1]};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def("npu_add_rms_norm(Tensor x1, Tensor x2, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor, Tensor)");
  m.def("npu_add_rms_norm_v2(Tensor(a!) x1, Tensor(b!) x2, Tensor gamma, float epsilon=1e-06) -> Tensor");
  m.def(
      "npu_add_rms_norm_v2_functional(Tensor x1, Tensor x2, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor, "
      "Tensor)");
  m.def(
      "npu_add_rms_norm_quant(Tensor x1, Tensor x2, Tensor gamma, Tensor scales1, Tensor? zero_points1, Tensor? "
      "beta=None, Tensor? scales2=None, Tensor? zero_points2=None, *, int axis=-1, float epsilon=1e-06, bool "
      "div_mode=True, int? dst_type=None) -> (Tensor, Tensor, Tensor)");
  m.def(
      "npu_add_rms_norm_dynamic_quant(Tensor x1, Tensor x2, Tensor gamma, *, Tensor? smooth_scale1=None, Tensor? "
      "smooth_scale2=None, Tensor? beta=None, float epsilon=1e-6, bool[2]? output_mask=None, int? y_dtype=None) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) {
  m.impl("npu_add_rms_norm", TORCH_BOX(&add_rms_norm));
  m.impl("npu_add_rms_norm_v2", TORCH_BOX(&add_rms_norm_v2));
  m.impl("npu_add_rms_norm_v2_functional", TORCH_BOX(&add_rms_norm_v2_functional));
  m.impl("npu_add_rms_norm_quant", TORCH_BOX(&add_rms_norm_quant));
  m.impl("npu_add_rms_norm_dynamic_quant", TORCH_BOX(&add_rms_norm_dynamic_quant));
}

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) {
  m.impl("npu_add_rms_norm", TORCH_BOX(&add_rms_norm));
  m.impl("npu_add_rms_norm_v2", TORCH_BOX(&add_rms_norm_v2));
  m.impl("npu_add_rms_norm_v2_functional", TORCH_BOX(&add_rms_norm_v2_functional));
  m.impl("npu_add_rms_norm_quant", TORCH_BOX(&add_rms_norm_quant));
  m.impl("npu_add_rms_norm_dynamic_quant", TORCH_BOX(&add_rms_norm_dynamic_quant));
}

}  // namespace npu::ops_llm
