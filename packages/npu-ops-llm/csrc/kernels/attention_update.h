/* The work of npu_attention_update as flat arguments, and the table of its kernels. */
#ifndef NPU_OPS_LLM_KERNELS_ATTENTION_UPDATE_H_
#define NPU_OPS_LLM_KERNELS_ATTENTION_UPDATE_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"

enum { ATTENTION_UPDATE_PARTS = 64 };

/* Up to 64 parts of `rows` rows, all contiguous. */
struct AttentionUpdate {
  const float* lse[ATTENTION_UPDATE_PARTS]; /* one per row */
  const void* out[ATTENTION_UPDATE_PARTS];  /* dtype, `columns` per row */
  void* combined;                           /* dtype */
  float* combined_lse;                      /* one per row */
  int64_t parts, rows, columns;
  npu_dtype dtype;
};

struct AttentionUpdateKernels {
  void (*combine)(const AttentionUpdate* work, int64_t row_begin, int64_t row_end);
};

extern const AttentionUpdateKernels attention_update_kernels_base;
#if defined(__x86_64__)
extern const AttentionUpdateKernels attention_update_kernels_avx2, attention_update_kernels_avx512,
    attention_update_kernels_avx512_bf16;
#endif

#endif /* NPU_OPS_LLM_KERNELS_ATTENTION_UPDATE_H_ */
