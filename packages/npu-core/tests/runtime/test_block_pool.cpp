// The pool against a plain model: after every step the blocks tile their segments, no two live ones overlap, and the
// statistics equal what a recount finds.
#include "block_pool.h"

#include <map>
#include <random>

#include "harness.h"

using npu::AllocatorConfig;
using npu::Block;
using npu::BlockPool;
using npu::BlockState;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

struct Recount {
  std::int64_t live = 0, live_bytes = 0, requested = 0, split = 0, split_bytes = 0, reserved = 0, segments = 0;
};

Recount recount(BlockPool& pool) {
  Recount count;
  for (const auto& segment : pool.snapshot(0)) {
    ++count.segments;
    count.reserved += static_cast<std::int64_t>(segment.total_size);
    std::size_t covered = 0;
    bool last_free = false;
    for (const auto& block : segment.blocks) {
      covered += block.size;
      CHECK(!(last_free && !block.active));  // a snapshot has merged all neighbours
      last_free = !block.active;
      if (block.allocated) {
        ++count.live;
        count.live_bytes += static_cast<std::int64_t>(block.size);
        count.requested += static_cast<std::int64_t>(block.requested_size);
      } else if (segment.blocks.size() > 1) {
        ++count.split;
        count.split_bytes += static_cast<std::int64_t>(block.size);
      }
    }
    CHECK_EQ(covered, segment.total_size);
  }
  return count;
}

void check_stats(BlockPool& pool) {
  const Recount count = recount(pool);
  const auto& stats = pool.stats();
  CHECK_EQ(stats.allocation[0].current, count.live);
  CHECK_EQ(stats.active[0].current, count.live);
  CHECK_EQ(stats.allocated_bytes[0].current, count.live_bytes);
  CHECK_EQ(stats.active_bytes[0].current, count.live_bytes);
  CHECK_EQ(stats.requested_bytes[0].current, count.requested);
  CHECK_EQ(stats.inactive_split[0].current, count.split);
  CHECK_EQ(stats.inactive_split_bytes[0].current, count.split_bytes);
  CHECK_EQ(stats.reserved_bytes[0].current, count.reserved);
  CHECK_EQ(stats.segment[0].current, count.segments);
  for (const auto* stat : {&stats.allocation, &stats.active, &stats.allocated_bytes, &stats.inactive_split,
                           &stats.inactive_split_bytes, &stats.requested_bytes, &stats.reserved_bytes}) {
    CHECK_EQ((*stat)[0].current, (*stat)[1].current + (*stat)[2].current);
    for (const auto& part : *stat) {
      CHECK_EQ(part.current, part.allocated - part.freed);
      CHECK(part.peak >= part.current);
    }
  }
}

class Model {
 public:
  explicit Model(const AllocatorConfig& config) : config_(config), pool(config, nullptr, stats_) {}

  Block* allocate(npu::Stream* stream, std::size_t bytes) {
    const std::size_t rounded = config_.round_request(bytes);
    Block* block = pool.take(stream, rounded, bytes);
    std::size_t missing = 0;
    npu::Segment* segment = block == nullptr ? pool.growing(stream, rounded, &missing) : nullptr;
    // Most of the time the memory behind a segment is still free.
    if (segment != nullptr && random_() % 4 != 0 && behind(segment) >= missing) {
      missing = (missing + 4095) / 4096 * 4096;
      block = pool.extend(segment, missing, rounded, bytes);
    }
    if (block == nullptr) {
      const std::size_t size = config_.segment_size(rounded);
      block = pool.take_fresh(stream, reinterpret_cast<void*>(next_), size, rounded, bytes);
      // Neighbours in address space must not merge across segments; expandable ones get room behind them.
      next_ += size + (config_.expandable_segments ? kRoom : 0);
      ends_[reinterpret_cast<std::uintptr_t>(block->segment->address)] = next_;
    }
    CHECK(block != nullptr && block->size >= rounded && block->stream == stream);
    const auto start = reinterpret_cast<std::uintptr_t>(block->address);
    const auto after = live_.lower_bound(start);
    CHECK(after == live_.end() || start + block->size <= after->first);
    CHECK(after == live_.begin() || std::prev(after)->first + std::prev(after)->second <= start);
    live_[start] = block->size;
    return block;
  }
  void give_back() {
    for (npu::Segment* segment : pool.detach_free_segments())
      for (std::size_t ranges = segment->ranges.size(); ranges != 0; --ranges) pool.drop_last_range(segment);
  }
  void free(Block* block) {
    live_.erase(reinterpret_cast<std::uintptr_t>(block->address));
    pool.retire(block);
    pool.put(block);
  }

 private:
  static constexpr std::size_t kRoom = 256 * kMiB;

  // Addresses that nobody uses behind the segment.
  std::size_t behind(const npu::Segment* segment) {
    const auto start = reinterpret_cast<std::uintptr_t>(segment->address);
    return std::prev(ends_.upper_bound(start))->second - start - segment->size;
  }

  const AllocatorConfig& config_;
  std::mt19937_64 random_{5};
  std::map<std::uintptr_t, std::uintptr_t> ends_;  // of the room that starts at an address
  std::uintptr_t next_ = std::uintptr_t{1} << 40;
  std::map<std::uintptr_t, std::size_t> live_;
  c10::CachingDeviceAllocator::DeviceStats stats_;

 public:
  BlockPool pool;
};

void random_walk(const AllocatorConfig& config, unsigned seed) {
  Model model(config);
  std::mt19937_64 random(seed);
  npu::Stream streams[3];
  streams[1].id = 97;
  streams[2].id = std::int64_t{1} << 30;  // an external stream
  std::vector<Block*> live;
  for (int step = 0; step < 6000; ++step) {
    if (live.empty() || random() % 100 < 55) {
      const std::size_t top = std::size_t{1} << (4 + random() % 22);
      live.push_back(model.allocate(&streams[random() % 3], 1 + random() % top));
    } else {
      const std::size_t index = random() % live.size();
      model.free(live[index]);
      live[index] = live.back();
      live.pop_back();
    }
    if (live.size() > 200) {
      for (Block* block : live) model.free(block);
      live.clear();
    }
    if (step % 97 == 0) check_stats(model.pool);
    if (step % 501 == 0) model.give_back();
  }
  for (Block* block : live) model.free(block);
  model.give_back();
  check_stats(model.pool);
  CHECK_EQ(model.pool.stats().reserved_bytes[0].current, 0);
  CHECK_EQ(model.pool.stats().segment[0].current, 0);
}

}  // namespace

NPU_TEST(pool_agrees_with_a_recount) {
  for (unsigned seed = 1; seed <= 4; ++seed) random_walk(AllocatorConfig{}, seed);
}

NPU_TEST(pool_agrees_with_a_recount_under_a_split_limit) {
  random_walk(AllocatorConfig::parse("max_split_size_mb:21"), 11);
  random_walk(AllocatorConfig::parse("roundup_power2_divisions:4"), 12);
}

NPU_TEST(pool_agrees_with_a_recount_when_segments_expand) {
  for (unsigned seed = 21; seed <= 24; ++seed) random_walk(AllocatorConfig::parse("expandable_segments:True"), seed);
}

NPU_TEST(pool_cuts_free_ranges_out_of_an_expandable_segment) {
  const AllocatorConfig config = AllocatorConfig::parse("expandable_segments:True");
  c10::CachingDeviceAllocator::DeviceStats stats;
  BlockPool pool(config, nullptr, stats);
  npu::Stream stream;
  auto* const start = reinterpret_cast<std::byte*>(std::uintptr_t{1} << 40);
  std::vector<Block*> blocks{pool.take_fresh(&stream, start, 20 * kMiB, 20 * kMiB, 1)};
  for (int i = 0; i < 4; ++i) {
    std::size_t missing = 0;
    npu::Segment* segment = pool.growing(&stream, 20 * kMiB, &missing);
    CHECK_EQ(missing, 20 * kMiB);
    blocks.push_back(pool.extend(segment, 20 * kMiB, 20 * kMiB, 1));
  }
  CHECK_EQ(stats.segment[0].current, 1);
  CHECK_EQ(stats.num_device_alloc, 5);
  for (const int i : {0, 2, 3}) {  // leaves 1 and 4
    pool.retire(blocks[static_cast<std::size_t>(i)]);
    pool.put(blocks[static_cast<std::size_t>(i)]);
  }
  const auto detached = pool.detach_free_segments();
  CHECK_EQ(detached.size(), 2u);
  CHECK(detached[0]->address == start && detached[0]->ranges.size() == 1);
  CHECK(detached[1]->address == start + 40 * kMiB && detached[1]->ranges.size() == 2);
  for (npu::Segment* segment : detached)
    for (std::size_t ranges = segment->ranges.size(); ranges != 0; --ranges) pool.drop_last_range(segment);
  CHECK_EQ(stats.reserved_bytes[0].current, static_cast<std::int64_t>(40 * kMiB));
  CHECK_EQ(stats.segment[0].current, 2);
  CHECK_EQ(stats.num_device_free, 3);
  CHECK_EQ(stats.inactive_split[0].current, 0);
  // The last piece is the one that grows on.
  std::size_t missing = 0;
  CHECK(pool.growing(&stream, 20 * kMiB, &missing) == blocks[4]->segment);
  CHECK(blocks[4]->segment != blocks[1]->segment);
  check_stats(pool);
}

NPU_TEST(pool_splits_small_and_large_blocks_by_their_rules) {
  const AllocatorConfig config;
  Model model(config);
  npu::Stream stream;
  Block* small = model.allocate(&stream, 1);
  CHECK_EQ(small->size, 512u);
  CHECK_EQ(small->next->size, 2 * kMiB - 512);
  Block* large = model.allocate(&stream, 2 * kMiB);
  CHECK_EQ(large->size, 2 * kMiB + 512);
  // A remainder of up to 1 MiB stays with the block.
  Block* rest = model.allocate(&stream, 17 * kMiB);
  CHECK_EQ(rest->size, 18 * kMiB - 512);
  CHECK(rest->previous == large);
}

NPU_TEST(pool_uses_the_best_fitting_block) {
  const AllocatorConfig config;
  Model model(config);
  npu::Stream stream;
  Block* a = model.allocate(&stream, 4 * kMiB);
  Block* wall = model.allocate(&stream, 2 * kMiB);
  Block* b = model.allocate(&stream, 3 * kMiB);
  Block* wall2 = model.allocate(&stream, 2 * kMiB);
  auto* at_b = b->address;
  model.free(a);
  model.free(b);
  CHECK(model.allocate(&stream, 3 * kMiB)->address == at_b);
  model.free(wall);
  model.free(wall2);
}

NPU_TEST(pool_merges_cached_small_blocks_before_it_asks_for_more) {
  const AllocatorConfig config;
  Model model(config);
  npu::Stream stream;
  std::vector<Block*> blocks;
  for (int i = 0; i < 4096; ++i) blocks.push_back(model.allocate(&stream, 400));
  CHECK_EQ(model.pool.stats().segment[0].current, 1);
  for (Block* block : blocks) model.free(block);
  CHECK_EQ(model.allocate(&stream, kMiB - 32)->size, kMiB);
  CHECK_EQ(model.pool.stats().segment[0].current, 1);
}

NPU_TEST(pool_keeps_streams_apart) {
  const AllocatorConfig config;
  Model model(config);
  npu::Stream first;
  npu::Stream second;
  second.id = 96;
  Block* block = model.allocate(&first, 100);
  auto* address = block->address;
  model.free(block);
  CHECK(model.allocate(&second, 100)->address != address);
  CHECK(model.allocate(&first, 100)->address == address);
}
