/* npu/kernels/softmax_rows.h: softmax and log-sum-exp of rows, for kernel files. */
#ifndef NPU_KERNELS_SOFTMAX_ROWS_H_
#define NPU_KERNELS_SOFTMAX_ROWS_H_

#include "npu/kernels/math_lanes.h"
#include "npu/kernels/rows.h"

namespace npu {
namespace kernels {
namespace {

/* e^d for d <= 88; within 3 units in the last place for d near 0, within 2^-18 of the result anywhere.  Results below
 * 2^-125 may be 0.  Half the instructions of exponential(). */
NPU_LANES_INLINE Floats bounded_exponential(Floats d) {
  const Floats log2_e = broadcast(1.44269504f), magic = broadcast(0x1.8p23f);
  d = maximum(d, broadcast(-104.0f)); /* NaN goes through */
#if !defined(__AVX512F__)
  d = minimum(d, broadcast(88.0f));
#endif
  Floats shifted = multiply_add(d, log2_e, magic); /* its last bits are n = round(d log2 e) */
  Floats n = shifted - magic;
#if defined(__AVX512F__)
  Floats r = (Floats)_mm512_fmsub_ps((__m512)d, (__m512)log2_e, (__m512)n);
#else
  Floats r = multiply_add(d, log2_e, negate(n));
#endif
  /* 2^r on [-1/2, 1/2], within 1.1e-7 */
  const float fit[] = {0.00132644025f, 0.00967151392f, 0.055507347f, 0.240222424f, 0.693147004f, 1.0f};
  Floats power = polynomial(r, fit);
#if defined(__AVX512F__)
  return (Floats)_mm512_scalef_ps((__m512)power, (__m512)n);
#else
  Floats result = bits_as<Floats>(bits_as<Words>(power) + (bits_as<Words>(shifted) << 23));
  result = choose(n < broadcast(-125.0f), Floats{}, result);
  return choose(d == d, result, d);
#endif
}

/* `yes` in the lanes whose byte is not 0, `no` in the others; reads `count` bytes, 0 standing for the rest. */
NPU_LANES_INLINE Floats choose_by_bytes(const uint8_t* bytes, int64_t count, Floats yes, Floats no) {
  uint8_t first[kLanes] = {0};
  if (count != kLanes) {
    for (int64_t i = 0; i < count; ++i) first[i] = bytes[i];
    bytes = first;
  }
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  __m128i all = load_bits<__m128i>(bytes);
  return (Floats)_mm512_mask_blend_ps(_mm_test_epi8_mask(all, all), (__m512)no, (__m512)yes);
#else
  return choose((Mask)(widen_bytes(load_bits<Bytes>(bytes)) != 0), yes, no);
#endif
}

/* sum over a row of e^(value - max) */
struct RowExponentials {
  float max;
  double sum;
};

/* value(i, count) gives the elements.  They are read from memory once: the maximum of a block that stays in the cache
 * is what its exponentials and those of later blocks are relative to, until an element is far above it. */
template <class Value>
NPU_LANES_INLINE RowExponentials sum_row_exponentials(int64_t columns, Value value) {
  const int64_t block = 2048;
  const float far = 16.0f; /* e^16 times 2048 elements are no trouble for a float */
  RowExponentials row = {-INFINITY, 0};
  float origin = 0;
  for (int64_t begin = 0; begin < columns; begin += block) {
    const int64_t length = columns - begin < block ? columns - begin : block;
    auto filled = [=](int64_t i, int64_t count) NPU_LANES_BODY {
      Floats lanes = value(begin + i, count);
      return count == kLanes ? lanes : first_lanes(lanes, count, -INFINITY);
    };
    if (row.max == -INFINITY) {
      row.max = max_row(length, row.max, filled);
      /* Nothing but -infinity and NaN so far: a distance to -infinity would be NaN. */
      origin = row.max == -INFINITY ? 0.0f : row.max;
    }
    for (;;) {
      Floats most = broadcast(row.max), from = broadcast(origin);
      double sum = sum_row(length, [&](int64_t i, int64_t count) NPU_LANES_BODY {
        Floats lanes = filled(i, count);
        most = maximum(most, lanes);
        return bounded_exponential(lanes - from);
      });
      row.max = max_lanes(most);
      if (!(row.max > origin + far)) {
        row.sum += sum;
        break;
      }
      if (row.sum != 0) row.sum *= exp((double)origin - (double)row.max);
      origin = row.max;
    }
  }
  if (row.max > origin) row.sum *= exp((double)origin - (double)row.max);
  return row;
}

/* Longest row whose exponentials are kept; longer ones are computed twice. */
enum { kSoftmaxKept = 4096 };

/* Calls emit(i, count, probabilities) for the softmax of one row of value(i, count).  As in torch, a row with a NaN or
 * +infinity, or of nothing but -infinity, is NaN. */
template <class Value, class Emit>
NPU_LANES_INLINE void softmax_row(int64_t columns, Value value, Emit emit) {
  if (columns > kSoftmaxKept) {
    RowExponentials row = sum_row_exponentials(columns, value);
    Floats max = broadcast(row.max), factor = broadcast((float)(1.0 / row.sum));
    each_lanes(columns, [=](int64_t i, int64_t count)
                            NPU_LANES_BODY { emit(i, count, bounded_exponential(value(i, count) - max) * factor); });
    return;
  }
  float kept[kSoftmaxKept];
  float most = max_row(columns, -INFINITY, [&](int64_t i, int64_t count) NPU_LANES_BODY {
    Floats lanes = value(i, count);
    if (count != kLanes) lanes = first_lanes(lanes, count, -INFINITY);
    store(kept + i, lanes); /* rows end within `kept` because its length is a multiple of kLanes */
    return lanes;
  });
  Floats max = broadcast(most);
  double sum = sum_row(columns, [&](int64_t i, int64_t count) NPU_LANES_BODY {
    Floats lanes = bounded_exponential(load(kept + i) - max);
    store(kept + i, lanes);
    return count == kLanes ? lanes : first_lanes(lanes, count, 0.0f); /* NaN when the row is */
  });
  Floats factor = broadcast((float)(1.0 / sum));
  each_lanes(columns, [&](int64_t i, int64_t count) NPU_LANES_BODY { emit(i, count, load(kept + i) * factor); });
}

}  // namespace
}  // namespace kernels
}  // namespace npu

#endif /* NPU_KERNELS_SOFTMAX_ROWS_H_ */
