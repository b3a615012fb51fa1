#include "device_memory.h"

#include <c10/util/Exception.h>
#include <c10/util/ScopeExit.h>

#include <algorithm>
#include <cstdio>

#include "device.h"
#include "driver_loader.h"
#include "error.h"
#include "ipc_memory.h"
#include "stream_marker.h"
#include "trace.h"

namespace npu {
namespace {

std::size_t round_up(std::size_t value, std::size_t grain) { return (value + grain - 1) / grain * grain; }

std::size_t address_of(const Block* block) { return reinterpret_cast<std::size_t>(block->address); }

c10::MempoolId_t id_of(const Block* block) { return block->segment->pool->traits().id; }

void trace_memory(const char* name, const Block* block, std::size_t bytes) {
  npu_trace_record record{};
  record.kind = NPU_TRACE_MEMORY;
  record.device = block->stream->device;
  record.stream_id = block->stream->id;
  record.begin_ns = record.end_ns = record.submit_ns = driver().clock_ns();
  record.value = static_cast<std::int64_t>(bytes);
  std::snprintf(record.name, sizeof(record.name), "%s", name);
  trace_emit(record);
}

}  // namespace

DeviceMemory::DeviceMemory(int device, const AllocatorConfig& config, std::shared_ptr<SegmentSource> source)
    : device_(device),
      config_(config),
      source_(std::move(source)),
      pool_(config, this, stats_, {.source = source_}),
      history_(device),
      fraction_(1.0) {
  const npu_device_properties properties = device_properties(device);
  total_ = properties.total_memory;
  emulated_ = properties.is_emulated != 0;
  granularity_ = std::max<std::size_t>(properties.memory_granularity, AllocatorConfig::kMinBlock);
  stats_.max_split_size = static_cast<std::int64_t>(config.max_split_size);
  set_fraction(config.memory_fraction);
}

// Cheap unless a profiler listens: torch looks for one in the calling thread's debug information.
void DeviceMemory::report(void* address, std::int64_t bytes, std::int64_t allocated, std::int64_t reserved,
                          Stream* stream) {
  c10::reportMemoryUsageToProfiler(
      address, bytes, static_cast<std::size_t>(allocated), static_cast<std::size_t>(reserved),
      c10::Device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(stream->device)));
}

Block* DeviceMemory::acquire(std::size_t bytes, Stream* stream) {
  note_host_thread();
  Request request{bytes, 0, stream, &pool_, nullptr, {}};
  if (g_pool_scopes.load(std::memory_order_relaxed) != 0) [[unlikely]]
    if (BlockPool* chosen = chosen_pool(device_); chosen != nullptr) request.pool = chosen;
  request.rounded = exact(*request.pool) ? bytes : config_.round_request(bytes);
  if (history_on()) [[unlikely]]
    request.context = gather_context(RecordContext::STATE);
  Lock lock(mutex_);
  if (unsettled()) [[unlikely]]
    settle(lock);
  Block* block = take(request);
  if (block == nullptr) [[unlikely]]
    block = acquire_slowly(lock, request);
  if (history_.on()) [[unlikely]] {
    block->context = request.context;
    history_.record(TraceEntry::ALLOC, address_of(block), bytes, stream, id_of(block), request.context);
  }
  const std::int64_t allocated = stats_.allocated_bytes[0].current;
  const std::int64_t reserved = stats_.reserved_bytes[0].current;
  lock.unlock();
  report(block->address, static_cast<std::int64_t>(block->size), allocated, reserved, stream);
  if (tracing()) [[unlikely]]
    trace_memory("alloc", block, block->size);
  return block;
}

Block* DeviceMemory::take(const Request& request) {
  return caches(*request.pool) ? request.pool->take(request.stream, request.rounded, request.bytes) : nullptr;
}

// Private pools that lend their cached memory as a last resort.
Block* DeviceMemory::take_from_lenders(const Request& request) {
  for (const auto& [id, pool] : private_pools_) {
    if (!pool->blocks.traits().use_on_oom) continue;
    Block* block = pool->blocks.take(request.stream, request.rounded, request.bytes);
    if (block != nullptr) return block;
  }
  return nullptr;
}

void DeviceMemory::release(Block* block) noexcept {
  // The block may belong to someone else as soon as the lock is gone.
  void* const address = block->address;
  const std::size_t size = block->size;
  Stream* const stream = block->stream;
  if (tracing()) [[unlikely]]
    trace_memory("free", block, size);
  Context context;
  if (history_on()) [[unlikely]]
    context = gather_context(RecordContext::ALL);
  Lock lock(mutex_);
  if (history_.on()) [[unlikely]]
    history_.record(TraceEntry::FREE_REQUESTED, address_of(block), block->requested, stream, id_of(block), context);
  block->segment->pool->retire(block);
  const std::int64_t allocated = stats_.allocated_bytes[0].current;
  const std::int64_t reserved = stats_.reserved_bytes[0].current;
  if (block->used_by.empty() && caches(*block->segment->pool)) [[likely]] {
    put(block);
  } else {
    release_waiting(lock, block);
  }
  lock.unlock();
  report(address, -static_cast<std::int64_t>(size), allocated, reserved, stream);
}

void DeviceMemory::put(Block* block) {
  if (history_.on()) [[unlikely]] {
    history_.record(TraceEntry::FREE_COMPLETED, address_of(block), block->requested, block->stream, id_of(block),
                    nullptr);
    block->context.reset();
  }
  block->segment->pool->put(block);
}

// Without caching a free also waits for the block's own stream: only then may the memory be unmapped.
void DeviceMemory::release_waiting(Lock& lock, Block* block) {
  const bool cached = caches(*block->segment->pool);
  if (!cached) block->used_by.push_back(block->stream);
  if (!is_host_thread()) {
    unmarked_.push_back(block);
    return;
  }
  if (exact(*block->segment->pool)) {
    // A pluggable allocator gets its memory back when the tensor dies, not at some later call.
    const std::vector<Stream*> streams = std::exchange(block->used_by, {});
    lock.unlock();
    for (const Stream* stream : streams) drain_stream(stream);
    lock.lock();
    complete(block);
    return;
  }
  mark_and_queue(lock, block);
  if (!cached) settle(lock);
}

void DeviceMemory::mark_and_queue(Lock& lock, Block* block) {
  const std::vector<Stream*> streams = block->used_by;
  Marks marks;
  lock.unlock();
  const bool marked = mark_streams(streams, marks);
  lock.lock();
  if (!marked) {
    unmarked_.push_back(block);
    return;
  }
  block->used_by.clear();
  block->events = static_cast<std::uint32_t>(marks.size());
  for (const auto& [stream, marker] : marks) waiting_[stream].emplace_back(marker, block);
  if (marks.empty()) complete(block);
}

void DeviceMemory::complete(Block* block) {
  BlockPool& pool = *block->segment->pool;
  put(block);
  if (caches(pool)) return;
  for (Segment* segment : pool.detach_free_segments()) unmap(segment);
}

void DeviceMemory::settle(Lock& lock) {
  for (Block* block : std::exchange(unmarked_, {})) mark_and_queue(lock, block);
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    auto& queue = it->second;
    while (!queue.empty() && marker_passed(queue.front().first)) {
      const auto [marker, block] = queue.front();
      queue.pop_front();
      return_marker(marker);
      if (--block->events == 0) complete(block);
    }
    it = queue.empty() ? waiting_.erase(it) : std::next(it);
  }
}

void DeviceMemory::settle() {
  Lock lock(mutex_);
  settle(lock);
}

std::size_t DeviceMemory::segment_size(const BlockPool& pool, std::size_t rounded) const {
  if (exact(pool)) return rounded;
  return round_up(config_.caching ? config_.segment_size(rounded) : rounded, granularity_);
}

// New memory for the request's pool, or nullptr with the reason noted.
void* DeviceMemory::map(Request& request, std::size_t size) {
  if (static_cast<std::size_t>(stats_.reserved_bytes[0].current) + size > limit_) return nullptr;
  if (SegmentSource* source = request.pool->traits().source.get(); source != nullptr) {
    void* address = source->allocate(size, device_, request.stream);
    if (address == nullptr) request.refusal = "the pluggable allocator returned no memory";
    return address;
  }
  void* address = nullptr;
  const npu_status status = driver().memory_map(driver_device(device_), size, &address);
  if (status == NPU_ERROR_OUT_OF_MEMORY) {
    request.refusal = driver().last_error();
    return nullptr;
  }
  check(status, "memory_map");
  return address;
}

Block* DeviceMemory::grow(Request& request) {
  if (config_.expandable_segments && config_.caching && request.pool->traits().source == nullptr) {
    bool refused = false;
    Block* block = extend(request, &refused);
    if (block != nullptr || refused) return block;
  }
  const std::size_t size = segment_size(*request.pool, request.rounded);
  void* address = map(request, size);
  if (address == nullptr) return nullptr;
  Block* block = request.pool->take_fresh(request.stream, address, size, request.rounded, request.bytes);
  if (history_.on()) {
    block->segment->context = request.context;
    const auto action = block->segment->expandable ? TraceEntry::SEGMENT_MAP : TraceEntry::SEGMENT_ALLOC;
    history_.record(action, address_of(block), size, request.stream, request.pool->traits().id, request.context);
  }
  return block;
}

// Lets the pool's segment grow at its end.  nullptr when there is none to grow or other memory lies behind it, or, with
// `refused`, when there is no memory left.
Block* DeviceMemory::extend(Request& request, bool* refused) {
  std::size_t missing = 0;
  Segment* segment = request.pool->growing(request.stream, request.rounded, &missing);
  if (segment == nullptr) return nullptr;
  const std::size_t grain = segment->small                                 ? AllocatorConfig::kSmallSegment
                            : missing < AllocatorConfig::kSharedLargeLimit ? config_.large_segment_size
                                                                           : AllocatorConfig::kLargeGrain;
  const std::size_t size = round_up(round_up(missing, grain), granularity_);
  auto* const end = segment->address + segment->size;
  void* address = map(request, size);
  *refused = address == nullptr;
  if (address == nullptr) return nullptr;
  if (address != end) {
    check(driver().memory_unmap(driver_device(device_), address, size), "memory_unmap");
    return nullptr;
  }
  Block* block = request.pool->extend(segment, size, request.rounded, request.bytes);
  if (history_.on())
    history_.record(TraceEntry::SEGMENT_MAP, reinterpret_cast<std::size_t>(end), size, request.stream,
                    request.pool->traits().id, request.context);
  return block;
}

Block* DeviceMemory::acquire_slowly(Lock& lock, Request& request) {
  if (config_.garbage_collection_threshold > 0) collect_garbage(lock, segment_size(*request.pool, request.rounded));
  if (Block* block = grow(request); block != nullptr) return block;
  auto& stats = stats_;
  if (config_.throw_on_oom) {
    ++stats.num_oom_rejections;
  } else {
    lock.unlock();
    ipc_collect();
    std::lock_guard reclaim(reclaiming_);
    lock.lock();
    // Another thread may have given memory back while this one waited for its turn.
    Block* block = take(request);
    if (block == nullptr) {
      wait_for_pending(lock);
      release_cached(lock);
      ++stats.num_alloc_retries;
      block = grow(request);
    }
    // The driver may be full of segments that are partly in use; a piece of one may fit by now.
    if (block == nullptr) block = take(request);
    if (block == nullptr) block = take_from_lenders(request);
    if (block != nullptr) return block;
  }
  ++stats.num_ooms;
  report_out_of_memory(lock, request);
}

OutOfMemoryFacts DeviceMemory::gather_facts(const Request& request) {
  const auto& stats = stats_;
  OutOfMemoryFacts facts;
  facts.device = device_;
  facts.stream_id = request.stream->id;
  facts.requested = request.bytes;
  facts.block = request.rounded;
  facts.growth = segment_size(*request.pool, request.rounded);
  facts.total = total_;
  driver().memory_info(driver_device(device_), &facts.free, &facts.total);
  facts.limit = limit_;
  facts.fraction = fraction_;
  facts.allocated = static_cast<std::size_t>(stats.allocated_bytes[0].current);
  facts.active = static_cast<std::size_t>(stats.active_bytes[0].current);
  facts.reserved = static_cast<std::size_t>(stats.reserved_bytes[0].current);
  const bool small = request.rounded <= AllocatorConfig::kSmallLimit;
  for_each_pool([&](BlockPool& pool) {
    const bool own = &pool == request.pool;
    pool.for_each_block([&](const Block& block) {
      if (block.state == BlockState::Pending) facts.waiting.add(block.size);
      if (&pool != &pool_) {
        if (block.previous == nullptr) facts.private_pools.add(block.segment->size);
        if (block.state == BlockState::Live) facts.private_allocated += block.size;
      }
      if (block.state != BlockState::Free || (!own && &pool != &pool_)) return;
      const bool usable = own && block.stream == request.stream && block.segment->small == small;
      (usable ? facts.cached_here : facts.cached_elsewhere).add(block.size);
    });
  });
  facts.in_private_pool = request.pool != &pool_;
  facts.rejected = config_.throw_on_oom;
  facts.expandable = config_.expandable_segments;
  facts.emulated = emulated_;
  facts.driver_text = request.refusal;
  return facts;
}

void DeviceMemory::report_out_of_memory(Lock& lock, const Request& request) {
  const OutOfMemoryFacts facts = gather_facts(request);
  history_.record(TraceEntry::OOM, facts.free, facts.requested, request.stream, request.pool->traits().id,
                  request.context);
  lock.unlock();
  c10::reportOutOfMemoryToProfiler(static_cast<std::int64_t>(facts.requested), facts.allocated, facts.reserved,
                                   c10::Device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device_)));
  notify_out_of_memory(facts);
  TORCH_CHECK_WITH(OutOfMemoryError, false, describe(facts), error_suffix(Submodule::PTA, ErrorCode::MEMORY));
}

// Waits until every freed block is free for good.
void DeviceMemory::wait_for_pending(Lock& lock) {
  settle(lock);
  if (waiting_.empty()) return;
  ++stats_.num_sync_all_streams;
  auto waiting = std::exchange(waiting_, {});
  lock.unlock();
  for (const auto& [stream, queue] : waiting)
    for (const auto& [marker, block] : queue) wait_for_marker(marker);
  lock.lock();
  for (const auto& [stream, queue] : waiting) {
    for (const auto& [marker, block] : queue) {
      return_marker(marker);
      if (--block->events == 0) complete(block);
    }
  }
}

// Before the device grows: when it would then hold more than the threshold's share of what it may hold, the segments
// unused for longest go, as many as it takes.
void DeviceMemory::collect_garbage(Lock& lock, std::size_t growth) {
  const auto excess = [&] {
    const std::size_t most = limit_ == AllocatorConfig::kUnlimited ? total_ : limit_;
    const auto threshold = static_cast<std::size_t>(config_.garbage_collection_threshold * static_cast<double>(most));
    const std::size_t held = static_cast<std::size_t>(stats_.reserved_bytes[0].current) + growth;
    return held > threshold ? held - threshold : 0;
  };
  if (excess() == 0) return;
  lock.unlock();
  std::lock_guard reclaim(reclaiming_);
  lock.lock();
  // Another thread may have given memory back while this one waited for its turn.
  if (const std::size_t bytes = excess(); bytes != 0) release_cached(lock, bytes);
}

// Gives free segments back, all or the oldest that make up `bytes`; of private pools those that nobody uses any more.
void DeviceMemory::release_cached(Lock& lock, std::size_t bytes) {
  std::vector<Segment*> segments = pool_.detach_free_segments(bytes);
  for (const auto& [id, pool] : private_pools_) {
    if (pool->uses != 0) continue;
    const auto more = pool->blocks.detach_free_segments();
    segments.insert(segments.end(), more.begin(), more.end());
  }
  give_back(lock, segments);
}

// Work that used the segments may still be queued on their streams, so these are drained first; the segments are out of
// their pools meanwhile, and the lock is free.
void DeviceMemory::give_back(Lock& lock, const std::vector<Segment*>& segments) {
  if (!segments.empty()) {
    std::vector<Stream*> streams;
    for (const Segment* segment : segments)
      if (std::find(streams.begin(), streams.end(), segment->stream) == streams.end())
        streams.push_back(segment->stream);
    lock.unlock();
    for (const Stream* stream : streams) drain_stream(stream);
    lock.lock();
    for (Segment* segment : segments) unmap(segment);
  }
  forget_unused_pools();
}

void DeviceMemory::unmap(Segment* segment) {
  BlockPool& pool = *segment->pool;
  SegmentSource* source = pool.traits().source.get();
  for (std::size_t ranges = segment->ranges.size(); ranges != 0; --ranges) {
    const auto [address, size] = segment->ranges.back();
    npu_status status = NPU_OK;
    if (source != nullptr) {
      source->free(address, size, device_, segment->stream);
    } else {
      status = driver().memory_unmap(driver_device(device_), address, size);
    }
    // A device that was shut down has taken its memory along.
    if (status != NPU_OK && status != NPU_ERROR_STOPPED) {
      pool.reattach(segment);
      // Not a torch warning: its handler may run Python code that frees tensors, and the lock is held.
      std::fprintf(stderr, "npu: the driver refused to take back %zu bytes: %s\n", size, driver().last_error());
      return;
    }
    if (history_.on())
      history_.record(segment->expandable ? TraceEntry::SEGMENT_UNMAP : TraceEntry::SEGMENT_FREE,
                      reinterpret_cast<std::size_t>(address), size, segment->stream, pool.traits().id, nullptr);
    pool.drop_last_range(segment);
  }
}

void DeviceMemory::empty_cache() {
  note_host_thread();
  std::lock_guard reclaim(reclaiming_);
  Lock lock(mutex_);
  wait_for_pending(lock);
  release_cached(lock);
}

bool DeviceMemory::empty_cache(c10::MempoolId_t id) {
  note_host_thread();
  std::lock_guard reclaim(reclaiming_);
  Lock lock(mutex_);
  const auto known = [&] { return private_pools_.count(id) != 0; };
  if (!known()) return false;
  wait_for_pending(lock);
  // Another thread may have given up the pool meanwhile.
  if (known()) give_back(lock, private_pool(id).blocks.detach_free_segments());
  return true;
}

void DeviceMemory::record_stream(Block* block, Stream* stream) {
  note_host_thread();
  std::lock_guard lock(mutex_);
  if (stream == block->stream) return;
  auto& users = block->used_by;
  if (std::find(users.begin(), users.end(), stream) == users.end()) users.push_back(stream);
}

bool DeviceMemory::record_stream(const void* address, Stream* stream) {
  note_host_thread();
  std::lock_guard lock(mutex_);
  Block* block = find(address);
  if (block == nullptr || block->state != BlockState::Live) return false;
  auto& users = block->used_by;
  if (stream != block->stream && std::find(users.begin(), users.end(), stream) == users.end()) users.push_back(stream);
  return true;
}

bool DeviceMemory::erase_stream(const void* address, Stream* stream) {
  std::lock_guard lock(mutex_);
  Block* block = find(address);
  if (block == nullptr) return false;
  // The caller promises an order between `stream` and its own current stream, which is that of the block or else the
  // promise says nothing about the block's next user.
  if (block->stream != current_stream(device_)) return true;
  std::erase(block->used_by, stream);
  const auto found = waiting_.find(stream);
  if (block->state != BlockState::Pending || found == waiting_.end()) return true;
  std::erase_if(found->second, [&](const std::pair<Event*, Block*>& entry) {
    if (entry.second != block) return false;
    return_marker(entry.first);
    --block->events;
    return true;
  });
  if (found->second.empty()) waiting_.erase(found);
  if (block->events == 0) complete(block);
  return true;
}

bool DeviceMemory::find_live(const void* address, void** base, std::size_t* size) {
  std::lock_guard lock(mutex_);
  const Block* block = find(address);
  if (block == nullptr || block->state != BlockState::Live) return false;
  *base = block->address;
  *size = block->size;
  return true;
}

bool DeviceMemory::find_users(const void* address, std::vector<Stream*>* users) {
  std::lock_guard lock(mutex_);
  const Block* block = pool_.find(address);
  if (block == nullptr || block->state != BlockState::Live) return false;
  users->push_back(block->stream);
  users->insert(users->end(), block->used_by.begin(), block->used_by.end());
  return true;
}

void DeviceMemory::set_fraction(double fraction) {
  std::lock_guard lock(mutex_);
  fraction_ = fraction;
  limit_ =
      fraction >= 1.0 ? AllocatorConfig::kUnlimited : static_cast<std::size_t>(fraction * static_cast<double>(total_));
}

double DeviceMemory::fraction() {
  std::lock_guard lock(mutex_);
  return fraction_;
}

c10::CachingDeviceAllocator::DeviceStats DeviceMemory::stats() {
  Lock lock(mutex_);
  settle(lock);
  coalesce();
  return stats_;
}

void DeviceMemory::reset_peak_stats() {
  Lock lock(mutex_);
  coalesce();
  pool_.reset_peak_stats();  // the statistics are those of all pools
}

void DeviceMemory::reset_accumulated_stats() {
  Lock lock(mutex_);
  coalesce();
  pool_.reset_accumulated_stats();
}

std::vector<c10::CachingDeviceAllocator::SegmentInfo> DeviceMemory::snapshot(std::vector<TraceEntry>& trace) {
  Lock lock(mutex_);
  settle(lock);
  const auto active = static_cast<std::size_t>(stats_.active_bytes[0].current);
  history_.record(TraceEntry::SNAPSHOT, 0, active, nullptr, pool_.traits().id, nullptr);
  trace = history_.entries();
  std::vector<c10::CachingDeviceAllocator::SegmentInfo> all;
  for_each_pool([&](BlockPool& pool) {
    auto segments = pool.snapshot(static_cast<c10::DeviceIndex>(device_));
    std::move(segments.begin(), segments.end(), std::back_inserter(all));
  });
  return all;
}

void DeviceMemory::set_history(const HistoryOptions& options, bool clear) {
  Lock lock(mutex_);
  history_.configure(options, clear);
  if (options.on()) return;
  for_each_pool([](BlockPool& pool) {
    pool.for_each_block([](Block& block) { block.context = block.segment->context = nullptr; });
  });
}

Block* DeviceMemory::find(const void* address) {
  Block* found = nullptr;
  for_each_pool([&](const BlockPool& pool) {
    if (found == nullptr) found = pool.find(address);
  });
  return found;
}

void DeviceMemory::coalesce() {
  for_each_pool([](BlockPool& pool) { pool.coalesce(); });
}

}  // namespace npu
