/* npu/kernels/rows.h: loops over rows of elements, for kernel files (see lanes.h for what may stand in one).
 *
 * A loop body is a lambda that gets (i, count): the index of the first of kLanes elements, of which only `count` exist
 * (count == kLanes except at the end of a row).  Mark such lambdas NPU_LANES_BODY, so that vectors stay in registers:
 *
 *   each_lanes(columns, [=](int64_t i, int64_t count) NPU_LANES_BODY {
 *     store_some(y + i, load_some(x + i, count) * scale, count);
 *   });
 */
#ifndef NPU_KERNELS_ROWS_H_
#define NPU_KERNELS_ROWS_H_

#include "npu/kernels/integer_lanes.h"

#define NPU_LANES_BODY __attribute__((always_inline))

namespace npu {
namespace kernels {
namespace {

/* The last, incomplete vector of a row; 0 <= count <= kLanes.  Never touches memory beyond `count` elements. */
template <class T>
NPU_LANES_INLINE Floats load_first(const T* from, int64_t count) {
  T buffer[kLanes];
  memset(buffer, 0, sizeof(buffer));
  for (int64_t i = 0; i < count; ++i) buffer[i] = from[i];
  return load(buffer);
}

template <class T>
NPU_LANES_INLINE void store_first(T* to, Floats value, int64_t count) {
  T buffer[kLanes];
  store(buffer, value);
  for (int64_t i = 0; i < count; ++i) to[i] = buffer[i];
}

template <class T>
NPU_LANES_INLINE Floats load_some(const T* from, int64_t count) {
  return count == kLanes ? load(from) : load_first(from, count);
}

template <class T>
NPU_LANES_INLINE void store_some(T* to, Floats value, int64_t count) {
  if (count == kLanes) store(to, value);
  else store_first(to, value, count);
}

/* The first `count` lanes of `value`, `filler` in the others. */
NPU_LANES_INLINE Floats first_lanes(Floats value, int64_t count, float filler) {
  float lane[kLanes];
  memcpy(lane, &value, sizeof(lane));
  for (int64_t i = count; i < kLanes; ++i) lane[i] = filler;
  memcpy(&value, lane, sizeof(lane));
  return value;
}

template <class Step>
NPU_LANES_INLINE void each_lanes(int64_t columns, Step step) {
  int64_t i = 0;
  for (; i + kLanes <= columns; i += kLanes) step(i, (int64_t)kLanes);
  if (i < columns) step(i, columns - i);
}

/* Asks for element i of a row that comes next, once per cache line.  The second pass over a row runs from the cache and
 * would leave the memory idle: 0.95 ms instead of 1.1 ms for 2048 rows of 4096 bfloat16 on one core. */
template <class T>
NPU_LANES_INLINE void prefetch(const T* row, int64_t i) {
  if ((i & (int64_t)(64 / sizeof(T) - 1)) == 0) __builtin_prefetch(row + i);
}

/* Float32 sums lose a bit for every doubling of their length.  Sums of this many elements go to a double. */
const int64_t kSumLength = 8192;

/* Sum over one row of term(i, count); lanes beyond `count` must be 0.  Four accumulators hide the latency of the
 * additions. */
template <class Term>
NPU_LANES_INLINE double sum_row(int64_t columns, Term term) {
  double total = 0;
  int64_t i = 0;
  while (i + kLanes <= columns) {
    int64_t end = columns - i > kSumLength ? i + kSumLength : columns;
    Floats sum0{}, sum1{}, sum2{}, sum3{};
    for (; i + 4 * kLanes <= end; i += 4 * kLanes) {
      sum0 += term(i, (int64_t)kLanes);
      sum1 += term(i + kLanes, (int64_t)kLanes);
      sum2 += term(i + 2 * kLanes, (int64_t)kLanes);
      sum3 += term(i + 3 * kLanes, (int64_t)kLanes);
    }
    for (; i + kLanes <= end; i += kLanes) sum0 += term(i, (int64_t)kLanes);
    total += sum_lanes((sum0 + sum1) + (sum2 + sum3));
  }
  if (i < columns) total += sum_lanes(term(i, columns - i));
  return total;
}

/* Largest value(i, count) of one row and `least`; lanes beyond `count` must not exceed the rest.  NaN is skipped. */
template <class Value>
NPU_LANES_INLINE float max_row(int64_t columns, float least, Value value) {
  Floats max0 = broadcast(least), max1 = max0;
  int64_t i = 0;
  for (; i + 2 * kLanes <= columns; i += 2 * kLanes) {
    max0 = maximum(max0, value(i, (int64_t)kLanes));
    max1 = maximum(max1, value(i + kLanes, (int64_t)kLanes));
  }
  for (; i < columns; i += kLanes) max0 = maximum(max0, value(i, columns - i < kLanes ? columns - i : (int64_t)kLanes));
  return max_lanes(maximum(max0, max1));
}

/* Calls f(T{}) with the storage type of a floating dtype that the op has checked. */
template <class F>
NPU_LANES_INLINE void with_float_type(npu_dtype dtype, F f) {
  if (dtype == NPU_BFLOAT16) f(Bfloat16{});
  else if (dtype == NPU_FLOAT16) f(Float16{});
  else f(float{});
}

}  // namespace
}  // namespace kernels
}  // namespace npu

#endif /* NPU_KERNELS_ROWS_H_ */
