/* npu/kernels/quantize_rows.h: quantisers of one row, for kernel files (see lanes.h for what may stand in one).
 *
 * A quantised type is named by int8_t, uint8_t, int32_t, Int4 (two values per byte, the first in the low nibble),
 * Float8E4m3fn or Float8E5m2.  Integers are rounded half to even and saturate, NaN becomes 0; 8-bit floats saturate.
 *
 * What is quantised is value(i, count), a lambda as in rows.h, so that a norm or an activation can be quantised without
 * a row in between:
 *
 *   auto value = [=](int64_t i, int64_t count) NPU_LANES_BODY { return load_some(x + i, count); };
 *   scale[row] = quantize_row_dynamic<int8_t>(y, columns, value);                          // symmetric, by maximum
 *   quantize_row<int8_t>(y, columns, [=](int64_t i, int64_t count) NPU_LANES_BODY {        // affine
 *     return multiply_then_add(value(i, count), load_some(s + i, count), load_some(o + i, count));
 *   });
 */
#ifndef NPU_KERNELS_QUANTIZE_ROWS_H_
#define NPU_KERNELS_QUANTIZE_ROWS_H_

#include "npu/kernels/min_max_rows.h"

namespace npu {
namespace kernels {
namespace {

struct Int4 {};

/* Bounds of the type as dynamic quantisation uses them. */
template <class Q>
struct QuantizedRange;
template <>
struct QuantizedRange<int8_t> {
  static constexpr float kLow = -128, kHigh = 127;
};
template <>
struct QuantizedRange<uint8_t> {
  static constexpr float kLow = 0, kHigh = 255;
};
template <>
struct QuantizedRange<Int4> {
  static constexpr float kLow = -8, kHigh = 7;
};
template <>
struct QuantizedRange<Float8E4m3fn> {
  static constexpr float kLow = -448, kHigh = 448;
};
template <>
struct QuantizedRange<Float8E5m2> {
  static constexpr float kLow = -57344, kHigh = 57344;
};

/* Bytes of `columns` values. */
template <class Q>
NPU_LANES_INLINE int64_t quantized_bytes(int64_t columns) {
  return columns * (int64_t)sizeof(Q);
}
template <>
NPU_LANES_INLINE int64_t quantized_bytes<Int4>(int64_t columns) {
  return columns / 2;
}

/* Values i, i + 1, ... of a row that starts at `row`.  For Int4, i and count are even. */
template <class Q>
struct QuantizedRow {
  static NPU_LANES_INLINE void store(void* row, int64_t i, Floats value, int64_t count) {
    store_some((Q*)row + i, value, count);
  }
  static NPU_LANES_INLINE Floats load(const void* row, int64_t i, int64_t count) {
    return load_some((const Q*)row + i, count);
  }
};
#if defined(__AVX512F__)
/* Clipping to the upper bound is enough before a conversion that saturates.  With maximum() as one instruction it
 * brings quantize_row_dynamic of bfloat16 from 0.27 to 0.13 ns per value. */
template <>
struct QuantizedRow<int8_t> {
  static NPU_LANES_INLINE void store(void* row, int64_t i, Floats value, int64_t count) {
    int8_t* to = (int8_t*)row + i;
    if (count < kLanes) return store_first(to, value, count);
    __mmask16 number = _mm512_cmp_ps_mask((__m512)value, (__m512)value, _CMP_ORD_Q);
    __m512i whole = _mm512_maskz_cvtps_epi32(number, _mm512_min_ps((__m512)value, _mm512_set1_ps(127)));
    _mm_storeu_si128((__m128i*)to, _mm512_cvtsepi32_epi8(whole));
  }
  static NPU_LANES_INLINE Floats load(const void* row, int64_t i, int64_t count) {
    return load_some((const int8_t*)row + i, count);
  }
};
#endif

/* A pair of values is a 64-bit lane while the nibbles are put together and taken apart. */
template <>
struct QuantizedRow<Int4> {
  static NPU_LANES_INLINE void store(void* row, int64_t i, Floats value, int64_t count) {
    uint8_t* to = (uint8_t*)row + i / 2;
#if defined(__AVX512F__)
    if (count == kLanes) {
      __mmask16 number = _mm512_cmp_ps_mask((__m512)value, (__m512)value, _CMP_ORD_Q);
      __m512 clipped = _mm512_max_ps(_mm512_min_ps((__m512)value, _mm512_set1_ps(7)), _mm512_set1_ps(-8));
      __m512i whole = _mm512_and_si512(_mm512_maskz_cvtps_epi32(number, clipped), _mm512_set1_epi32(15));
      __m512i pair = _mm512_or_si512(whole, _mm512_srli_epi64(whole, 28));
      _mm_storel_epi64((__m128i*)to, _mm512_cvtepi64_epi8(pair));
      return;
    }
#elif defined(__AVX2__)
    if (count == kLanes) {
      __m256i whole = (__m256i)((Words)to_ints(round_saturate(value, -8, 7)) & 15u);
      __m256i pair = _mm256_or_si256(whole, _mm256_srli_epi64(whole, 28));
      Bytes spread = narrow_bytes((Words)_mm256_and_si256(pair, _mm256_set1_epi64x(0xff)));
      __m128i bytes = _mm_packus_epi16(_mm_loadl_epi64((const __m128i*)&spread), _mm_setzero_si128());
      int32_t packed = _mm_cvtsi128_si32(bytes);
      memcpy(to, &packed, sizeof(packed));
      return;
    }
#endif
    store_int4(to, value, count);
  }
  static NPU_LANES_INLINE Floats load(const void* row, int64_t i, int64_t count) {
    const uint8_t* from = (const uint8_t*)row + i / 2;
#if defined(__AVX512F__)
    if (count == kLanes) {
      __m512i byte = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i*)from));
      __m512i high = _mm512_or_si512(_mm512_slli_epi64(byte, 28), _mm512_slli_epi64(byte, 56));
      return (Floats)_mm512_cvtepi32_ps(_mm512_srai_epi32(high, 28));
    }
#elif defined(__AVX2__)
    if (count == kLanes) {
      int32_t packed;
      memcpy(&packed, from, sizeof(packed));
      __m256i byte = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(packed));
      __m256i high = _mm256_or_si256(_mm256_slli_epi64(byte, 28), _mm256_slli_epi64(byte, 56));
      return (Floats)_mm256_cvtepi32_ps(_mm256_srai_epi32(high, 28));
    }
#endif
    return load_int4(from, count);
  }
};

/* a * b + c with two roundings on every instruction set: halfway cases must not depend on the CPU, and the compiler
 * would fuse the plain expression. */
NPU_LANES_INLINE Floats multiply_then_add(Floats a, Floats b, Floats c) {
  Floats product = a * b;
#if defined(__FMA__)
  __asm__("" : "+x"(product));
#endif
  return product + c;
}

/* y[i] = saturate(rint(value(i))) */
template <class Q, class Value>
NPU_LANES_INLINE void quantize_row(void* y, int64_t columns, Value value) {
  each_lanes(columns,
             [=](int64_t i, int64_t count) NPU_LANES_BODY { QuantizedRow<Q>::store(y, i, value(i, count), count); });
}

/* ---- symmetric ------------------------------------------------------------------------------------------------ */

/* Largest |value| of a row; NaN is skipped. */
template <class Value>
NPU_LANES_INLINE float absolute_max_row(int64_t columns, Value value) {
  return max_row(columns, 0, [=](int64_t i, int64_t count) NPU_LANES_BODY { return absolute(value(i, count)); });
}

/* What values are multiplied with so that the magnitude `largest` becomes `high`: finite also where the quotient
 * overflows, with results closer to 0 then.  A row of zeros becomes zeros. */
NPU_LANES_INLINE float dynamic_multiplier(float high, float largest) {
  const float most = 3.4028235e38f;
  float multiplier = high / largest;
  return largest == 0 ? 0 : multiplier > most ? most : multiplier;
}
template <class Q>
NPU_LANES_INLINE float dynamic_multiplier(float largest) {
  return dynamic_multiplier(QuantizedRange<Q>::kHigh, largest);
}

/* What the quantised values have to be multiplied with. */
template <class Q>
NPU_LANES_INLINE float dynamic_scale(float largest) {
  return largest / QuantizedRange<Q>::kHigh;
}

/* For quantisers of two passes: what to do beside the second, ahead(i).  By default nothing; prefetching the next row
 * keeps the memory busy (rows.h). */
struct NothingAhead {
  NPU_LANES_INLINE void operator()(int64_t) const {}
};

/* Quantises a row by its largest magnitude and returns the scale, with value(i) ~ y[i] * scale.  Calls value() twice
 * for every i: compute expensive ones into a buffer first. */
template <class Q, class Value, class Ahead = NothingAhead>
NPU_LANES_INLINE float quantize_row_dynamic(void* y, int64_t columns, Value value, Ahead ahead = {}) {
  float largest = absolute_max_row(columns, value);
  Floats multiplier = broadcast(dynamic_multiplier<Q>(largest));
  quantize_row<Q>(y, columns, [=](int64_t i, int64_t count) NPU_LANES_BODY {
    ahead(i);
    return value(i, count) * multiplier;
  });
  return dynamic_scale<Q>(largest);
}

/* ---- asymmetric ----------------------------------------------------------------------------------------------- */

/* value ~ (y - offset) * scale; the offset is not rounded. */
struct AffineScale {
  float scale, offset;
};

template <class Q>
NPU_LANES_INLINE AffineScale asymmetric_scale(float least, float largest) {
  const float range = QuantizedRange<Q>::kHigh - QuantizedRange<Q>::kLow;
  if (largest < least) least = largest = 0; /* there were no values */
  float scale = (largest - least) / range;
  if (!(scale > 1e-12f)) scale = 1e-12f;
  return {scale, QuantizedRange<Q>::kHigh - largest / scale};
}

/* y[i] = saturate(rint(value(i) / scale + offset)) with the division as a multiplication by 1 / scale. */
template <class Q, class Value, class Ahead = NothingAhead>
NPU_LANES_INLINE AffineScale quantize_row_asymmetric(void* y, int64_t columns, Value value, Ahead ahead = {}) {
  float least, largest;
  min_max_row(columns, value, &least, &largest);
  AffineScale result = asymmetric_scale<Q>(least, largest);
  Floats multiplier = broadcast(1.0f / result.scale), offset = broadcast(result.offset);
  quantize_row<Q>(y, columns, [=](int64_t i, int64_t count) NPU_LANES_BODY {
    ahead(i);
    return multiply_then_add(value(i, count), multiplier, offset);
  });
  return result;
}

}  // namespace
}  // namespace kernels
}  // namespace npu

#endif /* NPU_KERNELS_QUANTIZE_ROWS_H_ */
