#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "export.h"
#include "stream.h"

namespace npu {
class SharedEvent;
}

// An event of the runtime.  The driver event is created by the first record.
struct npu_event {
  npu_driver_event* native = nullptr;
  int device = -1;               // device of the first record
  npu_stream* stream = nullptr;  // of the newest record
  bool timing = false;
  std::unique_ptr<npu::SharedEvent> shared;  // of an interprocess event: what other processes see
};

namespace npu {

using Event = ::npu_event;

NPU_RUNTIME_API Event* create_event(bool timing);
NPU_RUNTIME_API void destroy_event(Event* event) noexcept;
// Throws when the stream's device is not the one of the first record.
NPU_RUNTIME_API void record_event(Event* event, Stream* stream);
NPU_RUNTIME_API void wait_event(Event* event, Stream* stream);  // no-op when never recorded
NPU_RUNTIME_API bool query_event(const Event* event);
NPU_RUNTIME_API void synchronize_event(const Event* event, Wait wait = Wait::Uninterrupted);
// Device time of the record in nanoseconds; waits.  Needs timing.
NPU_RUNTIME_API std::uint64_t event_time_ns(const Event* event);
// Makes it an interprocess event, which starts as never recorded.  From now on other processes' records count too.
NPU_RUNTIME_API void share_event(Event* event);
// Bytes for open_event in another process.  Needs share_event.
NPU_RUNTIME_API std::string event_handle(const Event* event);
// Makes it the interprocess event of a handle; returns the device of that.
NPU_RUNTIME_API int open_event(Event* event, std::string_view handle);
NPU_RUNTIME_API double elapsed_ms(const Event* start, const Event* end);

}  // namespace npu
