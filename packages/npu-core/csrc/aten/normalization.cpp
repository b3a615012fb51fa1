// Batch, layer and group norm with their backwards.
#include <ATen/ATen.h>
#include <ATen/native/layer_norm.h>
#include <torch/library.h>

#include "empty.h"
#include "kernel_arguments.h"
#include "launch_op.h"

namespace npu::aten {
namespace {

// float32 statistics for reduced-precision inputs with float32 parameters, as torch's CPU kernels keep them.
at::ScalarType statistics_dtype(const at::Tensor& input, const OptTensor& weight) {
  return has(weight) && at::isReducedFloatingType(input.scalar_type()) ? weight->scalar_type() : input.scalar_type();
}

// ---- batch norm ---------------------------------------------------------------------------------------------------

void run_batch_norm(const at::Tensor& out, const at::Tensor& mean, const at::Tensor& invstd, const at::Tensor& input,
                    const OptTensor& weight, const OptTensor& bias, const OptTensor& running_mean,
                    const OptTensor& running_var, bool training, double momentum, double eps) {
  // torch's out= kernel is wrong for other layouts (on the CPU too).
  if (input.is_contiguous() || input.is_contiguous(input.suggest_memory_format())) {
    at::native_batch_norm_out(mut(out), mut(mean), mut(invstd), input, weight, bias, running_mean, running_var,
                              training, momentum, eps);
    return;
  }
  const auto [o, m, s] = at::native_batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps);
  mut(out).copy_(o);
  mut(mean).copy_(m);
  mut(invstd).copy_(s);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> native_batch_norm(const at::Tensor& input, const OptTensor& weight,
                                                                 const OptTensor& bias, const OptTensor& running_mean,
                                                                 const OptTensor& running_var, bool training,
                                                                 double momentum, double eps) {
  TORCH_CHECK(input.dim() >= 2, "native_batch_norm: input must have at least 2 dimensions, but has ", input.dim());
  const int device = input.device().index();
  const auto dtype = statistics_dtype(input, weight);
  auto out = at::empty_like(input);
  const std::int64_t channels = training ? input.size(1) : 0;
  auto mean = empty_npu({channels}, dtype, device), invstd = empty_npu({channels}, dtype, device);
  launch_op<&run_batch_norm>("aten::native_batch_norm", out, mean, invstd, input, weight, bias, running_mean,
                             running_var, training, momentum, eps);
  return {out, mean, invstd};
}

// The functional spellings that torch.export and make_fx leave in graphs.
std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_legit(const at::Tensor& input, const OptTensor& weight,
                                                                const OptTensor& bias, at::Tensor& running_mean,
                                                                at::Tensor& running_var, bool training, double momentum,
                                                                double eps) {
  return (native_batch_norm)(input, weight, bias, running_mean, running_var, training, momentum, eps);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_without_statistics(const at::Tensor& input,
                                                                             const OptTensor& weight,
                                                                             const OptTensor& bias, bool training,
                                                                             double momentum, double eps) {
  return (native_batch_norm)(input, weight, bias, std::nullopt, std::nullopt, training, momentum, eps);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm_with_update(
    const at::Tensor& input, const OptTensor& weight, const OptTensor& bias, at::Tensor& running_mean,
    at::Tensor& running_var, double momentum, double eps) {
  auto [out, mean, invstd] =
      (native_batch_norm)(input, weight, bias, running_mean, running_var, /*training=*/true, momentum, eps);
  return {out, mean, invstd, empty_npu({0}, at::kByte, input.device().index())};  // no reserve: the CPU needs none
}

void run_batch_norm_backward(const at::Tensor& grad_input, const at::Tensor& grad_weight, const at::Tensor& grad_bias,
                             const at::Tensor& grad_out, const at::Tensor& input, const OptTensor& weight,
                             const OptTensor& running_mean, const OptTensor& running_var, const OptTensor& mean,
                             const OptTensor& invstd, bool training, double eps) {
  const std::array<bool, 3> mask{grad_input.defined(), grad_weight.defined(), grad_bias.defined()};
  auto [gi, gw, gb] = at::native_batch_norm_backward(grad_out, input, weight, running_mean, running_var, mean, invstd,
                                                     training, eps, mask);
  if (mask[0]) mut(grad_input).copy_(gi);
  if (mask[1]) mut(grad_weight).copy_(gw);
  if (mask[2]) mut(grad_bias).copy_(gb);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> native_batch_norm_backward(
    const at::Tensor& grad_out, const at::Tensor& input, const OptTensor& weight, const OptTensor& running_mean,
    const OptTensor& running_var, const OptTensor& mean, const OptTensor& invstd, bool training, double eps,
    std::array<bool, 3> output_mask) {
  const int device = input.device().index();
  const auto dtype = has(weight) ? weight->scalar_type() : input.scalar_type();
  at::Tensor grad_input, grad_weight, grad_bias;
  if (output_mask[0]) grad_input = at::empty_like(input);
  if (output_mask[1]) grad_weight = empty_npu({input.size(1)}, dtype, device);
  if (output_mask[2]) grad_bias = empty_npu({input.size(1)}, dtype, device);
  launch_op<&run_batch_norm_backward>("aten::native_batch_norm_backward", grad_input, grad_weight, grad_bias, grad_out,
                                      input, weight, running_mean, running_var, mean, invstd, training, eps);
  return {grad_input, grad_weight, grad_bias};
}

// ---- layer norm ---------------------------------------------------------------------------------------------------

void run_layer_norm(const at::Tensor& out, const at::Tensor& mean, const at::Tensor& rstd, const at::Tensor& input,
                    at::IntArrayRef shape, const OptTensor& weight, const OptTensor& bias, double eps) {
  at::native_layer_norm_out(mut(out), mut(mean), mut(rstd), input, shape, weight, bias, eps);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> native_layer_norm(const at::Tensor& input, at::IntArrayRef shape,
                                                                 const OptTensor& weight, const OptTensor& bias,
                                                                 double eps) {
  const at::Tensor w = weight.value_or(at::Tensor()), b = bias.value_or(at::Tensor());
  at::native::_check_layer_norm_inputs(input, shape, w, b);
  const int device = input.device().index();
  auto out = at::empty_like(input, at::MemoryFormat::Contiguous);
  std::vector<std::int64_t> stat(input.sizes().begin(), input.sizes().end());
  for (size_t d = stat.size() - shape.size(); d < stat.size(); ++d) stat[d] = 1;
  const auto dtype = statistics_dtype(input, weight);
  auto mean = empty_npu(stat, dtype, device), rstd = empty_npu(stat, dtype, device);
  launch_op<&run_layer_norm>("aten::native_layer_norm", out, mean, rstd, input, shape, weight, bias, eps);
  return {out, mean, rstd};
}

void run_layer_norm_backward(const at::Tensor& grad_input, const at::Tensor& grad_weight, const at::Tensor& grad_bias,
                             const at::Tensor& grad_out, const at::Tensor& input, at::IntArrayRef shape,
                             const at::Tensor& mean, const at::Tensor& rstd, const OptTensor& weight,
                             const OptTensor& bias) {
  const std::array<bool, 3> mask{grad_input.defined(), grad_weight.defined(), grad_bias.defined()};
  auto [gi, gw, gb] = at::native_layer_norm_backward(grad_out, input, shape, mean, rstd, weight, bias, mask);
  if (mask[0]) mut(grad_input).copy_(gi);
  if (mask[1]) mut(grad_weight).copy_(gw);
  if (mask[2]) mut(grad_bias).copy_(gb);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> native_layer_norm_backward(
    const at::Tensor& grad_out, const at::Tensor& input, at::IntArrayRef shape, const at::Tensor& mean,
    const at::Tensor& rstd, const OptTensor& weight, const OptTensor& bias, std::array<bool, 3> output_mask) {
  const int device = input.device().index();
  const auto dtype = has(weight) ? weight->scalar_type() : input.scalar_type();
  at::Tensor grad_input, grad_weight, grad_bias;
  if (output_mask[0]) grad_input = at::empty_like(input, at::MemoryFormat::Contiguous);
  if (output_mask[1] && has(weight)) grad_weight = empty_npu(shape, dtype, device);
  if (output_mask[2] && has(bias)) grad_bias = empty_npu(shape, bias->scalar_type(), device);
  launch_op<&run_layer_norm_backward>("aten::native_layer_norm_backward", grad_input, grad_weight, grad_bias, grad_out,
                                      input, shape, mean, rstd, weight, bias);
  return {grad_input, grad_weight, grad_bias};
}

// ---- group norm ---------------------------------------------------------------------------------------------------

void run_group_norm(const at::Tensor& out, const at::Tensor& mean, const at::Tensor& rstd, const at::Tensor& input,
                    const OptTensor& weight, const OptTensor& bias, std::int64_t n, std::int64_t c, std::int64_t hw,
                    std::int64_t groups, double eps) {
  auto [y, m, r] = at::native_group_norm(input, weight, bias, n, c, hw, groups, eps);
  mut(out).copy_(y);
  mut(mean).copy_(m);
  mut(rstd).copy_(r);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> native_group_norm(const at::Tensor& input, const OptTensor& weight,
                                                                 const OptTensor& bias, std::int64_t n, std::int64_t c,
                                                                 std::int64_t hw, std::int64_t groups, double eps) {
  const int device = input.device().index();
  auto out = at::empty_like(input);
  const auto dtype = statistics_dtype(input, weight);
  auto mean = empty_npu({n, groups}, dtype, device), rstd = empty_npu({n, groups}, dtype, device);
  launch_op<&run_group_norm>("aten::native_group_norm", out, mean, rstd, input, weight, bias, n, c, hw, groups, eps);
  return {out, mean, rstd};
}

void run_group_norm_backward(const at::Tensor& grad_input, const at::Tensor& grad_weight, const at::Tensor& grad_bias,
                             const at::Tensor& grad_out, const at::Tensor& input, const at::Tensor& mean,
                             const at::Tensor& rstd, const OptTensor& weight, std::int64_t n, std::int64_t c,
                             std::int64_t hw, std::int64_t groups) {
  const std::array<bool, 3> mask{grad_input.defined(), grad_weight.defined(), grad_bias.defined()};
  auto [gi, gw, gb] = at::native_group_norm_backward(grad_out, input, mean, rstd, weight, n, c, hw, groups, mask);
  if (mask[0]) mut(grad_input).copy_(gi);
  if (mask[1]) mut(grad_weight).copy_(gw);
  if (mask[2]) mut(grad_bias).copy_(gb);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> native_group_norm_backward(
    const at::Tensor& grad_out, const at::Tensor& input, const at::Tensor& mean, const at::Tensor& rstd,
    const OptTensor& weight, std::int64_t n, std::int64_t c, std::int64_t hw, std::int64_t groups,
    std::array<bool, 3> output_mask) {
  const int device = input.device().index();
  const auto dtype = has(weight) ? weight->scalar_type() : input.scalar_type();
  // torch's CPU kernel wants both in the input's memory format.
  const at::Tensor grad = grad_out.contiguous(input.suggest_memory_format());
  at::Tensor grad_input, grad_weight, grad_bias;
  if (output_mask[0]) grad_input = at::empty_like(input);
  if (output_mask[1]) grad_weight = empty_npu({c}, dtype, device);
  if (output_mask[2]) grad_bias = empty_npu({c}, dtype, device);
  launch_op<&run_group_norm_backward>("aten::native_group_norm_backward", grad_input, grad_weight, grad_bias, grad,
                                      input, mean, rstd, weight, n, c, hw, groups);
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("native_batch_norm", TORCH_FN(native_batch_norm));
  m.impl("_native_batch_norm_legit", TORCH_FN(batch_norm_legit));
  m.impl("_native_batch_norm_legit.no_stats", TORCH_FN(batch_norm_without_statistics));
  m.impl("_batch_norm_with_update", TORCH_FN(batch_norm_with_update));
  m.impl("native_batch_norm_backward", TORCH_FN(native_batch_norm_backward));
  m.impl("native_group_norm", TORCH_FN(native_group_norm));
  m.impl("native_group_norm_backward", TORCH_FN(native_group_norm_backward));
  m.impl("native_layer_norm", TORCH_FN(native_layer_norm));
  m.impl("native_layer_norm_backward", TORCH_FN(native_layer_norm_backward));
}

}  // namespace npu::aten
