// Convolution: shapes from the formula, the work by torch's CPU convolution (oneDNN) on the engine.
#include <ATen/ATen.h>
#include <ATen/native/ConvUtils.h>
#include <torch/library.h>

#include "empty.h"
#include "half_precision.h"
#include "launch_op.h"

namespace npu::aten {
namespace {

// channels_last in, channels_last out, as torch does on CPU.
at::MemoryFormat result_format(const at::Tensor& input, const at::Tensor& weight) {
  if (input.dim() == 4 && (input.suggest_memory_format() == at::MemoryFormat::ChannelsLast ||
                           weight.suggest_memory_format() == at::MemoryFormat::ChannelsLast)) {
    return at::MemoryFormat::ChannelsLast;
  }
  if (input.dim() == 5 && (input.suggest_memory_format() == at::MemoryFormat::ChannelsLast3d ||
                           weight.suggest_memory_format() == at::MemoryFormat::ChannelsLast3d)) {
    return at::MemoryFormat::ChannelsLast3d;
  }
  return at::MemoryFormat::Contiguous;
}

void run_convolution(const at::Tensor& out, const at::Tensor& input, const at::Tensor& weight,
                     const std::optional<at::Tensor>& bias, at::IntArrayRef stride, at::IntArrayRef padding,
                     at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, std::int64_t groups) {
  const bool wide = is_slow_half(input);
  const_cast<at::Tensor&>(out).copy_(at::convolution(wide ? widen(input) : input, wide ? widen(weight) : weight,
                                                     wide ? widen(bias) : bias, stride, padding, dilation, transposed,
                                                     output_padding, groups));
}

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                       at::IntArrayRef output_padding, std::int64_t groups) {
  TORCH_CHECK(input.scalar_type() == weight.scalar_type(), "Input type (", input.scalar_type(), ") and weight type (",
              weight.scalar_type(), ") should be the same");
  std::vector<std::int64_t> shape;
  if (transposed) {
    shape =
        at::native::conv_input_size(input.sizes(), weight.sizes(), padding, output_padding, stride, dilation, groups);
  } else {
    shape = at::native::conv_output_size(input.sizes(), weight.sizes(), padding, stride, dilation);
  }
  auto out = empty_npu(shape, input.scalar_type(), input.device().index(), result_format(input, weight));
  launch_op<&run_convolution>("aten::convolution", out, input, weight, bias, stride, padding, dilation, transposed,
                              output_padding, groups);
  return out;
}

void run_convolution_backward(const at::Tensor& grad_input, const at::Tensor& grad_weight, const at::Tensor& grad_bias,
                              const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                              at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                              bool transposed, at::IntArrayRef output_padding, std::int64_t groups) {
  const std::array<bool, 3> mask{grad_input.defined(), grad_weight.defined(), grad_bias.defined()};
  const std::array<std::int64_t, 1> bias_size{transposed ? weight.size(1) * groups : weight.size(0)};
  const bool wide = is_slow_half(input);
  auto [gi, gw, gb] = at::convolution_backward(wide ? widen(grad_output) : grad_output, wide ? widen(input) : input,
                                               wide ? widen(weight) : weight, at::OptionalIntArrayRef(bias_size),
                                               stride, padding, dilation, transposed, output_padding, groups, mask);
  if (mask[0]) const_cast<at::Tensor&>(grad_input).copy_(gi);
  if (mask[1]) const_cast<at::Tensor&>(grad_weight).copy_(gw);
  if (mask[2]) const_cast<at::Tensor&>(grad_bias).copy_(gb);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(const at::Tensor& grad_output,
                                                                    const at::Tensor& input, const at::Tensor& weight,
                                                                    at::IntArrayRef stride, at::IntArrayRef padding,
                                                                    at::IntArrayRef dilation, bool transposed,
                                                                    at::IntArrayRef output_padding, std::int64_t groups,
                                                                    std::array<bool, 3> output_mask) {
  const int device = input.device().index();
  at::Tensor grad_input, grad_weight, grad_bias;
  const auto format = result_format(input, weight);
  if (output_mask[0]) grad_input = empty_npu(input.sizes(), input.scalar_type(), device, format);
  if (output_mask[1]) grad_weight = empty_npu(weight.sizes(), weight.scalar_type(), device, format);
  if (output_mask[2]) {
    grad_bias = empty_npu({transposed ? weight.size(1) * groups : weight.size(0)}, weight.scalar_type(), device);
  }
  launch_op<&run_convolution_backward>("aten::convolution_backward", grad_input, grad_weight, grad_bias, grad_output,
                                       input, weight, stride, padding, dilation, transposed, output_padding, groups);
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("convolution_overrideable", TORCH_FN(convolution));
  m.impl("convolution_backward_overrideable", TORCH_FN(convolution_backward));
}

}  // namespace npu::aten
