/* npu/kernels/min_max_rows.h: the range of a row, for kernel files (see lanes.h for what may stand in one). */
#ifndef NPU_KERNELS_MIN_MAX_ROWS_H_
#define NPU_KERNELS_MIN_MAX_ROWS_H_

#include "npu/kernels/math_lanes.h"
#include "npu/kernels/rows.h"

namespace npu {
namespace kernels {
namespace {

/* Smallest and largest value of a row; NaN is skipped, of no values +infinity and -infinity. */
template <class Value>
NPU_LANES_INLINE void min_max_row(int64_t columns, Value value, float* least, float* largest) {
  Floats low0 = broadcast(INFINITY), low1 = low0, high0 = broadcast(-INFINITY), high1 = high0;
  int64_t i = 0;
  for (; i + 2 * kLanes <= columns; i += 2 * kLanes) {
    Floats first = value(i, (int64_t)kLanes), second = value(i + kLanes, (int64_t)kLanes);
    low0 = minimum(low0, first), high0 = maximum(high0, first);
    low1 = minimum(low1, second), high1 = maximum(high1, second);
  }
  for (; i < columns; i += kLanes) {
    int64_t count = columns - i < kLanes ? columns - i : (int64_t)kLanes;
    Floats some = value(i, count);
    low0 = minimum(low0, count == kLanes ? some : first_lanes(some, count, INFINITY));
    high0 = maximum(high0, count == kLanes ? some : first_lanes(some, count, -INFINITY));
  }
  *least = -max_lanes(negate(minimum(low0, low1)));
  *largest = max_lanes(maximum(high0, high1));
}

}  // namespace
}  // namespace kernels
}  // namespace npu

#endif /* NPU_KERNELS_MIN_MAX_ROWS_H_ */
