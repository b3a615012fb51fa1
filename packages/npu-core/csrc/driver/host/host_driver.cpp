// The host driver's table: checks arguments, then calls the part that does the work.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <new>

#include "clock.h"
#include "engine_thread.h"
#include "error.h"
#include "event.h"
#include "npu/driver.h"
#include "session.h"
#include "stream.h"

namespace npu::host {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

Stream* unwrap(npu_driver_stream* stream) { return reinterpret_cast<Stream*>(stream); }
Event* unwrap(npu_driver_event* event) { return reinterpret_cast<Event*>(event); }

#define NPU_RETURN_IF_FAILED(expression) \
  do {                                   \
    npu_status status_ = (expression);   \
    if (status_ != NPU_OK) [[unlikely]]  \
      return status_;                    \
  } while (false)

npu_status running(const char* call) { return Session::instance().check(call); }

npu_status not_null(const char* call, const char* argument, const void* value) {
  if (value != nullptr) [[likely]]
    return NPU_OK;
  return fail(NPU_ERROR_INVALID_ARGUMENT, "%s: %s is NULL", call, argument);
}

// ---- life cycle and devices ----

npu_status initialize(npu_error* error) {
  npu_status status;
  try {
    status = Session::instance().start();
  } catch (const std::bad_alloc&) {
    status = fail(NPU_ERROR_OUT_OF_MEMORY, "initialize: no host memory");
  }
  if (status != NPU_OK) export_last_error(status, error);
  return status;
}

npu_status shutdown() { return Session::instance().stop(); }

npu_status device_count(int32_t* count) {
  NPU_RETURN_IF_FAILED(not_null("device_count", "count", count));
  int number = 0;
  // While running, the number the devices were opened with counts, whatever the environment says by now.
  if (Session::instance().running()) {
    number = Session::instance().configuration().device_count;
  } else {
    NPU_RETURN_IF_FAILED(read_device_count(&number));
  }
  *count = number;
  return NPU_OK;
}

npu_status device_properties(int32_t index, npu_device_properties* properties) {
  constexpr const char* kCall = "device_properties";
  NPU_RETURN_IF_FAILED(running(kCall));
  NPU_RETURN_IF_FAILED(not_null(kCall, "properties", properties));
  Session& session = Session::instance();
  if (session.device(kCall, index) == nullptr) return NPU_ERROR_INVALID_ARGUMENT;
  const Configuration& configuration = session.configuration();
  npu_device_properties found{};
  // A caller of an older header has a shorter structure: it gets the fields it knows.
  size_t size = std::min<size_t>(properties->struct_size, sizeof(found));
  if (size < offsetof(npu_device_properties, name)) {
    return fail(NPU_ERROR_INVALID_ARGUMENT, "%s: struct_size is %u; set it to sizeof(npu_device_properties)", kCall,
                properties->struct_size);
  }
  found.struct_size = properties->struct_size;
  found.is_emulated = 1;
  copy_text(found.name, sizeof(found.name), configuration.soc.c_str());
  copy_text(found.driver, sizeof(found.driver), "host 1.0");
  // A name-based identifier (version 8: the vendor's own scheme): the same device index always has the same one.
  constexpr uint8_t kUuid[16] = {0x6e, 0x70, 0x75, 0x2d, 0x68, 0x6f, 0x80, 0x73, 0x80, 0x74};
  memcpy(found.uuid, kUuid, sizeof(kUuid));
  found.uuid[15] = static_cast<uint8_t>(index);
  found.total_memory = configuration.memory_bytes;
  found.memory_granularity = kMemoryGranularity;
  found.l2_cache_size = uint64_t{192} << 20;
  found.cube_core_num = 24;
  found.vector_core_num = 48;
  found.soc_version = configuration.soc_version;
  memcpy(properties, &found, size);
  return NPU_OK;
}

npu_status peer_access(int32_t device, int32_t peer, int32_t* can_access) {
  NPU_RETURN_IF_FAILED(running("peer_access"));
  NPU_RETURN_IF_FAILED(not_null("peer_access", "can_access", can_access));
  Session& session = Session::instance();
  if (session.device("peer_access", device) == nullptr || session.device("peer_access", peer) == nullptr) {
    return NPU_ERROR_INVALID_ARGUMENT;
  }
  *can_access = device != peer;
  return NPU_OK;
}

// ---- memory ----

npu_status memory_map(int32_t index, size_t bytes, void** address) {
  NPU_RETURN_IF_FAILED(running("memory_map"));
  NPU_RETURN_IF_FAILED(not_null("memory_map", "address", address));
  Session& session = Session::instance();
  Device* device = session.device("memory_map", index);
  if (device == nullptr) return NPU_ERROR_INVALID_ARGUMENT;
  if (device->faults.strike_map()) {
    return fail(NPU_ERROR_OUT_OF_MEMORY, "memory_map: injected fault (inject_fault)");
  }
  NPU_RETURN_IF_FAILED(device->arena.map(bytes, address));
  // After taking the range, so that of two threads that ask at once each counts the other's.
  npu_status status = session.check_machine_memory();
  if (status != NPU_OK) device->arena.unmap(*address, bytes);
  return status;
}

npu_status memory_unmap(int32_t index, void* address, size_t bytes) {
  NPU_RETURN_IF_FAILED(running("memory_unmap"));
  Device* device = Session::instance().device("memory_unmap", index);
  return device == nullptr ? NPU_ERROR_INVALID_ARGUMENT : device->arena.unmap(address, bytes);
}

npu_status memory_info(int32_t index, size_t* free_bytes, size_t* total_bytes) {
  NPU_RETURN_IF_FAILED(running("memory_info"));
  NPU_RETURN_IF_FAILED(not_null("memory_info", "free_bytes", free_bytes));
  NPU_RETURN_IF_FAILED(not_null("memory_info", "total_bytes", total_bytes));
  Device* device = Session::instance().device("memory_info", index);
  if (device == nullptr) return NPU_ERROR_INVALID_ARGUMENT;
  device->arena.info(free_bytes, total_bytes);
  return NPU_OK;
}

npu_status memory_owner(const void* address, int32_t* index) {
  NPU_RETURN_IF_FAILED(running("memory_owner"));
  NPU_RETURN_IF_FAILED(not_null("memory_owner", "device", index));
  Device* device = Session::instance().device_of(address, 1);
  if (device == nullptr)
    return fail(NPU_ERROR_INVALID_ARGUMENT, "memory_owner: %p is no mapped device memory", address);
  *index = device->index;
  return NPU_OK;
}

npu_status memory_export(const void* address, size_t bytes, npu_memory_handle* handle) {
  NPU_RETURN_IF_FAILED(running("memory_export"));
  NPU_RETURN_IF_FAILED(not_null("memory_export", "handle", handle));
  Session& session = Session::instance();
  Device* device = bytes == 0 ? nullptr : session.device_of(address, bytes);
  if (device == nullptr) {
    return fail(NPU_ERROR_INVALID_ARGUMENT, "memory_export: [%p, +%zu) is not inside one mapped range", address, bytes);
  }
  return session.peer_memory().export_range(device->index, device->arena, address, bytes, handle);
}

npu_status memory_import(const npu_memory_handle* handle, void** address, size_t* bytes) {
  NPU_RETURN_IF_FAILED(running("memory_import"));
  NPU_RETURN_IF_FAILED(not_null("memory_import", "handle", handle));
  NPU_RETURN_IF_FAILED(not_null("memory_import", "address", address));
  NPU_RETURN_IF_FAILED(not_null("memory_import", "bytes", bytes));
  Session& session = Session::instance();
  return session.peer_memory().import_range(
      handle,
      [&](int32_t index) -> Arena* {
        Device* device = session.device("memory_import", index);
        return device != nullptr ? &device->arena : nullptr;
      },
      address, bytes);
}

npu_status memory_close(void* address) {
  NPU_RETURN_IF_FAILED(running("memory_close"));
  return Session::instance().peer_memory().close_range(address);
}

npu_status host_allocate(size_t bytes, void** address) {
  NPU_RETURN_IF_FAILED(running("host_allocate"));
  NPU_RETURN_IF_FAILED(not_null("host_allocate", "address", address));
  if (bytes == 0) return fail(NPU_ERROR_INVALID_ARGUMENT, "host_allocate: 0 bytes");
  // Not locked: the emulated device reads it through the same page tables as the host.
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return fail(NPU_ERROR_OUT_OF_MEMORY, "host_allocate: the system has no %zu bytes of host memory", bytes);
  }
  if (bytes >= kHugePage) madvise(memory, bytes, MADV_HUGEPAGE);
  *address = memory;
  return NPU_OK;
}

// Also after shutdown and in a forked child: the memory is the process's own, whatever became of the driver.
npu_status host_free(void* address, size_t bytes) {
  if (bytes == 0 || munmap(address, bytes) != 0) {
    return fail(NPU_ERROR_INVALID_ARGUMENT, "host_free: %p with %zu bytes is no allocation of host_allocate", address,
                bytes);
  }
  return running("host_free");
}

// ---- streams ----

npu_status stream_create(int32_t index, int32_t priority, npu_driver_stream** stream) {
  NPU_RETURN_IF_FAILED(running("stream_create"));
  NPU_RETURN_IF_FAILED(not_null("stream_create", "stream", stream));
  Session& session = Session::instance();
  Device* device = session.device("stream_create", index);
  if (device == nullptr) return NPU_ERROR_INVALID_ARGUMENT;
  Stream* created;
  NPU_RETURN_IF_FAILED(session.add_stream(*device, priority, &created));
  *stream = reinterpret_cast<npu_driver_stream*>(created);
  return NPU_OK;
}

npu_status stream_destroy(npu_driver_stream* handle) {
  constexpr const char* kCall = "stream_destroy";
  NPU_RETURN_IF_FAILED(not_null(kCall, "stream", handle));
  Session& session = Session::instance();
  if (session.forked()) return running(kCall);
  Stream* stream = unwrap(handle);
  if (thread_role().is_engine || thread_role().stream == stream) {
    return fail(NPU_ERROR_INVALID_ARGUMENT, "%s: called from a task, which it would have to wait for", kCall);
  }
  npu_status status = stream->check_not_closed(kCall);
  if (status == NPU_OK) {
    stream->close();
    stream->drain();
    stream->end_thread();
    session.remove_stream(stream);
  }
  stream->release();  // a stream that shutdown has closed is still the caller's to give back
  return status;
}

npu_status submit(npu_driver_stream* stream, const npu_task& task, SlotKind kind) {
  return unwrap(stream)->submit(task, kind);
}

npu_status stream_submit(npu_driver_stream* stream, const npu_task* task) {
  constexpr const char* kCall = "stream_submit";
  NPU_RETURN_IF_FAILED(running(kCall));
  if (stream == nullptr || task == nullptr || task->run == nullptr || task->kind > NPU_TASK_BLOCKING ||
      (task->flags & ~NPU_TASK_ALWAYS) != 0 || (task->payload == nullptr && task->payload_size != 0)) [[unlikely]] {
    NPU_RETURN_IF_FAILED(not_null(kCall, "stream", stream));
    NPU_RETURN_IF_FAILED(not_null(kCall, "task", task));
    NPU_RETURN_IF_FAILED(not_null(kCall, "task->run", reinterpret_cast<const void*>(task->run)));
    return fail(NPU_ERROR_INVALID_ARGUMENT, "%s: kind %u, flags %u, payload %p of %u bytes is no valid task", kCall,
                task->kind, task->flags, task->payload, task->payload_size);
  }
  return submit(stream, *task, static_cast<SlotKind>(task->kind));
}

npu_status stream_query(npu_driver_stream* stream) {
  NPU_RETURN_IF_FAILED(running("stream_query"));
  NPU_RETURN_IF_FAILED(not_null("stream_query", "stream", stream));
  NPU_RETURN_IF_FAILED(unwrap(stream)->check_not_closed("stream_query"));
  return unwrap(stream)->idle() ? NPU_OK : NPU_ERROR_NOT_READY;
}

npu_status stream_synchronize(npu_driver_stream* stream, int64_t timeout_ns) {
  NPU_RETURN_IF_FAILED(running("stream_synchronize"));
  NPU_RETURN_IF_FAILED(not_null("stream_synchronize", "stream", stream));
  NPU_RETURN_IF_FAILED(unwrap(stream)->check_not_closed("stream_synchronize"));
  return unwrap(stream)->synchronize(unwrap(stream)->ticket(), deadline_after(timeout_ns));
}

npu_status stream_ticket(npu_driver_stream* stream, uint64_t* ticket) {
  NPU_RETURN_IF_FAILED(running("stream_ticket"));
  NPU_RETURN_IF_FAILED(not_null("stream_ticket", "stream", stream));
  NPU_RETURN_IF_FAILED(not_null("stream_ticket", "ticket", ticket));
  NPU_RETURN_IF_FAILED(unwrap(stream)->check_not_closed("stream_ticket"));
  *ticket = unwrap(stream)->ticket();
  return NPU_OK;
}

npu_status stream_wait(npu_driver_stream* stream, uint64_t ticket, int64_t timeout_ns) {
  constexpr const char* kCall = "stream_wait";
  NPU_RETURN_IF_FAILED(running(kCall));
  NPU_RETURN_IF_FAILED(not_null(kCall, "stream", stream));
  NPU_RETURN_IF_FAILED(unwrap(stream)->check_not_closed(kCall));
  if (ticket > unwrap(stream)->ticket()) {
    return fail(NPU_ERROR_INVALID_ARGUMENT, "%s: the ticket is of another stream: it stands for %llu tasks", kCall,
                static_cast<unsigned long long>(ticket));
  }
  return unwrap(stream)->synchronize(ticket, deadline_after(timeout_ns));
}

npu_status stream_stop(npu_driver_stream* stream, const char* reason) {
  constexpr const char* kCall = "stream_stop";
  NPU_RETURN_IF_FAILED(running(kCall));
  NPU_RETURN_IF_FAILED(not_null(kCall, "stream", stream));
  NPU_RETURN_IF_FAILED(not_null(kCall, "reason", reason));
  NPU_RETURN_IF_FAILED(unwrap(stream)->check_not_closed(kCall));
  unwrap(stream)->stop(reason);
  return NPU_OK;
}

npu_status stream_resume(npu_driver_stream* stream) {
  constexpr const char* kCall = "stream_resume";
  NPU_RETURN_IF_FAILED(running(kCall));
  NPU_RETURN_IF_FAILED(not_null(kCall, "stream", stream));
  NPU_RETURN_IF_FAILED(unwrap(stream)->check_not_closed(kCall));
  if (thread_role().is_engine || thread_role().stream != nullptr) {
    return fail(NPU_ERROR_INVALID_ARGUMENT, "%s: called from a task, which it may have to wait for", kCall);
  }
  unwrap(stream)->resume();
  return NPU_OK;
}

npu_status stream_take_error(npu_driver_stream* stream, npu_error* error) {
  NPU_RETURN_IF_FAILED(running("stream_take_error"));
  NPU_RETURN_IF_FAILED(not_null("stream_take_error", "stream", stream));
  NPU_RETURN_IF_FAILED(not_null("stream_take_error", "error", error));
  NPU_RETURN_IF_FAILED(unwrap(stream)->check_not_closed("stream_take_error"));
  return unwrap(stream)->take_error(error);
}

// ---- copies ----

struct Copy {
  void* dst;
  const void* src;
  size_t bytes;
};

struct Fill {
  void* dst;
  size_t bytes;
  int32_t byte;
};

template <typename Payload>
npu_status submit_transfer(npu_driver_stream* stream, const char* name, npu_task_fn run, const Payload& payload) {
  bool large = payload.bytes >= Session::instance().configuration().copy_threshold;
  npu_task task{};
  task.run = run;
  task.name = name;
  task.payload = &payload;
  task.payload_size = sizeof(payload);
  return submit(stream, task, large ? kCopySlot : kLightSlot);
}

npu_status memory_copy(npu_driver_stream* stream, void* dst, const void* src, size_t bytes) {
  NPU_RETURN_IF_FAILED(running("memory_copy"));
  NPU_RETURN_IF_FAILED(not_null("memory_copy", "stream", stream));
  if (bytes != 0) {
    NPU_RETURN_IF_FAILED(not_null("memory_copy", "dst", dst));
    NPU_RETURN_IF_FAILED(not_null("memory_copy", "src", src));
  }
  return submit_transfer(
      stream, "memory_copy",
      [](void* payload, npu_error*) {
        const Copy& copy = *static_cast<Copy*>(payload);
        if (copy.bytes != 0) memmove(copy.dst, copy.src, copy.bytes);
        return NPU_OK;
      },
      Copy{dst, src, bytes});
}

npu_status memory_set(npu_driver_stream* stream, void* dst, int32_t byte, size_t bytes) {
  NPU_RETURN_IF_FAILED(running("memory_set"));
  NPU_RETURN_IF_FAILED(not_null("memory_set", "stream", stream));
  if (bytes != 0) NPU_RETURN_IF_FAILED(not_null("memory_set", "dst", dst));
  return submit_transfer(
      stream, "memory_set",
      [](void* payload, npu_error*) {
        const Fill& fill = *static_cast<Fill*>(payload);
        if (fill.bytes != 0) memset(fill.dst, fill.byte, fill.bytes);
        return NPU_OK;
      },
      Fill{dst, bytes, byte});
}

// ---- events ----

npu_status submit_signal(npu_driver_stream* stream, Marker* marker, SlotKind kind) {
  npu_task task{};
  task.payload = &marker;
  task.payload_size = sizeof(marker);
  return submit(stream, task, kind);
}

npu_status event_create(npu_driver_event** event) {
  NPU_RETURN_IF_FAILED(running("event_create"));
  NPU_RETURN_IF_FAILED(not_null("event_create", "event", event));
  auto* created = new (std::nothrow) Event;
  if (created == nullptr) return fail(NPU_ERROR_OUT_OF_MEMORY, "event_create: no host memory for an event");
  *event = reinterpret_cast<npu_driver_event*>(created);
  return NPU_OK;
}

npu_status event_destroy(npu_driver_event* event) {
  NPU_RETURN_IF_FAILED(not_null("event_destroy", "event", event));
  if (Session::instance().forked()) return running("event_destroy");
  delete unwrap(event);  // also after shutdown, as with streams; the markers live on in the queues
  return running("event_destroy");
}

npu_status event_record(npu_driver_event* event, npu_driver_stream* stream) {
  NPU_RETURN_IF_FAILED(running("event_record"));
  NPU_RETURN_IF_FAILED(not_null("event_record", "event", event));
  NPU_RETURN_IF_FAILED(not_null("event_record", "stream", stream));
  auto* marker = new (std::nothrow) Marker(unwrap(stream)->id());
  if (marker == nullptr) return fail(NPU_ERROR_OUT_OF_MEMORY, "event_record: no host memory for a marker");
  marker->retain();  // one for the slot, one for the event
  npu_status status = submit_signal(stream, marker, kRecordSlot);
  if (status != NPU_OK) {
    marker->release();
    marker->release();
    return status;
  }
  unwrap(event)->replace(marker);
  return NPU_OK;
}

npu_status event_wait(npu_driver_event* event, npu_driver_stream* stream) {
  NPU_RETURN_IF_FAILED(running("event_wait"));
  NPU_RETURN_IF_FAILED(not_null("event_wait", "event", event));
  NPU_RETURN_IF_FAILED(not_null("event_wait", "stream", stream));
  NPU_RETURN_IF_FAILED(unwrap(stream)->check_open("event_wait"));
  Marker* marker = unwrap(event)->newest();
  if (marker == nullptr) return NPU_OK;
  // Nothing to wait for and no failure to hear of, or in order anyway.
  if ((marker->done() && !marker->failed()) || marker->stream_id() == unwrap(stream)->id()) {
    marker->release();
    return NPU_OK;
  }
  npu_status status = submit_signal(stream, marker, kWaitSlot);
  if (status != NPU_OK) marker->release();
  return status;
}

npu_status event_query(npu_driver_event* event) {
  NPU_RETURN_IF_FAILED(running("event_query"));
  NPU_RETURN_IF_FAILED(not_null("event_query", "event", event));
  Marker* marker = unwrap(event)->newest();
  if (marker == nullptr) return NPU_OK;
  bool done = marker->done();
  marker->release();
  return done ? NPU_OK : NPU_ERROR_NOT_READY;
}

npu_status event_synchronize(npu_driver_event* event, int64_t timeout_ns) {
  NPU_RETURN_IF_FAILED(running("event_synchronize"));
  NPU_RETURN_IF_FAILED(not_null("event_synchronize", "event", event));
  Marker* marker = unwrap(event)->newest();
  if (marker == nullptr) return NPU_OK;
  bool done = marker->done();
  npu_status status = NPU_OK;
  if (!done && (thread_role().is_engine ||
                (thread_role().stream != nullptr && thread_role().stream->id() == marker->stream_id()))) {
    status = fail(NPU_ERROR_INVALID_ARGUMENT, "event_synchronize: called from a task that the event may wait for");
  } else if (!done) {
    done = marker->wait(deadline_after(timeout_ns), Session::instance().configuration().spin_ns);
    if (!done) status = fail(NPU_ERROR_TIMEOUT, "event_synchronize: timed out");
  }
  marker->release();
  return status;
}

npu_status event_time(npu_driver_event* event, uint64_t* nanoseconds) {
  NPU_RETURN_IF_FAILED(running("event_time"));
  NPU_RETURN_IF_FAILED(not_null("event_time", "event", event));
  NPU_RETURN_IF_FAILED(not_null("event_time", "nanoseconds", nanoseconds));
  Marker* marker = unwrap(event)->newest();
  npu_status status = NPU_ERROR_NOT_READY;
  if (marker != nullptr) {
    if (marker->done()) {
      *nanoseconds = static_cast<uint64_t>(marker->time_ns());
      status = NPU_OK;
    }
    marker->release();
  }
  return status;
}

// ---- the rest ----

uint64_t clock_ns() { return static_cast<uint64_t>(now_ns()); }

npu_status inject_fault(int32_t index, const npu_fault* fault) {
  NPU_RETURN_IF_FAILED(running("inject_fault"));
  NPU_RETURN_IF_FAILED(not_null("inject_fault", "fault", fault));
  Device* device = Session::instance().device("inject_fault", index);
  return device == nullptr ? NPU_ERROR_INVALID_ARGUMENT : device->faults.add(*fault);
}

const npu_driver kTable = {
    .struct_size = sizeof(npu_driver),
    .version = NPU_DRIVER_VERSION,
    .name = "host",
    .initialize = initialize,
    .shutdown = shutdown,
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
    .host_allocate = host_allocate,
    .host_free = host_free,
    .stream_create = stream_create,
    .stream_destroy = stream_destroy,
    .stream_submit = stream_submit,
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
}  // namespace npu::host

extern "C" __attribute__((visibility("default"))) const npu_driver* npu_driver_get(uint32_t version) {
  return version == NPU_DRIVER_VERSION ? &npu::host::kTable : nullptr;
}
