/* The work of npu_quantize, npu_group_quant, npu_anti_quant and npu_trans_quant_param as flat arguments, and the table
 * of their kernels. */
#ifndef NPU_OPS_LLM_KERNELS_QUANTIZE_H_
#define NPU_OPS_LLM_KERNELS_QUANTIZE_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"
#include "npu/kernels/row_groups.h"

/* How the scales of a row are found. */
enum NpuScaleLayout {
  NPU_SCALE_ONE,        /* one for everything */
  NPU_SCALE_PER_ROW,    /* row r has scale r % channels */
  NPU_SCALE_PER_COLUMN, /* one row of scales for all rows */
  NPU_SCALE_PER_GROUP   /* a row of scales for each group of rows */
};

/* y = saturate(rint(x * scale + offset)), or x / scale; `rows` contiguous rows of `columns` elements. */
struct Quantize {
  const void* x;       /* dtype */
  const void* scale;   /* scale_dtype: dtype or float32 */
  const float* offset; /* laid out as offset_layout says */
  void* y;             /* quantized_dtype */
  npu_row_groups groups;
  int64_t rows, columns, channels;
  npu_dtype dtype, scale_dtype, quantized_dtype;
  int32_t scale_layout, offset_layout;
  int32_t divide;
};

/* y = (x + offset) * scale; scale and offset are one value or one row. */
struct Dequantize {
  const void* x; /* quantized_dtype */
  const float* scale;
  const float* offset; /* NULL for 0 */
  void* y;             /* dtype */
  int64_t rows, columns;
  npu_dtype dtype, quantized_dtype;
  int32_t per_column;
};

/* The 64-bit parameter of matrix products: float32 bits of the scale with a mantissa of 10 bits, the offset in 9 bits
 * from bit 37 on, bit 46 set.  A step of 0 repeats the first value. */
struct PackScales {
  const float* scale;
  const float* offset; /* or NULL */
  int64_t* packed;
  int64_t scale_step, offset_step;
  int32_t round; /* else the mantissa is truncated */
};

struct QuantizeKernels {
  void (*quantize)(const Quantize* work, int64_t row_begin, int64_t row_end);
  void (*dequantize)(const Dequantize* work, int64_t row_begin, int64_t row_end);
  void (*pack_scales)(const PackScales* work, int64_t begin, int64_t end);
  /* to[begin..end) = float32 of `from`; dtype is any of the types that scales and offsets may have. */
  void (*widen)(const void* from, npu_dtype dtype, float* to, int64_t begin, int64_t end);
};

extern const QuantizeKernels quantize_kernels_base;
#if defined(__x86_64__)
extern const QuantizeKernels quantize_kernels_avx2;
extern const QuantizeKernels quantize_kernels_avx512;
extern const QuantizeKernels quantize_kernels_avx512_bf16;
#endif

#endif /* NPU_OPS_LLM_KERNELS_QUANTIZE_H_ */
