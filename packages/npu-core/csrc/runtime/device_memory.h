#pragma once
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "allocator_config.h"
#include "block_pool.h"
#include "event.h"
#include "memory_history.h"
#include "out_of_memory.h"

namespace npu {

// The memory of one device: a BlockPool, the driver behind it, and the blocks that wait for other streams.
// Thread-safe.  The lock is never held while the host waits for a device or for room in a queue, because a driver
// thread that frees a block needs it.
class DeviceMemory {
 public:
  DeviceMemory(int device, const AllocatorConfig& config);

  // `bytes` > 0.  Throws c10::OutOfMemoryError.
  Block* acquire(std::size_t bytes, Stream* stream);
  void release(Block* block) noexcept;

  bool record_stream(const void* address, Stream* stream);
  void record_stream(Block* block, Stream* stream);
  bool erase_stream(const void* address, Stream* stream);
  // Start and size of the live block that holds `address`; false when there is none.
  bool find_live(const void* address, void** base, std::size_t* size);

  void empty_cache();
  void set_fraction(double fraction);
  double fraction();

  c10::CachingDeviceAllocator::DeviceStats stats();
  void reset_peak_stats();
  void reset_accumulated_stats();
  // The history goes to `trace`.
  std::vector<c10::CachingDeviceAllocator::SegmentInfo> snapshot(std::vector<TraceEntry>& trace);
  void set_history(const HistoryOptions& options, bool clear);
  // Finishes frees whose streams have passed.
  void settle();

 private:
  using Lock = std::unique_lock<std::mutex>;

  struct Request {
    std::size_t bytes;
    std::size_t rounded;  // size of the block
    Stream* stream;
    Context context;
    std::string refusal;  // of the driver, once it refused to map more
  };

  Block* take(const Request& request);
  Block* acquire_slowly(Lock& lock, Request& request);
  std::size_t segment_size(std::size_t rounded) const;
  Block* grow(Request& request);
  [[noreturn]] void report_out_of_memory(Lock& lock, const Request& request);
  OutOfMemoryFacts gather_facts(const Request& request);
  void release_waiting(Lock& lock, Block* block);
  void mark_and_queue(Lock& lock, Block* block);
  void put(Block* block);
  void complete(Block* block);
  void settle(Lock& lock);
  void wait_for_pending(Lock& lock);
  void collect_garbage(Lock& lock, std::size_t growth);
  void release_cached(Lock& lock, std::size_t bytes = AllocatorConfig::kUnlimited);
  void unmap(Segment* segment);
  bool unsettled() const { return !unmarked_.empty() || !waiting_.empty(); }
  void report(void* address, std::int64_t bytes, std::int64_t allocated, std::int64_t reserved, Stream* stream);

  const int device_;
  const AllocatorConfig& config_;
  std::mutex mutex_;
  std::mutex reclaiming_;  // one thread at a time gives memory back; taken before mutex_, never inside
  BlockPool pool_;
  MemoryHistory history_;
  std::vector<Block*> unmarked_;  // freed by driver threads, markers still to be recorded
  std::map<Stream*, std::deque<std::pair<Event*, Block*>>> waiting_;  // in stream order
  double fraction_;
  std::size_t limit_ = AllocatorConfig::kUnlimited;
  std::size_t granularity_ = AllocatorConfig::kMinBlock;
  std::size_t total_ = 0;
  bool emulated_ = false;
};

}  // namespace npu
