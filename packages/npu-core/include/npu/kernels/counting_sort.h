/* npu/kernels/counting_sort.h: stable argsort of integer keys inside a task.
 *
 * Counting sort by digits of 11 bits, the lowest first: one pass for up to 2048 different keys (the experts of a
 * model), six for any int64.  Every pass counts the digits of some chunks of the input in parallel, turns the counts
 * into first positions over (digit, chunk) and scatters the chunks in parallel.  A stable order is unique, so the
 * result does not depend on the number of threads.
 *
 *   Tensor scratch = allocate({sort_scratch(count, range)}, NPU_INT32, device);     // in the op
 *   auto key = [=](int64_t i) { return static_cast<uint64_t>(expert[i]); };         // in the task
 *   npu_status status = counting_sort(count, range, key, {order, inverse, counts, scratch}, error);
 *
 * Source: H. H. Seward, "Information sorting in the application of electronic digital computers to business
 * operations", MIT 1954 (counting and radix sort).
 */
#ifndef NPU_KERNELS_COUNTING_SORT_H_
#define NPU_KERNELS_COUNTING_SORT_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "npu/kernels/parallel.h"

namespace npu::kernels {

inline constexpr int kSortDigitBits = 11;
/// For sort_scratch: keys of unknown range.
inline constexpr uint64_t kAnyRange = UINT64_MAX;

/// What counting_sort writes.  Every pointer but `scratch` may be NULL.
struct SortResult {
  int32_t* order;    ///< order[i]: index of the key at position i of the sorted keys
  int32_t* inverse;  ///< inverse[order[i]] == i
  int64_t* counts;   ///< counts[key] for every key below the range: how often it occurs
  int32_t* scratch;  ///< sort_scratch() elements
};

inline int64_t sort_chunks(int64_t count) { return std::clamp<int64_t>(count / 4096, 1, 16); }

inline int sort_passes(uint64_t range) {
  int passes = 1;
  while (passes < 6 && (range - 1) >> (passes * kSortDigitBits) != 0) ++passes;
  return passes;
}

/// Digits of one pass.
inline int64_t sort_digits(uint64_t range) {
  return static_cast<int64_t>(std::min<uint64_t>(range, uint64_t{1} << kSortDigitBits));
}

/// Elements of scratch memory for sorting `count` keys below `range`: the counts of every chunk, and two orders.
inline int64_t sort_scratch(int64_t count, uint64_t range) {
  int64_t orders = range == 0 ? 0 : sort_passes(range) > 1 ? 2 * count : 0;
  return sort_chunks(count) * sort_digits(range) + orders;
}

/// Sorts 0 .. count-1 by key(i), a uint64_t that must be below `range`; equal keys keep their order.
///
/// `count` is below 2^31.  The scratch memory may be sized for a larger range.
template <class Key>
npu_status counting_sort(int64_t count, uint64_t range, const Key& key, const SortResult& result, npu_error* error) {
  if (result.counts != nullptr) std::memset(result.counts, 0, range * sizeof(int64_t));
  if (count == 0 || range == 0) return NPU_OK;
  const int64_t chunks = sort_chunks(count), digits = sort_digits(range);
  const int passes = sort_passes(range);
  int32_t* table = result.scratch;  // chunks x digits
  int32_t* spare[2] = {table + chunks * digits, table + chunks * digits + count};
  const int32_t* from = nullptr;  // the order of the pass before; NULL for the first
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = pass * kSortDigitBits;
    const uint64_t mask = passes > 1 ? (uint64_t{1} << kSortDigitBits) - 1 : UINT64_MAX;
    const bool last = pass + 1 == passes;
    int32_t* to = last ? result.order : spare[pass & 1];
    int32_t* inverse = last ? result.inverse : nullptr;
    auto tally = [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        int32_t* digit_counts = table + chunk * digits;
        std::memset(digit_counts, 0, static_cast<size_t>(digits) * sizeof(int32_t));
        const int64_t stop = count * (chunk + 1) / chunks;
        for (int64_t i = count * chunk / chunks; i < stop; ++i) {
          ++digit_counts[key(from == nullptr ? i : from[i]) >> shift & mask];
        }
      }
    };
    npu_status status = parallel_for(chunks, 2, tally, error);
    if (status != NPU_OK) return status;
    int32_t position = 0;
    for (int64_t digit = 0; digit < digits; ++digit) {
      const int32_t first = position;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        int32_t found = table[chunk * digits + digit];
        table[chunk * digits + digit] = position;
        position += found;
      }
      if (passes == 1 && result.counts != nullptr) result.counts[digit] = position - first;
    }
    auto scatter = [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        int32_t* positions = table + chunk * digits;
        const int64_t stop = count * (chunk + 1) / chunks;
        for (int64_t i = count * chunk / chunks; i < stop; ++i) {
          const int32_t source = from == nullptr ? static_cast<int32_t>(i) : from[i];
          const int32_t target = positions[key(source) >> shift & mask]++;
          if (to != nullptr) to[target] = source;
          if (inverse != nullptr) inverse[source] = target;
        }
      }
    };
    status = parallel_for(chunks, 2, scatter, error);
    if (status != NPU_OK) return status;
    from = to;
  }
  if (passes > 1 && result.counts != nullptr) {
    for (int64_t i = 0; i < count; ++i) ++result.counts[key(i)];
  }
  return NPU_OK;
}

/// Stable argsort of int32 or int64 keys of any value; `scratch` has sort_scratch(count, kAnyRange) elements and
/// `result.counts` must be NULL.  One pass where the keys span at most 2048 values.
template <class T>
npu_status stable_argsort(const T* keys, int64_t count, const SortResult& result, npu_error* error) {
  if (count == 0) return NPU_OK;
  T least = keys[0], greatest = keys[0];
  for (int64_t i = 1; i < count; ++i) {
    least = keys[i] < least ? keys[i] : least;
    greatest = keys[i] > greatest ? keys[i] : greatest;
  }
  const uint64_t base = static_cast<uint64_t>(static_cast<int64_t>(least));
  const uint64_t span = static_cast<uint64_t>(static_cast<int64_t>(greatest)) - base;
  auto key = [=](int64_t i) { return static_cast<uint64_t>(static_cast<int64_t>(keys[i])) - base; };
  return counting_sort(count, span == UINT64_MAX ? span : span + 1, key, result, error);
}

}  // namespace npu::kernels

#endif  // NPU_KERNELS_COUNTING_SORT_H_
