#pragma once
// Philox words one after the other, as many as wanted: for samplers that reject.
#include <array>
#include <cmath>
#include <cstdint>

#include "runtime/generator.h"

namespace npu::aten::philox {

// Element `element` of a call has a stream of its own: its counters carry the element in their upper half.  A call
// reserves kStreamWords; an element that needs more goes on with a lap number above the element's 48 bits, so streams
// of one call or of different calls never meet.
class Stream {
 public:
  static constexpr std::int64_t kStreamWords = 64;

  Stream(PhiloxState state, std::int64_t element)
      : seed_(state.seed), first_(state.offset / 4), element_(static_cast<std::uint64_t>(element)) {}

  std::uint32_t word() {
    if (used_ == 4) refill();
    return words_[used_++];
  }
  // In [0, 1) with 53 bits.
  double unit() { return static_cast<double>(wide() >> 11) * 0x1p-53; }
  // In (0, 1).
  double open_unit() { return (static_cast<double>(wide() >> 12) + 0.5) * 0x1p-52; }
  // Box-Muller; the second number of the pair is not kept.
  double normal() {
    const double radius = std::sqrt(-2.0 * std::log(open_unit()));
    return radius * std::cos(2.0 * M_PI * unit());
  }

 private:
  static constexpr std::uint64_t kCounters = kStreamWords / 4;

  std::uint64_t wide() {
    const std::uint64_t high = word();
    return high << 32 | word();
  }

  void refill() {
    const std::uint64_t counter = first_ + next_ % kCounters;
    const std::uint64_t upper = element_ | (next_ / kCounters) << 48;
    ++next_;
    used_ = 0;
    auto c0 = static_cast<std::uint32_t>(counter), c1 = static_cast<std::uint32_t>(counter >> 32);
    auto c2 = static_cast<std::uint32_t>(upper), c3 = static_cast<std::uint32_t>(upper >> 32);
    auto k0 = static_cast<std::uint32_t>(seed_), k1 = static_cast<std::uint32_t>(seed_ >> 32);
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c0, p1 = std::uint64_t{0xCD9E8D57u} * c2;
      c0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
      c2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
      c1 = static_cast<std::uint32_t>(p1);
      c3 = static_cast<std::uint32_t>(p0);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    words_ = {c0, c1, c2, c3};
  }

  std::uint64_t seed_, first_, element_, next_ = 0;
  std::array<std::uint32_t, 4> words_{};
  size_t used_ = 4;
};

}  // namespace npu::aten::philox
