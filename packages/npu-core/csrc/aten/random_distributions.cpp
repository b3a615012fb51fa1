// poisson, binomial, _standard_gamma, _sample_dirichlet: each element has a Philox stream of its own.
#include <ATen/ExpandUtils.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <vector>

#include "empty.h"
#include "random_common.h"
#include "random_samplers.h"

namespace npu::aten {
namespace {

constexpr std::int64_t kGrain = 256;  // elements per piece of parallel work

void check_floats(const at::Tensor& t, const char* op, const char* argument) {
  TORCH_CHECK_NOT_IMPLEMENTED(float_type(t.scalar_type()) >= 0 || t.scalar_type() == at::kDouble, op, ": expected ",
                              argument, " to be float32, float64, float16 or bfloat16, but got ", t.scalar_type());
}

PhiloxState reserve_streams(const at::Tensor& on, const OptGenerator& generator) {
  return reserve_words(on, generator, philox::Stream::kStreamWords);
}

// out[i] = sample(i, stream of element i)
template <class T, class Sample>
void sample_each(const at::Tensor& out, PhiloxState state, const Sample& sample) {
  T* to = out.mutable_data_ptr<T>();
  in_parallel(out.numel(), kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      philox::Stream stream(state, i);
      to[i] = static_cast<T>(sample(i, stream));
    }
  });
}

// ---- poisson ------------------------------------------------------------------------------------------------------

void run_poisson(const at::Tensor& out, const at::Tensor& self, PhiloxState state) {
  const auto rates = self.contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, rates.scalar_type(), "poisson_npu", [&] {
    const auto* rate = rates.const_data_ptr<scalar_t>();
    sample_each<scalar_t>(out, state, [&](std::int64_t i, philox::Stream& stream) {
      const auto value = static_cast<double>(rate[i]);
      TORCH_CHECK(!(value < 0.0), "invalid Poisson rate, expected rate to be non-negative, but got ", value);
      return sample_poisson(value, stream);
    });
  });
}

at::Tensor poisson(const at::Tensor& self, OptGenerator generator) {
  check_floats(self, "poisson", "the rates");
  auto out = empty_npu_like(self);
  if (out.numel() != 0) launch_op<&run_poisson>("aten::poisson", out, self, reserve_streams(self, generator));
  return out;
}

// ---- binomial -----------------------------------------------------------------------------------------------------

void run_binomial(const at::Tensor& out, const at::Tensor& count, const at::Tensor& prob, PhiloxState state) {
  const auto counts = count.expand(out.sizes()).contiguous();
  const auto probs = prob.to(count.scalar_type()).expand(out.sizes()).contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, counts.scalar_type(), "binomial_npu", [&] {
    const auto* n = counts.const_data_ptr<scalar_t>();
    const auto* p = probs.const_data_ptr<scalar_t>();
    sample_each<scalar_t>(out, state, [&](std::int64_t i, philox::Stream& stream) {
      return sample_binomial(static_cast<double>(n[i]), static_cast<double>(p[i]), stream);
    });
  });
}

at::Tensor binomial(const at::Tensor& count, const at::Tensor& prob, OptGenerator generator) {
  check_floats(count, "binomial", "count");
  check_floats(prob, "binomial", "prob");
  TORCH_CHECK(count.scalar_type() == prob.scalar_type(),
              "binomial: expected count and prob to have one dtype, but got ", count.scalar_type(), " and ",
              prob.scalar_type());
  auto out = empty_npu(at::infer_size(count.sizes(), prob.sizes()), count.scalar_type(),
                       count.is_cpu() ? prob.device().index() : count.device().index());
  if (out.numel() != 0) launch_op<&run_binomial>("aten::binomial", out, count, prob, reserve_streams(out, generator));
  return out;
}

// ---- gamma, dirichlet ---------------------------------------------------------------------------------------------

void check_concentration(double value) {
  TORCH_CHECK(!(value < 0.0), "expected all concentrations to be >= 0, but got ", value);
}

void run_standard_gamma(const at::Tensor& out, const at::Tensor& self, PhiloxState state) {
  const auto shapes = self.contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, shapes.scalar_type(), "standard_gamma_npu", [&] {
    const auto* shape = shapes.const_data_ptr<scalar_t>();
    const auto smallest = static_cast<double>(std::numeric_limits<scalar_t>::min());
    sample_each<scalar_t>(out, state, [&](std::int64_t i, philox::Stream& stream) {
      const auto value = static_cast<double>(shape[i]);
      check_concentration(value);
      const double sample = std::exp(sample_log_gamma(value, stream));
      return sample < smallest ? smallest : sample;  // never 0: its logarithm and gradient are wanted
    });
  });
}

at::Tensor standard_gamma(const at::Tensor& self, OptGenerator generator) {
  check_floats(self, "_standard_gamma", "the concentrations");
  auto out = empty_npu_like(self);
  if (out.numel() != 0) {
    launch_op<&run_standard_gamma>("aten::_standard_gamma", out, self, reserve_streams(self, generator));
  }
  return out;
}

// Gamma numbers divided by their sum, from their logarithms: for small concentrations the numbers underflow.
void run_dirichlet(const at::Tensor& out, const at::Tensor& self, PhiloxState state) {
  const auto shapes = self.contiguous();
  const std::int64_t size = shapes.size(-1), rows = shapes.numel() / size;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, shapes.scalar_type(), "dirichlet_npu", [&] {
    const auto* shape = shapes.const_data_ptr<scalar_t>();
    auto* to = out.mutable_data_ptr<scalar_t>();
    const auto smallest = static_cast<double>(std::numeric_limits<scalar_t>::min());
    const double largest = 1.0 - static_cast<double>(std::numeric_limits<scalar_t>::epsilon()) / 2.0;
    in_parallel(rows, std::max<std::int64_t>(1, kGrain / size), [&](std::int64_t begin, std::int64_t end) {
      std::vector<double> log_gamma(static_cast<size_t>(size));
      for (std::int64_t r = begin; r < end; ++r) {
        double top = -std::numeric_limits<double>::infinity(), sum = 0.0;
        for (std::int64_t j = 0; j < size; ++j) {
          const auto value = static_cast<double>(shape[r * size + j]);
          check_concentration(value);
          philox::Stream stream(state, r * size + j);
          log_gamma[static_cast<size_t>(j)] = sample_log_gamma(value, stream);
          top = std::max(top, log_gamma[static_cast<size_t>(j)]);
        }
        TORCH_CHECK(top > -std::numeric_limits<double>::infinity(),
                    "expected a concentration > 0 in each row, but got a row without one");
        for (double& value : log_gamma) {
          value = std::exp(value - top);
          sum += value;
        }
        for (std::int64_t j = 0; j < size; ++j) {
          const double value = log_gamma[static_cast<size_t>(j)] / sum;
          // Inside (0, 1), as logarithm and gradient want; NaN stays.
          to[r * size + j] = static_cast<scalar_t>(value < smallest ? smallest : value > largest ? largest : value);
        }
      }
    });
  });
}

at::Tensor sample_dirichlet(const at::Tensor& self, OptGenerator generator) {
  check_floats(self, "_sample_dirichlet", "the concentrations");
  TORCH_CHECK(self.dim() > 0, "_sample_dirichlet: expected concentrations of at least one dimension, but got a scalar");
  auto out = empty_npu_like(self);
  if (out.numel() != 0) {
    launch_op<&run_dirichlet>("aten::_sample_dirichlet", out, self, reserve_streams(self, generator));
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("poisson", TORCH_FN(poisson));
  m.impl("binomial", TORCH_FN(binomial));
  m.impl("_standard_gamma", TORCH_FN(standard_gamma));
  m.impl("_sample_dirichlet", TORCH_FN(sample_dirichlet));
}

}  // namespace npu::aten
