#include "trace.h"

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "driver_loader.h"
#include "trace_ring.h"

namespace npu {

std::atomic<bool> g_tracing{false};

namespace {

// Locks in the order they may be taken: attaching, draining, rings.
struct Tracer {
  std::mutex attaching;  // attach and detach, one at a time
  std::mutex draining;   // held while the sink runs
  npu_trace_sink_fn sink = nullptr;
  void* user = nullptr;
  std::mutex ring_mutex;
  std::vector<std::unique_ptr<TraceRing>> rings;

  std::thread flusher;
  std::mutex wake_mutex;
  std::condition_variable wake;
  bool wanted = false;
  bool stopping = false;
};

constexpr auto kFlushInterval = std::chrono::milliseconds(50);

// Counts attachments: a task traced for one sink reports to no later one.  0 = none attached.
std::atomic<std::uint64_t> g_session{0};
std::atomic<std::uint64_t> g_last_session{0};
std::atomic<std::uint64_t> g_last_correlation{0};

// Never destroyed: driver threads may record until the process ends.  A forked child starts with a fresh one, because
// the parent's locks may be held and its flusher is not there.
std::atomic<Tracer*> g_tracer{nullptr};

struct ThreadState {
  TraceRing* ring = nullptr;
  bool ended = false;
  std::uint32_t id = 0;
};
thread_local ThreadState t_state;

// Apart from ThreadState, which must stay readable for destructors that run later at thread exit.
struct ThreadEnd {
  ~ThreadEnd() {
    if (t_state.ring != nullptr) t_state.ring->orphan.store(true, std::memory_order_release);
    t_state.ring = nullptr;
    t_state.ended = true;
  }
};
thread_local ThreadEnd t_end;

Tracer& tracer() {
  Tracer* found = g_tracer.load(std::memory_order_acquire);
  if (found != nullptr) return *found;
  static std::once_flag once;
  std::call_once(once, [] {
    pthread_atfork(nullptr, nullptr, [] {
      g_tracing.store(false, std::memory_order_relaxed);
      g_session.store(0, std::memory_order_relaxed);
      t_state.ring = nullptr;
      t_state.id = 0;
      g_tracer.store(new Tracer, std::memory_order_release);
    });
    g_tracer.store(new Tracer, std::memory_order_release);
  });
  return *g_tracer.load(std::memory_order_acquire);
}

std::uint32_t thread_id() {
  if (t_state.id == 0) t_state.id = static_cast<std::uint32_t>(syscall(SYS_gettid));
  return t_state.id;
}

// Hands everything recorded so far to the sink.  Call with `draining` held.
void drain(Tracer& state) {
  std::vector<TraceRing*> rings;
  {
    std::lock_guard lock(state.ring_mutex);
    for (const auto& ring : state.rings) rings.push_back(ring.get());
  }
  std::vector<TraceRing*> ended;
  for (TraceRing* ring : rings) {
    // Read before draining: whatever the writer recorded before it ended is then seen.
    if (ring->orphan.load(std::memory_order_acquire)) ended.push_back(ring);
    ring->drain([&](const npu_trace_record* records, std::size_t count) {
      if (state.sink != nullptr) state.sink(records, count, state.user);
    });
  }
  if (ended.empty()) return;
  std::lock_guard lock(state.ring_mutex);
  std::erase_if(state.rings,
                [&](const auto& ring) { return std::find(ended.begin(), ended.end(), ring.get()) != ended.end(); });
}

void flush_until_stopped(Tracer& state) {
  pthread_setname_np(pthread_self(), "npu-trace");
  std::unique_lock lock(state.wake_mutex);
  while (!state.stopping) {
    state.wake.wait_for(lock, kFlushInterval, [&] { return state.wanted || state.stopping; });
    state.wanted = false;
    lock.unlock();
    {
      std::lock_guard draining(state.draining);
      drain(state);
    }
    lock.lock();
  }
}

TraceRing* ring_of_thread(Tracer& state) {
  if (t_state.ring == nullptr) {
    static_cast<void>(&t_end);  // constructs it, so that it runs when the thread ends
    auto ring = std::make_unique<TraceRing>();
    t_state.ring = ring.get();
    std::lock_guard lock(state.ring_mutex);
    state.rings.push_back(std::move(ring));
  }
  return t_state.ring;
}

void emit(const npu_trace_record& record) {
  Tracer& state = tracer();
  if (t_state.ended) {
    // Records of a thread's last destructors: its ring is gone.
    std::lock_guard draining(state.draining);
    if (state.sink != nullptr) state.sink(&record, 1, state.user);
    return;
  }
  TraceRing* ring = ring_of_thread(state);
  while (!ring->push(record)) {
    // Nothing is dropped: a writer that outruns the flusher delivers its own records.
    std::lock_guard draining(state.draining);
    drain(state);
  }
  if (ring->used() == TraceRing::kCapacity / 2) {
    {
      std::lock_guard lock(state.wake_mutex);
      state.wanted = true;
    }
    state.wake.notify_one();
  }
}

void set_name(npu_trace_record& record, const char* name) {
  const std::size_t length = name == nullptr ? 0 : strnlen(name, sizeof(record.name) - 1);
  if (length != 0) std::memcpy(record.name, name, length);
  record.name[length] = '\0';
}

// A task that stands in for `original`, whose payload follows this header.
struct alignas(64) TracedTask {
  npu_task original;
  Stream* stream;
  std::uint64_t session;
  std::uint64_t correlation;
  std::uint64_t submit_ns;

  void* payload() { return this + 1; }

  static TracedTask* create(Stream* stream, const npu_task& task) {
    void* memory = ::operator new(sizeof(TracedTask) + task.payload_size, std::align_val_t{alignof(TracedTask)});
    auto* traced = new (memory) TracedTask{task, stream, 0, 0, 0};
    if (task.payload_size != 0) std::memcpy(traced->payload(), task.payload, task.payload_size);
    return traced;
  }
  static void dispose(TracedTask* traced) {
    traced->~TracedTask();
    ::operator delete(traced, std::align_val_t{alignof(TracedTask)});
  }
};

npu_status run_traced(void* payload, npu_error* error) {
  auto* traced = *static_cast<TracedTask**>(payload);
  npu_trace_record record{};
  record.begin_ns = driver().clock_ns();
  const npu_status status = traced->original.run(traced->payload(), error);
  if (traced->session != g_session.load(std::memory_order_acquire)) return status;
  record.end_ns = driver().clock_ns();
  record.kind = NPU_TRACE_TASK;
  record.device = traced->stream->device;
  record.stream_id = traced->stream->id;
  record.correlation = traced->correlation;
  record.submit_ns = traced->submit_ns;
  record.thread_id = thread_id();
  record.task_kind = traced->original.kind;
  set_name(record, traced->original.name);
  emit(record);
  return status;
}

void destroy_traced(void* payload) {
  auto* traced = *static_cast<TracedTask**>(payload);
  if (traced->original.destroy != nullptr) traced->original.destroy(traced->payload());
  TracedTask::dispose(traced);
}

}  // namespace

npu_status trace_attach(npu_trace_sink_fn sink, void* user) {
  if (sink == nullptr) return NPU_ERROR_INVALID_ARGUMENT;
  Tracer& state = tracer();
  std::lock_guard attaching(state.attaching);
  {
    std::lock_guard draining(state.draining);
    if (state.sink != nullptr) return NPU_ERROR_INVALID_ARGUMENT;
    drain(state);  // with no sink: what came after the last detach belongs to nobody
    state.sink = sink;
    state.user = user;
  }
  state.stopping = false;
  try {
    state.flusher = std::thread([&state] { flush_until_stopped(state); });
  } catch (const std::system_error&) {
    std::lock_guard draining(state.draining);
    state.sink = nullptr;
    return NPU_ERROR_SYSTEM;
  }
  g_session.store(g_last_session.fetch_add(1) + 1, std::memory_order_release);
  g_tracing.store(true, std::memory_order_release);
  return NPU_OK;
}

npu_status trace_detach() {
  Tracer& state = tracer();
  std::lock_guard attaching(state.attaching);
  if (!state.flusher.joinable()) return NPU_OK;
  g_tracing.store(false, std::memory_order_release);
  g_session.store(0, std::memory_order_release);
  {
    std::lock_guard lock(state.wake_mutex);
    state.stopping = true;
  }
  state.wake.notify_one();
  state.flusher.join();
  std::lock_guard draining(state.draining);
  drain(state);
  state.sink = nullptr;
  state.user = nullptr;
  return NPU_OK;
}

npu_status trace_flush() {
  Tracer& state = tracer();
  std::lock_guard draining(state.draining);
  drain(state);
  return NPU_OK;
}

void trace_emit(const npu_trace_record& record) {
  if (!tracing()) return;
  npu_trace_record copy = record;
  if (copy.thread_id == 0) copy.thread_id = thread_id();
  copy.name[sizeof(copy.name) - 1] = '\0';
  emit(copy);
}

namespace {

// A copy between its two markers.  The end marker owns it.
struct CopySpan {
  Stream* stream;
  std::uint64_t session;
  std::uint64_t correlation;
  std::uint64_t submit_ns;
  std::uint64_t begin_ns;
  std::int64_t bytes;
};

constexpr const char* kCopyName = "memory_copy";

npu_status begin_copy(void* payload, npu_error*) {
  (*static_cast<CopySpan**>(payload))->begin_ns = driver().clock_ns();
  return NPU_OK;
}

npu_status end_copy(void* payload, npu_error*) {
  const CopySpan& span = **static_cast<CopySpan**>(payload);
  if (span.session != g_session.load(std::memory_order_acquire)) return NPU_OK;
  npu_trace_record record{};
  record.kind = NPU_TRACE_TASK;
  record.device = span.stream->device;
  record.stream_id = span.stream->id;
  record.correlation = span.correlation;
  record.submit_ns = span.submit_ns;
  record.begin_ns = span.begin_ns;
  record.end_ns = driver().clock_ns();
  record.value = span.bytes;
  record.thread_id = thread_id();
  record.task_kind = NPU_TASK_COPY;
  set_name(record, kCopyName);
  emit(record);
  return NPU_OK;
}

// The host's side of a launch: written when the call returns.
npu_trace_record api_record(const Stream* stream, const char* name, std::uint16_t kind) {
  npu_trace_record record{};
  record.kind = NPU_TRACE_API;
  record.device = stream->device;
  record.stream_id = stream->id;
  record.correlation = g_last_correlation.fetch_add(1, std::memory_order_relaxed) + 1;
  record.begin_ns = record.submit_ns = driver().clock_ns();
  record.task_kind = kind;
  set_name(record, name);
  return record;
}

}  // namespace

npu_status launch_traced(Stream* stream, const npu_task& task) {
  npu_trace_record record = api_record(stream, task.name, task.kind);
  TracedTask* traced = TracedTask::create(stream, task);
  traced->session = g_session.load(std::memory_order_acquire);
  traced->correlation = record.correlation;
  traced->submit_ns = record.submit_ns;

  npu_task stand_in = task;
  stand_in.run = &run_traced;
  stand_in.destroy = &destroy_traced;
  stand_in.payload = &traced;
  stand_in.payload_size = sizeof(traced);
  const npu_status status = driver().stream_submit(stream->native, &stand_in);
  // A refused task never reached the driver: its original payload is still the caller's.
  if (status != NPU_OK) TracedTask::dispose(traced);

  record.end_ns = driver().clock_ns();
  trace_emit(record);
  return status;
}

npu_status copy_traced(Stream* stream, void* dst, const void* src, std::size_t bytes) {
  npu_trace_record record = api_record(stream, kCopyName, NPU_TASK_COPY);
  record.value = static_cast<std::int64_t>(bytes);
  auto* span = new CopySpan{
      stream, g_session.load(std::memory_order_acquire), record.correlation, record.submit_ns, 0, record.value};
  npu_task marker{};
  marker.name = kCopyName;
  marker.payload = &span;
  marker.payload_size = sizeof(span);
  marker.kind = NPU_TASK_COMPUTE;
  marker.run = &begin_copy;
  npu_status status = driver().stream_submit(stream->native, &marker);
  if (status == NPU_OK) status = driver().memory_copy(stream->native, dst, src, bytes);
  marker.run = &end_copy;
  marker.destroy = [](void* payload) { delete *static_cast<CopySpan**>(payload); };
  // The span goes with the end marker; when that cannot be queued, the begin marker may still use it: leak it.
  const npu_status ended = driver().stream_submit(stream->native, &marker);

  record.end_ns = driver().clock_ns();
  trace_emit(record);
  return status != NPU_OK ? status : ended;
}

}  // namespace npu
