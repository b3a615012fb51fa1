#pragma once
#include <array>
#include <cstddef>
#include <limits>
#include <string>

#include "export.h"

namespace npu {

// What PYTORCH_NPU_ALLOC_CONF says.  Sizes are bytes.
struct NPU_RUNTIME_API AllocatorConfig {
  static constexpr std::size_t kUnlimited = std::numeric_limits<std::size_t>::max();
  static constexpr std::size_t kPad = 32;                     // bytes a kernel may touch behind a tensor
  static constexpr std::size_t kMinBlock = 512;               // block sizes are multiples of this
  static constexpr std::size_t kSmallLimit = 1 << 20;         // largest block of the small pool
  static constexpr std::size_t kSmallSegment = 2 << 20;       // segment of the small pool
  static constexpr std::size_t kSharedLargeLimit = 10 << 20;  // blocks below it share a large segment
  static constexpr std::size_t kLargeGrain = 2 << 20;         // other large segments are multiples of this

  // Honoured.
  std::size_t max_split_size = kUnlimited;
  std::size_t max_non_split_rounding = 20 << 20;
  std::size_t large_segment_size = 20 << 20;
  std::array<std::size_t, 16> power2_divisions{};  // by power of two from 1 MiB; 0 and 1 = plain multiples of 512
  double memory_fraction = 1.0;
  double garbage_collection_threshold = 0.0;  // of the limit, or of the device's memory without one; 0 = off
  bool expandable_segments = false;
  bool throw_on_oom = false;
  bool caching = true;  // PYTORCH_NO_NPU_MEMORY_CACHING
  // Accepted and checked; they tune hardware this allocator does not have.
  bool multi_stream_lazy_reclaim = false;

  std::size_t round_request(std::size_t bytes) const;
  std::size_t segment_size(std::size_t block) const;

  // Throws naming the key, the accepted values and what came.
  static AllocatorConfig parse(const std::string& text);
  // PYTORCH_NPU_ALLOC_CONF, its alias PYTORCH_ALLOC_CONF, and PYTORCH_NO_NPU_MEMORY_CACHING.
  static AllocatorConfig from_environment();
};

}  // namespace npu
