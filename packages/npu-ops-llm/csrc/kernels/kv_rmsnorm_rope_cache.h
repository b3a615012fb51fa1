/* The work of npu_kv_rmsnorm_rope_cache as flat arguments, and the table of its kernels. */
#ifndef NPU_OPS_LLM_KERNELS_KV_RMSNORM_ROPE_CACHE_H_
#define NPU_OPS_LLM_KERNELS_KV_RMSNORM_ROPE_CACHE_H_

#include <stdint.h>

#include "npu/kernels/dtype.h"
#include "npu/kernels/strided.h"

/* Element i of row r of block b lies at b * block_stride + r * row_stride + i / chunk * chunk_stride + i % chunk with
 * chunk = 2^chunk_shift: the width of a fractal, or more than any row where rows are not cut. */
struct CacheLayout {
  void* data;
  const float *scale, *offset; /* one per column; scale: int8 values rint(x * scale + offset); may be NULL */
  int64_t columns;
  int64_t block_stride, row_stride, chunk_stride;
  npu_dtype dtype;
  int32_t element_size, chunk_shift;
};

enum CacheIndex {
  CACHE_ROW,  /* one row number per token, in the block of its batch */
  CACHE_SLOT, /* one slot per token: block * block_size + row */
  CACHE_PAGE  /* one slot, the start of a block, per block_size tokens of a batch */
};

struct KvRmsnormRopeCache {
  npu_strided kv, cos, sin;
  npu_strided v; /* `whole` only */
  const void* gamma;
  const int64_t* index;
  CacheLayout k_cache, ckv_cache;
  void *k_out, *ckv_out; /* contiguous rows, one per token, of dtype */
  int64_t batches, length, norm_columns, rope_columns;
  int64_t blocks, block_size;
  float epsilon;
  int32_t index_mode;
  int32_t whole;        /* 0: kv is [norm | rope]; 1: kv is normalised as a whole and v goes into ckv_cache */
  int32_t fill_outputs; /* 0: they become zeros */
  npu_dtype dtype;
};

struct KvRmsnormRopeCacheKernels {
  void (*tokens)(const KvRmsnormRopeCache* work, int64_t token_begin, int64_t token_end);
};

extern const KvRmsnormRopeCacheKernels kv_rmsnorm_rope_cache_kernels_base;
#if defined(__x86_64__)
extern const KvRmsnormRopeCacheKernels kv_rmsnorm_rope_cache_kernels_avx2;
extern const KvRmsnormRopeCacheKernels kv_rmsnorm_rope_cache_kernels_avx512;
extern const KvRmsnormRopeCacheKernels kv_rmsnorm_rope_cache_kernels_avx512_bf16;
#endif

#endif /* NPU_OPS_LLM_KERNELS_KV_RMSNORM_ROPE_CACHE_H_ */
