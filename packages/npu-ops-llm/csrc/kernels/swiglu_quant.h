/* The work of npu_swiglu_quant and npu_dequant_swiglu_quant as flat arguments, and the table of their kernels. */
#ifndef NPU_OPS_LLM_KERNELS_SWIGLU_QUANT_H_
#define NPU_OPS_LLM_KERNELS_SWIGLU_QUANT_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"
#include "npu/kernels/strided.h"

/* A value per group, or per group and column.  float16, bfloat16, float32 or int32. */
struct GroupParameter {
  const void* data;    /* NULL: not given */
  int64_t group_step;  /* elements from one group to the next, 0 when all groups share the values */
  int64_t column_step; /* 1, or 0 when all columns share the value */
  npu_dtype dtype;
};

enum { ROUND_EVEN, ROUND_AWAY, ROUND_FLOOR, ROUND_CEIL, ROUND_TRUNC };

/* Each row of x makes `columns` values u f(...) w and quantises them. */
struct SwigluQuantWork {
  npu_strided x;   /* rows of 2 * columns, each contiguous */
  npu_dtype dtype; /* float16, bfloat16, float32; int32 is dequantised first */
  int64_t rows, columns;

  /* Group g owns the rows from the end of group g - 1 to its own end.  NULL: one group owns all. */
  const void* group_list;
  npu_dtype group_dtype;  /* int32 or int64 */
  int32_t group_is_count; /* the list holds row counts, else ends of rows */
  int64_t groups;

  /* int32 x: (x + bias) weight_scale activation_scale with an int32 bias, x weight_scale activation_scale + bias with a
   * float one.  Both parameters are rows of 2 * columns. */
  struct GroupParameter weight_scale, bias;
  const float* activation_scale; /* one per row, or NULL */

  int32_t interleaved;   /* u = r[0::2], w = r[1::2]; else halves */
  int32_t activate_left; /* u is the left half, else the right one */
  int32_t clamped;       /* u clipped from above and w from both sides: u sigmoid(alpha u) (w + bias); else silu(u) w */
  float clamp_limit, glu_alpha, glu_bias;

  struct GroupParameter factor;  /* multiplies */
  struct GroupParameter divisor; /* divides */
  struct GroupParameter offset;  /* is added last */

  int32_t dynamic;          /* scale rows so that the largest magnitude becomes `largest` */
  int32_t reciprocal_scale; /* `scale` holds largest / max, else max / largest */
  float largest;
  int32_t round_mode;
  npu_dtype y_dtype; /* int8, quint4x2 (two values per byte), float8_e4m3fn or float8_e5m2 */
  void* y;
  float* scale; /* one per row; 0 where the quantisation is static */
};

struct SwigluQuantKernels {
  void (*quantize)(const struct SwigluQuantWork* work, int64_t row_begin, int64_t row_end);
};

extern const SwigluQuantKernels swiglu_quant_kernels_base;
#if defined(__x86_64__)
extern const SwigluQuantKernels swiglu_quant_kernels_avx2;
extern const SwigluQuantKernels swiglu_quant_kernels_avx512;
extern const SwigluQuantKernels swiglu_quant_kernels_avx512_bf16;
#endif

#endif /* NPU_OPS_LLM_KERNELS_SWIGLU_QUANT_H_ */
