/* The work of the activations as flat arguments, and the table of their kernels. */
#ifndef NPU_OPS_LLM_KERNELS_ACTIVATION_H_
#define NPU_OPS_LLM_KERNELS_ACTIVATION_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"
#include "npu/kernels/strided.h"

enum { ACTIVATION_FAST_GELU, ACTIVATION_GELU, ACTIVATION_GELU_TANH, ACTIVATION_SILU };

/* All tensors of one work have the same dtype and the same order of elements. */
struct ActivationForward {
  const void* x;
  void* y; /* may be x */
  npu_dtype dtype;
  int32_t kind;
  int64_t bytes; /* of all tensors */
};

struct ActivationBackward {
  const void* dy;
  const void* x;
  const void* y; /* ACTIVATION_SILU only */
  void* dx;
  npu_dtype dtype;
  int32_t kind;
  int64_t bytes; /* of all tensors */
};

/* Of a tensor with any strides, in place.  Rows have `columns` elements that are `step` apart. */
struct ActivationInPlace {
  npu_strided rows;
  int64_t columns, step;
  npu_dtype dtype;
  int32_t kind;
};

struct ActivationKernels {
  void (*forward)(const ActivationForward* work, int64_t begin, int64_t end);
  void (*backward)(const ActivationBackward* work, int64_t begin, int64_t end);
  void (*in_place)(const ActivationInPlace* work, int64_t row_begin, int64_t row_end);
};

extern const ActivationKernels activation_kernels_base;
#if defined(__x86_64__)
extern const ActivationKernels activation_kernels_avx2;
extern const ActivationKernels activation_kernels_avx512;
extern const ActivationKernels activation_kernels_avx512_bf16;
#endif

#endif /* NPU_OPS_LLM_KERNELS_ACTIVATION_H_ */
