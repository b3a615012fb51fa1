#include "stream.h"

#include <c10/util/Exception.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>

#include "device.h"
#include "driver_loader.h"
#include "error.h"
#include "options.h"
#include "stream_table.h"
#include "trace.h"

namespace npu {
namespace {

constexpr int kKinds = 5;
constexpr int kMaxPool = 32;
constexpr int kSyncLaunchPool = 4;

struct DeviceStreams {
  std::array<std::array<std::atomic<Stream*>, kMaxPool>, kKinds> table{};
  std::array<std::atomic<std::uint32_t>, kKinds> next{};  // round-robin positions
};

std::mutex g_create_mutex;
std::array<bool, kMaxDevices> g_stopped{};  // guarded by g_create_mutex
// Streams live as long as the process: torch hands their ids around without ownership.
std::array<DeviceStreams, kMaxDevices>& all_streams() {
  static auto* streams = new std::array<DeviceStreams, kMaxDevices>();
  return *streams;
}

thread_local std::array<Stream*, kMaxDevices> tl_current{};

int id_shift() {
  static const int shift = streams_per_pool() == 8 ? 3 : 5;
  return shift;
}

int resolve(int device) {
  if (device < 0) device = current_device();
  return device;
}

Stream* stream_at(int device, StreamKind kind, int index) {
  auto& slot = all_streams()[static_cast<size_t>(device)].table[static_cast<size_t>(kind)][static_cast<size_t>(index)];
  if (Stream* s = slot.load(std::memory_order_acquire)) return s;
  const int native_device = driver_device(device);  // initialises, checks the range
  std::lock_guard lock(g_create_mutex);
  if (Stream* s = slot.load(std::memory_order_acquire)) return s;
  auto stream = std::make_unique<Stream>();
  stream->device = device;
  stream->id = (static_cast<std::int64_t>(kind) << id_shift()) | index;
  check(driver().stream_create(native_device, kind == StreamKind::High ? -1 : 0, &stream->native), "stream_create");
  if (g_stopped[static_cast<size_t>(device)] && kind != StreamKind::SyncLaunch) {
    check(driver().stream_stop(stream->native, kForceStop), "stream_stop");
  }
  slot.store(stream.get(), std::memory_order_release);
  return stream.release();
}

Stream* next_of(int device, StreamKind kind, int pool_size) {
  device = resolve(device);
  initialize();
  check_device_index(device);
  auto& next = all_streams()[static_cast<size_t>(device)].next[static_cast<size_t>(kind)];
  return stream_at(device, kind, static_cast<int>(next.fetch_add(1) % static_cast<std::uint32_t>(pool_size)));
}

bool launch_blocking() {
  static const bool blocking = env_flag("ASCEND_LAUNCH_BLOCKING", false);
  return blocking;
}

}  // namespace

int streams_per_pool() {
  static const int count = [] {
    const char* value = std::getenv("STREAMS_PER_DEVICE");
    if (value == nullptr || std::strcmp(value, "32") == 0) return kMaxPool;
    if (std::strcmp(value, "8") == 0) return 8;
    if (warnings_wanted()) TORCH_WARN("STREAMS_PER_DEVICE should be 8 or 32, but got '", value, "'; 32 is used.");
    return kMaxPool;
  }();
  return count;
}

Stream* current_stream(int device) {
  device = resolve(device);
  if (C10_LIKELY(static_cast<unsigned>(device) < kMaxDevices)) {
    if (Stream* s = tl_current[static_cast<size_t>(device)]) return s;
  }
  Stream* s = default_stream(device);
  tl_current[static_cast<size_t>(device)] = s;
  return s;
}

Stream* default_stream(int device) {
  device = resolve(device);
  initialize();
  check_device_index(device);
  return stream_at(device, StreamKind::Default, 0);
}

Stream* stream_from_pool(int device, int priority) {
  return next_of(device, priority < 0 ? StreamKind::High : StreamKind::Normal, streams_per_pool());
}

Stream* sync_launch_stream_from_pool(int device) { return next_of(device, StreamKind::SyncLaunch, kSyncLaunchPool); }

Stream* stream_from_id(int device, std::int64_t id) {
  device = resolve(device);
  initialize();
  check_device_index(device);
  const std::int64_t kind = id >> id_shift();
  const std::int64_t index = id & ((1 << id_shift()) - 1);
  const bool known = id >= 0 && kind < kKinds && index < streams_per_pool() && (kind != 0 || index == 0) &&
                     (kind != static_cast<int>(StreamKind::SyncLaunch) || index < kSyncLaunchPool);
  TORCH_CHECK(known, "npu: stream id ", id, " names no stream of npu:", device,
              error_suffix(Submodule::PTA, ErrorCode::PARAM));
  return stream_at(device, static_cast<StreamKind>(kind), static_cast<int>(index));
}

void set_current_stream(Stream* stream) { tl_current[static_cast<size_t>(stream->device)] = stream; }

void forget_current_streams() noexcept { tl_current.fill(nullptr); }

std::vector<Stream*> live_streams(int device) {
  std::vector<Stream*> found;
  for (auto& kind : all_streams()[static_cast<size_t>(device)].table) {
    for (auto& slot : kind) {
      if (Stream* s = slot.load(std::memory_order_acquire)) found.push_back(s);
    }
  }
  return found;
}

bool stream_query(Stream* stream) {
  initialize();
  const npu_status status = driver().stream_query(stream->native);
  if (status == NPU_ERROR_NOT_READY) return false;
  check(status, "stream_query");
  return true;
}

void stop_streams(int device) {
  std::lock_guard lock(g_create_mutex);
  g_stopped[static_cast<size_t>(device)] = true;
  const auto id_of_sync_launch = static_cast<std::int64_t>(StreamKind::SyncLaunch);
  for (Stream* stream : live_streams(device)) {
    if (stream->id >> id_shift() == id_of_sync_launch) continue;
    check(driver().stream_stop(stream->native, kForceStop), "stream_stop");
  }
}

void resume_streams(int device) {
  std::lock_guard lock(g_create_mutex);
  g_stopped[static_cast<size_t>(device)] = false;
  for (Stream* stream : live_streams(device)) check(driver().stream_resume(stream->native), "stream_resume");
}

bool wait_and_take_error(Stream* stream, Wait wait, npu_error* error) {
  initialize();
  npu_status status;
  if (wait == Wait::Uninterrupted) {
    status = driver().stream_synchronize(stream->native, kForeverNs);
  } else {
    std::uint64_t ticket = 0;
    check(driver().stream_ticket(stream->native, &ticket), "stream_ticket");
    status = wait_for_device(
        wait, [&](std::int64_t timeout_ns) { return driver().stream_wait(stream->native, ticket, timeout_ns); });
  }
  if (C10_LIKELY(status == NPU_OK)) return false;
  if (status != NPU_ERROR_TASK_FAILED) check(status, "stream_synchronize");
  const std::string text = driver().last_error();
  if (driver().stream_take_error(stream->native, error) == NPU_OK) {
    // Another thread took the error since.  What this thread waited for was dropped all the same.
    *error = {};
    error->status = NPU_ERROR_TASK_FAILED;
    std::strncpy(error->message, text.c_str(), sizeof(error->message) - 1);
  }
  return true;
}

void wait_and_throw(Stream* stream, Wait wait) {
  npu_error error;
  if (C10_UNLIKELY(wait_and_take_error(stream, wait, &error))) throw_task_error(error, "synchronize");
}

void raise_pending_error(Stream* stream) {
  npu_error error{};
  if (driver().stream_take_error(stream->native, &error) != NPU_OK) throw_task_error(error, "event");
}

void synchronize_stream(Stream* stream, Wait wait) {
  note_host_synchronization();
  wait_and_throw(stream, wait);
}

void launch(Stream* stream, const npu_task& task, const npu_access* /*accesses*/, std::uint32_t /*access_count*/) {
  const npu_status status = tracing() ? launch_traced(stream, task) : driver().stream_submit(stream->native, &task);
  check(status, task.name != nullptr ? task.name : "launch");
  if (C10_UNLIKELY(launch_blocking())) wait_and_throw(stream, Wait::Uninterrupted);
}

void copy_memory(Stream* stream, void* dst, const void* src, std::size_t bytes) {
  const npu_status status =
      tracing() ? copy_traced(stream, dst, src, bytes) : driver().memory_copy(stream->native, dst, src, bytes);
  check(status, "memory_copy");
  if (C10_UNLIKELY(launch_blocking())) wait_and_throw(stream, Wait::Uninterrupted);
}

}  // namespace npu
