#pragma once
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "allocator_config.h"
#include "block_pool.h"
#include "event.h"
#include "memory_history.h"
#include "memory_pool.h"
#include "out_of_memory.h"

namespace npu {

// The memory of one device: a BlockPool, the driver behind it, and the blocks that wait for other streams.
// Thread-safe.  The lock is never held while the host waits for a device or for room in a queue, because a driver
// thread that frees a block needs it.
class DeviceMemory {
 public:
  // `source`: where memory comes from instead of the driver, uncached, or nullptr.
  DeviceMemory(int device, const AllocatorConfig& config, std::shared_ptr<SegmentSource> source);

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
  // Of one private pool; false when there is none of that id.
  bool empty_cache(c10::MempoolId_t id);

  void retain_pool(c10::MempoolId_t id, const MemoryPoolOptions& options);
  void release_pool(c10::MempoolId_t id);
  int pool_uses(c10::MempoolId_t id);
  BlockPool* use_pool(c10::MempoolId_t id);
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
    BlockPool* pool;
    Context context;
    std::string refusal;  // of the driver, once it refused to map more
  };

  struct PrivatePool {
    BlockPool blocks;
    int uses;
  };

  Block* take(const Request& request);
  Block* take_from_lenders(const Request& request);
  // Whether blocks are exactly what was asked for, each a segment of its own: all memory comes from a pluggable source.
  bool exact(const BlockPool& pool) const { return source_ != nullptr && &pool == &pool_; }
  bool caches(const BlockPool& pool) const { return config_.caching && !exact(pool); }
  Block* acquire_slowly(Lock& lock, Request& request);
  std::size_t segment_size(const BlockPool& pool, std::size_t rounded) const;
  void* map(Request& request, std::size_t size);
  Block* extend(Request& request, bool* refused);
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
  void give_back(Lock& lock, const std::vector<Segment*>& segments);
  void unmap(Segment* segment);
  void forget_unused_pools();
  PrivatePool& private_pool(c10::MempoolId_t id);
  template <typename Function>
  void for_each_pool(Function function) {
    function(pool_);
    for (auto& [id, pool] : private_pools_) function(pool->blocks);
  }
  Block* find(const void* address);  // in any pool
  void coalesce();
  bool unsettled() const { return !unmarked_.empty() || !waiting_.empty(); }
  void report(void* address, std::int64_t bytes, std::int64_t allocated, std::int64_t reserved, Stream* stream);

  const int device_;
  const AllocatorConfig& config_;
  std::mutex mutex_;
  std::mutex reclaiming_;  // one thread at a time gives memory back; taken before mutex_, never inside
  const std::shared_ptr<SegmentSource> source_;
  c10::CachingDeviceAllocator::DeviceStats stats_;  // of all pools
  BlockPool pool_;
  std::map<c10::MempoolId_t, std::unique_ptr<PrivatePool>> private_pools_;
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
