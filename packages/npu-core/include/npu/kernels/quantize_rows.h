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
template <>
struct QuantizedRow<Int4> {
  static NPU_LANES_INLINE void store(void* row, int64_t i, Floats value, int64_t count) {
    store_int4((uint8_t*)row + i / 2, value, count);
  }
  static NPU_LANES_INLINE Floats load(const void* row, int64_t i, int64_t count) {
    return load_int4((const uint8_t*)row + i / 2, count);
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

/* What values are multiplied with when the largest magnitude is `largest`.  A row of zeros becomes zeros. */
template <class Q>
NPU_LANES_INLINE float dynamic_multiplier(float largest) {
  return largest == 0 ? 0 : QuantizedRange<Q>::kHigh / largest;
}

/* What the quantised values have to be multiplied with. */
template <class Q>
NPU_LANES_INLINE float dynamic_scale(float largest) {
  return largest / QuantizedRange<Q>::kHigh;
}

/* Quantises a row by its largest magnitude and returns the scale, with value(i) ~ y[i] * scale.  Calls value() twice
 * for every i: compute expensive ones into a buffer first. */
template <class Q, class Value>
NPU_LANES_INLINE float quantize_row_dynamic(void* y, int64_t columns, Value value) {
  float largest = absolute_max_row(columns, value);
  Floats multiplier = broadcast(dynamic_multiplier<Q>(largest));
  quantize_row<Q>(y, columns, [=](int64_t i, int64_t count) NPU_LANES_BODY { return value(i, count) * multiplier; });
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
template <class Q, class Value>
NPU_LANES_INLINE AffineScale quantize_row_asymmetric(void* y, int64_t columns, Value value) {
  float least, largest;
  min_max_row(columns, value, &least, &largest);
  AffineScale result = asymmetric_scale<Q>(least, largest);
  Floats multiplier = broadcast(1.0f / result.scale), offset = broadcast(result.offset);
  quantize_row<Q>(y, columns, [=](int64_t i, int64_t count) NPU_LANES_BODY {
    return multiply_then_add(value(i, count), multiplier, offset);
  });
  return result;
}

}  // namespace
}  // namespace kernels
}  // namespace npu

#endif /* NPU_KERNELS_QUANTIZE_ROWS_H_ */
