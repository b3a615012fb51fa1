// npu_group_norm_silu, npu_group_norm_swish and its gradient: schemas, checks and tasks.  Fake kernels and autograd:
// src/npu_ops_llm/group_norm.py.
#include <tuple>
#include <vector>

#include "../kernels/group_norm.h"
#include "npu/kernels/isa.h"
#include "npu/kernels/launch.h"
#include "npu/kernels/parallel.h"
#include "npu/kernels/stable_tensor.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

const KernelTables<GroupNormKernels> kTables = {{
    &group_norm_kernels_base,
#if defined(__x86_64__)
    &group_norm_kernels_avx2,
    &group_norm_kernels_avx512,
    &group_norm_kernels_avx512_bf16,
#endif
}};

struct Shape {
  Device device;
  npu_dtype dtype, parameter_dtype;  // without weight and bias both are input's
  GroupNormShape sizes;
};

/// `groups_name` is what the op calls its number of groups.
Shape check_inputs(const char* op, const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                   int64_t groups, const char* groups_name) {
  Shape shape{device_of(input), dtype_of(input), dtype_of(input), {}};
  check_same_device(op, shape.device, "weight", weight);
  check_same_device(op, shape.device, "bias", bias);
  check_dtype(op, "input", input, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
  Sizes sizes = input.sizes();
  NPU_CHECK_ARG(sizes.size() >= 2 && sizes.size() <= 8, op, "input", "expected 2 to 8 dims (N, C, ...), got shape ",
                shape_text(sizes));
  NPU_CHECK_ARG(groups > 0, op, groups_name, "expected a positive number of groups, got ", groups);
  NPU_CHECK_ARG(sizes[1] % groups == 0, op, groups_name, "expected a divisor of the channels; input has shape ",
                shape_text(sizes), ", got ", groups, " groups");
  shape.sizes = {sizes[0], groups, sizes[1] / groups, 1};
  for (size_t i = 2; i < sizes.size(); ++i) shape.sizes.spatial *= sizes[i];
  bool first = true;
  for (auto [argument, tensor] : {std::pair{"weight", &weight}, {"bias", &bias}}) {
    if (!tensor->has_value()) continue;
    npu_dtype dtype = dtype_of(**tensor);
    NPU_CHECK_ARG(dtype == shape.dtype || dtype == NPU_FLOAT32, op, argument, "expected dtype ",
                  npu_dtype_name(shape.dtype), " (as input) or float32, got ", npu_dtype_name(dtype),
                  "; convert it first");
    NPU_CHECK_ARG(first || dtype == shape.parameter_dtype, op, argument, "expected dtype ",
                  npu_dtype_name(shape.parameter_dtype), " (as weight), got ", npu_dtype_name(dtype),
                  "; convert it first");
    check_sizes(op, argument, **tensor, Sizes(&sizes[1], 1), "(the channels)");
    shape.parameter_dtype = dtype;
    first = false;
  }
  return shape;
}

struct ForwardTask {
  const GroupNormKernels* kernels;
  GroupNormForward work;
};

npu_status run_forward(void* payload, npu_error* error) {
  const auto& task = *static_cast<const ForwardTask*>(payload);
  const GroupNormShape& shape = task.work.shape;
  auto groups = [&](int64_t begin, int64_t end) { task.kernels->forward(&task.work, begin, end); };
  return parallel_for(shape.samples * shape.groups, grain_for(shape.channels * shape.spatial), groups, error);
}

std::tuple<Tensor, Tensor, Tensor> forward(const char* task_name, const Shape& shape, const Tensor& input,
                                           const OptionalTensor& weight, const OptionalTensor& bias, double eps,
                                           double swish_scale, npu_dtype statistic_dtype) {
  Tensor x = as_contiguous(input);
  OptionalTensor scale = as_contiguous(weight), shift = as_contiguous(bias);
  Tensor out = allocate(input.sizes(), shape.dtype, shape.device);
  int64_t statistics[] = {shape.sizes.samples, shape.sizes.groups};
  Tensor mean = allocate(Sizes(statistics, 2), statistic_dtype, shape.device);
  Tensor rstd = allocate(Sizes(statistics, 2), statistic_dtype, shape.device);
  if (shape.sizes.samples > 0) {
    ForwardTask task{&kTables.active(),
                     {x.data_ptr(), pointer_or_null(scale), pointer_or_null(shift), out.data_ptr(), mean.data_ptr(),
                      rstd.data_ptr(), shape.sizes, static_cast<float>(eps), static_cast<float>(swish_scale),
                      shape.dtype, shape.parameter_dtype, statistic_dtype}};
    launch(shape.device, task_name, run_forward, task,
           {reads(x), reads(scale), reads(shift), writes(out), writes(mean), writes(rstd)});
  }
  return {out, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> group_norm_silu(const Tensor& input, const OptionalTensor& weight,
                                                   const OptionalTensor& bias, int64_t group, double eps) {
  constexpr const char* kOp = "npu_group_norm_silu";
  Shape shape = check_inputs(kOp, input, weight, bias, group, "group");
  NPU_CHECK_ARG(eps > 0, kOp, "eps", "expected a positive number, got ", eps);
  return forward("npu::npu_group_norm_silu", shape, input, weight, bias, eps, 1, shape.dtype);
}

std::tuple<Tensor, Tensor, Tensor> group_norm_swish(const Tensor& input, int64_t num_groups, const Tensor& weight,
                                                    const Tensor& bias, std::optional<double> eps,
                                                    std::optional<double> swish_scale) {
  constexpr const char* kOp = "npu_group_norm_swish";
  OptionalTensor scale = weight, shift = bias;
  Shape shape = check_inputs(kOp, input, scale, shift, num_groups, "num_groups");
  NPU_CHECK_ARG(eps.value_or(1e-5) > 0, kOp, "eps", "expected a positive number, got ", *eps);
  return forward("npu::npu_group_norm_swish", shape, input, scale, shift, eps.value_or(1e-5), swish_scale.value_or(1),
                 shape.parameter_dtype);
}

struct BackwardTask {
  const GroupNormKernels* kernels;
  GroupNormBackward work;
};

npu_status run_backward(void* payload, npu_error* error) {
  const auto& task = *static_cast<const BackwardTask*>(payload);
  const GroupNormShape& shape = task.work.shape;
  auto groups = [&](int64_t begin, int64_t end) { task.kernels->backward(&task.work, begin, end); };
  npu_status status =
      parallel_for(shape.samples * shape.groups, grain_for(shape.channels * shape.spatial), groups, error);
  if (status != NPU_OK) return status;
  auto channels = [&](int64_t begin, int64_t end) { task.kernels->sum_samples(&task.work, begin, end); };
  return parallel_for(shape.groups * shape.channels, grain_for(shape.samples), channels, error);
}

std::tuple<Tensor, Tensor, Tensor> group_norm_swish_grad(const Tensor& grad, const Tensor& input, int64_t num_groups,
                                                         const Tensor& weight, const Tensor& bias, const Tensor& mean,
                                                         const Tensor& rstd, std::vector<bool> grad_input_mask,
                                                         std::optional<double> swish_scale) {
  constexpr const char* kOp = "npu_group_norm_swish_grad";
  Shape shape = check_inputs(kOp, input, OptionalTensor(weight), OptionalTensor(bias), num_groups, "num_groups");
  NPU_CHECK_ARG(grad_input_mask.size() == 3, kOp, "grad_input_mask", "expected three flags, got ",
                grad_input_mask.size());
  check_same_device(kOp, shape.device, "grad", grad);
  check_same_device(kOp, shape.device, "mean", mean);
  check_same_device(kOp, shape.device, "rstd", rstd);
  NPU_CHECK_ARG(dtype_of(grad) == shape.dtype, kOp, "grad", "expected dtype ", npu_dtype_name(shape.dtype),
                " (as input), got ", npu_dtype_name(dtype_of(grad)), "; convert it first");
  check_sizes(kOp, "grad", grad, input.sizes(), "(as input)");
  check_dtype(kOp, "mean", mean, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
  NPU_CHECK_ARG(dtype_of(rstd) == dtype_of(mean), kOp, "rstd", "expected dtype ", npu_dtype_name(dtype_of(mean)),
                " (as mean), got ", npu_dtype_name(dtype_of(rstd)));
  int64_t statistics[] = {shape.sizes.samples, shape.sizes.groups};
  check_sizes(kOp, "mean", mean, Sizes(statistics, 2), "(N, num_groups)");
  check_sizes(kOp, "rstd", rstd, Sizes(statistics, 2), "(N, num_groups)");

  Tensor upstream = as_contiguous(grad), x = as_contiguous(input), scale = as_contiguous(weight),
         shift = as_contiguous(bias), means = as_contiguous(mean), scales = as_contiguous(rstd);
  Tensor dx = allocate(input.sizes(), shape.dtype, shape.device);
  Tensor dweight = allocate(weight.sizes(), shape.parameter_dtype, shape.device);
  Tensor dbias = allocate(weight.sizes(), shape.parameter_dtype, shape.device);
  int64_t sums_sizes[] = {2, shape.sizes.samples, input.size(1)};
  Tensor sums = allocate(Sizes(sums_sizes, 3), NPU_FLOAT32, shape.device);
  auto* bias_sums = static_cast<float*>(sums.data_ptr());
  BackwardTask task{&kTables.active(),
                    {upstream.data_ptr(), x.data_ptr(), scale.data_ptr(), shift.data_ptr(), means.data_ptr(),
                     scales.data_ptr(), dx.data_ptr(), bias_sums, bias_sums + shape.sizes.samples * input.size(1),
                     dweight.data_ptr(), dbias.data_ptr(), shape.sizes, static_cast<float>(swish_scale.value_or(1)),
                     shape.dtype, shape.parameter_dtype, dtype_of(mean), grad_input_mask[1], grad_input_mask[2]}};
  launch(shape.device, "npu::npu_group_norm_swish_grad", run_backward, task,
         {reads(upstream), reads(x), reads(scale), reads(shift), reads(means), reads(scales), writes(dx), writes(sums),
          writes(dweight), writes(dbias)});
  return {dx, dweight, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def(
      "npu_group_norm_silu(Tensor input, Tensor? weight, Tensor? bias, int group, float eps=0.00001) -> (Tensor, "
      "Tensor, Tensor)");
  m.def(
      "npu_group_norm_swish(Tensor input, int num_groups, Tensor weight, Tensor bias, float? eps=1e-5, float? "
      "swish_scale=1.0) -> (Tensor, Tensor, Tensor)");
  m.def(
      "npu_group_norm_swish_grad(Tensor grad, Tensor input, int num_groups, Tensor weight, Tensor bias, Tensor mean, "
      "Tensor rstd, bool[3] grad_input_mask, float? swish_scale=1.0) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) {
  m.impl("npu_group_norm_silu", TORCH_BOX(&group_norm_silu));
  m.impl("npu_group_norm_swish", TORCH_BOX(&group_norm_swish));
  m.impl("npu_group_norm_swish_grad", TORCH_BOX(&group_norm_swish_grad));
}

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) {
  m.impl("npu_group_norm_silu", TORCH_BOX(&group_norm_silu));
  m.impl("npu_group_norm_swish", TORCH_BOX(&group_norm_swish));
  m.impl("npu_group_norm_swish_grad", TORCH_BOX(&group_norm_swish_grad));
}

}  // namespace npu::ops_llm
