// The C table of npu/runtime.h over the C++ runtime.
#include <c10/util/Exception.h>

#include <string>

#include "caching_allocator.h"
#include "device.h"
#include "driver_loader.h"
#include "error.h"
#include "event.h"
#include "generator.h"
#include "npu/runtime.h"
#include "options.h"
#include "stream.h"
#include "trace.h"

namespace npu {
namespace {

thread_local std::string tl_last_error;

npu_status current_exception_status() {
  npu_error error{};
  const npu_status status = capture_exception(&error);
  tl_last_error = error.message;
  return status;
}

// Runs `body`, which throws on failure, and turns the exception into a status with text.
template <class Body>
npu_status guarded(Body&& body) {
  try {
    body();
    return NPU_OK;
  } catch (...) {
    return current_exception_status();
  }
}

template <class Body>
Stream* guarded_stream(Body&& body) {
  try {
    return body();
  } catch (...) {
    current_exception_status();
    return nullptr;
  }
}

npu_status from_driver(npu_status status) {
  if (status != NPU_OK) tl_last_error = driver().last_error();
  return status;
}

const npu_runtime_api kApi = {
    .struct_size = sizeof(npu_runtime_api),
    .version = NPU_RUNTIME_VERSION,
    .device_count = [] { return static_cast<std::int32_t>(device_count()); },
    .current_device = [](std::int32_t* device) { return guarded([&] { *device = current_device(); }); },
    .set_device = [](std::int32_t device) { return guarded([&] { set_device(device); }); },
    .device_properties = [](std::int32_t device,
                            npu_device_properties* p) { return guarded([&] { *p = device_properties(device); }); },
    .current_stream = [](std::int32_t device) { return guarded_stream([&] { return current_stream(device); }); },
    .default_stream = [](std::int32_t device) { return guarded_stream([&] { return default_stream(device); }); },
    .stream_from_pool =
        [](std::int32_t device, std::int32_t priority) {
          return guarded_stream([&] { return stream_from_pool(device, priority); });
        },
    .stream_from_id = [](std::int32_t device,
                         std::int64_t id) { return guarded_stream([&] { return stream_from_id(device, id); }); },
    .stream_id = [](npu_stream* stream) { return stream->id; },
    .stream_device = [](npu_stream* stream) { return static_cast<std::int32_t>(stream->device); },
    .stream_query = [](npu_stream* stream) { return from_driver(driver().stream_query(stream->native)); },
    .stream_synchronize = [](npu_stream* stream) { return guarded([&] { synchronize_stream(stream); }); },
    .launch = [](npu_stream* stream, const npu_task* task, const npu_access* accesses,
                 std::uint32_t count) { return guarded([&] { launch(stream, *task, accesses, count); }); },
    .event_create = [](npu_event** event) { return guarded([&] { *event = create_event(/*timing=*/true); }); },
    .event_destroy = [](npu_event* event) { return guarded([&] { destroy_event(event); }); },
    .event_record = [](npu_event* event, npu_stream* stream) { return guarded([&] { record_event(event, stream); }); },
    .event_wait = [](npu_event* event, npu_stream* stream) { return guarded([&] { wait_event(event, stream); }); },
    .event_query =
        [](npu_event* event) {
          return event->native == nullptr ? NPU_OK : from_driver(driver().event_query(event->native));
        },
    .event_synchronize =
        [](npu_event* event, std::int64_t timeout_ns) {
          return event->native == nullptr ? NPU_OK : from_driver(driver().event_synchronize(event->native, timeout_ns));
        },
    .event_time =
        [](npu_event* event, std::uint64_t* ns) {
          if (event->native == nullptr) {
            tl_last_error = "the event was never recorded";
            return NPU_ERROR_NOT_READY;
          }
          return from_driver(driver().event_time(event->native, ns));
        },
    .memory_allocate =
        [](std::int32_t device, size_t bytes, npu_stream* stream, void** address) {
          return guarded([&] {
            *address = caching_allocator().raw_allocate(bytes, stream != nullptr ? stream : current_stream(device));
          });
        },
    .memory_free = [](void* address) { return guarded([&] { caching_allocator().raw_free(address); }); },
    .memory_record_stream =
        [](const void* address, npu_stream* stream) {
          return guarded([&] { caching_allocator().record_stream(address, stream); });
        },
    .memory_export =
        [](const void* address, size_t bytes, npu_memory_handle* handle) {
          return from_driver(driver().memory_export(address, bytes, handle));
        },
    .memory_import = [](const npu_memory_handle* handle, void** address,
                        size_t* bytes) { return from_driver(driver().memory_import(handle, address, bytes)); },
    .memory_close = [](void* address) { return from_driver(driver().memory_close(address)); },
    .philox_reserve =
        [](std::int32_t device, std::uint64_t count, std::uint64_t* seed, std::uint64_t* offset) {
          return guarded([&] {
            const auto state = reserve_philox(std::nullopt, device, count);
            *seed = state.seed;
            *offset = state.offset;
          });
        },
    .option_get = [](const char* name) { return get_option_cstr(name); },
    .option_set = [](const char* name, const char* value) { return guarded([&] { set_option(name, value); }); },
    .trace_attach =
        [](npu_trace_sink_fn sink, void* user) {
          const npu_status status = trace_attach(sink, user);
          if (status != NPU_OK) tl_last_error = "a trace sink is already attached";
          return status;
        },
    .trace_detach = [] { return trace_detach(); },
    .trace_flush = [] { return trace_flush(); },
    .trace_emit = [](const npu_trace_record* record) { trace_emit(*record); },
    .trace_enabled = [] { return static_cast<std::int32_t>(tracing()); },
    .clock_ns = [] { return driver().clock_ns(); },
    .last_error = [] { return tl_last_error.c_str(); },
};

}  // namespace
}  // namespace npu

extern "C" __attribute__((visibility("default"))) const npu_runtime_api* npu_runtime_get(std::uint32_t version) {
  return version == NPU_RUNTIME_VERSION ? &npu::kApi : nullptr;
}
