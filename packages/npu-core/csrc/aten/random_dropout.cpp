// Dropout and rrelu: random factors applied in the pass that draws them.
#include <ATen/native/Resize.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/ones_like.h>
#include <torch/library.h>

#include <array>

#include "random_bernoulli.h"

namespace npu::aten {
namespace {

// ---- dropout ------------------------------------------------------------------------------------------------------

// Whether the vector kernels take these tensors as they are.
bool is_plain(const at::Tensor& a, const at::Tensor& b, const at::Tensor& mask) {
  return float_type(a.scalar_type()) >= 0 && a.scalar_type() == b.scalar_type() && a.is_contiguous() &&
         b.is_contiguous() && mask.is_contiguous();
}

// For operands that the vector kernels do not take.
void scale_any(const at::Tensor& out, const at::Tensor& input, const at::Tensor& mask, double scale) {
  at::mul_out(mut(out), input, mask);
  mut(out).mul_(scale);
}

// mask: 1 with probability `keep`.  out = input * mask * scale; as there, a dropped NaN or infinity gives NaN.
void run_dropout(const at::Tensor& out, const at::Tensor& mask, const at::Tensor& input, double keep, double scale,
                 PhiloxState state) {
  const std::uint64_t kept = bernoulli_words(keep);
  if (kept == 0 || !is_plain(out, input, mask)) {
    fill_bernoulli(mask, keep, state);
    scale_any(out, input, mask, scale);
    return;
  }
  const int type = float_type(out.scalar_type());
  const auto size = static_cast<std::int64_t>(out.itemsize());
  auto* to = static_cast<std::byte*>(out.mutable_data_ptr());
  auto* bytes = static_cast<std::uint8_t*>(mask.mutable_data_ptr());
  const auto* from = static_cast<const std::byte*>(input.const_data_ptr());
  for_chunks(out.numel(), state, [&](const philox::Draw& draw) {
    philox::kernels().dropout[type](to + draw.begin * size, bytes + draw.begin, from + draw.begin * size, draw,
                                    static_cast<std::uint32_t>(kept - 1), static_cast<float>(scale));
  });
}

std::tuple<at::Tensor, at::Tensor> dropout(const char* op, const at::Tensor& input, double keep,
                                           at::ScalarType mask_dtype, const OptGenerator& generator) {
  TORCH_CHECK_NOT_IMPLEMENTED(at::isFloatingType(input.scalar_type()), op,
                              ": expected a floating point tensor, but got ", input.scalar_type());
  auto out = at::empty_like(input);
  auto mask = at::empty_like(input, input.options().dtype(mask_dtype));
  if (input.numel() != 0) {
    launch_op<&run_dropout>(op, out, mask, input, keep, keep == 0.0 ? 0.0 : 1.0 / keep,
                            reserve_words(input, generator, input.numel()));
  }
  return {out, mask};
}

std::tuple<at::Tensor, at::Tensor> native_dropout(const at::Tensor& input, double p, std::optional<bool> train) {
  TORCH_CHECK(0 <= p && p <= 1, "dropout probability has to be between 0 and 1, but got ", p);
  if (!train.value_or(true)) return {input.clone(), at::ones_like(input, input.options().dtype(at::kBool))};
  return dropout("aten::native_dropout", input, 1.0 - p, at::kBool, std::nullopt);
}

// `p` is the probability to keep here, and the mask has bytes.
std::tuple<at::Tensor, at::Tensor> fused_dropout(const at::Tensor& input, double p, OptGenerator generator) {
  TORCH_CHECK(0 <= p && p <= 1, "_fused_dropout: the probability to keep has to be between 0 and 1, but got ", p);
  return dropout("aten::_fused_dropout", input, p, at::kByte, generator);
}

void run_scale_by_mask(const at::Tensor& out, const at::Tensor& input, const at::Tensor& mask, double scale) {
  if (!is_plain(out, input, mask)) {
    scale_any(out, input, mask, scale);
    return;
  }
  const int type = float_type(out.scalar_type());
  const auto size = static_cast<std::int64_t>(out.itemsize());
  auto* to = static_cast<std::byte*>(out.mutable_data_ptr());
  const auto* from = static_cast<const std::byte*>(input.const_data_ptr());
  const auto* bytes = static_cast<const std::uint8_t*>(mask.const_data_ptr());
  in_parallel(out.numel(), /*grain=*/1 << 14, [&](std::int64_t begin, std::int64_t end) {
    philox::kernels().scale_by_mask[type](to + begin * size, from + begin * size, bytes + begin, end - begin,
                                          static_cast<float>(scale));
  });
}

at::Tensor scale_by_mask(const char* op, const at::Tensor& input, const at::Tensor& mask, double scale,
                         at::ScalarType mask_dtype) {
  TORCH_CHECK(mask.scalar_type() == mask_dtype, op, ": mask should be ", mask_dtype, ", but has dtype ",
              mask.scalar_type());
  TORCH_CHECK(mask.sizes() == input.sizes(), op, ": expected mask to have the shape ", input.sizes(), ", but got ",
              mask.sizes());
  auto out = at::empty_like(input);
  if (input.numel() != 0) launch_op<&run_scale_by_mask>(op, out, input, mask, scale);
  return out;
}

at::Tensor native_dropout_backward(const at::Tensor& grad, const at::Tensor& mask, double scale) {
  // The scale is a float: integers are promoted.
  const bool integral = at::isIntegralType(grad.scalar_type(), /*includeBool=*/true);
  return scale_by_mask("aten::native_dropout_backward",
                       integral ? grad.to(at::get_default_dtype_as_scalartype()) : grad, mask, scale, at::kBool);
}

at::Tensor masked_scale(const at::Tensor& self, const at::Tensor& mask, double scale) {
  return scale_by_mask("aten::_masked_scale", self, mask, scale, at::kByte);
}

// ---- rrelu --------------------------------------------------------------------------------------------------------

// noise: uniform in [lower, upper) where self <= 0, else 1; out = self * noise.
void run_rrelu(const at::Tensor& out, const at::Tensor& noise, const at::Tensor& self, double lower, double upper,
               PhiloxState state) {
  const auto input = self.contiguous();
  on_contiguous(noise, [&](const at::Tensor& slopes) {
    on_contiguous(out, [&](const at::Tensor& result) {
      AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "rrelu_npu", [&] {
        const auto* x = input.const_data_ptr<scalar_t>();
        auto* slope = slopes.mutable_data_ptr<scalar_t>();
        auto* y = result.mutable_data_ptr<scalar_t>();
        for_chunks(input.numel(), state, [&](const philox::Draw& draw) {
          std::array<std::uint64_t, philox::kChunk> wide;
          philox::kernels().wide(wide.data(), draw);
          for (std::int64_t i = 0; i < draw.count; ++i) {
            const std::int64_t at = draw.begin + i;
            const scalar_t value = x[at];
            const double factor =
                value <= 0 ? lower + unit_double(wide[static_cast<size_t>(i)]) * (upper - lower) : 1.0;
            slope[at] = static_cast<scalar_t>(factor);
            y[at] = value * slope[at];
          }
        });
      });
    });
  });
}

void run_leaky_relu(const at::Tensor& out, const at::Tensor& self, double slope) {
  at::leaky_relu_out(mut(out), self, slope);
}

at::Tensor& rrelu_with_noise_out(const at::Tensor& self, at::Tensor& noise, const at::Scalar& lower,
                                 const at::Scalar& upper, bool training, OptGenerator generator, at::Tensor& out) {
  TORCH_CHECK_NOT_IMPLEMENTED(at::isFloatingType(self.scalar_type()),
                              "rrelu_with_noise: expected self to be floating point, but got ", self.scalar_type());
  const double low = lower.to<double>(), high = upper.to<double>();
  TORCH_CHECK(low <= high, "rrelu_with_noise: Lower bound should be less than or equal to the upper bound, but got ",
              low, " and ", high);
  TORCH_CHECK(self.sizes() == noise.sizes(),
              "rrelu_with_noise: noise tensor shape must match self tensor shape. Got self.shape = ", self.sizes(),
              " noise.shape = ", noise.sizes());
  TORCH_CHECK(self.scalar_type() == noise.scalar_type() && self.scalar_type() == out.scalar_type(),
              "rrelu_with_noise: expected noise and out to have self's dtype ", self.scalar_type(), ", but got ",
              noise.scalar_type(), " and ", out.scalar_type());
  if (!out.is_same(self)) at::native::resize_output(out, self.sizes());
  at::assert_no_internal_overlap(out);
  if (training) at::assert_no_internal_overlap(noise);
  if (self.numel() == 0) return out;
  if (training) {
    launch_op<&run_rrelu>("aten::rrelu_with_noise", out, noise, self, low, high,
                          reserve_words(self, generator, self.numel(), 2));
  } else {
    launch_op<&run_leaky_relu>("aten::rrelu_with_noise", out, self, (low + high) / 2.0);
  }
  return out;
}

at::Tensor rrelu_with_noise(const at::Tensor& self, at::Tensor& noise, const at::Scalar& lower, const at::Scalar& upper,
                            bool training, OptGenerator generator) {
  auto out = at::empty_like(self);
  return rrelu_with_noise_out(self, noise, lower, upper, training, std::move(generator), out);
}

at::Tensor& rrelu_with_noise_(at::Tensor& self, at::Tensor& noise, const at::Scalar& lower, const at::Scalar& upper,
                              bool training, OptGenerator generator) {
  return rrelu_with_noise_out(self, noise, lower, upper, training, std::move(generator), self);
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("native_dropout", TORCH_FN(native_dropout));
  m.impl("native_dropout_backward", TORCH_FN(native_dropout_backward));
  m.impl("_fused_dropout", TORCH_FN(fused_dropout));
  m.impl("_masked_scale", TORCH_FN(masked_scale));
  m.impl("rrelu_with_noise", TORCH_FN(rrelu_with_noise));
  m.impl("rrelu_with_noise.out", TORCH_FN(rrelu_with_noise_out));
  m.impl("rrelu_with_noise_", TORCH_FN(rrelu_with_noise_));
}

}  // namespace npu::aten
