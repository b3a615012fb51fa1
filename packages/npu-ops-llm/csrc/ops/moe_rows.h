// What the operators that permute tokens share: checks of indices inside tasks, and loops over the kernels of moe_rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "../kernels/moe_rows.h"
#include "npu/kernels/isa.h"
#include "npu/kernels/launch.h"
#include "npu/kernels/parallel.h"
#include "npu/kernels/stable_tensor.h"
#include "npu/kernels/streaming.h"

#include "npu/kernels/counting_sort.h"  // after the headers of torch, whose status codes it uses

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

const KernelTables<MoeRowsKernels> kRowsTables = {{
    &moe_rows_kernels_base,
#if defined(__x86_64__)
    &moe_rows_kernels_avx2,
    &moe_rows_kernels_avx512,
    &moe_rows_kernels_avx512_bf16,
#endif
}};

inline void check_float_rows(const char* op, const char* argument, const Tensor& tensor) {
  check_dtype(op, argument, tensor, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32});
}

/// Weights may have any floating dtype.
inline void check_weights(const char* op, const char* argument, const Tensor& tensor) {
  check_dtype(op, argument, tensor, {NPU_FLOAT16, NPU_BFLOAT16, NPU_FLOAT32, NPU_FLOAT64});
}

inline void check_dims(const char* op, const char* argument, const Tensor& tensor, int64_t dims) {
  NPU_CHECK_ARG(tensor.dim() == dims, op, argument, "expected ", dims, " dims, got shape ", shape_text(tensor.sizes()));
}

inline Tensor allocate(std::initializer_list<int64_t> sizes, npu_dtype dtype, const Device& device) {
  return npu::kernels::allocate(Sizes(sizes.begin(), sizes.size()), dtype, device);
}

/// A result that is None in Python.
inline Tensor no_tensor() {
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_new_uninitialized_tensor(&handle));
  return Tensor(handle);
}

inline npu_dtype dtype_or(const OptionalTensor& tensor, npu_dtype fallback) {
  return tensor.has_value() ? dtype_of(*tensor) : fallback;
}

/// Whether results of whole vectors may go past the caches to `out`, rows of `row_bytes` bytes.
inline bool streams_rows(const Tensor& out, int64_t row_bytes) {
  return bytes_of(out) >= NPU_STREAM_BYTES && row_bytes % 64 == 0 &&
         reinterpret_cast<uintptr_t>(out.data_ptr()) % 64 == 0;
}

// ---- inside tasks -----------------------------------------------------------------------------------------------

constexpr int64_t kNoLimit = INT64_MAX;

template <class T>
npu_status check_index_of(const char* argument, const T* index, int64_t count, int64_t low, int64_t high,
                          npu_error* error) {
  bool outside = false;
  for (int64_t i = 0; i < count; ++i) outside |= (index[i] < low) | (index[i] >= high);
  if (!outside) return NPU_OK;
  int64_t i = 0;
  while (index[i] >= low && index[i] < high) ++i;
  char last[32] = "";
  if (high != kNoLimit) std::snprintf(last, sizeof(last), " and below %lld", static_cast<long long>(high));
  std::snprintf(error->message, sizeof(error->message),
                "argument %s: expected values from %lld on%s, got %lld at position %lld", argument,
                static_cast<long long>(low), last, static_cast<long long>(index[i]), static_cast<long long>(i));
  return NPU_ERROR_INDEX;
}

/// Fails unless low <= index[i] < high for all.
inline npu_status check_index(const char* argument, const void* index, npu_dtype dtype, int64_t count, int64_t low,
                              int64_t high, npu_error* error) {
  return dtype == NPU_INT64 ? check_index_of(argument, static_cast<const int64_t*>(index), count, low, high, error)
                            : check_index_of(argument, static_cast<const int32_t*>(index), count, low, high, error);
}

inline int64_t index_at(const void* index, npu_dtype dtype, int64_t i) {
  if (index == nullptr) return i;
  return dtype == NPU_INT64 ? static_cast<const int64_t*>(index)[i] : static_cast<const int32_t*>(index)[i];
}

inline npu_status run_expand(const MoeRowsKernels& kernels, const MoeCopy& work, int64_t tokens, npu_error* error) {
  auto body = [&](int64_t begin, int64_t end) { kernels.expand(&work, begin, end); };
  return parallel_for(tokens, grain_for(work.row_bytes * work.ranks / 2), body, error);
}

inline npu_status run_gather(const MoeRowsKernels& kernels, const MoeCopy& work, int64_t rows, npu_error* error) {
  auto body = [&](int64_t begin, int64_t end) { kernels.gather(&work, begin, end); };
  return parallel_for(rows, grain_for(work.row_bytes / 2), body, error);
}

inline npu_status run_combine(const MoeRowsKernels& kernels, const MoeCombine& work, int64_t tokens, int64_t slots,
                              npu_error* error) {
  auto body = [&](int64_t begin, int64_t end) { kernels.combine(&work, begin, end); };
  int64_t slots_of_one = tokens > 0 ? slots / tokens : 0;
  return parallel_for(tokens, grain_for(work.columns * (slots_of_one + 1)), body, error);
}

/// The slots of every token, ascending: those of token t are items[offsets[t]] .. items[offsets[t + 1] - 1].
struct TokenLists {
  int64_t* counts;
  int32_t *offsets, *items, *sort;

  /// int32 elements of scratch memory.
  static int64_t scratch(int64_t slots, int64_t tokens) {
    return 2 * tokens + tokens + 1 + slots + sort_scratch(slots, static_cast<uint64_t>(tokens));
  }

  TokenLists(void* memory, int64_t slots, int64_t tokens)
      : counts(static_cast<int64_t*>(memory)),
        offsets(static_cast<int32_t*>(memory) + 2 * tokens),
        items(offsets + tokens + 1),
        sort(items + slots) {}

  /// From the token of every slot, which must exist.
  npu_status fill(const void* token, npu_dtype dtype, int64_t slots, int64_t tokens, npu_error* error) const {
    auto key = [=](int64_t i) { return static_cast<uint64_t>(index_at(token, dtype, i)); };
    npu_status status = counting_sort(slots, static_cast<uint64_t>(tokens), key, {items, nullptr, counts, sort}, error);
    if (status != NPU_OK) return status;
    offsets[0] = 0;
    for (int64_t t = 0; t < tokens; ++t) offsets[t + 1] = offsets[t] + static_cast<int32_t>(counts[t]);
    return NPU_OK;
  }
};

/// Fills work's lists of slots by row (`first`, `next`: scratch memory) and runs the kernels.  Indices from row_count
/// on stand for no row; the caller has excluded negative ones.
inline npu_status run_spread(const MoeRowsKernels& kernels, const MoeSpread& work, int32_t* first, int32_t* next,
                             int64_t slots, npu_error* error) {
  std::memset(first, -1, static_cast<size_t>(work.row_count) * sizeof(int32_t));
  for (int64_t slot = slots - 1; slot >= 0; --slot) {
    int64_t row = index_at(work.index, work.index_dtype, slot);
    next[slot] = -1;
    if (row >= work.row_count) continue;
    next[slot] = first[row];
    first[row] = static_cast<int32_t>(slot);
  }
  auto own = [&](int64_t begin, int64_t end) { kernels.spread(&work, begin, end); };
  npu_status status = parallel_for(slots, grain_for(2 * work.columns), own, error);
  if (status != NPU_OK) return status;
  auto rest = [&](int64_t begin, int64_t end) { kernels.spread_rest(&work, begin, end); };
  return parallel_for(work.row_count, grain_for(work.columns), rest, error);
}

}  // namespace
}  // namespace npu::ops_llm
