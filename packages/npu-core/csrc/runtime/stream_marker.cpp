#include "stream_marker.h"

#include <array>
#include <mutex>
#include <vector>

#include "device.h"
#include "driver_loader.h"

namespace npu {
namespace {

// An event belongs to the device of its first record, hence one pool per device.
struct MarkerPool {
  std::mutex mutex;
  std::array<std::vector<Event*>, kMaxDevices> idle;
};

MarkerPool& markers() {
  static auto* pool = new MarkerPool;  // outlives static destructors, which may free tensors
  return *pool;
}

__attribute__((tls_model("initial-exec"))) thread_local bool t_host_thread = false;

Event* take_idle(int device) {
  MarkerPool& pool = markers();
  {
    std::lock_guard lock(pool.mutex);
    auto& idle = pool.idle[static_cast<std::size_t>(device)];
    if (!idle.empty()) {
      Event* marker = idle.back();
      idle.pop_back();
      return marker;
    }
  }
  return create_event(false);
}

enum class Mark {
  Placed,
  Needless,  // the device no longer runs: nothing is left to wait for
  Refused,   // the queue is full and this thread may not wait for it
};

Mark mark_stream(Stream* stream, Event** marker) noexcept {
  Event* event = nullptr;
  try {
    event = take_idle(stream->device);
    record_event(event, stream);
    *marker = event;
    return Mark::Placed;
  } catch (...) {
    if (event != nullptr) destroy_event(event);
    return driver().stream_query(stream->native) == NPU_ERROR_STOPPED ? Mark::Needless : Mark::Refused;
  }
}

}  // namespace

bool mark_streams(const std::vector<Stream*>& streams, Marks& marks) noexcept {
  marks.clear();
  marks.reserve(streams.size());
  for (Stream* stream : streams) {
    Event* marker = nullptr;
    const Mark mark = mark_stream(stream, &marker);
    if (mark == Mark::Placed) marks.emplace_back(stream, marker);
    if (mark != Mark::Refused) continue;
    for (const auto& [marked, placed] : marks) return_marker(placed);
    marks.clear();
    return false;
  }
  return true;
}

// The driver is asked directly: these waits are the allocator's own and no user synchronisation.
bool marker_passed(const Event* marker) noexcept {
  return marker->native == nullptr || driver().event_query(marker->native) != NPU_ERROR_NOT_READY;
}

void wait_for_marker(const Event* marker) noexcept {
  if (marker->native != nullptr) driver().event_synchronize(marker->native, -1);
}

void return_marker(Event* marker) noexcept {
  if (marker->device < 0) {
    destroy_event(marker);
    return;
  }
  MarkerPool& pool = markers();
  std::lock_guard lock(pool.mutex);
  pool.idle[static_cast<std::size_t>(marker->device)].push_back(marker);
}

void drain_stream(const Stream* stream) noexcept { driver().stream_synchronize(stream->native, -1); }

void note_host_thread() noexcept { t_host_thread = true; }

bool is_host_thread() noexcept { return t_host_thread; }

}  // namespace npu
