/* The work of npu_group_norm_silu and npu_group_norm_swish as flat arguments, and the table of their kernels. */
#ifndef NPU_OPS_LLM_KERNELS_GROUP_NORM_H_
#define NPU_OPS_LLM_KERNELS_GROUP_NORM_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"

/* Contiguous (samples, groups, channels of a group, spatial).  Statistics of one (sample, group) each:
 * z = (input - mean) * rstd * weight + bias, out = z * sigmoid(swish_scale * z). */
struct GroupNormShape {
  int64_t samples, groups, channels, spatial;
};

struct GroupNormForward {
  const void* input;  /* dtype */
  const void* weight; /* parameter_dtype, groups * channels; NULL is 1 */
  const void* bias;   /* parameter_dtype, groups * channels; NULL is 0 */
  void* out;          /* dtype */
  void *mean, *rstd;  /* statistic_dtype, samples * groups */
  struct GroupNormShape shape;
  float eps, swish_scale;
  npu_dtype dtype, parameter_dtype, statistic_dtype;
};

struct GroupNormBackward {
  const void *grad, *input;       /* dtype */
  const void *weight, *bias;      /* parameter_dtype */
  const void *mean, *rstd;        /* statistic_dtype */
  void* dx;                       /* dtype */
  float *bias_sums, *weight_sums; /* samples x (groups * channels): the sums over `spatial` */
  void *dweight, *dbias;          /* parameter_dtype */
  struct GroupNormShape shape;
  float swish_scale;
  npu_dtype dtype, parameter_dtype, statistic_dtype;
  int32_t wants_dweight, wants_dbias; /* the unwanted is filled with zeros */
};

struct GroupNormKernels {
  /* Of groups counted over all samples. */
  void (*forward)(const GroupNormForward* work, int64_t group_begin, int64_t group_end);
  /* dx and the sums of the groups' channels. */
  void (*backward)(const GroupNormBackward* work, int64_t group_begin, int64_t group_end);
  /* dweight and dbias of some channels from the sums. */
  void (*sum_samples)(const GroupNormBackward* work, int64_t channel_begin, int64_t channel_end);
};

extern const GroupNormKernels group_norm_kernels_base;
#if defined(__x86_64__)
extern const GroupNormKernels group_norm_kernels_avx2;
extern const GroupNormKernels group_norm_kernels_avx512;
extern const GroupNormKernels group_norm_kernels_avx512_bf16;
#endif

#endif /* NPU_OPS_LLM_KERNELS_GROUP_NORM_H_ */
