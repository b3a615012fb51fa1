/* The reduction kernels of one instruction set, as seen by the dispatcher.  Included by the per-ISA files, so it pulls
 * in C headers only: an inline C++ function compiled with AVX-512 flags must never be the copy the linker keeps. */
#ifndef NPU_DISTRIBUTED_REDUCE_TABLE_H_
#define NPU_DISTRIBUTED_REDUCE_TABLE_H_

#include <stddef.h>
#include <stdint.h>

/* outputs[*][i] = reduce over k of inputs[k][i], k in order, for i in [0, count).  An output may be one of the inputs.
 * `factors`: one per input for PREMUL_SUM, else NULL.  `divisor`: of the second step of an average. */
typedef struct npu_reduce_job {
  void* const* outputs;
  const void* const* inputs;
  const double* factors;
  size_t count;
  int32_t output_count;
  int32_t input_count;
  int32_t divisor;
} npu_reduce_job;

typedef void (*npu_reduce_fn)(const npu_reduce_job* job);

/* Indexed by ElementType (bool uses uint8's MIN and MAX) and ReduceKind; NULL = no such reduction. */
enum { NPU_REDUCE_TYPES = 12, NPU_REDUCE_KINDS = 6 };
typedef struct npu_reduce_table {
  const char* isa;
  npu_reduce_fn entry[NPU_REDUCE_TYPES][NPU_REDUCE_KINDS];
  /* The same in two steps, for operands that are not all in one place: `partial` reduces elements to partial results of
   * `partial_bytes` each, in a type wide enough to lose nothing; `finish` reduces those and rounds once. */
  npu_reduce_fn partial[NPU_REDUCE_TYPES][NPU_REDUCE_KINDS];
  npu_reduce_fn finish[NPU_REDUCE_TYPES][NPU_REDUCE_KINDS];
  uint8_t partial_bytes[NPU_REDUCE_TYPES][NPU_REDUCE_KINDS];
} npu_reduce_table;

#endif /* NPU_DISTRIBUTED_REDUCE_TABLE_H_ */
