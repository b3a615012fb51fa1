/* The work of npu_scaled_masked_softmax and npu_dropout_with_add_softmax as flat arguments, and their kernels. */
#ifndef NPU_OPS_LLM_KERNELS_SOFTMAX_H_
#define NPU_OPS_LLM_KERNELS_SOFTMAX_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"
#include "npu/kernels/strided.h"

enum SoftmaxMask {
  SOFTMAX_MASK_BYTES = 0, /* a byte per element, not 0 = masked */
  SOFTMAX_MASK_ROW = 1,   /* a byte per row */
  SOFTMAX_MASK_UPPER = 2  /* no bytes: what lies right of the diagonal of the last two dims */
};

struct SoftmaxMaskView {
  npu_strided rows; /* bytes */
  int32_t kind;     /* SoftmaxMask */
  int64_t height;   /* size of the last dim but one, for SOFTMAX_MASK_UPPER */
};

struct ScaledMaskedSoftmax {
  npu_strided x; /* dtype; rows contiguous */
  SoftmaxMaskView mask;
  void* y; /* dtype, contiguous */
  int64_t rows, columns;
  float scale;
  npu_dtype dtype;
};

/* All but the mask contiguous. */
struct ScaledMaskedSoftmaxBackward {
  const void* y_grad; /* dtype */
  const void* y;      /* dtype */
  SoftmaxMaskView mask;
  void* x_grad; /* dtype */
  int64_t rows, columns;
  float scale;
  npu_dtype dtype;
};

/* Everything contiguous.  Element i is kept when Philox word i of (seed, offset) is below `threshold`. */
struct DropoutAddSoftmax {
  const void* self; /* dtype */
  const void* x1;   /* dtype */
  uint8_t* keep;    /* 1 = kept */
  void* softmax;    /* dtype */
  void* out;        /* dtype */
  int64_t rows, columns;
  uint64_t seed, offset, threshold;
  float alpha, keep_scale; /* keep_scale: 1 / probability of being kept */
  npu_dtype dtype;
};

struct DropoutAddSoftmaxBackward {
  const void* grad; /* dtype */
  const uint8_t* keep;
  const void* softmax; /* dtype */
  void* self_grad;     /* dtype */
  void* x1_grad;       /* dtype */
  int64_t rows, columns;
  float alpha, keep_scale;
  npu_dtype dtype;
};

struct SoftmaxKernels {
  void (*scaled_masked)(const ScaledMaskedSoftmax* work, int64_t row_begin, int64_t row_end);
  void (*scaled_masked_backward)(const ScaledMaskedSoftmaxBackward* work, int64_t row_begin, int64_t row_end);
  void (*dropout_add)(const DropoutAddSoftmax* work, int64_t row_begin, int64_t row_end);
  void (*dropout_add_backward)(const DropoutAddSoftmaxBackward* work, int64_t row_begin, int64_t row_end);
};

extern const SoftmaxKernels softmax_kernels_base;
#if defined(__x86_64__)
extern const SoftmaxKernels softmax_kernels_avx2;
extern const SoftmaxKernels softmax_kernels_avx512;
extern const SoftmaxKernels softmax_kernels_avx512_bf16;
#endif

#endif /* NPU_OPS_LLM_KERNELS_SOFTMAX_H_ */
