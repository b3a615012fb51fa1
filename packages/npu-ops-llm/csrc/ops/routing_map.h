// Maps of tokens and experts inside tasks: which experts a token has, which tokens an expert takes.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "npu/kernels/dtype.h"
#include "npu/kernels/parallel.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

/// tokens x experts bytes; anything but 0 selects.
struct RoutingMap {
  const uint8_t* selected;
  int64_t tokens, experts;
  int64_t ranks;  ///< experts of every token, unless rows are padded
};

inline void copy_element(void* to, int64_t to_index, const void* from, int64_t from_index, int64_t size) {
  auto* target = static_cast<char*>(to) + to_index * size;
  auto* source = static_cast<const char*>(from) + from_index * size;
  if (size == 2) std::memcpy(target, source, 2);
  else if (size == 4) std::memcpy(target, source, 4);
  else std::memcpy(target, source, static_cast<size_t>(size));
}

inline void fill_ones(void* values, npu_dtype dtype, int64_t count) {
  const uint16_t half = dtype == NPU_FLOAT16 ? 0x3c00 : 0x3f80;
  const float single = 1;
  const double wide = 1;
  const void* one = dtype == NPU_FLOAT32   ? static_cast<const void*>(&single)
                    : dtype == NPU_FLOAT64 ? static_cast<const void*>(&wide)
                                           : static_cast<const void*>(&half);
  for (int64_t i = 0; i < count; ++i) copy_element(values, i, one, 0, npu_dtype_size(dtype));
}

/// Calls take(expert) for the selected experts of a token, ascending, eight bytes at a time.
template <class Take>
void each_expert(const RoutingMap& map, int64_t token, const Take& take) {
  const uint8_t* row = map.selected + token * map.experts;
  int64_t expert = 0;
  for (; expert + 8 <= map.experts; expert += 8) {
    uint64_t eight;
    std::memcpy(&eight, row + expert, sizeof(eight));
    if (eight == 0) continue;
    for (int i = 0; i < 8; ++i) {
      if (row[expert + i] != 0) take(expert + i);
    }
  }
  for (; expert < map.experts; ++expert) {
    if (row[expert] != 0) take(expert);
  }
}

/// experts[t * ranks + k]: the k-th expert of token t.  Fails unless every token has `ranks` experts.
inline npu_status find_experts(const RoutingMap& map, int32_t* experts, npu_error* error) {
  std::atomic<int64_t> wrong{INT64_MAX};
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      int64_t found = 0;
      each_expert(map, token, [&](int64_t expert) {
        if (found < map.ranks) experts[token * map.ranks + found] = static_cast<int32_t>(expert);
        ++found;
      });
      if (found == map.ranks) continue;
      int64_t before = wrong.load();
      while (token < before && !wrong.compare_exchange_weak(before, token)) {
      }
      return;
    }
  };
  npu_status status = parallel_for(map.tokens, grain_for(map.experts / 4), body, error);
  if (status != NPU_OK || wrong.load() == INT64_MAX) return status;
  int64_t found = 0;
  each_expert(map, wrong.load(), [&](int64_t) { ++found; });
  std::snprintf(error->message, sizeof(error->message),
                "argument routing_map: expected %lld experts for every token, got %lld for token %lld",
                static_cast<long long>(map.ranks), static_cast<long long>(found), static_cast<long long>(wrong.load()));
  return NPU_ERROR_TASK_FAILED;
}

/// tokens[e * capacity + c]: the first `capacity` tokens that selected expert e, then the first ones that did not.
/// `filled` is scratch memory, one element for each expert.
inline npu_status fill_experts(const RoutingMap& map, int64_t capacity, int32_t* tokens, int32_t* filled,
                               npu_error* error) {
  std::memset(filled, 0, static_cast<size_t>(map.experts) * sizeof(int32_t));
  for (int64_t token = 0; token < map.tokens; ++token) {
    each_expert(map, token, [&](int64_t expert) {
      if (filled[expert] < capacity) tokens[expert * capacity + filled[expert]++] = static_cast<int32_t>(token);
    });
  }
  auto pad = [&](int64_t begin, int64_t end) {
    for (int64_t expert = begin; expert < end; ++expert) {
      for (int64_t token = 0; filled[expert] < capacity && token < map.tokens; ++token) {
        if (map.selected[token * map.experts + expert] != 0) continue;
        tokens[expert * capacity + filled[expert]++] = static_cast<int32_t>(token);
      }
    }
  };
  return parallel_for(map.experts, grain_for(capacity), pad, error);
}

}  // namespace
}  // namespace npu::ops_llm
