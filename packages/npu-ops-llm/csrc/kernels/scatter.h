/* The quantiser of npu_quant_scatter as flat arguments, and the table of its kernels. */
#ifndef NPU_OPS_LLM_KERNELS_SCATTER_H_
#define NPU_OPS_LLM_KERNELS_SCATTER_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"

/* What rows of updates are quantised with; one scale and one zero point per column. */
struct QuantScatterRows {
  const void* scales;      /* float32 or bfloat16 */
  const void* zero_points; /* int32 or bfloat16; NULL: none */
  int64_t columns;
  int64_t step; /* elements from one column of self to the next */
  npu_dtype dtype, scales_dtype, zero_points_dtype;
};

struct ScatterKernels {
  /* clip(rint(from / scale + zero_point)) of `count` rows of updates; strides in bytes. */
  void (*quantise)(const QuantScatterRows* rows, char* to, int64_t to_stride, const char* from, int64_t from_stride,
                   int64_t count);
};

extern const ScatterKernels scatter_kernels_base;
#if defined(__x86_64__)
extern const ScatterKernels scatter_kernels_avx2;
extern const ScatterKernels scatter_kernels_avx512;
extern const ScatterKernels scatter_kernels_avx512_bf16;
#endif

#endif /* NPU_OPS_LLM_KERNELS_SCATTER_H_ */
