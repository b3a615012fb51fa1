/* npu/kernels/row_walk.h: the rows of a strided view one after the other.
 *
 * npu_row_offset() divides once per dim, which is more than the work on a short row (a head of 128 elements).  A walk
 * divides at its start only:
 *
 *   npu_row_walk walk = npu_walk_from(&view, row_begin);
 *   for (int64_t row = row_begin; row < row_end; ++row, npu_walk_next(&walk)) use((T*)view.data + walk.offset);
 *
 * Plain C for kernel files.
 */
#ifndef NPU_KERNELS_ROW_WALK_H_
#define NPU_KERNELS_ROW_WALK_H_

#include "npu/kernels/strided.h"

typedef struct npu_row_walk {
  const npu_strided* view;
  int64_t offset; /* of the current row, in elements */
  int64_t index[NPU_MAX_DIMS];
} npu_row_walk;

/* Stands on row number `row`. */
static inline npu_row_walk npu_walk_from(const npu_strided* view, int64_t row) {
  npu_row_walk walk;
  walk.view = view;
  walk.offset = 0;
  for (int32_t d = view->dims - 1; d >= 0; --d) {
    walk.index[d] = row % view->sizes[d];
    walk.offset += walk.index[d] * view->strides[d];
    row /= view->sizes[d];
  }
  return walk;
}

/* Goes to the next row; after the last one to the first. */
static inline void npu_walk_next(npu_row_walk* walk) {
  const npu_strided* view = walk->view;
  for (int32_t d = view->dims - 1; d >= 0; --d) {
    walk->offset += view->strides[d];
    if (++walk->index[d] < view->sizes[d]) return;
    walk->offset -= view->strides[d] * view->sizes[d];
    walk->index[d] = 0;
  }
}

#endif /* NPU_KERNELS_ROW_WALK_H_ */
