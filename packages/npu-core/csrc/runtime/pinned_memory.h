#pragma once
#include <c10/core/Allocator.h>

#include <cstdint>

#include "export.h"
#include "stream.h"

namespace npu {

struct PinnedStats {
  c10::CachingAllocator::Stat active_requests, active_bytes;  // handed out
  c10::CachingAllocator::Stat allocations, allocated_bytes;   // held from the driver
  std::int64_t num_host_alloc = 0, num_host_free = 0;
  c10::CachingAllocator::DurationStat host_alloc_time, host_free_time;  // microseconds in the driver
};

// Caching allocator of page-locked host memory (sizes rounded up to powers of two).  A freed block waits for the
// streams that were recorded on it.
NPU_RUNTIME_API c10::Allocator* pinned_allocator();
NPU_RUNTIME_API bool is_pinned(const void* address);
// A copy that uses pinned memory at `address` was queued on `stream`.
NPU_RUNTIME_API void pinned_record_stream(const void* address, Stream* stream);
NPU_RUNTIME_API void pinned_empty_cache();
NPU_RUNTIME_API PinnedStats pinned_stats();
NPU_RUNTIME_API void pinned_reset_peak_stats();
NPU_RUNTIME_API void pinned_reset_accumulated_stats();

}  // namespace npu
