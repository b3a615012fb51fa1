#pragma once
#include <c10/core/Allocator.h>

#include <cstdint>

#include "export.h"
#include "stream.h"

namespace npu {

struct PinnedStats {
  std::int64_t active_requests = 0, active_bytes = 0;  // handed out
  std::int64_t allocations = 0, allocated_bytes = 0;   // held from the driver
  std::int64_t peak_active_bytes = 0, peak_allocated_bytes = 0;
  std::int64_t num_host_alloc = 0, num_host_free = 0;
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

}  // namespace npu
