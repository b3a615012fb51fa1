// normal_ and the overloads of normal.
#include <ATen/ExpandUtils.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/view_as_real.h>
#include <torch/library.h>

#include <array>
#include <cmath>

#include "empty.h"
#include "random_common.h"

namespace npu::aten {

void fill_normal(const at::Tensor& self, double mean, double std, PhiloxState state) {
  on_contiguous(self, [&](const at::Tensor& out) {
    const std::int64_t n = out.numel();
    const int type = float_type(out.scalar_type());
    if (type >= 0) {
      auto* data = static_cast<std::byte*>(out.mutable_data_ptr());
      const auto size = static_cast<std::int64_t>(out.itemsize());
      for_chunks(n, state, [&](const philox::Draw& draw) {
        philox::kernels().normal[type](data + draw.begin * size, draw, static_cast<float>(mean),
                                       static_cast<float>(std));
      });
      return;
    }
    // Box-Muller in double: 64-bit numbers 2 i and 2 i + 1 give the values 2 i and 2 i + 1.
    auto* data = out.mutable_data_ptr<double>();
    for_chunks((n + 1) / 2 * 2, state, [&](const philox::Draw& draw) {
      std::array<std::uint64_t, philox::kChunk> wide;
      philox::kernels().wide(wide.data(), draw);
      for (std::int64_t i = 0; i < draw.count; i += 2) {
        const double radius = std * std::sqrt(-2.0 * std::log(open_unit_double(wide[static_cast<size_t>(i)])));
        const double angle = 2.0 * M_PI * unit_double(wide[static_cast<size_t>(i) + 1]);
        data[draw.begin + i] = mean + radius * std::cos(angle);
        if (draw.begin + i + 1 < n) data[draw.begin + i + 1] = mean + radius * std::sin(angle);
      }
    });
  });
}

namespace {

void run_normal(const at::Tensor& self, double mean, double std, PhiloxState state) {
  fill_normal(self, mean, std, state);
}

at::Tensor& normal_(at::Tensor& self, double mean, double std, OptGenerator generator) {
  TORCH_CHECK(std >= 0.0, "normal expects std >= 0.0, but found std ", std);
  if (self.is_complex()) {
    // Real and imaginary part share the variance.
    auto parts = at::view_as_real(self);
    normal_(parts, mean, std / M_SQRT2, std::move(generator));
    return self;
  }
  check_float_result(self, "normal_");
  if (self.numel() == 0) return self;
  launch_op<&run_normal>("aten::normal_", self, mean, std, reserve_for(self, generator));
  return self;
}

// ---- normal with tensors for mean or standard deviation -------------------------------------------------------------

using OptTensor = std::optional<at::Tensor>;

// out = mean + std * z; a tensor stands for its number where it is given.
void run_normal_of(const at::Tensor& out, const OptTensor& means, const OptTensor& stds, double mean, double std,
                   PhiloxState state) {
  if (stds.has_value()) {
    TORCH_CHECK(stds->numel() == 0 || stds->ge(0).all().item<bool>(), "normal expects all elements of std >= 0.0");
  }
  // A temporary: out may be one of the arguments.
  auto z = at::empty(out.sizes(), out.options());
  fill_normal(z.is_complex() ? at::view_as_real(z) : z, 0.0, z.is_complex() ? M_SQRT1_2 : 1.0, state);
  stds.has_value() ? z.mul_(*stds) : z.mul_(std);
  means.has_value() ? z.add_(*means) : z.add_(mean);
  mut(out).copy_(z);
}

void check_std(const at::Tensor& std) {
  TORCH_CHECK(!std.is_complex(), "normal expects standard deviation to be non-complex");
}

at::Tensor& normal_of(at::Tensor& out, const OptTensor& means, const OptTensor& stds, double mean, double std,
                      const OptGenerator& generator) {
  TORCH_CHECK(std >= 0.0, "normal expects std >= 0.0, but found std ", std);
  if (!out.is_complex()) check_float_result(out, "normal");
  at::assert_no_internal_overlap(out);
  for (const OptTensor* t : {&means, &stds}) {
    TORCH_CHECK(!t->has_value() || !(*t)->is_complex() || out.is_complex(),
                "normal: expected out to be complex because mean is, but got ", out.scalar_type());
  }
  if (out.numel() == 0) return out;
  const bool wide = out.scalar_type() == at::kDouble || out.scalar_type() == at::kComplexDouble;
  const auto state = reserve_words(out, generator, out.numel() * (out.is_complex() ? 2 : 1), wide ? 2 : 1);
  launch_op<&run_normal_of>("aten::normal", out, means, stds, mean, std, state);
  return out;
}

at::Tensor& normal_tensor_float_out(const at::Tensor& mean, double std, OptGenerator generator, at::Tensor& out) {
  at::native::resize_output(out, mean.sizes());
  return normal_of(out, mean, std::nullopt, 0.0, std, generator);
}

at::Tensor normal_tensor_float(const at::Tensor& mean, double std, OptGenerator generator) {
  auto out = empty_npu_like(mean);
  return normal_of(out, mean, std::nullopt, 0.0, std, generator);
}

at::Tensor& normal_float_tensor_out(double mean, const at::Tensor& std, OptGenerator generator, at::Tensor& out) {
  check_std(std);
  at::native::resize_output(out, std.sizes());
  return normal_of(out, std::nullopt, std, mean, 1.0, generator);
}

at::Tensor normal_float_tensor(double mean, const at::Tensor& std, OptGenerator generator) {
  check_std(std);
  auto out = empty_npu_like(std);
  return normal_of(out, std::nullopt, std, mean, 1.0, generator);
}

at::Tensor& normal_tensor_tensor_out(const at::Tensor& mean, const at::Tensor& std, OptGenerator generator,
                                     at::Tensor& out) {
  check_std(std);
  at::native::resize_output(out, at::infer_size(mean.sizes(), std.sizes()));
  return normal_of(out, mean, std, 0.0, 1.0, generator);
}

at::Tensor normal_tensor_tensor(const at::Tensor& mean, const at::Tensor& std, OptGenerator generator) {
  check_std(std);
  auto out = at::empty(at::infer_size(mean.sizes(), std.sizes()), mean.is_cpu() ? std.options() : mean.options());
  return normal_of(out, mean, std, 0.0, 1.0, generator);
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("normal_", TORCH_FN(normal_));
  m.impl("normal.Tensor_float", TORCH_FN(normal_tensor_float));
  m.impl("normal.Tensor_float_out", TORCH_FN(normal_tensor_float_out));
  m.impl("normal.float_Tensor", TORCH_FN(normal_float_tensor));
  m.impl("normal.float_Tensor_out", TORCH_FN(normal_float_tensor_out));
  m.impl("normal.Tensor_Tensor", TORCH_FN(normal_tensor_tensor));
  m.impl("normal.Tensor_Tensor_out", TORCH_FN(normal_tensor_tensor_out));
}

}  // namespace npu::aten
