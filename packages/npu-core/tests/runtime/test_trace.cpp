#include "runtime/trace.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <map>
#include <thread>
#include <vector>

#include "harness.h"
#include "runtime/caching_allocator.h"
#include "runtime/driver_loader.h"

namespace {

struct Sink {
  std::vector<npu_trace_record> records;
  std::atomic<int> inside{0};
  std::atomic<bool> overlapped{false};
  std::size_t batches = 0;

  static void take(const npu_trace_record* records, std::size_t count, void* user) {
    auto* sink = static_cast<Sink*>(user);
    if (sink->inside.fetch_add(1) != 0) sink->overlapped = true;
    sink->records.insert(sink->records.end(), records, records + count);
    ++sink->batches;
    sink->inside.fetch_sub(1);
  }

  std::size_t count(npu_trace_kind kind) const {
    return static_cast<std::size_t>(
        std::count_if(records.begin(), records.end(), [&](const auto& record) { return record.kind == kind; }));
  }
};

int g_runs = 0;
int g_destroyed = 0;

npu_task counting_task(const std::uint64_t& payload) {
  npu_task task{};
  task.run = [](void* data, npu_error*) {
    std::uint64_t value = 0;
    std::memcpy(&value, data, sizeof(value));
    CHECK_EQ(value, 0x1234u);
    ++g_runs;
    return NPU_OK;
  };
  task.destroy = [](void*) { ++g_destroyed; };
  task.name = "counting";
  task.payload = &payload;
  task.payload_size = sizeof(payload);
  return task;
}

std::ptrdiff_t thread_count() {
  std::filesystem::directory_iterator tasks("/proc/self/task");
  return std::distance(begin(tasks), end(tasks));
}

}  // namespace

NPU_TEST(a_traced_task_runs_and_leaves_two_joined_records) {
  Sink sink;
  npu::Stream* stream = npu::stream_from_pool(0);
  const std::uint64_t payload = 0x1234;
  CHECK_EQ(npu::trace_attach(&Sink::take, &sink), NPU_OK);
  npu::launch(stream, counting_task(payload));
  npu::synchronize_stream(stream);
  CHECK_EQ(npu::trace_detach(), NPU_OK);
  CHECK_EQ(g_runs, 1);
  CHECK_EQ(g_destroyed, 1);
  CHECK_EQ(sink.records.size(), 2u);
  const auto& api = sink.records[0].kind == NPU_TRACE_API ? sink.records[0] : sink.records[1];
  const auto& task = sink.records[0].kind == NPU_TRACE_API ? sink.records[1] : sink.records[0];
  CHECK_EQ(task.kind, NPU_TRACE_TASK);
  CHECK(task.correlation != 0);
  CHECK_EQ(task.correlation, api.correlation);
  CHECK_EQ(std::string(task.name), "counting");
  CHECK_EQ(std::string(api.name), "counting");
  CHECK_EQ(task.stream_id, stream->id);
  CHECK_EQ(task.submit_ns, api.begin_ns);
  CHECK(api.begin_ns <= api.end_ns && api.begin_ns <= task.begin_ns && task.begin_ns <= task.end_ns);
  CHECK(api.thread_id != 0 && task.thread_id != 0);
}

NPU_TEST(without_a_sink_nothing_is_wrapped_or_kept) {
  npu::Stream* stream = npu::current_stream(0);
  const std::uint64_t payload = 0x1234;
  npu::launch(stream, counting_task(payload));
  npu_trace_record record{};
  npu::trace_emit(record);
  npu::synchronize_stream(stream);
  Sink sink;
  npu::trace_attach(&Sink::take, &sink);
  npu::trace_detach();
  CHECK_EQ(g_runs, 1);
  CHECK_EQ(sink.records.size(), 0u);
}

NPU_TEST(there_is_one_sink_at_a_time) {
  Sink sink;
  CHECK_EQ(npu::trace_attach(&Sink::take, &sink), NPU_OK);
  CHECK_EQ(npu::trace_attach(&Sink::take, &sink), NPU_ERROR_INVALID_ARGUMENT);
  CHECK_EQ(npu::trace_attach(nullptr, nullptr), NPU_ERROR_INVALID_ARGUMENT);
  CHECK_EQ(npu::trace_detach(), NPU_OK);
  CHECK_EQ(npu::trace_detach(), NPU_OK);
}

NPU_TEST(nothing_is_lost_and_batches_do_not_overlap) {
  constexpr int kThreads = 4;
  constexpr int kRecords = 20'000;
  Sink sink;
  npu::trace_attach(&Sink::take, &sink);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([t] {
      for (int i = 0; i < kRecords; ++i) {
        npu_trace_record record{};
        record.kind = NPU_TRACE_API;
        record.device = t;
        record.value = i;
        npu::trace_emit(record);
        if (i % 5000 == 0) npu::trace_flush();
      }
    });
  for (std::thread& thread : threads) thread.join();
  npu::trace_detach();
  CHECK(!sink.overlapped);
  CHECK_EQ(sink.records.size(), static_cast<std::size_t>(kThreads * kRecords));
  std::map<int, std::int64_t> next;
  for (const auto& record : sink.records) CHECK_EQ(record.value, next[record.device]++);  // each thread in order
}

NPU_TEST(detaching_leaves_no_thread) {
  npu::driver();
  std::thread([] {}).join();  // a sanitizer adds a thread of its own with the first one
  const auto before = thread_count();
  Sink sink;
  npu::trace_attach(&Sink::take, &sink);
  CHECK_EQ(thread_count(), before + 1);
  npu::trace_detach();
  CHECK_EQ(thread_count(), before);
}

NPU_TEST(flush_delivers_what_was_recorded) {
  Sink sink;
  npu::trace_attach(&Sink::take, &sink);
  npu_trace_record record{};
  std::memset(record.name, 'x', sizeof(record.name));
  npu::trace_emit(record);
  npu::trace_flush();
  CHECK_EQ(sink.records.size(), 1u);
  CHECK_EQ(std::strlen(sink.records[0].name), sizeof(record.name) - 1);
  npu::trace_detach();
}

NPU_TEST(tasks_that_end_after_the_detach_report_to_no_later_sink) {
  npu::Stream* stream = npu::current_stream(0);
  const std::uint64_t payload = 0x1234;
  Sink first;
  npu::trace_attach(&Sink::take, &first);
  npu::launch(stream, counting_task(payload));
  npu::trace_detach();
  Sink second;
  npu::trace_attach(&Sink::take, &second);
  npu::synchronize_stream(stream);
  npu::trace_detach();
  CHECK_EQ(g_runs, 1);
  CHECK_EQ(g_destroyed, 1);
  CHECK_EQ(first.count(NPU_TRACE_API), 1u);
  CHECK_EQ(first.count(NPU_TRACE_TASK), 0u);
  CHECK_EQ(second.records.size(), 0u);
}

NPU_TEST(allocations_are_traced) {
  Sink sink;
  npu::current_stream(0);
  npu::trace_attach(&Sink::take, &sink);
  npu::caching_allocator().allocate(1000);
  npu::trace_detach();
  CHECK_EQ(sink.count(NPU_TRACE_MEMORY), 2u);
  CHECK_EQ(std::string(sink.records[0].name), "alloc");
  CHECK_EQ(sink.records[0].value, 1536);
  CHECK_EQ(std::string(sink.records[1].name), "free");
}

NPU_TEST(failing_tasks_are_traced_and_keep_their_error) {
  Sink sink;
  npu::Stream* stream = npu::current_stream(0);
  npu::trace_attach(&Sink::take, &sink);
  npu_task task{};
  task.run = [](void*, npu_error* error) {
    std::strcpy(error->message, "bad luck");
    return NPU_ERROR_INDEX;
  };
  task.name = "unlucky";
  npu::launch(stream, task);
  CHECK_THROWS(c10::IndexError, npu::synchronize_stream(stream), "unlucky: bad luck");
  npu::trace_detach();
  CHECK_EQ(sink.count(NPU_TRACE_TASK), 1u);
}
