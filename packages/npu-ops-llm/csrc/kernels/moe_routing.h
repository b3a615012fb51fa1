/* The vector work of the routing operators of mixtures of experts: copies of rows, and rows quantised on the way. */
#ifndef NPU_OPS_LLM_KERNELS_MOE_ROUTING_H_
#define NPU_OPS_LLM_KERNELS_MOE_ROUTING_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"

/* How expanded rows are stored. */
enum {
  NPU_ROUTE_COPY,        /* as they are */
  NPU_ROUTE_STATIC_INT8, /* clip(rint(r * scale + offset)) in float16 */
  NPU_ROUTE_INT8,        /* rint(r / d) with d = max|r| / 127 of the row */
  NPU_ROUTE_INT4,        /* the same with 7, two values per byte */
  NPU_ROUTE_MX,          /* float8, an e8m0 scale for every 32 columns */
  NPU_ROUTE_POWER,       /* float8, a power of two as float32 for every 128 columns */
  NPU_ROUTE_LINEAR       /* float8, max|r| / largest as float32 for every 128 columns */
};

/* Token t goes to the rows targets[t * k + j] for j < k that are in [0, limit). */
struct MoeQuantise {
  const void* x; /* dtype: tokens x columns */
  const int32_t* targets;
  const int32_t* experts; /* as targets; row experts[..] - first_expert of `smooth` belongs to the slot */
  const float* smooth;    /* smooth_rows x columns; STATIC_INT8: one number */
  const float* offset;    /* STATIC_INT8: one number */
  void* rows;             /* row_bytes each */
  void* scales;           /* scale_bytes per row */
  int64_t columns, k, limit, row_bytes, scale_bytes, first_expert;
  int64_t smooth_rows; /* 0: none, 1: one for all, else one per expert */
  float least;         /* max|r| of a block counts as at least this */
  int32_t format, streamed;
  npu_dtype dtype, out; /* out: of the float8 formats */
};

struct MoeRoutingKernels {
  /* `streamed` writes past the caches; the caller fences. */
  void (*copy)(void* to, const void* from, int64_t bytes, int32_t streamed);
  void (*quantise)(const MoeQuantise* work, int64_t token_begin, int64_t token_end);
};

extern const MoeRoutingKernels moe_routing_kernels_base;
#if defined(__x86_64__)
extern const MoeRoutingKernels moe_routing_kernels_avx2;
extern const MoeRoutingKernels moe_routing_kernels_avx512;
extern const MoeRoutingKernels moe_routing_kernels_avx512_bf16;
#endif

#endif /* NPU_OPS_LLM_KERNELS_MOE_ROUTING_H_ */
