// Random fills and dropout on Philox.  The range of counters is reserved when the op is called, so results depend on
// (seed, offset) only: not on timing, stream or number of threads.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/ExpandUtils.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "empty.h"
#include "launch_op.h"
#include "philox.h"
#include "runtime/generator.h"

namespace npu::aten {
namespace {

using OptGenerator = std::optional<at::Generator>;

at::Tensor& mut(const at::Tensor& t) { return const_cast<at::Tensor&>(t); }

// Calls body(begin, count) for chunks of [0, n) that start at multiples of philox::kChunk.
template <class Body>
void for_chunks(std::int64_t n, const Body& body) {
  const std::int64_t chunks = (n + philox::kChunk - 1) / philox::kChunk;
  at::parallel_for(0, chunks, /*grain_size=*/4, [&](std::int64_t from, std::int64_t to) {
    for (std::int64_t c = from; c < to; ++c) {
      const std::int64_t begin = c * philox::kChunk;
      body(begin, std::min(philox::kChunk, n - begin));
    }
  });
}

// Runs `fill` on self, or on a contiguous temporary that is copied into it.
template <class Fill>
void on_contiguous(const at::Tensor& self, const Fill& fill) {
  if (self.is_contiguous()) {
    fill(self);
  } else {
    auto dense = at::empty(self.sizes(), self.options());
    fill(dense);
    mut(self).copy_(dense);
  }
}

double uniform53(const std::uint32_t* two) {
  const std::uint64_t bits = (static_cast<std::uint64_t>(two[0]) << 32 | two[1]) >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

// ---- uniform, normal, exponential ---------------------------------------------------------------------------------

// Bits of a uniform number that the dtype holds exactly below 1: more would round up to 1.
template <class T>
constexpr int kUniformBits = std::is_same_v<T, at::BFloat16> ? 8
                             : std::is_same_v<T, at::Half>   ? 11
                                                             : 24;

// Fills with map(u), u uniform in [0, 1) with as many bits as the dtype has (53 for double).
template <class Map>
void fill_from_uniform(const at::Tensor& self, std::int64_t seed, std::int64_t offset, const Map& map) {
  on_contiguous(self, [&](const at::Tensor& out) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, out.scalar_type(), "random_npu", [&] {
      auto* data = out.mutable_data_ptr<scalar_t>();
      if constexpr (std::is_same_v<scalar_t, double>) {
        for_chunks(2 * out.numel(), [&](std::int64_t begin, std::int64_t count) {
          std::uint32_t raw[philox::kChunk];
          philox::bits(raw, count, static_cast<std::uint64_t>(seed), static_cast<std::uint64_t>(offset), begin);
          for (std::int64_t i = 0; i < count; i += 2) data[(begin + i) / 2] = map(uniform53(raw + i));
        });
      } else {
        for_chunks(out.numel(), [&](std::int64_t begin, std::int64_t count) {
          float u[philox::kChunk];
          philox::uniform(u, count, static_cast<std::uint64_t>(seed), static_cast<std::uint64_t>(offset), begin);
          constexpr float kScale = static_cast<float>(1 << kUniformBits<scalar_t>);
          for (std::int64_t i = 0; i < count; ++i) {
            data[begin + i] = map(static_cast<scalar_t>(std::floor(u[i] * kScale) / kScale));
          }
        });
      }
    });
  });
}

void run_uniform(const at::Tensor& self, double from, double to, std::int64_t seed, std::int64_t offset) {
  fill_from_uniform(self, seed, offset, [=](auto u) {
    using T = decltype(u);
    using Wide = at::opmath_type<T>;
    const T value = static_cast<T>(static_cast<Wide>(from) + static_cast<Wide>(u) * static_cast<Wide>(to - from));
    return value < static_cast<T>(to) || from == to ? value : static_cast<T>(from);  // rounding may reach `to`
  });
}

void run_exponential(const at::Tensor& self, double lambda, std::int64_t seed, std::int64_t offset) {
  fill_from_uniform(self, seed, offset, [=](auto u) {
    using T = decltype(u);
    using Wide = at::opmath_type<T>;
    // u < 1, so the logarithm is finite.
    return static_cast<T>(-std::log1p(-static_cast<Wide>(u)) / static_cast<Wide>(lambda));
  });
}

void run_normal(const at::Tensor& self, double mean, double std, std::int64_t seed, std::int64_t offset) {
  on_contiguous(self, [&](const at::Tensor& out) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, out.scalar_type(), "normal_npu", [&] {
      auto* data = out.mutable_data_ptr<scalar_t>();
      if constexpr (std::is_same_v<scalar_t, double>) {
        // Box-Muller in double: four words give one pair.
        for_chunks(2 * out.numel() + 2, [&](std::int64_t begin, std::int64_t count) {
          std::uint32_t raw[philox::kChunk];
          philox::bits(raw, count, static_cast<std::uint64_t>(seed), static_cast<std::uint64_t>(offset), begin);
          for (std::int64_t i = 0; i + 4 <= count; i += 4) {
            const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform53(raw + i)));
            const double angle = 2.0 * M_PI * uniform53(raw + i + 2);
            const std::int64_t at = (begin + i) / 2;
            if (at < out.numel()) data[at] = mean + std * radius * std::cos(angle);
            if (at + 1 < out.numel()) data[at + 1] = mean + std * radius * std::sin(angle);
          }
        });
      } else {
        for_chunks(out.numel(), [&](std::int64_t begin, std::int64_t count) {
          float z[philox::kChunk];
          philox::normal(z, count, static_cast<std::uint64_t>(seed), static_cast<std::uint64_t>(offset), begin);
          const auto m = static_cast<float>(mean), s = static_cast<float>(std);
          for (std::int64_t i = 0; i < count; ++i) data[begin + i] = static_cast<scalar_t>(m + s * z[i]);
        });
      }
    });
  });
}

void check_floating(const at::Tensor& self, const char* op) {
  TORCH_CHECK_NOT_IMPLEMENTED(at::isFloatingType(self.scalar_type()), op,
                              ": self must be a floating point tensor, but has dtype ", self.scalar_type());
  at::assert_no_internal_overlap(self);
}

// Counters for `count` values of self's dtype.
PhiloxState reserve(const at::Tensor& self, const OptGenerator& generator) {
  const auto words = static_cast<std::uint64_t>(self.numel()) * (self.itemsize() > 4 ? 2 : 1) + 4;
  return reserve_philox(generator, self.device().index(), words);
}

at::Tensor& uniform_(at::Tensor& self, double from, double to, OptGenerator generator) {
  check_floating(self, "uniform_");
  TORCH_CHECK(from <= to, "uniform_ expects to return a [from, to) range, but found from=", from, " > to=", to);
  TORCH_CHECK(to - from <= std::numeric_limits<float>::max() || self.scalar_type() == at::kDouble,
              "uniform_ expects to-from <= std::numeric_limits<", self.scalar_type(), ">::max(), but found to=", to,
              " and from=", from);
  if (self.numel() == 0) return self;
  const auto s = reserve(self, generator);
  launch_op<&run_uniform>("aten::uniform_", self, from, to, static_cast<std::int64_t>(s.seed),
                          static_cast<std::int64_t>(s.offset));
  return self;
}

at::Tensor& normal_(at::Tensor& self, double mean, double std, OptGenerator generator) {
  TORCH_CHECK(std >= 0.0, "normal expects std >= 0.0, but found std ", std);
  if (self.is_complex()) {
    // Real and imaginary part share the variance.
    auto parts = at::view_as_real(self);
    normal_(parts, 0.0, std / M_SQRT2, generator);
    if (mean != 0.0) self.add_(mean);
    return self;
  }
  check_floating(self, "normal_");
  if (self.numel() == 0) return self;
  const auto s = reserve(self, generator);
  launch_op<&run_normal>("aten::normal_", self, mean, std, static_cast<std::int64_t>(s.seed),
                         static_cast<std::int64_t>(s.offset));
  return self;
}

at::Tensor& exponential_(at::Tensor& self, double lambda, OptGenerator generator) {
  check_floating(self, "exponential_");
  TORCH_CHECK(lambda > 0.0, "exponential_ expects lambda > 0.0, but found lambda=", lambda);
  if (self.numel() == 0) return self;
  const auto s = reserve(self, generator);
  launch_op<&run_exponential>("aten::exponential_", self, lambda, static_cast<std::int64_t>(s.seed),
                              static_cast<std::int64_t>(s.offset));
  return self;
}

// ---- bernoulli, dropout -------------------------------------------------------------------------------------------

void run_bernoulli(const at::Tensor& self, double p, std::int64_t seed, std::int64_t offset) {
  on_contiguous(self, [&](const at::Tensor& out) {
    AT_DISPATCH_ALL_TYPES_AND3(at::kBool, at::kHalf, at::kBFloat16, out.scalar_type(), "bernoulli_npu", [&] {
      auto* data = out.mutable_data_ptr<scalar_t>();
      for_chunks(out.numel(), [&](std::int64_t begin, std::int64_t count) {
        float u[philox::kChunk];
        philox::uniform(u, count, static_cast<std::uint64_t>(seed), static_cast<std::uint64_t>(offset), begin);
        for (std::int64_t i = 0; i < count; ++i) data[begin + i] = static_cast<scalar_t>(u[i] < p ? 1 : 0);
      });
    });
  });
}

void run_bernoulli_tensor(const at::Tensor& self, const at::Tensor& p, std::int64_t seed, std::int64_t offset) {
  TORCH_CHECK(p.ge(0).logical_and(p.le(1)).all().item<bool>(),
              "Expected p_in >= 0 && p_in <= 1 to be true, but got false.");
  auto u = at::empty(self.sizes(), self.options().dtype(at::kDouble));
  fill_from_uniform(u, seed, offset, [](auto x) { return x; });
  mut(self).copy_(u.lt(p.to(at::kDouble)));
}

at::Tensor& bernoulli_float(at::Tensor& self, double p, OptGenerator generator) {
  TORCH_CHECK(0 <= p && p <= 1, "bernoulli_ expects p to be in [0, 1], but got p=", p);
  at::assert_no_internal_overlap(self);
  if (self.numel() == 0) return self;
  const auto s = reserve(self, generator);
  launch_op<&run_bernoulli>("aten::bernoulli_", self, p, static_cast<std::int64_t>(s.seed),
                            static_cast<std::int64_t>(s.offset));
  return self;
}

at::Tensor& bernoulli_tensor(at::Tensor& self, const at::Tensor& p, OptGenerator generator) {
  at::assert_no_internal_overlap(self);
  if (self.numel() == 0) return self;
  const auto s = reserve_philox(generator, self.device().index(), 2 * static_cast<std::uint64_t>(self.numel()) + 4);
  launch_op<&run_bernoulli_tensor>("aten::bernoulli_", self, p.expand(self.sizes()), static_cast<std::int64_t>(s.seed),
                                   static_cast<std::int64_t>(s.offset));
  return self;
}

at::Tensor bernoulli(const at::Tensor& self, OptGenerator generator) {
  auto out = at::empty_like(self, at::MemoryFormat::Contiguous);
  return bernoulli_tensor(out, self, generator);
}

void run_dropout(const at::Tensor& out, const at::Tensor& mask, const at::Tensor& input, double p, std::int64_t seed,
                 std::int64_t offset) {
  run_bernoulli(mask, 1.0 - p, seed, offset);
  if (p == 1.0) {
    mut(out).zero_();
  } else {
    at::mul_out(mut(out), input, mask);
    mut(out).mul_(1.0 / (1.0 - p));
  }
}

// (input * mask / (1 - p), mask): mask is 1 with probability 1 - p.
std::tuple<at::Tensor, at::Tensor> native_dropout(const at::Tensor& input, double p, std::optional<bool> train) {
  TORCH_CHECK(0 <= p && p <= 1, "dropout probability has to be between 0 and 1, but got ", p);
  if (!train.value_or(true) || input.numel() == 0) {
    return {input.clone(), at::ones_like(input, input.options().dtype(at::kBool))};
  }
  auto out = at::empty_like(input);
  auto mask = at::empty_like(input, input.options().dtype(at::kBool));
  const auto s = reserve_philox(std::nullopt, input.device().index(), static_cast<std::uint64_t>(input.numel()));
  launch_op<&run_dropout>("aten::native_dropout", out, mask, input, p, static_cast<std::int64_t>(s.seed),
                          static_cast<std::int64_t>(s.offset));
  return {out, mask};
}

void run_dropout_backward(const at::Tensor& out, const at::Tensor& grad, const at::Tensor& mask, double scale) {
  at::mul_out(mut(out), grad, mask);
  mut(out).mul_(scale);
}

at::Tensor native_dropout_backward(const at::Tensor& grad, const at::Tensor& mask, double scale) {
  TORCH_CHECK(mask.scalar_type() == at::kBool, "native_dropout_backward: mask should be torch.bool, but has dtype ",
              mask.scalar_type());
  auto out = at::empty_like(grad);
  launch_op<&run_dropout_backward>("aten::native_dropout_backward", out, grad, mask, scale);
  return out;
}

// ---- integers -----------------------------------------------------------------------------------------------------

// base + (random % range); range 0 stands for 2^64.
void run_random(const at::Tensor& self, std::int64_t base, std::int64_t range, std::int64_t seed, std::int64_t offset) {
  const auto span = static_cast<std::uint64_t>(range);
  on_contiguous(self, [&](const at::Tensor& out) {
    AT_DISPATCH_ALL_TYPES_AND3(at::kBool, at::kHalf, at::kBFloat16, out.scalar_type(), "random_npu", [&] {
      auto* data = out.mutable_data_ptr<scalar_t>();
      // Two words per value keep the bias of the remainder below range / 2^64.
      for_chunks(2 * out.numel(), [&](std::int64_t begin, std::int64_t count) {
        std::uint32_t raw[philox::kChunk];
        philox::bits(raw, count, static_cast<std::uint64_t>(seed), static_cast<std::uint64_t>(offset), begin);
        for (std::int64_t i = 0; i < count; i += 2) {
          const std::uint64_t wide = static_cast<std::uint64_t>(raw[i]) << 32 | raw[i + 1];
          const std::uint64_t pick = span == 0 ? wide : wide % span;
          data[(begin + i) / 2] = static_cast<scalar_t>(base + static_cast<std::int64_t>(pick));
        }
      });
    });
  });
}

at::Tensor& random_range(at::Tensor& self, std::int64_t base, std::uint64_t range, const OptGenerator& generator) {
  at::assert_no_internal_overlap(self);
  if (self.numel() == 0) return self;
  const auto s = reserve_philox(generator, self.device().index(), 2 * static_cast<std::uint64_t>(self.numel()) + 4);
  launch_op<&run_random>("aten::random_", self, base, static_cast<std::int64_t>(range),
                         static_cast<std::int64_t>(s.seed), static_cast<std::int64_t>(s.offset));
  return self;
}

// Largest n such that every integer in [0, n] is representable.
std::int64_t largest_exact(at::ScalarType dtype) {
  switch (dtype) {
    case at::kBool:
      return 1;
    case at::kByte:
      return std::numeric_limits<std::uint8_t>::max();
    case at::kChar:
      return std::numeric_limits<std::int8_t>::max();
    case at::kShort:
      return std::numeric_limits<std::int16_t>::max();
    case at::kInt:
      return std::numeric_limits<std::int32_t>::max();
    case at::kLong:
      return std::numeric_limits<std::int64_t>::max();
    case at::kHalf:
      return std::int64_t{1} << 11;
    case at::kBFloat16:
      return std::int64_t{1} << 8;
    case at::kFloat:
      return std::int64_t{1} << 24;
    case at::kDouble:
      return std::int64_t{1} << 53;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(false, "random_ is not implemented on npu for dtype ", dtype);
  }
}

at::Tensor& random_from(at::Tensor& self, std::int64_t from, std::optional<std::int64_t> to, OptGenerator generator) {
  const std::int64_t top = largest_exact(self.scalar_type());
  if (to.has_value()) {
    TORCH_CHECK(from < *to, "random_ expects 'from' to be less than 'to', but got from=", from, " >= to=", *to);
    const bool integral = at::isIntegralType(self.scalar_type(), /*includeBool=*/true);
    const std::int64_t low = !integral                                                            ? -top
                             : self.scalar_type() == at::kBool || self.scalar_type() == at::kByte ? 0
                                                                                                  : -top - 1;
    TORCH_CHECK(!integral || (from >= low && from <= top), "from is out of bounds for ", self.dtype());
    TORCH_CHECK(!integral || (*to - 1 >= low && *to - 1 <= top), "to - 1 is out of bounds for ", self.dtype());
    return random_range(self, from, static_cast<std::uint64_t>(*to) - static_cast<std::uint64_t>(from), generator);
  }
  if (from == std::numeric_limits<std::int64_t>::lowest()) return random_range(self, from, 0, generator);
  TORCH_CHECK(from <= top, "from is out of bounds for ", self.dtype());
  return random_range(self, from, static_cast<std::uint64_t>(top) - static_cast<std::uint64_t>(from) + 1, generator);
}

at::Tensor& random_to(at::Tensor& self, std::int64_t to, OptGenerator generator) {
  return random_from(self, 0, to, std::move(generator));
}

at::Tensor& random_any(at::Tensor& self, OptGenerator generator) {
  return random_range(self, 0, static_cast<std::uint64_t>(largest_exact(self.scalar_type())) + 1, generator);
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("uniform_", TORCH_FN(uniform_));
  m.impl("normal_", TORCH_FN(normal_));
  m.impl("exponential_", TORCH_FN(exponential_));
  m.impl("bernoulli_.float", TORCH_FN(bernoulli_float));
  m.impl("bernoulli_.Tensor", TORCH_FN(bernoulli_tensor));
  m.impl("bernoulli", TORCH_FN(bernoulli));
  m.impl("native_dropout", TORCH_FN(native_dropout));
  m.impl("native_dropout_backward", TORCH_FN(native_dropout_backward));
  m.impl("random_.from", TORCH_FN(random_from));
  m.impl("random_.to", TORCH_FN(random_to));
  m.impl("random_", TORCH_FN(random_any));
}

}  // namespace npu::aten
