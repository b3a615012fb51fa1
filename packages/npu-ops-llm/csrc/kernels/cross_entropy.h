/* The work of npu_cross_entropy_loss as flat arguments, and the table of its kernels. */
#ifndef NPU_OPS_LLM_KERNELS_CROSS_ENTROPY_H_
#define NPU_OPS_LLM_KERNELS_CROSS_ENTROPY_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"

enum CrossEntropyReduction { CROSS_ENTROPY_NONE = 0, CROSS_ENTROPY_SUM = 1, CROSS_ENTROPY_MEAN = 2 };

/* `rows` rows of `classes` elements, all contiguous.  A row with target == ignore_index counts for nothing when
 * ignore_index >= 0; the targets of the others are valid. */
struct CrossEntropyForward {
  const void* input; /* dtype */
  const int64_t* target;
  const float* weight; /* one per class, or NULL */
  void* log_prob;      /* dtype */
  float* losses;       /* one per row */
  float* lses;         /* one per row: logarithm of the sum of the exponentials */
  void* loss;          /* dtype; one per row or one */
  void* zloss;         /* dtype; as loss, or NULL */
  void* lse;           /* dtype; one per row, or NULL */
  int64_t rows, classes, ignore_index;
  float smoothing, zloss_scale;
  int32_t reduction; /* CrossEntropyReduction */
  npu_dtype dtype;
};

struct CrossEntropyBackward {
  const void* grad_loss; /* dtype; one, or one per row with grad_step = 1 */
  const void* log_prob;  /* dtype */
  const int64_t* target;
  const float* weight;    /* one per class, or NULL */
  const void* grad_zloss; /* dtype, or NULL; as grad_loss with grad_zloss_step */
  const void* lse;        /* dtype; one per row, or NULL without grad_zloss */
  void* grad;             /* dtype */
  int64_t rows, classes, ignore_index, grad_step, grad_zloss_step;
  float smoothing, zloss_scale;
  npu_dtype dtype;
};

/* Sums over rows that count and over classes. */
struct CrossEntropyTotals {
  double target_weight; /* weight of the target, over rows */
  double rows;
  double class_weight; /* over classes */
};

struct CrossEntropyKernels {
  /* log_prob, losses and lses of rows */
  void (*forward)(const CrossEntropyForward* work, int64_t row_begin, int64_t row_end);
  /* loss, zloss and lse from those of all rows, in one order */
  void (*reduce)(const CrossEntropyForward* work, const CrossEntropyTotals* totals);
  /* grad of rows; the factors are 1 / totals for the mean, else 1 */
  void (*backward)(const CrossEntropyBackward* work, double class_weight, float loss_factor, float zloss_factor,
                   int64_t row_begin, int64_t row_end);
};

extern const CrossEntropyKernels cross_entropy_kernels_base;
#if defined(__x86_64__)
extern const CrossEntropyKernels cross_entropy_kernels_avx2;
extern const CrossEntropyKernels cross_entropy_kernels_avx512;
extern const CrossEntropyKernels cross_entropy_kernels_avx512_bf16;
#endif

#endif /* NPU_OPS_LLM_KERNELS_CROSS_ENTROPY_H_ */
