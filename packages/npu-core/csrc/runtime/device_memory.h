#pragma once
#include <deque>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "allocator_config.h"
#include "block_pool.h"
#include "event.h"

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
  // Adds the streams that may use that block.
  bool find_users(const void* address, std::vector<Stream*>* users);

  void empty_cache();
  void set_fraction(double fraction);
  double fraction();

  c10::CachingDeviceAllocator::DeviceStats stats();
  void reset_peak_stats();
  void reset_accumulated_stats();
  std::vector<c10::CachingDeviceAllocator::SegmentInfo> snapshot();
  // Finishes frees whose streams have passed.
  void settle();

 private:
  using Lock = std::unique_lock<std::mutex>;

  Block* acquire_slowly(Lock& lock, std::size_t rounded, std::size_t bytes, Stream* stream);
  Block* grow(std::size_t rounded, std::size_t bytes, Stream* stream);
  [[noreturn]] void report_out_of_memory(Lock& lock, std::size_t bytes, std::size_t segment);
  void release_waiting(Lock& lock, Block* block);
  void mark_and_queue(Lock& lock, Block* block);
  void complete(Block* block);
  void settle(Lock& lock);
  void wait_for_pending(Lock& lock);
  void release_cached(Lock& lock);
  void unmap(Segment* segment);
  bool unsettled() const { return !unmarked_.empty() || !waiting_.empty(); }
  void report(void* address, std::int64_t bytes, std::int64_t allocated, std::int64_t reserved, Stream* stream);

  const int device_;
  const AllocatorConfig& config_;
  std::mutex mutex_;
  std::mutex reclaiming_;  // one thread at a time gives memory back; taken before mutex_, never inside
  BlockPool pool_;
  std::vector<Block*> unmarked_;  // freed by driver threads, markers still to be recorded
  std::map<Stream*, std::deque<std::pair<Event*, Block*>>> waiting_;  // in stream order
  double fraction_;
  std::size_t limit_ = AllocatorConfig::kUnlimited;
  std::size_t granularity_ = AllocatorConfig::kMinBlock;
  std::size_t total_ = 0;
};

}  // namespace npu
