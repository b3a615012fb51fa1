#pragma once
#include <c10/core/Allocator.h>

#include <atomic>
#include <memory>

#include "export.h"
#include "segment_source.h"

namespace npu {

class BlockPool;

// Private memory pools: allocations of the threads that chose one come from it, and its free memory serves nobody else.
// A pool belongs to one device.  It is counted: one use for its creator and one for each thread it is current on.  Once
// nobody uses it, its free memory goes back to the driver, and the rest with the next empty_cache after it is freed.

struct MemoryPoolOptions {
  bool use_on_oom = false;                // lends its cached memory to everyone when nothing else is left
  bool no_split = false;                  // one tensor per segment piece: blocks are used whole
  std::shared_ptr<SegmentSource> source;  // where its memory comes from; nullptr: the driver
};

// (0, k) with k never used before.
NPU_RUNTIME_API c10::MempoolId_t new_memory_pool_id();
// One more use; the first creates it.
NPU_RUNTIME_API void retain_memory_pool(int device, c10::MempoolId_t id, const MemoryPoolOptions& options = {});
NPU_RUNTIME_API void release_memory_pool(int device, c10::MempoolId_t id);
NPU_RUNTIME_API int memory_pool_uses(int device, c10::MempoolId_t id);  // 0: unknown
// Between the two the calling thread allocates on `device` from the pool.  Nest.
NPU_RUNTIME_API void begin_allocating_to_pool(int device, c10::MempoolId_t id);
NPU_RUNTIME_API void end_allocating_to_pool(int device, c10::MempoolId_t id);

// Memory of every device comes from `source` from now on, block by block and uncached.  Throws once a device has
// memory.
NPU_RUNTIME_API void change_segment_source(std::shared_ptr<SegmentSource> source);

// ---- for DeviceMemory

extern std::atomic<int> g_pool_scopes;  // of all threads
// The pool the calling thread has chosen on the device, or nullptr.
BlockPool* chosen_pool(int device) noexcept;
void choose_pool(int device, BlockPool* pool);
void leave_pool(int device, const BlockPool* pool);

}  // namespace npu
