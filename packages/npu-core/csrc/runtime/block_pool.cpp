#include "block_pool.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <initializer_list>
#include <utility>

namespace npu {

using c10::CachingAllocator::StatArray;

bool SmallerBlock::operator()(const Block* a, const Block* b) const noexcept {
  if (a->size != b->size) return a->size < b->size;
  return std::less<>()(a->address, b->address);
}

bool SmallerBlock::operator()(const Block* a, std::size_t size) const noexcept { return a->size < size; }

BlockPool::~BlockPool() {
  for (const auto& [address, segment] : segments_) {
    for (Block* block = segment->first; block != nullptr;) delete std::exchange(block, block->next);
    delete segment;
  }
}

BlockPool::Lists& BlockPool::make_lists(Stream* stream) {
  const auto id = static_cast<std::uint64_t>(stream->id);
  auto& slot = id < pool_streams_.size() ? pool_streams_[id] : other_streams_[stream];
  if (slot == nullptr) slot = std::make_unique<Lists>();
  return *slot;
}

// Free blocks that share a segment with others cannot be given back to the driver: "inactive splits".  A block of the
// set never gains or loses its last neighbour while it stays there, so counting at insert and remove is exact.
void BlockPool::insert(Lists& lists, Block* block) {
  block->state = BlockState::Free;
  BlockSet& set = lists.free[block->segment->small];
  if (block->node) {
    set.insert(std::move(block->node));
  } else {
    set.insert(block);
  }
  if (block->split()) {
    change(stats_.inactive_split, pool_index(block), 1);
    change(stats_.inactive_split_bytes, pool_index(block), static_cast<std::int64_t>(block->size));
  }
}

void BlockPool::remove(Lists& lists, Block* block) {
  block->node = lists.free[block->segment->small].extract(block);
  if (block->split()) {
    change(stats_.inactive_split, pool_index(block), -1);
    change(stats_.inactive_split_bytes, pool_index(block), -static_cast<std::int64_t>(block->size));
  }
}

void BlockPool::merge(Lists& lists, Block* block) {
  if (Block* before = block->previous; before != nullptr && before->state == BlockState::Free) {
    remove(lists, before);
    block->address = before->address;
    block->size += before->size;
    block->previous = before->previous;
    (block->previous != nullptr ? block->previous->next : block->segment->first) = block;
    delete before;
  }
  if (Block* after = block->next; after != nullptr && after->state == BlockState::Free) {
    remove(lists, after);
    block->size += after->size;
    block->next = after->next;
    (block->next != nullptr ? block->next->previous : block->segment->last) = block;
    delete after;
  }
  insert(lists, block);
}

bool BlockPool::coalesce(Lists& lists) {
  bool merged_any = false;
  for (std::size_t word = 0; word < lists.used.size(); ++word) {
    for (std::uint64_t bits = std::exchange(lists.used[word], 0); bits != 0; bits &= bits - 1) {
      const std::size_t size_class = word * 64 + static_cast<std::size_t>(std::countr_zero(bits));
      for (Block* block = std::exchange(lists.exact[size_class], nullptr); block != nullptr;) {
        Block* following = block->next_cached;
        block->next_cached = nullptr;
        merge(lists, block);
        block = following;
        merged_any = true;
      }
    }
  }
  return merged_any;
}

void BlockPool::coalesce() {
  for (const auto& lists : pool_streams_)
    if (lists != nullptr) coalesce(*lists);
  for (const auto& [stream, lists] : other_streams_) coalesce(*lists);
}

Block* BlockPool::search(BlockSet& set, std::size_t rounded) const {
  const auto found = set.lower_bound(rounded);
  if (found == set.end()) return nullptr;
  Block* block = *found;
  // Blocks above the split limit serve only requests above it, and only ones they nearly fit.
  if (rounded < config_.max_split_size && block->size >= config_.max_split_size) return nullptr;
  if (rounded >= config_.max_split_size && block->size - rounded >= config_.max_non_split_rounding) return nullptr;
  return block;
}

bool BlockPool::should_split(const Block* block, std::size_t rounded) const {
  if (!config_.caching || traits_.no_split) return false;
  const std::size_t remaining = block->size - rounded;
  if (block->segment->small || block->segment->expandable) return remaining >= AllocatorConfig::kMinBlock;
  return rounded < config_.max_split_size && remaining > AllocatorConfig::kSmallLimit;
}

Block* BlockPool::take_best_fit(Stream* stream, std::size_t rounded, std::size_t requested) {
  Lists& lists = lists_of(stream);
  const bool small = rounded <= AllocatorConfig::kSmallLimit;
  BlockSet& set = lists.free[small];
  Block* block = search(set, rounded);
  // Only small blocks wait in the lists, so a large request gains nothing from merging them.
  if (block == nullptr && small && coalesce(lists)) block = search(set, rounded);
  if (block == nullptr) return nullptr;
  remove(lists, block);
  return carve(lists, block, rounded, requested);
}

// The rest of the block as a block of its own, in no list.
Block* BlockPool::split_block(Block* block, std::size_t size) {
  auto* rest = new Block;
  rest->address = block->address + size;
  rest->size = block->size - size;
  rest->stream = block->stream;
  rest->segment = block->segment;
  rest->owner = owner_;
  rest->previous = block;
  rest->next = block->next;
  (rest->next != nullptr ? rest->next->previous : rest->segment->last) = rest;
  block->next = rest;
  block->size = size;
  return rest;
}

Block* BlockPool::carve(Lists& lists, Block* block, std::size_t rounded, std::size_t requested) {
  if (should_split(block, rounded)) insert(lists, split_block(block, rounded));
  return hand_out(block, requested);
}

Block* BlockPool::take_fresh(Stream* stream, void* address, std::size_t size, std::size_t rounded,
                             std::size_t requested) {
  auto block = std::make_unique<Block>();
  auto segment = std::make_unique<Segment>();
  segment->address = static_cast<std::byte*>(address);
  segment->size = size;
  segment->ranges.push_back({segment->address, size});
  segment->stream = stream;
  segment->pool = this;
  segment->first = segment->last = block.get();
  segment->expandable = config_.expandable_segments && traits_.source == nullptr;
  segment->small = rounded <= AllocatorConfig::kSmallLimit;
  block->address = segment->address;
  block->size = size;
  block->stream = stream;
  block->segment = segment.get();
  block->owner = owner_;
  segments_.emplace(reinterpret_cast<std::uintptr_t>(address), segment.get());
  const std::size_t pool = pool_index(block.get());
  change(stats_.segment, pool, 1);
  change(stats_.reserved_bytes, pool, static_cast<std::int64_t>(size));
  if (size >= config_.max_split_size) stats_.oversize_segments.increase(1);
  ++stats_.num_device_alloc;
  Lists& lists = lists_of(stream);
  if (segment->expandable) lists.growing[segment->small] = segment.get();
  segment.release();
  return carve(lists, block.release(), rounded, requested);
}

Segment* BlockPool::growing(Stream* stream, std::size_t rounded, std::size_t* missing) {
  Segment* segment = lists_of(stream).growing[rounded <= AllocatorConfig::kSmallLimit];
  if (segment != nullptr) {
    const Block* last = segment->last;
    *missing = rounded - (last->state == BlockState::Free ? last->size : 0);
  }
  return segment;
}

Block* BlockPool::extend(Segment* segment, std::size_t size, std::size_t rounded, std::size_t requested) {
  Lists& lists = lists_of(segment->stream);
  Block* block = segment->last;
  if (block->state == BlockState::Free) {
    remove(lists, block);
    block->size += size;
  } else {
    block->size += size;
    block = split_block(block, block->size - size);
  }
  segment->ranges.push_back({segment->address + segment->size, size});
  segment->size += size;
  change(stats_.reserved_bytes, pool_index(block), static_cast<std::int64_t>(size));
  ++stats_.num_device_alloc;
  return carve(lists, block, rounded, requested);
}

std::vector<Segment*> BlockPool::detach_free_segments(std::size_t bytes) {
  coalesce();
  std::vector<Segment*> detached;
  std::vector<Segment*> in_use;
  for (const auto& [address, segment] : segments_) {
    const bool free = segment->first->next == nullptr && segment->first->state == BlockState::Free;
    if (free) detached.push_back(segment);
    if (!free && segment->ranges.size() > 1) in_use.push_back(segment);
  }
  std::stable_sort(detached.begin(), detached.end(),
                   [](const Segment* a, const Segment* b) { return a->last_used < b->last_used; });
  std::size_t gathered = 0;
  std::size_t count = 0;
  while (count < detached.size() && gathered < bytes) gathered += detached[count++]->size;
  detached.resize(count);
  for (Segment* segment : detached) {
    remove(lists_of(segment->stream), segment->first);
    detach(segment);
  }
  if (gathered < bytes)
    for (Segment* segment : in_use) detach_free_ranges(segment, detached);
  return detached;
}

void BlockPool::detach(Segment* segment) {
  segments_.erase(reinterpret_cast<std::uintptr_t>(segment->address));
  Segment*& growing = lists_of(segment->stream).growing[segment->small];
  if (growing == segment) growing = nullptr;
}

Segment* BlockPool::split_segment(Segment* segment, Block* at) {
  auto* tail = new Segment(*segment);
  tail->address = at->address;
  tail->size = static_cast<std::size_t>(segment->address + segment->size - at->address);
  tail->first = at;
  std::erase_if(tail->ranges, [&](const Segment::Range& range) { return range.address < at->address; });
  std::erase_if(segment->ranges, [&](const Segment::Range& range) { return range.address >= at->address; });
  segment->size -= tail->size;
  segment->last = at->previous;
  at->previous->next = nullptr;
  at->previous = nullptr;
  for (Block* block = at; block != nullptr; block = block->next) block->segment = tail;
  segments_.emplace(reinterpret_cast<std::uintptr_t>(tail->address), tail);
  change(stats_.segment, pool_index(at), 1);
  Segment*& growing = lists_of(segment->stream).growing[segment->small];
  if (growing == segment) growing = tail;
  return tail;
}

// A free block of the set loses no neighbour by a cut: its neighbours are in use and stay with it.
void BlockPool::detach_free_ranges(Segment* segment, std::vector<Segment*>& detached) {
  Lists& lists = lists_of(segment->stream);
  for (Block* block = segment->first; block != nullptr;) {
    Block* const following = block->next;
    std::byte* begin = nullptr;
    std::byte* end = nullptr;
    if (block->state == BlockState::Free) {
      for (const Segment::Range& range : block->segment->ranges) {
        if (range.address < block->address || range.address + range.size > block->address + block->size) continue;
        if (begin == nullptr) begin = range.address;
        end = range.address + range.size;
      }
    }
    if (begin != nullptr) {
      remove(lists, block);
      Block* before = nullptr;
      Block* after = nullptr;
      Block* hole = block;
      if (begin != block->address) {
        before = block;
        hole = split_block(block, static_cast<std::size_t>(begin - block->address));
      }
      if (end != hole->address + hole->size) after = split_block(hole, static_cast<std::size_t>(end - hole->address));
      if (hole->next != nullptr) split_segment(hole->segment, hole->next);
      Segment* left = hole->previous != nullptr ? hole->segment : nullptr;
      Segment* cut = left != nullptr ? split_segment(left, hole) : hole->segment;
      if (before != nullptr) insert(lists, before);
      if (after != nullptr) insert(lists, after);
      hole->state = BlockState::Free;
      Segment*& growing = lists.growing[cut->small];
      const bool at_the_end = growing == cut;
      detach(cut);
      if (at_the_end) growing = left;
      detached.push_back(cut);
    }
    block = following;
  }
}

void BlockPool::drop_last_range(Segment* segment) {
  const std::size_t pool = pool_index(segment->first);
  const std::size_t size = segment->ranges.back().size;
  change(stats_.reserved_bytes, pool, -static_cast<std::int64_t>(size));
  ++stats_.num_device_free;
  segment->ranges.pop_back();
  if (!segment->ranges.empty()) {
    segment->size -= size;
    segment->first->size -= size;
    return;
  }
  change(stats_.segment, pool, -1);
  if (segment->size >= config_.max_split_size) stats_.oversize_segments.decrease(1);
  delete segment->first;
  delete segment;
}

void BlockPool::reattach(Segment* segment) {
  segments_.emplace(reinterpret_cast<std::uintptr_t>(segment->address), segment);
  insert(lists_of(segment->stream), segment->first);
}

Block* BlockPool::find(const void* address) const {
  const auto key = reinterpret_cast<std::uintptr_t>(address);
  auto it = segments_.upper_bound(key);
  if (it == segments_.begin()) return nullptr;
  const Segment* segment = std::prev(it)->second;
  if (key - reinterpret_cast<std::uintptr_t>(segment->address) >= segment->size) return nullptr;
  Block* block = segment->first;
  while (key >= reinterpret_cast<std::uintptr_t>(block->address) + block->size) block = block->next;
  return block;
}

std::vector<c10::CachingDeviceAllocator::SegmentInfo> BlockPool::snapshot(c10::DeviceIndex device) {
  coalesce();
  std::vector<c10::CachingDeviceAllocator::SegmentInfo> infos;
  infos.reserve(segments_.size());
  for (const auto& [address, segment] : segments_) {
    auto& info = infos.emplace_back();
    info.device = device;
    info.address = address;
    info.total_size = segment->size;
    info.stream = segment->stream;
    info.is_large = !segment->small;
    info.is_expandable = segment->expandable;
    info.owner_private_pool_id = traits_.id;
    info.context_when_allocated = segment->context;
    for (const Block* block = segment->first; block != nullptr; block = block->next) {
      auto& piece = info.blocks.emplace_back();
      piece.size = block->size;
      piece.requested_size = block->requested;
      piece.context_when_allocated = block->context;
      piece.allocated = block->state == BlockState::Live;
      piece.active = piece.allocated || block->state == BlockState::Pending;
      if (piece.allocated) info.allocated_size += block->size;
      if (piece.active) {
        info.active_size += block->size;
        info.requested_size += block->requested;
      }
    }
  }
  return infos;
}

namespace {

template <typename Function>
void for_each_stat(c10::CachingDeviceAllocator::DeviceStats& stats, Function function) {
  for (StatArray* array :
       {&stats.allocation, &stats.segment, &stats.active, &stats.inactive_split, &stats.allocated_bytes,
        &stats.reserved_bytes, &stats.active_bytes, &stats.inactive_split_bytes, &stats.requested_bytes})
    for (auto& stat : *array) function(stat);
  function(stats.oversize_allocations);
  function(stats.oversize_segments);
}

}  // namespace

void BlockPool::reset_peak_stats() {
  for_each_stat(stats_, [](auto& stat) { stat.reset_peak(); });
}

void BlockPool::reset_accumulated_stats() {
  for_each_stat(stats_, [](auto& stat) { stat.reset_accumulated(); });
  stats_.num_alloc_retries = 0;
  stats_.num_ooms = 0;
  stats_.num_oom_rejections = 0;
}

}  // namespace npu
