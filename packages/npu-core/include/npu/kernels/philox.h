/* npu/kernels/philox.h: Philox4x32-10 in vectors, for kernel files.
 *
 * J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011; the key is the seed.
 *
 * Words come in blocks of 64: word 16 w + l of block b is word w of counter offset / 4 + 16 b + l.  So word i depends
 * on (seed, offset, i) only, whatever the instruction set and the number of threads, and vectors need no transposition.
 * npu-core's own random operators number their words the same way.
 */
#ifndef NPU_KERNELS_PHILOX_H_
#define NPU_KERNELS_PHILOX_H_

#include "npu/kernels/lanes.h"

namespace npu {
namespace kernels {
namespace {

enum { kPhiloxWords = 64, kPhiloxVectors = kPhiloxWords / kLanes, kPhiloxGroups = 16 / kLanes };

/* Half as many 64-bit lanes; words live in the low halves, what is above them is ignored. */
typedef uint64_t PhiloxPairs __attribute__((vector_size(4 * kLanes)));

struct PhiloxBlock {
  Words word[kPhiloxVectors];
};

/* Product of the low halves. */
NPU_LANES_INLINE PhiloxPairs multiply_low(PhiloxPairs a, PhiloxPairs b) {
#if defined(__AVX512F__)
  return (PhiloxPairs)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (PhiloxPairs)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (PhiloxPairs)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

/* The 64 words of counters [counter, counter + 16). */
NPU_LANES_INLINE PhiloxBlock philox_block(uint64_t counter, uint64_t seed) {
  const PhiloxPairs m0 = 0xD2511F53u + PhiloxPairs{}, m1 = 0xCD9E8D57u + PhiloxPairs{};
  PhiloxPairs even;
  for (int i = 0; i < kLanes / 2; ++i) even[i] = 2 * (uint64_t)i;
  PhiloxBlock block;
  for (int g = 0; g < kPhiloxGroups; ++g) {
    PhiloxPairs c0[2], c1[2], c2[2] = {}, c3[2] = {}; /* [0] for even counters, [1] for odd ones */
    c0[0] = even + (counter + (uint64_t)(g * kLanes));
    c0[1] = c0[0] + 1;
    for (int h = 0; h < 2; ++h) c1[h] = c0[h] >> 32;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const PhiloxPairs key0 = (uint64_t)k0 + PhiloxPairs{}, key1 = (uint64_t)k1 + PhiloxPairs{};
      for (int h = 0; h < 2; ++h) {
        const PhiloxPairs p0 = multiply_low(c0[h], m0), p1 = multiply_low(c2[h], m1);
        c0[h] = (p1 >> 32) ^ c1[h] ^ key0;
        c2[h] = (p0 >> 32) ^ c3[h] ^ key1;
        c1[h] = p1;
        c3[h] = p0;
      }
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    const PhiloxPairs* words[4] = {c0, c1, c2, c3};
    for (int w = 0; w < 4; ++w) {
      block.word[w * kPhiloxGroups + g] = bits_as<Words>((words[w][0] & 0xffffffffu) | (words[w][1] << 32));
    }
  }
  return block;
}

/* Lane i of `mask` as byte i, 1 or 0. */
NPU_LANES_INLINE void store_mask_bytes(uint8_t* to, Mask mask) {
#if defined(__AVX512F__)
  __m128i bytes = _mm512_cvtepi32_epi8((__m512i)(mask & 1));
  memcpy(to, &bytes, 16);
#elif defined(__SSE2__)
  Halves halves = narrow_words((Words)(mask & 1));
  __m128i bytes = _mm_setzero_si128();
  memcpy(&bytes, &halves, sizeof(halves));
  bytes = _mm_packus_epi16(bytes, bytes);
  memcpy(to, &bytes, kLanes);
#else
  for (int i = 0; i < kLanes; ++i) to[i] = (uint8_t)(mask[i] & 1);
#endif
}

/* keep[i - begin] = 1 where word i is below `threshold`, else 0, for i in [begin, begin + count).  So each is kept with
 * probability threshold / 2^32, threshold being at most 2^32. */
NPU_LANES_INLINE void philox_keep(uint8_t* keep, int64_t begin, int64_t count, uint64_t seed, uint64_t offset,
                                  uint64_t threshold) {
  if (threshold == 0) {
    memset(keep, 0, (size_t)count);
    return;
  }
  const Words last = (uint32_t)(threshold - 1) + Words{};
  const int64_t end = begin + count;
  for (int64_t first = begin / kPhiloxWords * kPhiloxWords; first < end; first += kPhiloxWords) {
    PhiloxBlock block = philox_block(offset / 4 + (uint64_t)(first / kPhiloxWords) * 16, seed);
    bool whole = first >= begin && first + kPhiloxWords <= end;
    uint8_t bytes[kPhiloxWords];
    uint8_t* target = whole ? keep + (first - begin) : bytes;
    for (int v = 0; v < kPhiloxVectors; ++v) store_mask_bytes(target + v * kLanes, (Mask)(block.word[v] <= last));
    if (whole) continue;
    int64_t from = first < begin ? begin : first, to = first + kPhiloxWords < end ? first + kPhiloxWords : end;
    memcpy(keep + (from - begin), bytes + (from - first), (size_t)(to - from));
  }
}

}  // namespace
}  // namespace kernels
}  // namespace npu

#endif /* NPU_KERNELS_PHILOX_H_ */
