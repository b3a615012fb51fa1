#include "device_memory.h"

#include <c10/util/Exception.h>
#include <c10/util/ScopeExit.h>

#include <algorithm>
#include <cstdio>

#include "device.h"
#include "driver_loader.h"
#include "error.h"
#include "stream_marker.h"
#include "trace.h"

namespace npu {
namespace {

std::size_t round_up(std::size_t value, std::size_t grain) { return (value + grain - 1) / grain * grain; }

constexpr c10::MempoolId_t kDefaultPool{0, 0};

std::size_t address_of(const Block* block) { return reinterpret_cast<std::size_t>(block->address); }

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

DeviceMemory::DeviceMemory(int device, const AllocatorConfig& config)
    : device_(device), config_(config), pool_(config, this), history_(device), fraction_(1.0) {
  const npu_device_properties properties = device_properties(device);
  total_ = properties.total_memory;
  emulated_ = properties.is_emulated != 0;
  granularity_ = std::max<std::size_t>(properties.memory_granularity, AllocatorConfig::kMinBlock);
  pool_.stats().max_split_size = static_cast<std::int64_t>(config.max_split_size);
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
  Request request{bytes, config_.round_request(bytes), stream, nullptr, {}};
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
    history_.record(TraceEntry::ALLOC, address_of(block), bytes, stream, kDefaultPool, request.context);
  }
  const std::int64_t allocated = pool_.stats().allocated_bytes[0].current;
  const std::int64_t reserved = pool_.stats().reserved_bytes[0].current;
  lock.unlock();
  report(block->address, static_cast<std::int64_t>(block->size), allocated, reserved, stream);
  if (tracing()) [[unlikely]]
    trace_memory("alloc", block, block->size);
  return block;
}

Block* DeviceMemory::take(const Request& request) {
  return config_.caching ? pool_.take(request.stream, request.rounded, request.bytes) : nullptr;
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
    history_.record(TraceEntry::FREE_REQUESTED, address_of(block), block->requested, stream, kDefaultPool, context);
  pool_.retire(block);
  const std::int64_t allocated = pool_.stats().allocated_bytes[0].current;
  const std::int64_t reserved = pool_.stats().reserved_bytes[0].current;
  if (block->used_by.empty() && config_.caching) [[likely]] {
    put(block);
  } else {
    release_waiting(lock, block);
  }
  lock.unlock();
  report(address, -static_cast<std::int64_t>(size), allocated, reserved, stream);
}

void DeviceMemory::put(Block* block) {
  if (history_.on()) [[unlikely]] {
    history_.record(TraceEntry::FREE_COMPLETED, address_of(block), block->requested, block->stream, kDefaultPool,
                    nullptr);
    block->context.reset();
  }
  pool_.put(block);
}

// Without caching a free also waits for the block's own stream: only then may the memory be unmapped.
void DeviceMemory::release_waiting(Lock& lock, Block* block) {
  if (!config_.caching) block->used_by.push_back(block->stream);
  if (is_host_thread()) {
    mark_and_queue(lock, block);
    if (!config_.caching) settle(lock);
  } else {
    unmarked_.push_back(block);
  }
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
  put(block);
  if (config_.caching) return;
  for (Segment* segment : pool_.detach_free_segments()) unmap(segment);
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

std::size_t DeviceMemory::segment_size(std::size_t rounded) const {
  return round_up(config_.caching ? config_.segment_size(rounded) : rounded, granularity_);
}

Block* DeviceMemory::grow(Request& request) {
  const std::size_t size = segment_size(request.rounded);
  if (static_cast<std::size_t>(pool_.stats().reserved_bytes[0].current) + size > limit_) return nullptr;
  void* address = nullptr;
  const npu_status status = driver().memory_map(driver_device(device_), size, &address);
  if (status == NPU_ERROR_OUT_OF_MEMORY) {
    request.refusal = driver().last_error();
    return nullptr;
  }
  check(status, "memory_map");
  Block* block = pool_.take_fresh(request.stream, address, size, request.rounded, request.bytes);
  if (history_.on()) {
    block->segment->context = request.context;
    history_.record(TraceEntry::SEGMENT_ALLOC, address_of(block), size, request.stream, kDefaultPool, request.context);
  }
  return block;
}

Block* DeviceMemory::acquire_slowly(Lock& lock, Request& request) {
  if (config_.garbage_collection_threshold > 0) collect_garbage(lock, segment_size(request.rounded));
  if (Block* block = grow(request); block != nullptr) return block;
  auto& stats = pool_.stats();
  if (config_.throw_on_oom) {
    ++stats.num_oom_rejections;
  } else {
    lock.unlock();
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
    if (block != nullptr) return block;
  }
  ++stats.num_ooms;
  report_out_of_memory(lock, request);
}

OutOfMemoryFacts DeviceMemory::gather_facts(const Request& request) {
  const auto& stats = pool_.stats();
  OutOfMemoryFacts facts;
  facts.device = device_;
  facts.stream_id = request.stream->id;
  facts.requested = request.bytes;
  facts.block = request.rounded;
  facts.growth = segment_size(request.rounded);
  facts.total = total_;
  driver().memory_info(driver_device(device_), &facts.free, &facts.total);
  facts.limit = limit_;
  facts.fraction = fraction_;
  facts.allocated = static_cast<std::size_t>(stats.allocated_bytes[0].current);
  facts.active = static_cast<std::size_t>(stats.active_bytes[0].current);
  facts.reserved = static_cast<std::size_t>(stats.reserved_bytes[0].current);
  const bool small = request.rounded <= AllocatorConfig::kSmallLimit;
  pool_.for_each_block([&](const Block& block) {
    if (block.state == BlockState::Pending) facts.waiting.add(block.size);
    if (block.state != BlockState::Free) return;
    const bool usable = block.stream == request.stream && block.segment->small == small;
    (usable ? facts.cached_here : facts.cached_elsewhere).add(block.size);
  });
  facts.rejected = config_.throw_on_oom;
  facts.expandable = config_.expandable_segments;
  facts.emulated = emulated_;
  facts.driver_text = request.refusal;
  return facts;
}

void DeviceMemory::report_out_of_memory(Lock& lock, const Request& request) {
  const OutOfMemoryFacts facts = gather_facts(request);
  history_.record(TraceEntry::OOM, facts.free, facts.requested, request.stream, kDefaultPool, request.context);
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
  ++pool_.stats().num_sync_all_streams;
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
    const std::size_t held = static_cast<std::size_t>(pool_.stats().reserved_bytes[0].current) + growth;
    return held > threshold ? held - threshold : 0;
  };
  if (excess() == 0) return;
  lock.unlock();
  std::lock_guard reclaim(reclaiming_);
  lock.lock();
  // Another thread may have given memory back while this one waited for its turn.
  if (const std::size_t bytes = excess(); bytes != 0) release_cached(lock, bytes);
}

// Gives free segments back, all or the oldest that make up `bytes`.  Work that used it may still be queued on its
// stream, so that is drained first; the segments are out of the pool meanwhile, and the lock is free.
void DeviceMemory::release_cached(Lock& lock, std::size_t bytes) {
  const std::vector<Segment*> segments = pool_.detach_free_segments(bytes);
  if (segments.empty()) return;
  std::vector<Stream*> streams;
  for (const Segment* segment : segments)
    if (std::find(streams.begin(), streams.end(), segment->stream) == streams.end()) streams.push_back(segment->stream);
  lock.unlock();
  for (const Stream* stream : streams) drain_stream(stream);
  lock.lock();
  for (Segment* segment : segments) unmap(segment);
}

void DeviceMemory::unmap(Segment* segment) {
  const npu_status status = driver().memory_unmap(driver_device(device_), segment->address, segment->size);
  if (status == NPU_OK && history_.on())
    history_.record(TraceEntry::SEGMENT_FREE, reinterpret_cast<std::size_t>(segment->address), segment->size,
                    segment->stream, kDefaultPool, nullptr);
  // A device that was shut down has taken its memory along.
  if (status == NPU_OK || status == NPU_ERROR_STOPPED) {
    pool_.forget(segment);
  } else {
    pool_.reattach(segment);
    // Not a torch warning: its handler may run Python code that frees tensors, and the lock is held.
    std::fprintf(stderr, "npu: the driver refused to take back %zu bytes: %s\n", segment->size, driver().last_error());
  }
}

void DeviceMemory::empty_cache() {
  note_host_thread();
  std::lock_guard reclaim(reclaiming_);
  Lock lock(mutex_);
  wait_for_pending(lock);
  release_cached(lock);
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
  Block* block = pool_.find(address);
  if (block == nullptr || block->state != BlockState::Live) return false;
  auto& users = block->used_by;
  if (stream != block->stream && std::find(users.begin(), users.end(), stream) == users.end()) users.push_back(stream);
  return true;
}

bool DeviceMemory::erase_stream(const void* address, Stream* stream) {
  std::lock_guard lock(mutex_);
  Block* block = pool_.find(address);
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
  const Block* block = pool_.find(address);
  if (block == nullptr || block->state != BlockState::Live) return false;
  *base = block->address;
  *size = block->size;
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
  pool_.coalesce();
  return pool_.stats();
}

void DeviceMemory::reset_peak_stats() {
  Lock lock(mutex_);
  pool_.coalesce();
  pool_.reset_peak_stats();
}

void DeviceMemory::reset_accumulated_stats() {
  Lock lock(mutex_);
  pool_.coalesce();
  pool_.reset_accumulated_stats();
}

std::vector<c10::CachingDeviceAllocator::SegmentInfo> DeviceMemory::snapshot(std::vector<TraceEntry>& trace) {
  Lock lock(mutex_);
  settle(lock);
  const auto active = static_cast<std::size_t>(pool_.stats().active_bytes[0].current);
  history_.record(TraceEntry::SNAPSHOT, 0, active, nullptr, kDefaultPool, nullptr);
  trace = history_.entries();
  return pool_.snapshot(static_cast<c10::DeviceIndex>(device_));
}

void DeviceMemory::set_history(const HistoryOptions& options, bool clear) {
  Lock lock(mutex_);
  history_.configure(options, clear);
  if (!options.on()) pool_.for_each_block([](Block& block) { block.context = block.segment->context = nullptr; });
}

}  // namespace npu
