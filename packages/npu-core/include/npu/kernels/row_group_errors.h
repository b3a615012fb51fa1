/* npu/kernels/row_group_errors.h: the error of row groups that do not fit. */
#ifndef NPU_KERNELS_ROW_GROUP_ERRORS_H_
#define NPU_KERNELS_ROW_GROUP_ERRORS_H_

#include <cstdio>

#include "npu/kernels/row_groups.h"
#include "npu/runtime.h"

namespace npu::kernels {

/// For tasks: whether the ends of `groups`, the values of the argument group_index, fit a tensor of `rows` rows.  No
/// groups fit.
inline npu_status check_row_groups(const npu_row_groups& groups, int64_t rows, npu_error* error) {
  if (groups.ends == nullptr) return NPU_OK;
  int64_t wrong = npu_first_wrong_group(&groups, rows);
  if (wrong == groups.count) return NPU_OK;
  long long end = npu_group_end(&groups, wrong), before = wrong > 0 ? npu_group_end(&groups, wrong - 1) : 0;
  if (end < before) {
    std::snprintf(error->message, sizeof(error->message),
                  "argument group_index: expected row ends that do not decrease, got %lld for group %lld after %lld",
                  end, static_cast<long long>(wrong), before);
  } else {
    std::snprintf(
        error->message, sizeof(error->message),
        "argument group_index: expected row ends of at most %lld, the number of rows, got %lld for group %lld",
        static_cast<long long>(rows), end, static_cast<long long>(wrong));
  }
  return NPU_ERROR_INVALID_ARGUMENT;
}

}  // namespace npu::kernels

#endif  // NPU_KERNELS_ROW_GROUP_ERRORS_H_
