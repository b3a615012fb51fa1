// random_ in its forms; the randint family of torch comes down to these.
#include <ATen/Dispatch_v2.h>
#include <torch/library.h>

#include <array>
#include <cmath>
#include <limits>

#include "philox_stream.h"
#include "random_common.h"

namespace npu::aten {
namespace {

// Up to this range one word per value is fastest: few values have to be drawn again.
constexpr std::uint64_t kFewValues = 1 << 16;

// Integers in [0, range), all equally likely (Lemire, "Fast random integer generation in an interval", 2019).
void pick_unbiased(std::uint32_t* pick, const philox::Draw& draw, std::uint32_t range, PhiloxState state) {
  if (!philox::kernels().below_word(pick, draw, range)) return;
  const std::uint32_t surplus = -range % range;  // 2^32 mod range
  std::array<std::uint32_t, philox::kChunk> word;
  philox::kernels().bits(word.data(), draw);
  for (std::int64_t i = 0; i < draw.count; ++i) {
    std::uint64_t product = std::uint64_t{word[static_cast<size_t>(i)]} * range;
    if (static_cast<std::uint32_t>(product) >= surplus) continue;
    philox::Stream more(state, draw.begin + i + 1);  // element 0 has the words of the call itself
    do product = std::uint64_t{more.word()} * range;
    while (static_cast<std::uint32_t>(product) < surplus);
    pick[i] = static_cast<std::uint32_t>(product >> 32);
  }
}

// The integers a call may return; [low, high] are representable, where rounding to a floating point dtype ends up.
struct Bounds {
  double low, high;
};

// to[i] = base + (random integer in [0, range)); range 0 stands for 2^64.
template <class T>
void fill_integers(T* data, std::int64_t count, std::uint64_t base, std::uint64_t range, Bounds bounds,
                   PhiloxState state) {
  constexpr std::uint64_t kWords = std::uint64_t{1} << 32;
  const auto value = [base, low = static_cast<T>(bounds.low), high = static_cast<T>(bounds.high)](std::uint64_t pick) {
    const std::uint64_t sum = base + pick;
    if constexpr (std::is_integral_v<T>) {
      return static_cast<T>(sum);  // bool: not 0
    } else {
      return std::clamp(static_cast<T>(static_cast<std::int64_t>(sum)), low, high);
    }
  };
  const bool power = (range & (range - 1)) == 0;
  for_chunks(count, state, [&](const philox::Draw& draw) {
    T* to = data + draw.begin;
    if (range != 0 && range <= kWords) {
      std::array<std::uint32_t, philox::kChunk> pick;
      if (power) {  // the top bits of one word
        philox::kernels().bits(pick.data(), draw);
        const int shift = 32 - __builtin_ctzll(range);
        for (std::int64_t i = 0; i < draw.count; ++i) {
          to[i] = value(static_cast<std::uint64_t>(pick[static_cast<size_t>(i)]) >> shift);
        }
      } else {
        if (range <= kFewValues) {
          pick_unbiased(pick.data(), draw, static_cast<std::uint32_t>(range), state);
        } else {  // 64 bits per value keep the bias below range / 2^64
          philox::kernels().below(pick.data(), draw, static_cast<std::uint32_t>(range));
        }
        for (std::int64_t i = 0; i < draw.count; ++i) to[i] = value(pick[static_cast<size_t>(i)]);
      }
      return;
    }
    std::array<std::uint64_t, philox::kChunk> wide;
    philox::kernels().wide(wide.data(), draw);
    for (std::int64_t i = 0; i < draw.count; ++i) {
      const std::uint64_t x = wide[static_cast<size_t>(i)];
      to[i] = value(range == 0 ? x : static_cast<std::uint64_t>(static_cast<unsigned __int128>(x) * range >> 64));
    }
  });
}

void run_random(const at::Tensor& self, std::int64_t base, std::int64_t range, Bounds bounds, PhiloxState state) {
  on_contiguous(self, [&](const at::Tensor& out) {
    AT_DISPATCH_V2(out.scalar_type(), "random_npu", AT_WRAP([&] {
                     fill_integers(out.mutable_data_ptr<scalar_t>(), out.numel(), static_cast<std::uint64_t>(base),
                                   static_cast<std::uint64_t>(range), bounds, state);
                   }),
                   AT_EXPAND(AT_ALL_TYPES), AT_EXPAND(AT_BAREBONES_UNSIGNED_TYPES), at::kBool, at::kHalf,
                   at::kBFloat16);
  });
}

// The integers a dtype takes: [low, high] are in bounds, [0, exact] are all representable, digits binary digits each.
struct IntegerRange {
  double low, high;
  std::uint64_t exact;
  int digits;
};

template <class T>
IntegerRange range_of() {
  using Limits = std::numeric_limits<T>;
  const std::uint64_t exact =
      Limits::is_integer ? static_cast<std::uint64_t>(Limits::max()) : std::uint64_t{1} << std::min(Limits::digits, 62);
  return {static_cast<double>(Limits::lowest()), static_cast<double>(Limits::max()), exact, Limits::digits};
}

IntegerRange range_of(at::ScalarType dtype) {
  IntegerRange range{};
  TORCH_CHECK_NOT_IMPLEMENTED(!at::isComplexType(dtype) && !at::isFloat8Type(dtype),
                              "random_: expected self to be bool, integer or floating point, but got ", dtype);
  AT_DISPATCH_V2(dtype, "random_npu", AT_WRAP([&] { range = range_of<scalar_t>(); }), AT_EXPAND(AT_ALL_TYPES),
                 AT_EXPAND(AT_BAREBONES_UNSIGNED_TYPES), at::kBool, at::kHalf, at::kBFloat16);
  return range;
}

// The distance of neighbouring numbers of so many digits around `value`, at least 1.
double spacing(double value, int digits) {
  return value == 0.0 ? 1.0 : std::max(1.0, std::ldexp(1.0, std::ilogb(value) - digits + 1));
}

// Integers base + [0, range); range 0 stands for 2^64.
at::Tensor& random_range(at::Tensor& self, std::int64_t base, std::uint64_t range, const OptGenerator& generator) {
  at::assert_no_internal_overlap(self);
  Bounds bounds{};
  if (at::isFloatingType(self.scalar_type())) {
    const int digits = range_of(self.scalar_type()).digits;
    const auto last = static_cast<double>(static_cast<std::int64_t>(static_cast<std::uint64_t>(base) + range - 1));
    const double low = spacing(static_cast<double>(base), digits), high = spacing(last, digits);
    bounds = {std::ceil(static_cast<double>(base) / low) * low, std::floor(last / high) * high};
    TORCH_CHECK(bounds.low <= bounds.high, "random_ expects an integer from ", base, " to ", last, " that ",
                self.scalar_type(), " can hold, but there is none; use a wider dtype");
  }
  if (self.numel() == 0) return self;
  launch_op<&run_random>("aten::random_", self, base, static_cast<std::int64_t>(range), bounds,
                         reserve_words(self, generator, self.numel(), 2));
  return self;
}

at::Tensor& random_from(at::Tensor& self, std::int64_t from, std::optional<std::int64_t> to, OptGenerator generator) {
  const IntegerRange range = range_of(self.scalar_type());
  const auto in_bounds = [&](std::int64_t value) {
    // int64 takes everything; the doubles round at its ends.
    return self.scalar_type() == at::kLong ||
           (static_cast<double>(value) >= range.low && static_cast<double>(value) <= range.high);
  };
  if (to.has_value()) {
    TORCH_CHECK(from < *to, "random_ expects 'from' to be less than 'to', but got from=", from, " >= to=", *to);
    TORCH_CHECK(in_bounds(from), "from is out of bounds for ", self.dtype(), ", got ", from);
    TORCH_CHECK(in_bounds(*to - 1), "to - 1 is out of bounds for ", self.dtype(), ", got to = ", *to);
    return random_range(self, from, static_cast<std::uint64_t>(*to) - static_cast<std::uint64_t>(from), generator);
  }
  TORCH_CHECK(in_bounds(from), "from is out of bounds for ", self.dtype(), ", got ", from);
  if (from == std::numeric_limits<std::int64_t>::lowest()) {
    return random_range(self, from, 0, generator);  // all 64-bit integers
  }
  const std::uint64_t top = std::min<std::uint64_t>(range.exact, std::numeric_limits<std::int64_t>::max());
  TORCH_CHECK(from <= static_cast<std::int64_t>(top), "random_ expects 'from' to be at most ", top, " for ",
              self.dtype(), " when `to` is not given, but got from=", from);
  return random_range(self, from, top - static_cast<std::uint64_t>(from) + 1, generator);
}

at::Tensor& random_to(at::Tensor& self, std::int64_t to, OptGenerator generator) {
  return random_from(self, 0, to, std::move(generator));
}

at::Tensor& random_any(at::Tensor& self, OptGenerator generator) {
  return random_range(self, 0, range_of(self.scalar_type()).exact + 1, generator);
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("random_.from", TORCH_FN(random_from));
  m.impl("random_.to", TORCH_FN(random_to));
  m.impl("random_", TORCH_FN(random_any));
}

}  // namespace npu::aten
