#pragma once
#include <cstddef>
#include <cstdint>

#include "export.h"
#include "npu/driver.h"
#include "npu/runtime.h"
#include "wait.h"

// A stream of the runtime: one driver stream with torch's id.  Created on first use, lives as long as the process.
struct npu_stream {
  int device = 0;
  std::int64_t id = 0;
  npu_driver_stream* native = nullptr;
};

namespace npu {

using Stream = ::npu_stream;

// Stream ids are (kind << shift) | index; shift is 5, or 3 when STREAMS_PER_DEVICE=8.
enum class StreamKind : int { Default = 0, Secondary = 1, SyncLaunch = 2, Normal = 3, High = 4 };

// `device` < 0 = current device.  Initialise on first use.
NPU_RUNTIME_API Stream* current_stream(int device = -1);
NPU_RUNTIME_API Stream* default_stream(int device = -1);
// Round-robin over the pool of the priority class (negative = high).
NPU_RUNTIME_API Stream* stream_from_pool(int device = -1, int priority = 0);
NPU_RUNTIME_API Stream* sync_launch_stream_from_pool(int device = -1);
// Throws for an id that names no stream.
NPU_RUNTIME_API Stream* stream_from_id(int device, std::int64_t id);
// Makes it current for its device on this thread; the current device does not change.
NPU_RUNTIME_API void set_current_stream(Stream* stream);
NPU_RUNTIME_API int streams_per_pool();

NPU_RUNTIME_API bool stream_query(Stream* stream);
// Waits and throws the stream's asynchronous error, if any.
NPU_RUNTIME_API void synchronize_stream(Stream* stream, Wait wait = Wait::Uninterrupted);
// The same without the sync-debug check, for callers that have made it (note_host_synchronization).
NPU_RUNTIME_API void wait_and_throw(Stream* stream, Wait wait = Wait::Uninterrupted);

// Puts a task on the stream.  Observers, ASCEND_LAUNCH_BLOCKING and tracing are applied here and only here.
NPU_RUNTIME_API void launch(Stream* stream, const npu_task& task, const npu_access* accesses = nullptr,
                            std::uint32_t access_count = 0);

// dst <- src in stream order, any mix of device and host memory; traced and blocking like launch().  Host memory must
// stay valid until the copy has run.
NPU_RUNTIME_API void copy_memory(Stream* stream, void* dst, const void* src, std::size_t bytes);

}  // namespace npu
