// multinomial.  With replacement (or one sample): inversion of the cumulative sums.  Without: the categories with the
// smallest exponential numbers divided by their probabilities, which is the order of drawing one after the other
// (Efraimidis and Spirakis 2006).
#include <ATen/native/Resize.h>
#include <torch/library.h>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "empty.h"
#include "random_common.h"

namespace npu::aten {
namespace {

constexpr std::int64_t kMaxCategories = 1 << 24;

// 64-bit numbers [begin, end) of a call, in order.
class Numbers {
 public:
  Numbers(PhiloxState state, std::int64_t begin, std::int64_t end) : state_(state), next_(begin), end_(end) {}

  std::uint64_t next() {
    if (next_ >= loaded_) load();
    return buffer_[static_cast<size_t>(next_++ - first_)];
  }

 private:
  static constexpr std::int64_t kNumbers = 512;

  void load() {
    first_ = next_ / philox::kBlock * philox::kBlock;
    const std::int64_t count = std::min(kNumbers, end_ - first_);
    philox::kernels().wide(buffer_.data(), philox::Draw{state_.seed, state_.offset, first_, count});
    loaded_ = first_ + count;
  }

  PhiloxState state_;
  std::int64_t next_, end_, first_ = 0, loaded_ = 0;
  std::array<std::uint64_t, kNumbers> buffer_;
};

// Cumulative sums of one row; the sum is > 0.
template <class T>
void accumulate(const T* p, std::int64_t categories, std::vector<double>& sums) {
  sums.resize(static_cast<size_t>(categories));
  double sum = 0.0;
  bool valid = true;
  for (std::int64_t j = 0; j < categories; ++j) {
    const auto value = static_cast<double>(p[j]);
    valid &= value >= 0.0 && std::isfinite(value);
    sum += value;
    sums[static_cast<size_t>(j)] = sum;
  }
  TORCH_CHECK(valid, "probability tensor contains either `inf`, `nan` or element < 0");
  TORCH_CHECK(sum > 0.0, "invalid multinomial distribution (sum of probabilities <= 0)");
}

// The category whose interval of the cumulative sums holds `unit` times their total.
std::int64_t pick(const std::vector<double>& sums, double unit) {
  const double target = unit * sums.back();
  auto found = std::upper_bound(sums.begin(), sums.end(), target);
  // Rounding may give the total itself, which belongs to the last category with a probability.
  if (found == sums.end()) found = std::lower_bound(sums.begin(), sums.end(), sums.back());
  return found - sums.begin();
}

template <class T>
void sample_with_replacement(std::int64_t* out, const T* p, std::int64_t rows, std::int64_t categories,
                             std::int64_t samples, PhiloxState state) {
  const auto draw = [&](const std::vector<double>& sums, std::int64_t begin, std::int64_t end) {
    Numbers numbers(state, begin, end);
    for (std::int64_t i = begin; i < end; ++i) out[i] = pick(sums, unit_double(numbers.next()));
  };
  if (rows == 1) {
    std::vector<double> sums;
    accumulate(p, categories, sums);
    in_parallel(samples, 2048, [&](std::int64_t begin, std::int64_t end) { draw(sums, begin, end); });
    return;
  }
  in_parallel(rows, std::max<std::int64_t>(1, 8192 / categories), [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> sums;
    for (std::int64_t r = begin; r < end; ++r) {
      accumulate(p + r * categories, categories, sums);
      draw(sums, r * samples, (r + 1) * samples);
    }
  });
}

template <class T>
void sample_without_replacement(std::int64_t* out, const T* p, std::int64_t rows, std::int64_t categories,
                                std::int64_t samples, PhiloxState state) {
  in_parallel(rows, std::max<std::int64_t>(1, 2048 / categories), [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::pair<double, std::int64_t>> race;
    for (std::int64_t r = begin; r < end; ++r) {
      race.clear();
      Numbers numbers(state, r * categories, (r + 1) * categories);
      bool valid = true;
      double sum = 0.0;
      for (std::int64_t j = 0; j < categories; ++j) {
        const auto value = static_cast<double>(p[r * categories + j]);
        valid &= value >= 0.0 && std::isfinite(value);
        const double exponential = -std::log(open_unit_double(numbers.next()));
        // Impossible categories come last: as with torch's kernels, they fill up what the others cannot.
        sum += value;
        race.emplace_back(value > 0.0 ? exponential / value : std::numeric_limits<double>::infinity(), j);
      }
      TORCH_CHECK(valid, "probability tensor contains either `inf`, `nan` or element < 0");
      TORCH_CHECK(sum > 0.0, "invalid multinomial distribution (sum of probabilities <= 0)");
      std::nth_element(race.begin(), race.begin() + (samples - 1), race.end());
      std::sort(race.begin(), race.begin() + samples);
      for (std::int64_t s = 0; s < samples; ++s) out[r * samples + s] = race[static_cast<size_t>(s)].second;
    }
  });
}

void run_multinomial(const at::Tensor& out, const at::Tensor& self, bool replacement, PhiloxState state) {
  const auto p = self.contiguous();
  const std::int64_t categories = p.size(-1), samples = out.size(-1);
  const std::int64_t rows = p.dim() == 1 ? 1 : p.size(0);
  on_contiguous(out, [&](const at::Tensor& dense) {
    auto* to = dense.mutable_data_ptr<std::int64_t>();
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, p.scalar_type(), "multinomial", [&] {
      const auto* from = p.const_data_ptr<scalar_t>();
      if (replacement || samples == 1) {
        sample_with_replacement(to, from, rows, categories, samples, state);
      } else {
        sample_without_replacement(to, from, rows, categories, samples, state);
      }
    });
  });
}

at::Tensor& multinomial_out(const at::Tensor& self, std::int64_t samples, bool replacement, OptGenerator generator,
                            at::Tensor& out) {
  TORCH_CHECK(out.device() == self.device(), "multinomial arguments must have the same device, but got ", self.device(),
              " and ", out.device());
  TORCH_CHECK(at::isFloatingType(self.scalar_type()),
              "multinomial only supports floating-point dtypes for input, got: ", self.scalar_type());
  TORCH_CHECK(out.scalar_type() == at::kLong, "multinomial expects Long tensor out, got: ", out.scalar_type());
  TORCH_CHECK(samples > 0, "cannot sample n_sample <= 0 samples, got ", samples);
  TORCH_CHECK(self.dim() == 1 || self.dim() == 2, "prob_dist must be 1 or 2 dim, got ", self.dim());
  const std::int64_t categories = self.size(-1);
  TORCH_CHECK(replacement || samples <= categories,
              "cannot sample n_sample > prob_dist.size(-1) samples without replacement, got ", samples, " > ",
              categories);
  TORCH_CHECK(categories <= kMaxCategories, "number of categories cannot exceed 2^24, got ", categories);
  if (self.dim() == 1) {
    at::native::resize_output(out, {samples});
  } else {
    at::native::resize_output(out, {self.size(0), samples});
  }
  at::assert_no_internal_overlap(out);
  if (out.numel() == 0) return out;
  TORCH_CHECK(categories > 0, "multinomial: expected at least one category, but got input of shape ", self.sizes());
  const std::int64_t rows = out.numel() / samples;
  const std::int64_t numbers = replacement || samples == 1 ? out.numel() : rows * categories;
  launch_op<&run_multinomial>("aten::multinomial", out, self, replacement, reserve_words(self, generator, numbers, 2));
  return out;
}

at::Tensor multinomial(const at::Tensor& self, std::int64_t samples, bool replacement, OptGenerator generator) {
  auto out = at::empty({0}, self.options().dtype(at::kLong));
  return multinomial_out(self, samples, replacement, std::move(generator), out);
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("multinomial", TORCH_FN(multinomial));
  m.impl("multinomial.out", TORCH_FN(multinomial_out));
}

}  // namespace npu::aten
