// The allocator's trace, with contexts that the test makes up.
#include "runtime/memory_history.h"

#include <chrono>
#include <string>
#include <thread>

#include "harness.h"
#include "runtime/caching_allocator.h"
#include "runtime/driver_loader.h"

using npu::caching_allocator;
using npu::RecordContext;
using npu::TraceEntry;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

c10::DataPtr allocate(std::size_t bytes) { return caching_allocator().allocate(bytes); }

struct Label : c10::GatheredContext {
  explicit Label(std::string text) : text(std::move(text)) {}
  std::string text;
};

std::string g_here;  // what the program is doing
int g_gathered = 0;

npu::Context gather() {
  ++g_gathered;
  return g_here.empty() ? nullptr : std::make_shared<Label>(g_here);
}

std::string text_of(const npu::Context& context) {
  return context == nullptr ? "-" : dynamic_cast<const Label&>(*context).text;
}

npu::HistoryOptions everything() {
  npu::HistoryOptions options;
  options.contexts = options.events = true;
  options.level = RecordContext::ALL;
  options.gather = &gather;
  options.max_entries = 1000;
  return options;
}

// "action:context" of each entry of device 0, without the snapshots.
std::string story() {
  static const char* const names[] = {"alloc", "requested", "completed", "segment", "returned",
                                      "map",   "unmap",     "snapshot",  "oom"};
  std::string text;
  const auto snapshot = npu::memory_snapshot_with_traces();
  for (const TraceEntry& entry : snapshot.traces.at(0)) {
    if (entry.action_ == TraceEntry::SNAPSHOT) continue;
    text += (text.empty() ? "" : " ") + std::string(names[entry.action_]) + ":" + text_of(entry.context_);
  }
  return text;
}

std::string first_block() {
  return text_of(npu::memory_snapshot_with_traces().segments.at(0).blocks.at(0).context_when_allocated);
}

}  // namespace

NPU_TEST(history_tells_who_did_what) {
  npu::current_stream(0);
  npu::record_memory_history(everything(), false);
  g_here = "a";
  c10::DataPtr pointer = allocate(1000);
  const auto address = reinterpret_cast<std::size_t>(pointer.get());
  CHECK_EQ(first_block(), "a");
  g_here = "b";
  pointer.clear();
  CHECK_EQ(story(), "segment:a alloc:a requested:b completed:-");
  CHECK_EQ(first_block(), "-");
  g_here = "";
  caching_allocator().emptyCache();
  const auto trace = npu::memory_snapshot_with_traces().traces.at(0);
  CHECK_EQ(trace.at(0).addr_, address);
  CHECK_EQ(trace.at(0).size_, 2 * kMiB);
  CHECK_EQ(trace.at(1).addr_, address);
  CHECK_EQ(trace.at(1).size_, 1000u);
  CHECK(trace.at(1).stream_ == npu::current_stream(0));
  CHECK(trace.at(2).action_ == TraceEntry::SNAPSHOT);
  CHECK_EQ(trace.at(2).size_, 1536u);
  CHECK_EQ(trace.at(3).size_, 1000u);
  const auto now =
      std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::system_clock::now().time_since_epoch());
  for (std::size_t i = 1; i < trace.size(); ++i) CHECK(trace[i - 1].time_.t_ <= trace[i].time_.t_);
  CHECK(trace.back().time_.t_ <= now.count() && trace.back().time_.t_ > now.count() - 600'000'000);
  CHECK_EQ(story(), "segment:a alloc:a requested:b completed:- returned:-");
}

NPU_TEST(history_of_a_free_that_waits) {
  npu::current_stream(0);
  npu::record_memory_history(everything(), false);
  g_here = "a";
  c10::DataPtr pointer = allocate(1000);
  npu::Stream* side = npu::stream_from_pool(0);
  caching_allocator().record_stream(pointer.get(), side);
  npu::driver().memory_set(side->native, pointer.get(), 1, 1000);
  pointer.clear();
  CHECK_EQ(story(), "segment:a alloc:a requested:a");
  CHECK_EQ(first_block(), "a");  // of the pending block
  npu::driver().stream_synchronize(side->native, -1);
  CHECK_EQ(story(), "segment:a alloc:a requested:a completed:-");
  CHECK_EQ(first_block(), "-");
}

NPU_TEST(history_levels_say_which_contexts_are_kept) {
  npu::current_stream(0);
  g_here = "a";
  auto options = everything();
  const auto run = [&](RecordContext level) {
    options.level = level;
    npu::record_memory_history(options, true);
    caching_allocator().emptyCache();
    c10::DataPtr pointer = allocate(1000);
    const std::string block = first_block();
    pointer.clear();
    std::string text = block + " " + story();
    npu::record_memory_history({}, false);
    return text;
  };
  CHECK_EQ(run(RecordContext::NEVER), "- segment:- alloc:- requested:- completed:-");
  caching_allocator().emptyCache();
  CHECK_EQ(run(RecordContext::STATE), "a segment:- alloc:- requested:- completed:-");
  caching_allocator().emptyCache();
  CHECK_EQ(run(RecordContext::ALLOC), "a segment:a alloc:a requested:- completed:-");
  caching_allocator().emptyCache();
  CHECK_EQ(run(RecordContext::ALL), "a segment:a alloc:a requested:a completed:-");
}

NPU_TEST(history_keeps_the_newest_entries) {
  npu::current_stream(0);
  auto options = everything();
  options.max_entries = 4;
  npu::record_memory_history(options, false);
  for (std::size_t i = 1; i <= 10; ++i) allocate(i);
  const auto trace = npu::memory_snapshot_with_traces().traces.at(0);
  CHECK_EQ(trace.size(), 4u);
  CHECK(trace.at(0).action_ == TraceEntry::ALLOC && trace.at(0).size_ == 10u);
  CHECK(trace.at(1).action_ == TraceEntry::FREE_REQUESTED);
  CHECK(trace.at(2).action_ == TraceEntry::FREE_COMPLETED);
  CHECK(trace.at(3).action_ == TraceEntry::SNAPSHOT);
}

NPU_TEST(history_leaves_out_skipped_actions) {
  npu::current_stream(0);
  auto options = everything();
  options.skipped_actions = 1u << TraceEntry::FREE_REQUESTED | 1u << TraceEntry::SEGMENT_ALLOC;
  npu::record_memory_history(options, false);
  g_here = "a";
  allocate(1000);
  CHECK_EQ(story(), "alloc:a completed:-");
}

NPU_TEST(history_of_the_state_alone) {
  npu::current_stream(0);
  auto options = everything();
  options.events = false;
  npu::record_memory_history(options, false);
  g_here = "a";
  const c10::DataPtr pointer = allocate(1000);
  CHECK_EQ(first_block(), "a");
  CHECK(npu::memory_snapshot_with_traces().traces.at(0).empty());
}

NPU_TEST(history_ends_without_a_trace) {
  g_here = "a";
  c10::DataPtr before = allocate(1000);
  CHECK_EQ(g_gathered, 0);
  CHECK(npu::memory_snapshot_with_traces().traces.at(0).empty());
  npu::record_memory_history(everything(), false);
  const c10::DataPtr during = allocate(1000);
  npu::record_memory_history({}, false);
  CHECK(npu::memory_snapshot_with_traces().traces.at(0).empty());
  const auto snapshot = npu::memory_snapshot_with_traces();
  for (const auto& block : snapshot.segments.at(0).blocks) CHECK(block.context_when_allocated == nullptr);
  CHECK(snapshot.segments.at(0).context_when_allocated == nullptr);
  const int gathered = g_gathered;
  allocate(1000);
  CHECK_EQ(g_gathered, gathered);
}

NPU_TEST(history_of_running_out, {"NPU_MANUAL_MEMORY", "64"}) {
  npu::current_stream(0);
  npu::record_memory_history(everything(), false);
  const c10::DataPtr held = allocate(40 * kMiB);
  g_here = "greedy";
  CHECK_THROWS(c10::OutOfMemoryError, allocate(30 * kMiB), "NPU out of memory");
  const auto trace = npu::memory_snapshot_with_traces().traces.at(0);
  const TraceEntry& last = trace.at(trace.size() - 2);
  CHECK(last.action_ == TraceEntry::OOM);
  CHECK_EQ(last.addr_, 22 * kMiB);  // free on the device
  CHECK_EQ(last.size_, 30 * kMiB);
  CHECK_EQ(text_of(last.context_), "greedy");
}

NPU_TEST(history_covers_devices_that_come_later) {
  npu::current_stream(0);
  npu::record_memory_history(everything(), false);
  g_here = "a";
  const c10::DataPtr pointer = caching_allocator().allocate_on(1000, npu::current_stream(1));
  const auto traces = npu::memory_snapshot_with_traces().traces;
  CHECK_EQ(traces.size(), 2u);
  CHECK(traces.at(0).empty());
  CHECK_EQ(traces.at(1).size(), 3u);
  CHECK_EQ(static_cast<int>(traces.at(1).at(0).device_), 1);
}

NPU_TEST(history_from_many_threads) {
  npu::current_stream(0);
  auto options = everything();
  options.gather = [] { return npu::Context(std::make_shared<Label>("thread")); };
  options.max_entries = 100;
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([] {
      for (std::size_t i = 1; i < 2000; ++i) allocate(i);
    });
  for (int i = 0; i < 50; ++i) {
    npu::record_memory_history(i % 5 == 4 ? npu::HistoryOptions{} : options, i % 3 == 0);
    npu::memory_snapshot_with_traces();
  }
  for (std::thread& thread : threads) thread.join();
  npu::record_memory_history(options, true);
  allocate(1);
  CHECK_EQ(npu::memory_snapshot_with_traces().traces.at(0).size(), 4u);
}
