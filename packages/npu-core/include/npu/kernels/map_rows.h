/* npu/kernels/map_rows.h: rows of results that need nothing but the same elements of the arguments, for kernel files.
 *
 * Two vectors at a time, so that 16-bit results fill a whole cache line, and past the caches where the caller says so.
 */
#ifndef NPU_KERNELS_MAP_ROWS_H_
#define NPU_KERNELS_MAP_ROWS_H_

#include "npu/kernels/streaming_lanes.h"

namespace npu {
namespace kernels {
namespace {

template <class T>
NPU_LANES_INLINE void store_two(T* to, Floats first, Floats second) {
  store(to, first);
  store(to + kLanes, second);
}

/* `to` is aligned to 64 bytes. */
template <class T>
NPU_LANES_INLINE void store_two_streaming(T* to, Floats first, Floats second) {
  store_streaming(to, first);
  store_streaming(to + kLanes, second);
}

#if defined(__AVX512F__)
NPU_LANES_INLINE __m512i join_halves(Halves first, Halves second) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(bits_as<__m256i>(first)), bits_as<__m256i>(second), 1);
}

NPU_LANES_INLINE __m512i narrow_two(const Float16*, Floats first, Floats second) {
  return join_halves(narrow_float16(first), narrow_float16(second));
}

NPU_LANES_INLINE __m512i narrow_two(const Bfloat16*, Floats first, Floats second) {
#if defined(__AVX512BF16__)
  /* As narrow_bfloat16(): the instruction flushes denormals. */
  const int denormal = 0x20;
  __mmask16 flushed =
      _mm512_fpclass_ps_mask((__m512)first, denormal) | _mm512_fpclass_ps_mask((__m512)second, denormal);
  if (__builtin_expect(flushed == 0, 1)) {
    return bits_as<__m512i>(_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
  }
#endif
  return join_halves(round_to_bfloat16(first), round_to_bfloat16(second));
}

NPU_LANES_INLINE void store_two(Bfloat16* to, Floats first, Floats second) {
  _mm512_storeu_si512(to, narrow_two(to, first, second));
}
NPU_LANES_INLINE void store_two(Float16* to, Floats first, Floats second) {
  _mm512_storeu_si512(to, narrow_two(to, first, second));
}
NPU_LANES_INLINE void store_two_streaming(Bfloat16* to, Floats first, Floats second) {
  _mm512_stream_si512((__m512i*)to, narrow_two(to, first, second));
}
NPU_LANES_INLINE void store_two_streaming(Float16* to, Floats first, Floats second) {
  _mm512_stream_si512((__m512i*)to, narrow_two(to, first, second));
}
#endif

/* Whether the results of work on so many bytes, arguments and results together, go past the caches: nothing of them
 * would still be there for a reader.  Results that overwrite an argument should not. */
NPU_LANES_INLINE bool worth_streaming(int64_t bytes) { return bytes >= (32 << 20); }

/* Stores what body(i, some, results) puts into results[0 .. n - 1] to to[0] + i .. to[n - 1] + i.  Call
 * npu_stream_fence() after the last row that is streamed. */
template <int n, class T, class Body>
NPU_LANES_INLINE void map_row(T* const (&to)[n], int64_t count, bool streamed, Body body) {
  int64_t i = 0;
  if (streamed) {
    int64_t head = (int64_t)((64 - ((uintptr_t)to[0] & 63)) & 63) / (int64_t)sizeof(T);
    if (head > count) head = count;
    while (i < head) {
      int64_t some = head - i < kLanes ? head - i : (int64_t)kLanes;
      Floats results[n];
      body(i, some, results);
      for (int k = 0; k < n; ++k) store_some(to[k] + i, results[k], some);
      i += some;
    }
    for (int k = 0; k < n; ++k) streamed = streamed && ((uintptr_t)(to[k] + i) & 63) == 0;
  }
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    Floats first[n], second[n];
    body(i, (int64_t)kLanes, first);
    body(i + kLanes, (int64_t)kLanes, second);
    for (int k = 0; k < n; ++k) {
      if (streamed) store_two_streaming(to[k] + i, first[k], second[k]);
      else store_two(to[k] + i, first[k], second[k]);
    }
  }
  for (; i < count; i += kLanes) {
    int64_t some = count - i < kLanes ? count - i : (int64_t)kLanes;
    Floats results[n];
    body(i, some, results);
    for (int k = 0; k < n; ++k) store_some(to[k] + i, results[k], some);
  }
}

}  // namespace
}  // namespace kernels
}  // namespace npu

#endif /* NPU_KERNELS_MAP_ROWS_H_ */
