#include "collector.h"

#include <atomic>
#include <new>
#include <string>

#include "npu/runtime.h"
#include "record_store.h"

namespace {

using npu::profiler::RecordStore;

// A marker task is bookkeeping, not a kernel: the store leaves its trace record out by this name.
constexpr char kMarkerTask[] = "npu_profiler::marker";

// Never destroyed: an engine may still run a marker while the process ends.
RecordStore& store() {
  static RecordStore* const instance = new RecordStore;
  return *instance;
}

// Counts clears: a marker queued in one recording and run in the next belongs to none.
std::atomic<uint32_t> g_generation{0};

// Out of memory while profiling costs records, never the program under measurement; stop() reports how many.
std::atomic<uint64_t> g_lost{0};

thread_local std::string t_last_error;

int32_t fail(npu_status status, const char* text) {
  t_last_error = text;
  return status;
}

int32_t from_runtime(const npu_runtime_api* api, npu_status status) {
  if (status != NPU_OK) t_last_error = api->last_error();
  return status;
}

const npu_runtime_api* find_runtime() {
  const npu_runtime_api* api = npu_runtime();
  if (api == nullptr)
    t_last_error = "no NPU runtime is loaded in this process; import torch_npu (wheel npu-core) first";
  return api;
}

void sink(const npu_trace_record* records, size_t count, void* /*user*/) {
  try {
    store().append(records, count, kMarkerTask);
  } catch (const std::bad_alloc&) {
    g_lost.fetch_add(count, std::memory_order_relaxed);
  }
}

struct MarkerPayload {
  uint64_t token;
  uint32_t generation;
};

npu_status run_marker(void* payload, npu_error* /*error*/) {
  const auto* marker = static_cast<const MarkerPayload*>(payload);
  const npu_runtime_api* api = npu_runtime();
  const uint64_t now = api->clock_ns();
  if (marker->generation == g_generation.load(std::memory_order_acquire)) {
    try {
      store().append_marker(marker->token, now);
    } catch (const std::bad_alloc&) {
      g_lost.fetch_add(1, std::memory_order_relaxed);
    }
  }
  return NPU_OK;
}

}  // namespace

extern "C" {

int32_t npu_profiler_start(void) {
  const npu_runtime_api* api = find_runtime();
  if (api == nullptr) return NPU_ERROR_NOT_SUPPORTED;
  return from_runtime(api, api->trace_attach(&sink, nullptr));
}

int32_t npu_profiler_stop(void) {
  const npu_runtime_api* api = find_runtime();
  if (api == nullptr) return NPU_ERROR_NOT_SUPPORTED;
  return from_runtime(api, api->trace_detach());
}

void npu_profiler_clear(void) {
  g_generation.fetch_add(1, std::memory_order_acq_rel);
  g_lost.store(0, std::memory_order_relaxed);
  store().clear();
}

int32_t npu_profiler_launch_marker(int32_t device, int64_t stream_id, uint64_t token) {
  const npu_runtime_api* api = find_runtime();
  if (api == nullptr) return NPU_ERROR_NOT_SUPPORTED;
  npu_stream* stream = api->stream_from_id(device, stream_id);
  if (stream == nullptr) return fail(NPU_ERROR_INVALID_ARGUMENT, api->last_error());
  const MarkerPayload payload{token, g_generation.load(std::memory_order_acquire)};
  npu_task task{};
  task.run = &run_marker;
  task.name = kMarkerTask;
  task.payload = &payload;
  task.payload_size = sizeof payload;
  task.kind = NPU_TASK_COMPUTE;
  return from_runtime(api, api->launch(stream, &task, nullptr, 0));
}

size_t npu_profiler_record_count(void) { return store().record_count(); }

size_t npu_profiler_copy_records(size_t first, size_t capacity, npu_profiler_record* records) {
  return store().copy_records(first, capacity, records);
}

size_t npu_profiler_marker_count(void) { return store().marker_count(); }

size_t npu_profiler_copy_markers(size_t first, size_t capacity, npu_profiler_marker_time* times) {
  return store().copy_markers(first, capacity, times);
}

uint32_t npu_profiler_name_count(void) { return store().name_count(); }

const char* npu_profiler_name(uint32_t index) { return store().name(index); }

uint64_t npu_profiler_lost_count(void) { return g_lost.load(std::memory_order_relaxed); }

uint64_t npu_profiler_clock_ns(void) {
  const npu_runtime_api* api = npu_runtime();
  return api == nullptr ? 0 : api->clock_ns();
}

const char* npu_profiler_last_error(void) { return t_last_error.c_str(); }

}  // extern "C"
