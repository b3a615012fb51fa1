/* The work of the gated activations as flat arguments, and the table of their kernels. */
#ifndef NPU_OPS_LLM_KERNELS_GLU_H_
#define NPU_OPS_LLM_KERNELS_GLU_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"
#include "npu/kernels/strided.h"

enum { GLU_SILU, GLU_GELU, GLU_GELU_TANH };

/* y = f(a) b, where a row of x is a, then b, `columns` elements each. */
struct GluForward {
  npu_strided x;
  void* y; /* contiguous rows of `columns` */
  int64_t columns;
  npu_dtype dtype;
  int32_t kind;
  int64_t bytes; /* of x and y */
};

/* Of GLU_SILU. */
struct GluBackward {
  npu_strided dy; /* rows of `columns` */
  npu_strided x;
  void* dx; /* contiguous rows of 2 * columns */
  int64_t columns;
  npu_dtype dtype;
  int64_t bytes; /* of dy, x and dx */
};

/* Elements [begin, end) of y, counted over the rows, and of both halves of dx. */
struct GluKernels {
  void (*forward)(const GluForward* work, int64_t begin, int64_t end);
  void (*backward)(const GluBackward* work, int64_t begin, int64_t end);
};

extern const GluKernels glu_kernels_base;
#if defined(__x86_64__)
extern const GluKernels glu_kernels_avx2;
extern const GluKernels glu_kernels_avx512;
extern const GluKernels glu_kernels_avx512_bf16;
#endif

#endif /* NPU_OPS_LLM_KERNELS_GLU_H_ */
