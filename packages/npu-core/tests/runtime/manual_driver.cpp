// A driver whose streams run only when somebody waits for them, so that a test decides what is finished and what is
// not.  Two devices; NPU_MANUAL_MEMORY is the capacity of each in MiB (default 256).
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "npu/driver.h"

struct npu_driver_event {
  std::uint64_t recorded = 0;  // number of records queued
  std::uint64_t passed = 0;    // number of records the stream has reached
  std::uint64_t time = 0;
  npu_driver_stream* stream = nullptr;
};

struct npu_driver_stream {
  struct Entry {
    npu_task task{};
    std::vector<std::byte> payload;
    npu_driver_event* record = nullptr;
    npu_driver_event* wait = nullptr;
    std::uint64_t wait_for = 0;
  };
  std::deque<Entry> queue;
  std::recursive_mutex running;
  npu_error error{};
};

namespace {

constexpr int kDevices = 2;
constexpr std::size_t kGranularity = 4096;
constexpr std::size_t kExtent = std::size_t{8} << 30;  // addresses of each device

// Guards everything but the tasks themselves, which run without it.
std::mutex g_mutex;
std::size_t g_used[kDevices];
struct Mapping {
  std::size_t bytes;
  int device;
};
std::map<std::uintptr_t, Mapping> g_mappings;
npu_fault g_fault{};
bool g_stopped = false;
thread_local std::string t_error;

npu_status fail(npu_status status, const char* text) {
  t_error = text;
  return status;
}

std::size_t capacity() {
  const char* text = std::getenv("NPU_MANUAL_MEMORY");
  return (text == nullptr ? 256 : std::strtoull(text, nullptr, 10)) << 20;
}

std::uint64_t clock_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

npu_status map_host(std::size_t bytes, void** address) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return fail(NPU_ERROR_OUT_OF_MEMORY, "mmap failed");
  *address = memory;
  return NPU_OK;
}

// Device memory is the lowest free range of addresses reserved for the device, so that tests know what follows what.
std::byte* arena(int32_t device) {
  static void* const base =
      mmap(nullptr, kDevices * kExtent, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return static_cast<std::byte*>(base) + static_cast<std::size_t>(device) * kExtent;
}

npu_status memory_map(int32_t device, size_t bytes, void** address) {
  std::lock_guard lock(g_mutex);
  if (bytes == 0 || bytes % kGranularity != 0)
    return fail(NPU_ERROR_INVALID_ARGUMENT, "size is not a multiple of 4096");
  if (g_fault.kind == NPU_FAULT_FAIL_MAP && g_fault.count > 0) {
    --g_fault.count;
    return fail(NPU_ERROR_OUT_OF_MEMORY, "injected");
  }
  if (g_used[device] + bytes > capacity()) return fail(NPU_ERROR_OUT_OF_MEMORY, "capacity exceeded");
  auto start = reinterpret_cast<std::uintptr_t>(arena(device));
  const std::uintptr_t end = start + kExtent;
  for (const auto& [mapped, mapping] : g_mappings) {
    if (mapping.device != device) continue;
    if (mapped - start >= bytes) break;
    start = mapped + mapping.bytes;
  }
  if (end - start < bytes) return fail(NPU_ERROR_OUT_OF_MEMORY, "no free range");
  if (mprotect(reinterpret_cast<void*>(start), bytes, PROT_READ | PROT_WRITE) != 0)
    return fail(NPU_ERROR_OUT_OF_MEMORY, "mprotect failed");
  *address = reinterpret_cast<void*>(start);
  g_used[device] += bytes;
  g_mappings[start] = {bytes, device};
  return NPU_OK;
}

npu_status memory_unmap(int32_t device, void* address, size_t bytes) {
  std::lock_guard lock(g_mutex);
  const auto found = g_mappings.find(reinterpret_cast<std::uintptr_t>(address));
  if (found == g_mappings.end() || found->second.bytes != bytes || found->second.device != device)
    return fail(NPU_ERROR_INVALID_ARGUMENT, "no such mapping");
  // Forgets the contents and faults on access.
  mmap(address, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  g_used[device] -= bytes;
  g_mappings.erase(found);
  return NPU_OK;
}

// Runs entries of the stream until `done` holds or nothing is left.
void run(npu_driver_stream* stream, const std::function<bool()>& done) {
  std::lock_guard running(stream->running);
  for (;;) {
    npu_driver_stream::Entry entry;
    {
      std::unique_lock lock(g_mutex);
      if (done() || stream->queue.empty()) return;
      npu_driver_event* wait = stream->queue.front().wait;
      if (wait != nullptr && wait->passed < stream->queue.front().wait_for) {
        const std::uint64_t target = stream->queue.front().wait_for;
        npu_driver_stream* other = wait->stream;
        lock.unlock();
        run(other, [&] { return wait->passed >= target; });
        continue;
      }
      entry = std::move(stream->queue.front());
      stream->queue.pop_front();
      if (entry.record != nullptr) {
        ++entry.record->passed;
        entry.record->time = clock_ns();
      }
    }
    if (entry.task.run == nullptr) continue;
    const bool poisoned = stream->error.status != NPU_OK && (entry.task.flags & NPU_TASK_ALWAYS) == 0;
    npu_error error{};
    if (!poisoned) {
      const npu_status status = entry.task.run(entry.payload.data(), &error);
      if (status != NPU_OK && stream->error.status == NPU_OK) {
        stream->error = error;
        stream->error.status = status;
        std::strncpy(stream->error.op, entry.task.name == nullptr ? "" : entry.task.name, NPU_ERROR_OP_SIZE - 1);
      }
    }
    if (entry.task.destroy != nullptr) entry.task.destroy(entry.payload.data());
  }
}

npu_status submit(npu_driver_stream* stream, npu_driver_stream::Entry entry) {
  std::lock_guard lock(g_mutex);
  if (g_stopped) return fail(NPU_ERROR_STOPPED, "the driver was shut down");
  stream->queue.push_back(std::move(entry));
  return NPU_OK;
}

npu_status submit_task(npu_driver_stream* stream, const npu_task* task) {
  npu_driver_stream::Entry entry;
  entry.task = *task;
  const auto* bytes = static_cast<const std::byte*>(task->payload);
  entry.payload.assign(bytes, bytes + task->payload_size);
  return submit(stream, std::move(entry));
}

struct CopyArguments {
  void* target;
  const void* source;
  std::size_t bytes;
  int value;
};

npu_status submit_flat(npu_driver_stream* stream, npu_task_fn function, const CopyArguments& arguments) {
  npu_task task{};
  task.run = function;
  task.name = "copy";
  task.payload = &arguments;
  task.payload_size = sizeof(arguments);
  return submit_task(stream, &task);
}

npu_status device_count(int32_t* count) {
  *count = kDevices;
  return NPU_OK;
}

npu_status device_properties(int32_t, npu_device_properties* properties) {
  std::memset(properties, 0, sizeof(*properties));
  properties->struct_size = sizeof(*properties);
  std::strcpy(properties->name, "Manual");
  properties->total_memory = capacity();
  properties->memory_granularity = kGranularity;
  return NPU_OK;
}

npu_status peer_access(int32_t device, int32_t peer, int32_t* can_access) {
  *can_access = device != peer;
  return NPU_OK;
}

npu_status memory_info(int32_t device, size_t* free_bytes, size_t* total_bytes) {
  std::lock_guard lock(g_mutex);
  *total_bytes = capacity();
  *free_bytes = capacity() - g_used[device];
  return NPU_OK;
}

npu_status memory_owner(const void* address, int32_t* device) {
  std::lock_guard lock(g_mutex);
  const auto key = reinterpret_cast<std::uintptr_t>(address);
  const auto after = g_mappings.upper_bound(key);
  if (after == g_mappings.begin() || key - std::prev(after)->first >= std::prev(after)->second.bytes)
    return fail(NPU_ERROR_INVALID_ARGUMENT, "not device memory");
  *device = std::prev(after)->second.device;
  return NPU_OK;
}

npu_status memory_export(const void*, size_t, npu_memory_handle*) {
  return fail(NPU_ERROR_NOT_SUPPORTED, "no peers here");
}
npu_status memory_import(const npu_memory_handle*, void**, size_t*) {
  return fail(NPU_ERROR_NOT_SUPPORTED, "no peers here");
}
npu_status memory_close(void*) { return fail(NPU_ERROR_NOT_SUPPORTED, "no peers here"); }

npu_status host_free(void* address, size_t bytes) {
  munmap(address, bytes);
  return NPU_OK;
}

npu_status initialize(npu_error*) { return NPU_OK; }

npu_status shut_down() {
  std::lock_guard lock(g_mutex);
  g_stopped = true;
  return NPU_OK;
}

npu_status stream_create(int32_t, int32_t, npu_driver_stream** stream) {
  *stream = new npu_driver_stream;
  return NPU_OK;
}

bool never() { return false; }

npu_status stream_destroy(npu_driver_stream* stream) {
  run(stream, never);
  delete stream;
  return NPU_OK;
}

npu_status stream_query(npu_driver_stream* stream) {
  std::lock_guard lock(g_mutex);
  if (g_stopped) return fail(NPU_ERROR_STOPPED, "the driver was shut down");
  return stream->queue.empty() ? NPU_OK : NPU_ERROR_NOT_READY;
}

npu_status stream_synchronize(npu_driver_stream* stream, int64_t) {
  run(stream, never);
  return stream->error.status == NPU_OK ? NPU_OK : fail(NPU_ERROR_TASK_FAILED, stream->error.message);
}

// Waiting runs everything, so a ticket needs no number.
npu_status stream_ticket(npu_driver_stream*, uint64_t* ticket) {
  *ticket = 0;
  return NPU_OK;
}

npu_status stream_wait(npu_driver_stream* stream, uint64_t, int64_t timeout_ns) {
  return stream_synchronize(stream, timeout_ns);
}

npu_status stream_stop(npu_driver_stream*, const char*) { return fail(NPU_ERROR_NOT_SUPPORTED, "no stopping here"); }
npu_status stream_resume(npu_driver_stream*) { return fail(NPU_ERROR_NOT_SUPPORTED, "no stopping here"); }

npu_status stream_take_error(npu_driver_stream* stream, npu_error* error) {
  *error = stream->error;
  stream->error.status = NPU_OK;
  return static_cast<npu_status>(error->status);
}

npu_status run_copy(void* payload, npu_error*) {
  const auto* arguments = static_cast<const CopyArguments*>(payload);
  std::memcpy(arguments->target, arguments->source, arguments->bytes);
  return NPU_OK;
}

npu_status run_set(void* payload, npu_error*) {
  const auto* arguments = static_cast<const CopyArguments*>(payload);
  std::memset(arguments->target, arguments->value, arguments->bytes);
  return NPU_OK;
}

npu_status memory_copy(npu_driver_stream* stream, void* target, const void* source, size_t bytes) {
  return submit_flat(stream, run_copy, {target, source, bytes, 0});
}

npu_status memory_set(npu_driver_stream* stream, void* target, int32_t byte, size_t bytes) {
  return submit_flat(stream, run_set, {target, nullptr, bytes, byte});
}

npu_status event_create(npu_driver_event** event) {
  *event = new npu_driver_event;
  return NPU_OK;
}

// Kept, reachable for the leak checker: a queue may still name it.  Tests are short.
npu_status event_destroy(npu_driver_event* event) {
  static auto* kept = new std::vector<npu_driver_event*>;
  std::lock_guard lock(g_mutex);
  kept->push_back(event);
  return NPU_OK;
}

npu_status event_record(npu_driver_event* event, npu_driver_stream* stream) {
  {
    std::lock_guard lock(g_mutex);
    if (g_stopped) return fail(NPU_ERROR_STOPPED, "the driver was shut down");
    ++event->recorded;
    event->stream = stream;
  }
  npu_driver_stream::Entry entry;
  entry.record = event;
  return submit(stream, std::move(entry));
}

npu_status event_wait(npu_driver_event* event, npu_driver_stream* stream) {
  npu_driver_stream::Entry entry;
  entry.wait = event;
  {
    std::lock_guard lock(g_mutex);
    entry.wait_for = event->recorded;
  }
  return submit(stream, std::move(entry));
}

npu_status event_query(npu_driver_event* event) {
  std::lock_guard lock(g_mutex);
  return event->passed == event->recorded ? NPU_OK : NPU_ERROR_NOT_READY;
}

npu_status event_synchronize(npu_driver_event* event, int64_t) {
  if (event->stream != nullptr) run(event->stream, [event] { return event->passed == event->recorded; });
  return NPU_OK;
}

npu_status event_time(npu_driver_event* event, uint64_t* nanoseconds) {
  std::lock_guard lock(g_mutex);
  *nanoseconds = event->time;
  return event->passed == event->recorded && event->recorded != 0 ? NPU_OK : NPU_ERROR_NOT_READY;
}

npu_status inject_fault(int32_t, const npu_fault* fault) {
  std::lock_guard lock(g_mutex);
  g_fault = *fault;
  return NPU_OK;
}

const char* last_error() { return t_error.c_str(); }

const npu_driver kDriver = {
    .struct_size = sizeof(npu_driver),
    .version = NPU_DRIVER_VERSION,
    .name = "manual",
    .initialize = initialize,
    .shutdown = shut_down,
    .device_count = device_count,
    .device_properties = device_properties,
    .peer_access = peer_access,
    .memory_map = memory_map,
    .memory_unmap = memory_unmap,
    .memory_info = memory_info,
    .memory_owner = memory_owner,
    .memory_export = memory_export,
    .memory_import = memory_import,
    .memory_close = memory_close,
    .host_allocate = map_host,
    .host_free = host_free,
    .stream_create = stream_create,
    .stream_destroy = stream_destroy,
    .stream_submit = submit_task,
    .stream_query = stream_query,
    .stream_synchronize = stream_synchronize,
    .stream_take_error = stream_take_error,
    .memory_copy = memory_copy,
    .memory_set = memory_set,
    .event_create = event_create,
    .event_destroy = event_destroy,
    .event_record = event_record,
    .event_wait = event_wait,
    .event_query = event_query,
    .event_synchronize = event_synchronize,
    .event_time = event_time,
    .clock_ns = clock_ns,
    .inject_fault = inject_fault,
    .last_error = last_error,
    .stream_ticket = stream_ticket,
    .stream_wait = stream_wait,
    .stream_stop = stream_stop,
    .stream_resume = stream_resume,
};

}  // namespace

extern "C" __attribute__((visibility("default"))) const npu_driver* npu_driver_get(uint32_t version) {
  return version == NPU_DRIVER_VERSION ? &kDriver : nullptr;
}
