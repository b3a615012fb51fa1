/* The work of npu_top_k_top_p as flat arguments, and the table of its kernels. */
#ifndef NPU_OPS_LLM_KERNELS_TOP_K_TOP_P_H_
#define NPU_OPS_LLM_KERNELS_TOP_K_TOP_P_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"
#include "npu/kernels/strided.h"

/* `rows` rows of `columns` logits.  The rows are shared out over `parts`, each of which has scratch memory. */
struct TopKTopP {
  npu_strided logits; /* dtype */
  const void* p;      /* p_dtype, one per row, or NULL */
  const void* k;      /* k_dtype (int32 or int64), one per row, or NULL */
  void* y;            /* dtype */
  float* scratch;     /* parts times scratch_stride floats */
  int64_t rows, columns, parts, scratch_stride;
  npu_dtype dtype, p_dtype, k_dtype;
};

struct TopKTopPKernels {
  /* Floats of scratch memory that a part needs. */
  int64_t (*scratch_floats)(int64_t columns);
  void (*filter)(const TopKTopP* work, int64_t part_begin, int64_t part_end);
};

extern const TopKTopPKernels top_k_top_p_kernels_base;
#if defined(__x86_64__)
extern const TopKTopPKernels top_k_top_p_kernels_avx2;
extern const TopKTopPKernels top_k_top_p_kernels_avx512;
extern const TopKTopPKernels top_k_top_p_kernels_avx512_bf16;
#endif

#endif /* NPU_OPS_LLM_KERNELS_TOP_K_TOP_P_H_ */
