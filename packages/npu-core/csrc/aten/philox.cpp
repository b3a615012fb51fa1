// Compiled with -O3 -ffast-math (see CMakeLists.txt): the loops vectorise, logf/sinf/cosf come from libmvec.
#include "philox.h"

#include <algorithm>
#include <array>
#include <cmath>

#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define NPU_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define NPU_CLONES
#endif

namespace npu::aten::philox {
namespace {

constexpr std::uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr std::uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
constexpr int kRounds = 10;
constexpr int kLanes = 16;  // counters per inner loop: one AVX-512 register of 32-bit words

// kLanes consecutive counters from `counter`, stored interleaved (lane l's four words at out[4 * l]).
inline __attribute__((always_inline)) void block(std::uint32_t* out, std::uint64_t counter, std::uint64_t seed) {
  std::uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    const std::uint64_t c = counter + static_cast<std::uint64_t>(l);
    c0[l] = static_cast<std::uint32_t>(c);
    c1[l] = static_cast<std::uint32_t>(c >> 32);
    c2[l] = 0;
    c3[l] = 0;
  }
  auto k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int r = 0; r < kRounds; ++r) {
    for (int l = 0; l < kLanes; ++l) {
      const std::uint64_t p0 = static_cast<std::uint64_t>(kMultiplier0) * c0[l];
      const std::uint64_t p1 = static_cast<std::uint64_t>(kMultiplier1) * c2[l];
      const std::uint32_t n0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1[l] ^ k0;
      const std::uint32_t n2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3[l] ^ k1;
      c1[l] = static_cast<std::uint32_t>(p1);
      c3[l] = static_cast<std::uint32_t>(p0);
      c0[l] = n0;
      c2[l] = n2;
    }
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  for (int l = 0; l < kLanes; ++l) {
    out[4 * l] = c0[l];
    out[4 * l + 1] = c1[l];
    out[4 * l + 2] = c2[l];
    out[4 * l + 3] = c3[l];
  }
}

constexpr std::int64_t kBlock = 4 * kLanes;
constexpr float kUnit = 0x1p-24f;

}  // namespace

NPU_CLONES void bits(std::uint32_t* out, std::int64_t count, std::uint64_t seed, std::uint64_t offset,
                     std::int64_t begin) {
  const std::uint64_t first = offset / 4 + static_cast<std::uint64_t>(begin) / 4;
  std::int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) block(out + i, first + static_cast<std::uint64_t>(i) / 4, seed);
  if (i < count) {
    std::uint32_t rest[kBlock];
    block(rest, first + static_cast<std::uint64_t>(i) / 4, seed);
    std::copy(rest, rest + (count - i), out + i);
  }
}

NPU_CLONES void uniform(float* out, std::int64_t count, std::uint64_t seed, std::uint64_t offset, std::int64_t begin) {
  std::array<std::uint32_t, kChunk> raw;
  bits(raw.data(), count, seed, offset, begin);
  for (std::int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(static_cast<std::int32_t>(raw[i] >> 8)) * kUnit;
}

NPU_CLONES void normal(float* out, std::int64_t count, std::uint64_t seed, std::uint64_t offset, std::int64_t begin) {
  std::array<std::uint32_t, kChunk> raw;
  const std::int64_t padded = (count + 3) / 4 * 4;
  bits(raw.data(), padded, seed, offset, begin);
  std::array<float, kChunk / 2> cosines, sines;
  constexpr float kTwoPi = 6.28318530717958647692f;
  for (std::int64_t p = 0; p < padded / 2; ++p) {
    const float u1 = static_cast<float>(static_cast<std::int32_t>(raw[2 * p] >> 8) + 1) * kUnit;
    const float u2 = static_cast<float>(static_cast<std::int32_t>(raw[2 * p + 1] >> 8)) * kUnit;
    const float radius = std::sqrt(-2.0f * std::log(u1));
    cosines[p] = radius * std::cos(kTwoPi * u2);
    sines[p] = radius * std::sin(kTwoPi * u2);
  }
  for (std::int64_t i = 0; i < count; ++i) out[i] = (i & 1) != 0 ? sines[i / 2] : cosines[i / 2];
}

}  // namespace npu::aten::philox
