/* npu/kernels/row_groups.h: groups of consecutive rows given by their cumulative ends, "group i owns the rows
 * [ends[i - 1], ends[i])".  Plain C for kernel files and ops. */
#ifndef NPU_KERNELS_ROW_GROUPS_H_
#define NPU_KERNELS_ROW_GROUPS_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"

typedef struct npu_row_groups {
  const void* ends; /* int32 or int64, NULL when there are no groups */
  int64_t count;
  npu_dtype dtype;
} npu_row_groups;

static inline int64_t npu_group_end(const npu_row_groups* groups, int64_t group) {
  return groups->dtype == NPU_INT64 ? ((const int64_t*)groups->ends)[group] : ((const int32_t*)groups->ends)[group];
}

/* The group of a row, or `count` when all groups end before it.  Ends must not decrease; if they do the answer is some
 * group, never one that does not exist. */
static inline int64_t npu_group_of_row(const npu_row_groups* groups, int64_t row) {
  int64_t low = 0, high = groups->count;
  while (low < high) {
    int64_t middle = low + (high - low) / 2;
    if (npu_group_end(groups, middle) > row) high = middle;
    else low = middle + 1;
  }
  return low;
}

/* The first group that ends before its predecessor or behind the last of `rows` rows, or `count`. */
static inline int64_t npu_first_wrong_group(const npu_row_groups* groups, int64_t rows) {
  int64_t before = 0;
  for (int64_t group = 0; group < groups->count; ++group) {
    int64_t end = npu_group_end(groups, group);
    if (end < before || end > rows) return group;
    before = end;
  }
  return groups->count;
}

#endif /* NPU_KERNELS_ROW_GROUPS_H_ */
