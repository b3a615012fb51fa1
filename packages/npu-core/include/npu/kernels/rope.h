/* npu/kernels/rope.h: rotary position embedding, for kernel files (see lanes.h for what may stand in one).
 *
 * The embedding turns pairs of elements.  A row of 2n elements holds pair i
 *
 *   as halves:      x[i] and x[n + i]
 *   as neighbours:  x[2i] and x[2i + 1]
 *
 * and cos and sin are rows of 2n elements that lie as the result does.  The usual forms are
 *
 *   half             rotate_row<kHalves, kHalves>            y = x cos + [-x2 | x1] sin
 *   interleave       rotate_row<kNeighbours, kNeighbours>
 *   quarter          half on each half of the row
 *   de-interleaving  rotate_row<kNeighbours, kHalves>        half on [x0 x2 x4 ... | x1 x3 x5 ...]
 *
 * Source: J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
 */
#ifndef NPU_KERNELS_ROPE_H_
#define NPU_KERNELS_ROPE_H_

#include "npu/kernels/rows.h"

namespace npu {
namespace kernels {
namespace {

enum PairLayout { kHalves, kNeighbours };

/* The first and second elements of kLanes pairs. */
struct Pairs {
  Floats first, second;
};

/* ---- pairs of neighbours: 2 kLanes consecutive elements ------------------------------------------------------- */

NPU_LANES_INLINE Pairs load_neighbours(const Bfloat16* from) {
  Words word = load_bits<Words>(from);
  return {bits_as<Floats>(word << 16), bits_as<Floats>(word & 0xffff0000u)};
}

NPU_LANES_INLINE Pairs load_neighbours(const Float16* from) {
  Words word = load_bits<Words>(from);
  return {widen_float16(narrow_words(word & 0xffffu)), widen_float16(narrow_words(word >> 16))};
}

NPU_LANES_INLINE Pairs load_neighbours(const float* from) {
  Floats low = load(from), high = load(from + kLanes);
#if defined(__AVX512F__)
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
  return {(Floats)_mm512_permutex2var_ps((__m512)low, even, (__m512)high),
          (Floats)_mm512_permutex2var_ps((__m512)low, odd, (__m512)high)};
#elif defined(__AVX2__)
  /* The shuffle works within halves of 128 bits: low, high, low, high. */
  __m256d even = _mm256_castps_pd(_mm256_shuffle_ps((__m256)low, (__m256)high, 0x88));
  __m256d odd = _mm256_castps_pd(_mm256_shuffle_ps((__m256)low, (__m256)high, 0xdd));
  return {bits_as<Floats>(_mm256_permute4x64_pd(even, 0xd8)), bits_as<Floats>(_mm256_permute4x64_pd(odd, 0xd8))};
#elif defined(__SSE2__)
  return {(Floats)_mm_shuffle_ps((__m128)low, (__m128)high, 0x88),
          (Floats)_mm_shuffle_ps((__m128)low, (__m128)high, 0xdd)};
#else
  Pairs pairs;
  for (int i = 0; i < kLanes; ++i) pairs.first[i] = from[2 * i], pairs.second[i] = from[2 * i + 1];
  return pairs;
#endif
}

NPU_LANES_INLINE void store_neighbours(Bfloat16* to, Pairs pairs) {
  Words word = widen_words(narrow_bfloat16(pairs.first)) | widen_words(narrow_bfloat16(pairs.second)) << 16;
  memcpy(to, &word, sizeof(word));
}

NPU_LANES_INLINE void store_neighbours(Float16* to, Pairs pairs) {
  Words word = widen_words(narrow_float16(pairs.first)) | widen_words(narrow_float16(pairs.second)) << 16;
  memcpy(to, &word, sizeof(word));
}

NPU_LANES_INLINE void store_neighbours(float* to, Pairs pairs) {
#if defined(__AVX512F__)
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  _mm512_storeu_ps(to, _mm512_permutex2var_ps((__m512)pairs.first, low, (__m512)pairs.second));
  _mm512_storeu_ps(to + kLanes, _mm512_permutex2var_ps((__m512)pairs.first, high, (__m512)pairs.second));
#elif defined(__AVX2__)
  __m256 low = _mm256_unpacklo_ps((__m256)pairs.first, (__m256)pairs.second);
  __m256 high = _mm256_unpackhi_ps((__m256)pairs.first, (__m256)pairs.second);
  _mm256_storeu_ps(to, _mm256_permute2f128_ps(low, high, 0x20));
  _mm256_storeu_ps(to + kLanes, _mm256_permute2f128_ps(low, high, 0x31));
#elif defined(__SSE2__)
  _mm_storeu_ps(to, _mm_unpacklo_ps((__m128)pairs.first, (__m128)pairs.second));
  _mm_storeu_ps(to + kLanes, _mm_unpackhi_ps((__m128)pairs.first, (__m128)pairs.second));
#else
  for (int i = 0; i < kLanes; ++i) to[2 * i] = pairs.first[i], to[2 * i + 1] = pairs.second[i];
#endif
}

/* ---- pairs of a row ---------------------------------------------------------------------------------------------- */

/* Pairs i to i + count of a row of 2 * half elements; 0 in the other lanes.  Touches no other memory. */
template <PairLayout layout, class T>
NPU_LANES_INLINE Pairs load_pairs(const T* row, int64_t half, int64_t i, int64_t count) {
  if (layout == kHalves) return {load_some(row + i, count), load_some(row + half + i, count)};
  if (count == kLanes) return load_neighbours(row + 2 * i);
  T buffer[2 * kLanes];
  memset(buffer, 0, sizeof(buffer));
  for (int64_t j = 0; j < 2 * count; ++j) buffer[j] = row[2 * i + j];
  return load_neighbours(buffer);
}

template <PairLayout layout, class T>
NPU_LANES_INLINE void store_pairs(T* row, int64_t half, int64_t i, Pairs pairs, int64_t count) {
  if (layout == kHalves) {
    store_some(row + i, pairs.first, count);
    store_some(row + half + i, pairs.second, count);
  } else if (count == kLanes) {
    store_neighbours(row + 2 * i, pairs);
  } else {
    T buffer[2 * kLanes];
    store_neighbours(buffer, pairs);
    for (int64_t j = 0; j < 2 * count; ++j) row[2 * i + j] = buffer[j];
  }
}

NPU_LANES_INLINE Pairs rotate(Pairs x, Pairs cos, Pairs sin) {
  return {x.first * cos.first - x.second * sin.first, x.second * cos.second + x.first * sin.second};
}

/* The transposed map: the gradient of rotate() with respect to x. */
NPU_LANES_INLINE Pairs rotate_transposed(Pairs grad, Pairs cos, Pairs sin) {
  return {grad.first * cos.first + grad.second * sin.second, grad.second * cos.second - grad.first * sin.first};
}

/* Rotates one row of 2 * half elements; y may be x where both layouts are the same. */
template <PairLayout in, PairLayout out, class T>
NPU_LANES_INLINE void rotate_row(const T* x, const T* cos, const T* sin, T* y, int64_t half) {
  each_lanes(half, [=](int64_t i, int64_t count) NPU_LANES_BODY {
    Pairs turned = rotate(load_pairs<in>(x, half, i, count), load_pairs<out>(cos, half, i, count),
                          load_pairs<out>(sin, half, i, count));
    store_pairs<out>(y, half, i, turned, count);
  });
}

/* The gradient of rotate_row<layout, layout> with respect to x. */
template <PairLayout layout, class T>
NPU_LANES_INLINE void rotate_row_transposed(const T* grad, const T* cos, const T* sin, T* dx, int64_t half) {
  each_lanes(half, [=](int64_t i, int64_t count) NPU_LANES_BODY {
    Pairs turned = rotate_transposed(load_pairs<layout>(grad, half, i, count), load_pairs<layout>(cos, half, i, count),
                                     load_pairs<layout>(sin, half, i, count));
    store_pairs<layout>(dx, half, i, turned, count);
  });
}

}  // namespace
}  // namespace kernels
}  // namespace npu

#endif /* NPU_KERNELS_ROPE_H_ */
