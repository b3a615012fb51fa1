/* Rows of tokens on their way to experts and back, as flat arguments, and the table of their kernels.
 *
 * A slot is one copy of one token, for one of its experts; an index says in which row the copy lies.
 */
#ifndef NPU_OPS_LLM_KERNELS_MOE_ROWS_H_
#define NPU_OPS_LLM_KERNELS_MOE_ROWS_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"

/* Copies row t of `tokens` to every row index[t * ranks + k] of `out`; rows from row_limit on are dropped.  With
 * `gather` the other way round: row i of `out` is row index[i] of `tokens`. */
struct MoeCopy {
  const void* tokens;
  const int32_t* index;
  void* out;
  int64_t row_bytes, ranks, row_limit;
  int32_t stream; /* go past the cache: the output is larger than it */
};

/* Weighted sums of rows: out[t] = skip1[t] + skip2[t] + sum over t's slots of weight * (row + bias row). */
struct MoeCombine {
  const void* rows;
  const void* index;   /* slot -> row, int32 or int64; other rows than 0 .. row_count - 1 count as zeros */
  const void* weights; /* NULL: 1 */
  const void* skip1;
  const void* skip2;
  const void* bias;       /* experts x columns */
  const void* experts;    /* t * ranks + k -> row of bias, int32 or int64 */
  const int32_t* offsets; /* slots of t are offsets[t] .. offsets[t + 1] - 1 and weights go by row, or NULL: */
  void* out;
  int64_t row_count, columns, ranks;
  int64_t token_step, rank_step; /* ... slots of t are t * token_step + k * rank_step and weights go by t * ranks + k */
  npu_dtype dtype, out_dtype, index_dtype, weights_dtype, experts_dtype;
};

/* The gradient of the above: out[index[slot]] = weight * upstream[token of slot], and the gradient of the weight, the
 * product of upstream[token] with rows[index[slot]].  Weights and products go by slot. */
struct MoeSpread {
  const void* upstream; /* upstream_dtype */
  const void* rows;     /* dtype, or NULL: no products */
  const void* index;    /* as above; NULL: every slot has the row of its number */
  const int32_t* token; /* slot -> token, or NULL: slot / ranks */
  const void* weights;  /* NULL: 1 */
  const int32_t* first; /* row -> its first slot or -1 */
  const int32_t* next;  /* slot -> next slot of its row or -1 */
  void* out;            /* dtype, row_count x columns */
  void* products;       /* products_dtype */
  int64_t row_count, columns, ranks;
  npu_dtype dtype, upstream_dtype, index_dtype, weights_dtype, products_dtype;
  int32_t stream; /* as above; every row of `out` is aligned to 64 bytes */
};

struct MoeRowsKernels {
  void (*expand)(const MoeCopy* work, int64_t token_begin, int64_t token_end);
  void (*gather)(const MoeCopy* work, int64_t row_begin, int64_t row_end);
  void (*combine)(const MoeCombine* work, int64_t token_begin, int64_t token_end);
  /* Products of some slots, and the rows of `out` that have one slot only. */
  void (*spread)(const MoeSpread* work, int64_t slot_begin, int64_t slot_end);
  /* The rows that have no slot, or several. */
  void (*spread_rest)(const MoeSpread* work, int64_t row_begin, int64_t row_end);
};

extern const MoeRowsKernels moe_rows_kernels_base;
#if defined(__x86_64__)
extern const MoeRowsKernels moe_rows_kernels_avx2;
extern const MoeRowsKernels moe_rows_kernels_avx512;
extern const MoeRowsKernels moe_rows_kernels_avx512_bf16;
#endif

#endif /* NPU_OPS_LLM_KERNELS_MOE_ROWS_H_ */
