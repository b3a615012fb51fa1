/* The work of the gating operators of mixtures of experts as flat arguments, and the table of their kernels. */
#ifndef NPU_OPS_LLM_KERNELS_MOE_GATING_H_
#define NPU_OPS_LLM_KERNELS_MOE_GATING_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"

/* How scores become probabilities (norm_type). */
enum { NPU_GATE_SOFTMAX = 0, NPU_GATE_SIGMOID = 1, NPU_GATE_SQRT_SOFTPLUS = 2 };

/* Up to this many experts the kernels need no scratch memory (NULL). */
enum { NPU_STACK_EXPERTS = 1024 };

/* Elements (of 4 bytes) of scratch memory for one block of rows. */
static inline int64_t npu_gating_scratch(int64_t experts) { return 5 * ((experts + 15) / 16 * 16); }

/* The rows are worked off in `blocks` blocks, each with scratch memory of its own; k is at most `experts`. */
struct MoeGatingSoftmax {
  const void* x;           /* dtype: rows x experts */
  const uint8_t* finished; /* rows, or NULL */
  void* y;                 /* dtype: rows x k */
  int32_t* expert_idx;     /* rows x k */
  int32_t* row_idx;        /* rows x k, or NULL */
  float* probabilities;    /* rows x experts, or NULL */
  int32_t* scratch;        /* blocks x npu_gating_scratch(experts) */
  int64_t rows, experts, k, blocks;
  int32_t softmax_of_selected; /* top-k of the scores, then softmax of those */
  npu_dtype dtype;
};

struct MoeGatingTopK {
  const void* x;    /* dtype: rows x experts */
  const void* bias; /* dtype: experts, or NULL */
  const void* ids;  /* id_dtype: rows, or NULL */
  const void* map;  /* map_dtype: map_rows x k, or NULL */
  void* y;          /* dtype: rows x k */
  int32_t* expert_idx;
  float* probabilities; /* rows x experts */
  int32_t* scratch;
  int64_t rows, experts, k, blocks, map_rows;
  int64_t groups, selected_groups;
  int32_t norm_type, sum_of_two, normalised;
  float factor, eps;
  npu_dtype dtype, id_dtype, map_dtype;
};

struct MoeGatingTopKBackward {
  const float* probabilities; /* rows x experts */
  const void* dy;             /* dtype: rows x k */
  const int32_t* expert_idx;  /* rows x k */
  void* dx;                   /* dtype: rows x experts */
  int32_t* scratch;
  int64_t rows, experts, k, blocks;
  int32_t norm_type, normalised;
  float factor, eps;
  npu_dtype dtype;
};

/* An index that points nowhere: `row` is -1 while all were good. */
struct MoeBadIndex {
  int64_t row, value;
  int32_t in_map; /* the value stood in the map, not in the ids */
};

struct MoeGatingKernels {
  void (*softmax)(const MoeGatingSoftmax* work, int64_t block_begin, int64_t block_end);
  void (*top_k)(const MoeGatingTopK* work, int64_t block_begin, int64_t block_end, MoeBadIndex* bad);
  void (*top_k_backward)(const MoeGatingTopKBackward* work, int64_t block_begin, int64_t block_end, MoeBadIndex* bad);
};

extern const MoeGatingKernels moe_gating_kernels_base;
#if defined(__x86_64__)
extern const MoeGatingKernels moe_gating_kernels_avx2;
extern const MoeGatingKernels moe_gating_kernels_avx512;
extern const MoeGatingKernels moe_gating_kernels_avx512_bf16;
#endif

#endif /* NPU_OPS_LLM_KERNELS_MOE_GATING_H_ */
