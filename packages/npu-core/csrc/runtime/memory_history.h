#pragma once
#include <c10/core/CachingDeviceAllocator.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "export.h"
#include "stream.h"

namespace npu {

using Context = std::shared_ptr<c10::GatheredContext>;  // who asked: a stack, gathered by a layer above
using TraceEntry = c10::CachingDeviceAllocator::TraceEntry;
using RecordContext = c10::CachingDeviceAllocator::RecordContext;

struct HistoryOptions {
  bool contexts = false;  // keep the context of live blocks
  bool events = false;    // keep a trace of what the allocator did
  RecordContext level = RecordContext::NEVER;
  c10::CachingDeviceAllocator::CreateContextFn gather = nullptr;  // any thread, no lock held; may return nullptr
  std::size_t max_entries = 0;                                    // of each device's trace; the newest are kept
  std::uint32_t skipped_actions = 0;                              // a bit per TraceEntry::Action

  bool on() const { return contexts || events; }
};

// For the fast paths: whether any history is kept.
extern std::atomic<bool> g_history_on;
inline bool history_on() noexcept { return g_history_on.load(std::memory_order_relaxed); }

// Process-wide; a device's memory that comes later starts with it.
void set_history_options(const HistoryOptions& options);
HistoryOptions history_options();
// The caller's context if contexts of `level` are wanted, else nullptr.  Call it without locks: it may take others.
Context gather_context(RecordContext level);

// ---- of the caching allocator

// From now on, for every device; off unless options.on().  Turning it off forgets it, and so does `clear`.
NPU_RUNTIME_API void record_memory_history(const HistoryOptions& options, bool clear);

struct MemorySnapshot {
  std::vector<c10::CachingDeviceAllocator::SegmentInfo> segments;
  std::vector<std::vector<TraceEntry>> traces;  // by device
};
// Segments and trace of one device are taken at the same moment.
NPU_RUNTIME_API MemorySnapshot memory_snapshot_with_traces();

// The trace of one device.  Its owner locks.
class MemoryHistory {
 public:
  explicit MemoryHistory(int device) : device_(static_cast<c10::DeviceIndex>(device)), options_(history_options()) {}

  void configure(const HistoryOptions& options, bool clear);
  bool on() const { return options_.on(); }
  // `address` is the free memory of the device when the action is OOM.
  void record(TraceEntry::Action action, std::size_t address, std::size_t size, Stream* stream, c10::MempoolId_t pool,
              const Context& context);
  // Oldest first.
  std::vector<TraceEntry> entries() const { return {entries_.begin(), entries_.end()}; }

 private:
  const c10::DeviceIndex device_;
  HistoryOptions options_;
  std::deque<TraceEntry> entries_;
};

}  // namespace npu
