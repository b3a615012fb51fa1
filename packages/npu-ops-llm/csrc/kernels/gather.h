/* The gradient of npu_gather_sparse_index as flat arguments, and the table of its kernels. */
#ifndef NPU_OPS_LLM_KERNELS_GATHER_H_
#define NPU_OPS_LLM_KERNELS_GATHER_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"

/* Row r of `out` is the sum of the rows order[offsets[r]] ... order[offsets[r + 1] - 1] of `grad`, in this order. */
struct GatherBackward {
  const void* grad;
  void* out;
  const int64_t* offsets; /* rows + 1 */
  const int64_t* order;
  int64_t rows, columns; /* a complex element is two columns */
  npu_dtype dtype;       /* of one column */
};

struct GatherKernels {
  /* Zeros for the rows that no row of `grad` goes to. */
  void (*clear_rows)(const GatherBackward* work, int64_t row_begin, int64_t row_end);
  /* The other rows. */
  void (*sum_rows)(const GatherBackward* work, int64_t row_begin, int64_t row_end, int64_t column_begin,
                   int64_t column_end);
};

extern const GatherKernels gather_kernels_base;
#if defined(__x86_64__)
extern const GatherKernels gather_kernels_avx2;
extern const GatherKernels gather_kernels_avx512;
extern const GatherKernels gather_kernels_avx512_bf16;
#endif

#endif /* NPU_OPS_LLM_KERNELS_GATHER_H_ */
