/* The vector work of the MoE operators: rows quantised for the way to the experts, rows that come back summed up. */
#ifndef NPU_DISTRIBUTED_KERNELS_MOE_ROWS_H_
#define NPU_DISTRIBUTED_KERNELS_MOE_ROWS_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"

/* How a row travels. */
enum {
  NPU_MOE_COPY,         /* as it is */
  NPU_MOE_STATIC_INT8,  /* rint(x * smooth) */
  NPU_MOE_DYNAMIC_INT8, /* rint(x * smooth * 127 / m), m = max|x * smooth|; scale m / 127 */
  NPU_MOE_GROUP_FLOAT8, /* float8, a float32 scale for every 128 columns */
  NPU_MOE_MX_FLOAT8     /* float8, an e8m0 scale for every 32 columns */
};

struct MoeRowFormat {
  npu_dtype in, out;
  int32_t format;
  int64_t columns;
  int64_t row_bytes;
  int64_t scale_bytes; /* behind the row; 0: none */
};

/* One summand of a token: weight * row. */
struct MoeTerm {
  const void* row;
  float weight;
  npu_dtype dtype;
};

/* z = sum + residual; x = z rounded; y = z * rstd * gamma rounded; returns rstd = 1 / sqrt(mean(z^2) + epsilon). */
struct MoeNorm {
  float* sum; /* becomes z */
  const void* residual;
  const void* gamma;
  void* x;
  void* y;
  npu_dtype dtype; /* of all but sum */
  int64_t columns;
  double epsilon;
};

struct MoeRowsKernels {
  /* `smooth` may be NULL.  `scale` is only written by the formats that have one. */
  void (*quantise)(const struct MoeRowFormat* format, const void* x, const float* smooth, void* q, void* scale);
  /* out = sum over the terms in their order, every product and every sum rounded to float32. */
  void (*weighted_sum)(const struct MoeTerm* terms, int64_t count, int64_t columns, void* out, npu_dtype dtype);
  /* int8 in transit: columns bytes, and for every 8 of them (the last group may be shorter) a scale of type `dtype`. */
  void (*pack)(const void* row, npu_dtype dtype, int64_t columns, int8_t* q, void* scales);
  void (*unpack)(const int8_t* q, const void* scales, npu_dtype dtype, int64_t columns, void* row);
  /* out = p1 * x + p2 * v with (p1, p2) = softmax(<alpha1, x>, <alpha2, x>). */
  void (*gated)(const void* x, const void* alpha1, const void* alpha2, const void* v, npu_dtype dtype, int64_t columns,
                float* out);
  float (*add_rms_norm)(const struct MoeNorm* work);
};

extern const MoeRowsKernels moe_rows_kernels_base;
#if defined(__x86_64__)
extern const MoeRowsKernels moe_rows_kernels_avx2;
extern const MoeRowsKernels moe_rows_kernels_avx512;
#endif

#endif /* NPU_DISTRIBUTED_KERNELS_MOE_ROWS_H_ */
