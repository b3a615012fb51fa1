/* The work of npu_dynamic_quant and npu_dynamic_quant_asymmetric as flat arguments, and the table of its kernels. */
#ifndef NPU_OPS_LLM_KERNELS_DYNAMIC_QUANT_H_
#define NPU_OPS_LLM_KERNELS_DYNAMIC_QUANT_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"
#include "npu/kernels/row_groups.h"
#include "npu/kernels/strided.h"

enum { NPU_CHANNELS_PER_TILE = 256 };

/* `rows` rows of `columns` elements.  Per channel, every `length` rows are one matrix whose columns are reduced.
 * `offset` is NULL for symmetric quantisation. */
struct DynamicQuant {
  npu_strided input;     /* dtype */
  const void* smooth;    /* smooth_dtype: dtype or float32; NULL, one row, one row per group, or one value per row */
  npu_row_groups groups; /* of rows, by the rows of `smooth` */
  void* y;               /* quantized_dtype */
  float* scale;
  float* offset;
  float* ranges; /* per tensor: least and largest value of every row */
  int64_t rows, columns, length;
  npu_dtype dtype, smooth_dtype, quantized_dtype;
};

struct DynamicQuantKernels {
  void (*per_token)(const DynamicQuant* work, int64_t row_begin, int64_t row_end);
  /* Matrices times tiles of NPU_CHANNELS_PER_TILE columns. */
  void (*per_channel)(const DynamicQuant* work, int64_t tile_begin, int64_t tile_end);
  /* Per tensor in three steps: the range of every row, the scale, the values. */
  void (*row_ranges)(const DynamicQuant* work, int64_t row_begin, int64_t row_end);
  void (*scale_of_ranges)(const DynamicQuant* work);
  void (*quantize_by_scale)(const DynamicQuant* work, int64_t row_begin, int64_t row_end);
};

extern const DynamicQuantKernels dynamic_quant_kernels_base;
#if defined(__x86_64__)
extern const DynamicQuantKernels dynamic_quant_kernels_avx2;
extern const DynamicQuantKernels dynamic_quant_kernels_avx512;
extern const DynamicQuantKernels dynamic_quant_kernels_avx512_bf16;
#endif

#endif /* NPU_OPS_LLM_KERNELS_DYNAMIC_QUANT_H_ */
