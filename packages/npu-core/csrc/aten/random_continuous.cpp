// uniform_, exponential_, log_normal_, cauchy_, geometric_.
#include <ATen/ops/view_as_real.h>
#include <torch/library.h>

#include <array>
#include <cmath>
#include <limits>

#include "random_common.h"

namespace npu::aten {
namespace {

// out[i] = map(x_i), x_i a 64-bit random number.
template <class T, class Map>
void fill_from_wide(const at::Tensor& out, PhiloxState state, const Map& map) {
  T* data = out.mutable_data_ptr<T>();
  for_chunks(out.numel(), state, [&](const philox::Draw& draw) {
    std::array<std::uint64_t, philox::kChunk> wide;
    philox::kernels().wide(wide.data(), draw);
    T* to = data + draw.begin;
    for (std::int64_t i = 0; i < draw.count; ++i) to[i] = map(wide[static_cast<size_t>(i)]);
  });
}

// ---- uniform ------------------------------------------------------------------------------------------------------

// `value` as a number of `dtype`.
double rounded_to(double value, at::ScalarType dtype) {
  switch (dtype) {
    case at::kHalf:
      return static_cast<at::Half>(static_cast<float>(value));
    case at::kBFloat16:
      return static_cast<at::BFloat16>(static_cast<float>(value));
    case at::kFloat:
      return static_cast<float>(value);
    default:
      return value;
  }
}

double largest(at::ScalarType dtype) {
  switch (dtype) {
    case at::kHalf:
      return std::numeric_limits<at::Half>::max();
    case at::kBFloat16:
      return std::numeric_limits<at::BFloat16>::max();
    case at::kFloat:
      return std::numeric_limits<float>::max();
    default:
      return std::numeric_limits<double>::max();
  }
}

void run_uniform(const at::Tensor& self, double from, double to, PhiloxState state) {
  on_contiguous(self, [&](const at::Tensor& out) {
    const int type = float_type(out.scalar_type());
    if (type < 0) {
      fill_from_wide<double>(out, state, [=](std::uint64_t wide) {
        const double value = from + unit_double(wide) * (to - from);
        return value < to ? value : from;  // rounding may reach `to`
      });
      return;
    }
    auto* data = static_cast<std::byte*>(out.mutable_data_ptr());
    const auto size = static_cast<std::int64_t>(out.itemsize());
    const auto low = static_cast<float>(rounded_to(from, out.scalar_type()));
    const auto high = static_cast<float>(rounded_to(to, out.scalar_type()));
    for_chunks(out.numel(), state, [&](const philox::Draw& draw) {
      philox::kernels().uniform[type](data + draw.begin * size, draw, low, high);
    });
  });
}

at::Tensor& uniform_(at::Tensor& self, double from, double to, OptGenerator generator) {
  if (self.is_complex()) {
    auto parts = at::view_as_real(self);
    uniform_(parts, from, to, std::move(generator));
    return self;
  }
  check_float_result(self, "uniform_");
  const double top = largest(self.scalar_type());
  TORCH_CHECK(from >= -top && from <= top, "uniform_: from is out of bounds for ", self.scalar_type(), ", got ", from);
  TORCH_CHECK(to >= -top && to <= top, "uniform_: to is out of bounds for ", self.scalar_type(), ", got ", to);
  TORCH_CHECK(from <= to, "uniform_ expects to return a [from, to) range, but found from=", from, " > to=", to);
  TORCH_CHECK(to - from <= top, "uniform_ expects to-from <= std::numeric_limits<", self.scalar_type(),
              ">::max(), but found to=", to, " and from=", from, " which result in to-from to exceed the limit");
  if (self.numel() == 0) return self;
  launch_op<&run_uniform>("aten::uniform_", self, from, to, reserve_for(self, generator));
  return self;
}

// ---- exponential --------------------------------------------------------------------------------------------------

void run_exponential(const at::Tensor& self, double lambda, PhiloxState state) {
  on_contiguous(self, [&](const at::Tensor& out) {
    const int type = float_type(out.scalar_type());
    if (type < 0) {
      fill_from_wide<double>(out, state,
                             [=](std::uint64_t wide) { return -std::log(open_unit_double(wide)) / lambda; });
      return;
    }
    auto* data = static_cast<std::byte*>(out.mutable_data_ptr());
    const auto size = static_cast<std::int64_t>(out.itemsize());
    for_chunks(out.numel(), state, [&](const philox::Draw& draw) {
      philox::kernels().exponential[type](data + draw.begin * size, draw, static_cast<float>(1.0 / lambda));
    });
  });
}

at::Tensor& exponential_(at::Tensor& self, double lambda, OptGenerator generator) {
  TORCH_CHECK(at::isFloatingType(self.scalar_type()),
              "Exponential distribution is a continuous probability distribution. dtype must be a floating point but "
              "you specified ",
              self.dtype());
  check_float_result(self, "exponential_");
  TORCH_CHECK(lambda > 0.0, "exponential_ expects lambda > 0.0, but found lambda=", lambda);
  if (self.numel() == 0) return self;
  launch_op<&run_exponential>("aten::exponential_", self, lambda, reserve_for(self, generator));
  return self;
}

// ---- log normal, cauchy -------------------------------------------------------------------------------------------

// self = map(64-bit random number), computed in double.
template <class Map>
void fill_floats_from_wide(const at::Tensor& self, PhiloxState state, const Map& map) {
  on_contiguous(self, [&](const at::Tensor& out) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, out.scalar_type(), "random_npu", [&] {
      fill_from_wide<scalar_t>(out, state, [&](std::uint64_t wide) { return static_cast<scalar_t>(map(wide)); });
    });
  });
}

void run_log_normal(const at::Tensor& self, double mean, double std, PhiloxState state) {
  if (self.scalar_type() == at::kDouble) {
    fill_normal(self, mean, std, state);
    mut(self).exp_();
    return;
  }
  // Through float32, so that 16-bit types are rounded once.
  on_contiguous(self, [&](const at::Tensor& out) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, out.scalar_type(), "log_normal_npu", [&] {
      auto* data = out.mutable_data_ptr<scalar_t>();
      for_chunks(out.numel(), state, [&](const philox::Draw& draw) {
        std::array<float, philox::kChunk> z;
        philox::kernels().normal[philox::kFloat32](z.data(), draw, static_cast<float>(mean), static_cast<float>(std));
        for (std::int64_t i = 0; i < draw.count; ++i) {
          data[draw.begin + i] = static_cast<scalar_t>(std::exp(z[static_cast<size_t>(i)]));
        }
      });
    });
  });
}

at::Tensor& log_normal_(at::Tensor& self, double mean, double std, OptGenerator generator) {
  check_float_result(self, "log_normal_");
  TORCH_CHECK(std > 0.0, "log_normal_ expects std > 0.0, but found std=", std);
  if (self.numel() == 0) return self;
  launch_op<&run_log_normal>("aten::log_normal_", self, mean, std, reserve_for(self, generator));
  return self;
}

void run_cauchy(const at::Tensor& self, double median, double sigma, PhiloxState state) {
  fill_floats_from_wide(self, state, [=](std::uint64_t wide) {
    return median + sigma * std::tan(M_PI * (open_unit_double(wide) - 0.5));
  });
}

at::Tensor& cauchy_(at::Tensor& self, double median, double sigma, OptGenerator generator) {
  TORCH_CHECK(at::isFloatingType(self.scalar_type()),
              "Cauchy distribution is a continuous probability distribution. dtype must be a floating point but you "
              "specified ",
              self.dtype());
  check_float_result(self, "cauchy_");
  TORCH_CHECK(sigma > 0.0, "cauchy_ expects sigma > 0.0, but found sigma=", sigma);
  if (self.numel() == 0) return self;
  launch_op<&run_cauchy>("aten::cauchy_", self, median, sigma, reserve_words(self, generator, self.numel(), 2));
  return self;
}

// ---- geometric ----------------------------------------------------------------------------------------------------

// Number of trials up to and including the first success.  Where it exceeds what the dtype holds: its largest value.
void run_geometric(const at::Tensor& self, double p, PhiloxState state) {
  const double per_trial = std::log1p(-p);
  on_contiguous(self, [&](const at::Tensor& out) {
    AT_DISPATCH_ALL_TYPES_AND2(at::kHalf, at::kBFloat16, out.scalar_type(), "geometric_npu", [&] {
      // The largest double that is below the limit of int64 too.
      const double most = std::min(static_cast<double>(std::numeric_limits<scalar_t>::max()), 0x1.fffffffffffffp62);
      const bool integral = std::numeric_limits<scalar_t>::is_integer;
      fill_from_wide<scalar_t>(out, state, [=](std::uint64_t wide) {
        const double trials = std::max(1.0, std::ceil(std::log(open_unit_double(wide)) / per_trial));
        return static_cast<scalar_t>(integral ? std::min(trials, most) : trials);
      });
    });
  });
}

at::Tensor& geometric_(at::Tensor& self, double p, OptGenerator generator) {
  TORCH_CHECK_NOT_IMPLEMENTED(!self.is_complex() && self.scalar_type() != at::kBool,
                              "geometric_: expected self to be an integer or floating point tensor, but got ",
                              self.scalar_type());
  at::assert_no_internal_overlap(self);
  TORCH_CHECK(0 < p && p < 1, "geometric_ expects p to be in (0, 1), but got p=", p);
  if (self.numel() == 0) return self;
  launch_op<&run_geometric>("aten::geometric_", self, p, reserve_words(self, generator, self.numel(), 2));
  return self;
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("uniform_", TORCH_FN(uniform_));
  m.impl("exponential_", TORCH_FN(exponential_));
  m.impl("log_normal_", TORCH_FN(log_normal_));
  m.impl("cauchy_", TORCH_FN(cauchy_));
  m.impl("geometric_", TORCH_FN(geometric_));
}

}  // namespace npu::aten
