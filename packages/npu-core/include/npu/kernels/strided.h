/* npu/kernels/strided.h: rows of a tensor that is not contiguous, or that is broadcast.
 *
 * A view lists the leading dims; the innermost dims are the row and contiguous.  Plain C for kernel files; ops make
 * one with rows_of() (strided_tensor.h).
 */
#ifndef NPU_KERNELS_STRIDED_H_
#define NPU_KERNELS_STRIDED_H_

#include <stdint.h>

enum { NPU_MAX_DIMS = 8 };

/* Strides count elements; a broadcast dim has stride 0. */
typedef struct npu_strided {
  void* data;
  int32_t dims;
  int64_t sizes[NPU_MAX_DIMS], strides[NPU_MAX_DIMS];
} npu_strided;

/* Offset in elements of row number `row`, rows being counted in row-major order of the leading dims. */
static inline int64_t npu_row_offset(const npu_strided* view, int64_t row) {
  int64_t offset = 0;
  for (int32_t d = view->dims - 1; d >= 0; --d) {
    offset += row % view->sizes[d] * view->strides[d];
    row /= view->sizes[d];
  }
  return offset;
}

#endif /* NPU_KERNELS_STRIDED_H_ */
