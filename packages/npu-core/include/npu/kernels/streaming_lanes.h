/* npu/kernels/streaming_lanes.h: vectors stored past the caches (streaming.h says when), for kernel files. */
#ifndef NPU_KERNELS_STREAMING_LANES_H_
#define NPU_KERNELS_STREAMING_LANES_H_

#include "npu/kernels/rows.h"
#include "npu/kernels/streaming.h"

namespace npu {
namespace kernels {
namespace {

/* `to` is aligned to its vector. */
NPU_LANES_INLINE void store_streaming(float* to, Floats value) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, (__m512)value);
#elif defined(__AVX2__)
  _mm256_stream_ps(to, (__m256)value);
#elif defined(__SSE2__)
  _mm_stream_ps(to, (__m128)value);
#else
  store(to, value);
#endif
}

NPU_LANES_INLINE void stream_halves(void* to, Halves half) {
#if defined(__AVX512F__)
  _mm256_stream_si256((__m256i*)to, bits_as<__m256i>(half));
#elif defined(__AVX2__)
  _mm_stream_si128((__m128i*)to, bits_as<__m128i>(half));
#elif defined(__SSE2__)
  _mm_stream_si64((long long*)to, bits_as<long long>(half));
#else
  memcpy(to, &half, sizeof(half));
#endif
}

NPU_LANES_INLINE void store_streaming(Bfloat16* to, Floats value) { stream_halves(to, narrow_bfloat16(value)); }
NPU_LANES_INLINE void store_streaming(Float16* to, Floats value) { stream_halves(to, narrow_float16(value)); }

/* Stores value(i, count) for one row.  Call npu_stream_fence() after the last row. */
template <class T, class Value>
NPU_LANES_INLINE void stream_row(T* to, int64_t columns, Value value) {
  int64_t head = (int64_t)((64 - ((uintptr_t)to & 63)) & 63) / (int64_t)sizeof(T), i = 0;
  if (head > columns) head = columns;
  while (i < head) {
    int64_t count = head - i < kLanes ? head - i : (int64_t)kLanes;
    store_some(to + i, value(i, count), count);
    i += count;
  }
  for (; i + kLanes <= columns; i += kLanes) store_streaming(to + i, value(i, (int64_t)kLanes));
  if (i < columns) store_some(to + i, value(i, columns - i), columns - i);
}

}  // namespace
}  // namespace kernels
}  // namespace npu

#endif /* NPU_KERNELS_STREAMING_LANES_H_ */
