#include "event.h"

#include <c10/util/Exception.h>

#include <memory>

#include "device.h"
#include "driver_loader.h"
#include "error.h"
#include "shared_event.h"
#include "stream_table.h"

namespace npu {

Event* create_event(bool timing) {
  auto event = std::make_unique<Event>();
  event->timing = timing;
  return event.release();
}

void destroy_event(Event* event) noexcept {
  if (event == nullptr) return;
  if (event->native != nullptr && !in_bad_fork()) driver().event_destroy(event->native);
  delete event;
}

void record_event(Event* event, Stream* stream) {
  initialize();
  TORCH_CHECK(event->device < 0 || event->device == stream->device, "Event device ", event->device,
              " does not match recording stream's device ", stream->device, ".",
              error_suffix(Submodule::PTA, ErrorCode::PARAM));
  if (event->native == nullptr) check(driver().event_create(&event->native), "event_create");
  event->device = stream->device;
  event->stream = stream;
  check(driver().event_record(event->native, stream->native), "event_record");
  if (event->shared != nullptr) event->shared->record(stream);
}

void wait_event(Event* event, Stream* stream) {
  if (event->native == nullptr) return;
  initialize();
  if (event->shared != nullptr) {
    event->shared->wait(stream);
    return;
  }
  check(driver().event_wait(event->native, stream->native), "event_wait");
}

bool query_event(const Event* event) {
  if (event->native == nullptr) return true;
  initialize();
  const npu_status status = event->shared == nullptr ? driver().event_query(event->native)
                            : event->shared->query() ? NPU_OK
                                                     : NPU_ERROR_NOT_READY;
  if (status == NPU_ERROR_NOT_READY) return false;
  check(status, "event_query");
  raise_pending_error(event->stream);
  return true;
}

void synchronize_event(const Event* event, Wait wait) {
  if (event->native == nullptr) return;
  initialize();
  note_host_synchronization();
  if (event->shared != nullptr) {
    event->shared->synchronize();
  } else {
    const auto native = event->native;
    check(wait_for_device(wait,
                          [native](std::int64_t timeout_ns) { return driver().event_synchronize(native, timeout_ns); }),
          "event_synchronize");
  }
  // An event completes on a failed stream too: whoever waits for it must hear of the failure.
  raise_pending_error(event->stream);
}

std::uint64_t event_time_ns(const Event* event) {
  TORCH_CHECK(event->native != nullptr, "Event must be recorded before getting recorded timestamp.",
              error_suffix(Submodule::PTA, ErrorCode::INTERNAL));
  TORCH_CHECK(event->timing, "The event was created without enable_timing=True and has no timestamp.",
              error_suffix(Submodule::PTA, ErrorCode::PARAM));
  synchronize_event(event);
  std::uint64_t ns = 0;
  check(driver().event_time(event->native, &ns), "event_time");
  return ns;
}

void share_event(Event* event) { event->shared = SharedEvent::create(event->device); }

std::string event_handle(const Event* event) {
  TORCH_CHECK(event->shared != nullptr, "npu: only events made with interprocess=True have an ipc_handle",
              error_suffix(Submodule::PTA, ErrorCode::PARAM));
  return event->shared->handle();
}

int open_event(Event* event, std::string_view handle) {
  event->shared = SharedEvent::open(handle);
  return event->shared->device();
}

double elapsed_ms(const Event* start, const Event* end) {
  TORCH_CHECK(start->native != nullptr && end->native != nullptr,
              "Both events must be recorded before calculating elapsed time.",
              error_suffix(Submodule::PTA, ErrorCode::INTERNAL));
  const auto from = event_time_ns(start), to = event_time_ns(end);
  return (static_cast<double>(to) - static_cast<double>(from)) * 1e-6;
}

}  // namespace npu
