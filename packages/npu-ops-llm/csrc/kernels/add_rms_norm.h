/* The work of the npu_add_rms_norm family as flat arguments, and the table of its kernels. */
#ifndef NPU_OPS_LLM_KERNELS_ADD_RMS_NORM_H_
#define NPU_OPS_LLM_KERNELS_ADD_RMS_NORM_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"
#include "npu/kernels/strided.h"

/* x = x1 + x2 rounded to dtype, rstd = 1 / sqrt(mean(x^2) + epsilon), y = x * rstd * gamma + beta. */
struct AddRmsNorm {
  npu_strided x1, x2; /* dtype; `rows` rows of `columns` contiguous elements */
  void* x;            /* dtype, contiguous; NULL: x goes into x2 and y into x1 */
  void* y;            /* dtype, contiguous */
  float* rstd;        /* one per row, or NULL */
  const void* gamma;  /* gamma_dtype: dtype or float32; one row */
  const void* beta;   /* gamma_dtype; one row, or NULL */
  int64_t rows, columns;
  float epsilon;
  npu_dtype dtype, gamma_dtype;
};

/* A row of parameters, or one element that stands for all columns; NULL where the op got None. */
struct RowParameter {
  const void* data;
  npu_dtype dtype; /* float16, bfloat16, float32 or int32 */
  int32_t single;
};

/* q = y / scales + zero_points, or y * scales + zero_points. */
struct StaticQuantBranch {
  void* q; /* quantised; without scales it is filled with zeros */
  struct RowParameter scales, zero_points;
};

struct AddRmsNormQuant {
  struct AddRmsNorm norm;
  struct StaticQuantBranch branches[2];
  npu_dtype quantised; /* int8, float8_e4m3fn or float8_e5m2 */
  int32_t divide;
};

/* v = y * smooth, scale = max |v| / largest, q = v * (largest / max |v|). */
struct DynamicQuantBranch {
  void* q;      /* quantised */
  float* scale; /* one per row; NULL: the branch is not wanted */
  struct RowParameter smooth;
};

struct AddRmsNormDynamicQuant {
  struct AddRmsNorm norm;
  struct DynamicQuantBranch branches[2];
  npu_dtype quantised; /* int8, quint4x2 (packed), float8_e4m3fn or float8_e5m2 */
  float largest;       /* of the quantised type */
};

struct AddRmsNormKernels {
  void (*forward)(const AddRmsNorm* work, int64_t row_begin, int64_t row_end);
  void (*quant)(const AddRmsNormQuant* work, int64_t row_begin, int64_t row_end);
  void (*dynamic_quant)(const AddRmsNormDynamicQuant* work, int64_t row_begin, int64_t row_end);
};

extern const AddRmsNormKernels add_rms_norm_kernels_base;
#if defined(__x86_64__)
extern const AddRmsNormKernels add_rms_norm_kernels_avx2;
extern const AddRmsNormKernels add_rms_norm_kernels_avx512;
extern const AddRmsNormKernels add_rms_norm_kernels_avx512_bf16;
#endif

#endif /* NPU_OPS_LLM_KERNELS_ADD_RMS_NORM_H_ */
