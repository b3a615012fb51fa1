/* The work of the rotary embeddings as flat arguments, and the table of their kernels. */
#ifndef NPU_OPS_LLM_KERNELS_ROTARY_H_
#define NPU_OPS_LLM_KERNELS_ROTARY_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"
#include "npu/kernels/strided.h"

enum RotaryMode {
  ROTARY_HALF,
  ROTARY_INTERLEAVE,
  ROTARY_QUARTER,
  ROTARY_DEINTERLEAVE, /* of neighbours into halves */
  ROTARY_HALF_TRANSPOSED,
  ROTARY_INTERLEAVE_TRANSPOSED,
  ROTARY_GIVEN /* y = x * cos + turned * sin */
};

/* `rows` rows, of which the first `columns` elements are rotated; all of `dtype`.  y may be x except with
 * ROTARY_DEINTERLEAVE. */
struct RotaryRows {
  npu_strided x, cos, sin, y;
  npu_strided turned; /* ROTARY_GIVEN only */
  int64_t rows, columns;
  npu_dtype dtype;
  int32_t mode;
};

/* Gradients of x, cos and sin.  A group is the rows that share one row of cos and sin; in the views its rows follow
 * each other.  The sums over a group are formed in `parts` partial sums whose rows depend on the shape only, so the
 * result is the same for every number of threads. */
struct RotaryBackward {
  npu_strided grad, x, cos, sin, dx;
  void *dcos, *dsin; /* groups x columns, contiguous */
  float* partials;   /* groups x parts x 2 x columns */
  int64_t groups, rows_per_group, parts, columns;
  npu_dtype dtype;
  int32_t mode; /* ROTARY_HALF or ROTARY_INTERLEAVE */
};

struct RotaryKernels {
  void (*rotate)(const RotaryRows* work, int64_t row_begin, int64_t row_end);
  /* dx and the partial sums of some parts; part p of group g has the number g * parts + p. */
  void (*backward)(const RotaryBackward* work, int64_t part_begin, int64_t part_end);
  /* dcos and dsin of some groups from the partial sums. */
  void (*sum_partials)(const RotaryBackward* work, int64_t group_begin, int64_t group_end);
};

extern const RotaryKernels rotary_kernels_base;
#if defined(__x86_64__)
extern const RotaryKernels rotary_kernels_avx2;
extern const RotaryKernels rotary_kernels_avx512;
extern const RotaryKernels rotary_kernels_avx512_bf16;
#endif

#endif /* NPU_OPS_LLM_KERNELS_ROTARY_H_ */
