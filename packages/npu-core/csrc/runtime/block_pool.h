#pragma once
#include <c10/core/CachingDeviceAllocator.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "allocator_config.h"
#include "segment_source.h"
#include "stream.h"

namespace npu {

class BlockPool;
struct Segment;
struct Block;

enum class BlockState : std::uint8_t {
  Free,     // in a best-fit set, merged with its free neighbours
  Cached,   // in an exact-size list, not merged yet
  Live,     // handed out
  Pending,  // freed, but other streams have yet to pass their events
};

struct SmallerBlock {
  using is_transparent = void;
  bool operator()(const Block* a, const Block* b) const noexcept;
  bool operator()(const Block* a, std::size_t size) const noexcept;
};
using BlockSet = std::set<Block*, SmallerBlock>;

// A piece of a segment.  The blocks of a segment tile it and are linked in address order.
struct Block {
  std::byte* address = nullptr;
  std::size_t size = 0;
  std::size_t requested = 0;
  Stream* stream = nullptr;
  Segment* segment = nullptr;
  Block* previous = nullptr;
  Block* next = nullptr;
  Block* next_cached = nullptr;
  void* owner = nullptr;  // of the pool; lets the free function find its way back without a lookup
  BlockState state = BlockState::Free;
  std::uint32_t events = 0;                       // events a pending block still waits for
  std::vector<Stream*> used_by;                   // other streams whose work a free has to wait for
  std::shared_ptr<c10::GatheredContext> context;  // who asked for the live or pending block, while a history is kept
  BlockSet::node_type node;                       // kept while outside the set: a free then allocates nothing

  bool split() const noexcept { return previous != nullptr || next != nullptr; }
};

// Memory mapped from the driver: one range, or several that follow each other when segments are expandable.
struct Segment {
  struct Range {
    std::byte* address;
    std::size_t size;
  };

  std::byte* address = nullptr;
  std::size_t size = 0;
  std::vector<Range> ranges;  // as they were mapped, in address order
  Stream* stream = nullptr;
  BlockPool* pool = nullptr;
  Block* first = nullptr;
  Block* last = nullptr;
  std::uint64_t last_used = 0;  // on the pool's clock
  bool small = false;
  bool expandable = false;
  std::shared_ptr<c10::GatheredContext> context;  // whose request mapped it, while a history is kept
};

struct PoolTraits {
  c10::MempoolId_t id{0, 0};
  bool no_split = false;                  // a block is used whole
  bool use_on_oom = false;                // serves everyone when nothing else can
  std::shared_ptr<SegmentSource> source;  // nullptr: the driver
};

// Segments and blocks of one device, or of one memory pool on it: who is free, who is next to whom, and the statistics.
// Knows neither driver nor events and takes no lock; its owner does.
//
// Small blocks return to an exact-size list of their stream, unmerged: a steady loop then allocates and frees with a
// list pop and push.  The lists are merged back ("coalesced") when best fit finds nothing, and before anything that
// looks at free memory as a whole.  Blocks in these lists are not counted as inactive splits until then.
class BlockPool {
 public:
  // `stats` may be shared by pools and must outlive them.
  BlockPool(const AllocatorConfig& config, void* owner, c10::CachingDeviceAllocator::DeviceStats& stats,
            PoolTraits traits = {})
      : config_(config), owner_(owner), stats_(stats), traits_(std::move(traits)) {}
  ~BlockPool();  // ends the bookkeeping; the memory itself is the owner's
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // A live block of at least `rounded` bytes from cached memory of `stream`, or nullptr.
  Block* take(Stream* stream, std::size_t rounded, std::size_t requested) {
    if (rounded <= AllocatorConfig::kSmallLimit) {
      Lists& lists = lists_of(stream);
      Block*& head = lists.exact[rounded / AllocatorConfig::kMinBlock];
      if (head != nullptr) {
        Block* block = head;
        head = block->next_cached;
        return hand_out(block, requested);
      }
    }
    return take_best_fit(stream, rounded, requested);
  }

  // The client no longer uses the block (its stream may).  It stays active until put().
  void retire(Block* block) {
    const auto pool = pool_index(block);
    change(stats_.allocation, pool, -1);
    change(stats_.allocated_bytes, pool, -static_cast<std::int64_t>(block->size));
    if (block->size >= config_.max_split_size) stats_.oversize_allocations.decrease(1);
    block->state = BlockState::Pending;
  }

  // A retired block becomes free.
  void put(Block* block) {
    const auto pool = pool_index(block);
    change(stats_.active, pool, -1);
    change(stats_.active_bytes, pool, -static_cast<std::int64_t>(block->size));
    change(stats_.requested_bytes, pool, -static_cast<std::int64_t>(block->requested));
    block->requested = 0;
    block->segment->last_used = ++clock_;
    if (block->size <= AllocatorConfig::kSmallLimit && block->segment->small) {
      cache(lists_of(block->stream), block);
    } else {
      merge(lists_of(block->stream), block);
    }
  }

  // Adds a fresh segment and takes the block from it, whatever the split limit says about blocks of its size.
  Block* take_fresh(Stream* stream, void* address, std::size_t size, std::size_t rounded, std::size_t requested);
  // Expandable segments: the one that grows for such requests, or nullptr, and how many bytes it lacks at its end.
  Segment* growing(Stream* stream, std::size_t rounded, std::size_t* missing);
  // Takes the block from the end of the segment after `size` bytes were mapped directly behind it.
  Block* extend(Segment* segment, std::size_t size, std::size_t rounded, std::size_t requested);

  // Takes out segments without a live or pending block, those first whose last use is longest ago, until they make up
  // `bytes`; of an expandable segment also ranges that are wholly free, as segments of their own.  The caller unmaps
  // their ranges from the last to the first, calling drop_last_range() after each.
  std::vector<Segment*> detach_free_segments(std::size_t bytes = AllocatorConfig::kUnlimited);
  // The last range of a detached segment is gone from the device; with its only one the segment goes, too.
  void drop_last_range(Segment* segment);
  // Puts a detached segment back (its memory could not be unmapped).
  void reattach(Segment* segment);
  bool empty() const { return segments_.empty(); }
  const PoolTraits& traits() const { return traits_; }

  void coalesce();
  // The block that holds `address`, whatever its state, or nullptr.
  Block* find(const void* address) const;

  std::vector<c10::CachingDeviceAllocator::SegmentInfo> snapshot(c10::DeviceIndex device);
  // Calls the function with every block.
  template <typename Function>
  void for_each_block(Function function) {
    coalesce();
    for (const auto& [address, segment] : segments_)
      for (Block* block = segment->first; block != nullptr; block = block->next) function(*block);
  }
  c10::CachingDeviceAllocator::DeviceStats& stats() { return stats_; }
  void reset_peak_stats();
  void reset_accumulated_stats();

 private:
  struct Lists {
    static constexpr std::size_t kClasses = AllocatorConfig::kSmallLimit / AllocatorConfig::kMinBlock + 1;
    std::array<Block*, kClasses> exact{};
    std::array<std::uint64_t, (kClasses + 63) / 64> used{};  // classes that may be non-empty
    BlockSet free[2];                                        // large, small
    Segment* growing[2] = {nullptr, nullptr};                // large, small; when segments are expandable
  };

  static std::size_t pool_index(const Block* block);
  static void change(c10::CachingAllocator::StatArray& stat, std::size_t pool, std::int64_t amount) {
    if (amount >= 0) {
      stat[0].increase(static_cast<std::size_t>(amount));
      stat[pool].increase(static_cast<std::size_t>(amount));
    } else {
      stat[0].decrease(static_cast<std::size_t>(-amount));
      stat[pool].decrease(static_cast<std::size_t>(-amount));
    }
  }

  Lists& lists_of(Stream* stream) {
    const auto id = static_cast<std::uint64_t>(stream->id);
    if (id < pool_streams_.size() && pool_streams_[id] != nullptr) [[likely]]
      return *pool_streams_[id];
    return make_lists(stream);
  }
  Lists& make_lists(Stream* stream);

  Block* hand_out(Block* block, std::size_t requested) {
    block->state = BlockState::Live;
    block->requested = requested;
    block->segment->last_used = ++clock_;
    const auto pool = pool_index(block);
    change(stats_.allocation, pool, 1);
    change(stats_.allocated_bytes, pool, static_cast<std::int64_t>(block->size));
    change(stats_.active, pool, 1);
    change(stats_.active_bytes, pool, static_cast<std::int64_t>(block->size));
    change(stats_.requested_bytes, pool, static_cast<std::int64_t>(requested));
    if (block->size >= config_.max_split_size) stats_.oversize_allocations.increase(1);
    return block;
  }

  static void cache(Lists& lists, Block* block) {
    const std::size_t size_class = block->size / AllocatorConfig::kMinBlock;
    block->state = BlockState::Cached;
    block->next_cached = lists.exact[size_class];
    lists.exact[size_class] = block;
    lists.used[size_class / 64] |= std::uint64_t{1} << (size_class % 64);
  }

  Block* take_best_fit(Stream* stream, std::size_t rounded, std::size_t requested);
  // Makes `block`, which is in no list, live and frees what it has beyond `rounded`.
  Block* carve(Lists& lists, Block* block, std::size_t rounded, std::size_t requested);
  Block* search(BlockSet& set, std::size_t rounded) const;
  bool should_split(const Block* block, std::size_t rounded) const;
  void insert(Lists& lists, Block* block);
  void remove(Lists& lists, Block* block);
  void merge(Lists& lists, Block* block);
  bool coalesce(Lists& lists);
  void detach(Segment* segment);
  // Moves `at` and the blocks behind it, which start with a range, to a segment of their own.
  Segment* split_segment(Segment* segment, Block* at);
  Block* split_block(Block* block, std::size_t size);
  void detach_free_ranges(Segment* segment, std::vector<Segment*>& detached);

  const AllocatorConfig& config_;
  void* const owner_;
  std::uint64_t clock_ = 0;  // allocations and frees so far
  c10::CachingDeviceAllocator::DeviceStats& stats_;
  const PoolTraits traits_;
  // Ids of pool streams are small numbers (stream.h), so they index; external streams go through the map.
  std::array<std::unique_ptr<Lists>, 256> pool_streams_;
  std::unordered_map<Stream*, std::unique_ptr<Lists>> other_streams_;
  std::map<std::uintptr_t, Segment*> segments_;  // by address; detached ones are not in it
};

inline std::size_t BlockPool::pool_index(const Block* block) {
  using c10::CachingAllocator::StatType;
  return static_cast<std::size_t>(block->segment->small ? StatType::SMALL_POOL : StatType::LARGE_POOL);
}

}  // namespace npu
