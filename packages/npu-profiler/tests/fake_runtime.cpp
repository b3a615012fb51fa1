// A runtime of one stream, so that the collector is tested apart from npu-core: tasks queue until the test runs them,
// and trace records reach the sink in the order in which the test emits them.
#include <time.h>

#include <cstring>
#include <string>
#include <vector>

#include "npu/runtime.h"

namespace {

struct Task {
  npu_task task;
  std::vector<unsigned char> payload;
};

npu_trace_sink_fn g_sink = nullptr;
void* g_user = nullptr;
std::vector<npu_trace_record> g_ring;
std::vector<Task> g_queue;
std::string g_error;
int g_stream;  // its address is the stream

uint64_t clock_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
}

npu_status trace_flush() {
  if (g_sink != nullptr && !g_ring.empty()) g_sink(g_ring.data(), g_ring.size(), g_user);
  g_ring.clear();
  return NPU_OK;
}

void trace_emit(const npu_trace_record* record) {
  if (g_sink == nullptr) return;
  g_ring.push_back(*record);
  if (g_ring.size() == 1024) trace_flush();
}

npu_status trace_attach(npu_trace_sink_fn sink, void* user) {
  if (g_sink != nullptr) {
    g_error = "a sink is attached already";
    return NPU_ERROR_INVALID_ARGUMENT;
  }
  g_sink = sink;
  g_user = user;
  return NPU_OK;
}

npu_status trace_detach() {
  trace_flush();
  g_sink = nullptr;
  return NPU_OK;
}

npu_stream* stream_from_id(int32_t device, int64_t id) {
  if (device == 0 && id == 7) return reinterpret_cast<npu_stream*>(&g_stream);
  g_error = "no such stream";
  return nullptr;
}

npu_status launch(npu_stream*, const npu_task* task, const npu_access*, uint32_t) {
  const auto* bytes = static_cast<const unsigned char*>(task->payload);
  g_queue.push_back({*task, {bytes, bytes + task->payload_size}});
  return NPU_OK;
}

const char* last_error() { return g_error.c_str(); }

}  // namespace

extern "C" {

const npu_runtime_api* npu_runtime_get(uint32_t version) {
  static const npu_runtime_api api = [] {
    npu_runtime_api table{};
    table.struct_size = sizeof table;
    table.version = NPU_RUNTIME_VERSION;
    table.stream_from_id = &stream_from_id;
    table.launch = &launch;
    table.trace_attach = &trace_attach;
    table.trace_detach = &trace_detach;
    table.trace_flush = &trace_flush;
    table.trace_emit = &trace_emit;
    table.clock_ns = &clock_ns;
    table.last_error = &last_error;
    return table;
  }();
  return version == NPU_RUNTIME_VERSION ? &api : nullptr;
}

// Called by the test.

int fake_run_queue() {
  const int count = static_cast<int>(g_queue.size());
  for (Task& queued : g_queue) {
    npu_error error{};
    npu_trace_record record{};
    record.kind = NPU_TRACE_TASK;
    record.stream_id = 7;
    record.begin_ns = clock_ns();
    queued.task.run(queued.payload.data(), &error);
    record.end_ns = clock_ns();
    std::strncpy(record.name, queued.task.name, sizeof record.name - 1);
    trace_emit(&record);
  }
  g_queue.clear();
  return count;
}

void fake_emit(int32_t kind, const char* name, uint64_t begin_ns, uint64_t end_ns, uint64_t correlation) {
  npu_trace_record record{};
  record.kind = kind;
  record.stream_id = kind == NPU_TRACE_TASK ? 7 : -1;
  record.begin_ns = begin_ns;
  record.end_ns = end_ns;
  record.submit_ns = begin_ns;
  record.correlation = correlation;
  record.value = -5;
  record.thread_id = 42;
  record.task_kind = NPU_TASK_BLOCKING;
  std::strncpy(record.name, name, sizeof record.name - 1);
  trace_emit(&record);
}

}  // extern "C"
