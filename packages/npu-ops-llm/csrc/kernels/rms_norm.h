/* The work of npu_rms_norm and npu_gemma_rms_norm as flat arguments, and the table of its kernels. */
#ifndef NPU_OPS_LLM_KERNELS_RMS_NORM_H_
#define NPU_OPS_LLM_KERNELS_RMS_NORM_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"

/* `rows` rows of `columns` elements, all contiguous. */
struct RmsNormForward {
  const void* self;  /* dtype */
  const void* gamma; /* gamma_dtype: dtype or float32; one row */
  void* y;           /* dtype */
  float* rstd;       /* one per row */
  int64_t rows, columns;
  float epsilon;
  float gamma_offset; /* y = self * rstd * (gamma_offset + gamma): 0, or 1 for npu_gemma_rms_norm */
  npu_dtype dtype, gamma_dtype;
};

/* dgamma is a sum over rows.  It is formed in `blocks` partial sums whose rows depend on the shape only, so the result
 * is the same for every number of threads. */
struct RmsNormBackward {
  const void* dy;    /* dtype */
  const void* self;  /* dtype */
  const void* gamma; /* gamma_dtype */
  const float* rstd;
  void* dx;        /* dtype */
  float* partials; /* blocks x columns */
  float* dgamma;   /* columns */
  int64_t rows, columns, blocks;
  npu_dtype dtype, gamma_dtype;
};

struct RmsNormKernels {
  void (*forward)(const RmsNormForward* work, int64_t row_begin, int64_t row_end);
  /* dx of the blocks' rows and the blocks' partial sums. */
  void (*backward)(const RmsNormBackward* work, int64_t block_begin, int64_t block_end);
  /* dgamma of some columns from the partial sums. */
  void (*sum_partials)(const RmsNormBackward* work, int64_t column_begin, int64_t column_end);
};

extern const RmsNormKernels rms_norm_kernels_base;
#if defined(__x86_64__)
extern const RmsNormKernels rms_norm_kernels_avx2;
extern const RmsNormKernels rms_norm_kernels_avx512;
extern const RmsNormKernels rms_norm_kernels_avx512_bf16;
#endif

#endif /* NPU_OPS_LLM_KERNELS_RMS_NORM_H_ */
