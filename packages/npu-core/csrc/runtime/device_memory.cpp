#include "device_memory.h"

#include <c10/util/Exception.h>
#include <c10/util/ScopeExit.h>

#include <algorithm>
#include <cstdio>
#include <sstream>

#include "device.h"
#include "driver_loader.h"
#include "error.h"
#include "ipc_memory.h"
#include "stream_marker.h"
#include "trace.h"

namespace npu {
namespace {

std::size_t round_up(std::size_t value, std::size_t grain) { return (value + grain - 1) / grain * grain; }

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
    : device_(device), config_(config), pool_(config, this), fraction_(1.0) {
  const npu_device_properties properties = device_properties(device);
  total_ = properties.total_memory;
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
  const std::size_t rounded = config_.round_request(bytes);
  Lock lock(mutex_);
  if (unsettled()) [[unlikely]]
    settle(lock);
  Block* block = config_.caching ? pool_.take(stream, rounded, bytes) : nullptr;
  if (block == nullptr) [[unlikely]]
    block = acquire_slowly(lock, rounded, bytes, stream);
  const std::int64_t allocated = pool_.stats().allocated_bytes[0].current;
  const std::int64_t reserved = pool_.stats().reserved_bytes[0].current;
  lock.unlock();
  report(block->address, static_cast<std::int64_t>(block->size), allocated, reserved, stream);
  if (tracing()) [[unlikely]]
    trace_memory("alloc", block, block->size);
  return block;
}

void DeviceMemory::release(Block* block) noexcept {
  // The block may belong to someone else as soon as the lock is gone.
  void* const address = block->address;
  const std::size_t size = block->size;
  Stream* const stream = block->stream;
  if (tracing()) [[unlikely]]
    trace_memory("free", block, size);
  Lock lock(mutex_);
  pool_.retire(block);
  const std::int64_t allocated = pool_.stats().allocated_bytes[0].current;
  const std::int64_t reserved = pool_.stats().reserved_bytes[0].current;
  if (block->used_by.empty() && config_.caching) [[likely]] {
    pool_.put(block);
  } else {
    release_waiting(lock, block);
  }
  lock.unlock();
  report(address, -static_cast<std::int64_t>(size), allocated, reserved, stream);
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
  std::vector<std::pair<Stream*, Event*>> marks;
  lock.unlock();
  bool refused = false;
  for (Stream* stream : streams) {
    Event* marker = nullptr;
    const Mark mark = mark_stream(stream, &marker);
    if (mark == Mark::Placed) marks.emplace_back(stream, marker);
    refused |= mark == Mark::Refused;
  }
  lock.lock();
  if (refused) {
    for (const auto& [stream, marker] : marks) return_marker(marker);
    unmarked_.push_back(block);
    return;
  }
  block->used_by.clear();
  block->events = static_cast<std::uint32_t>(marks.size());
  for (const auto& [stream, marker] : marks) waiting_[stream].emplace_back(marker, block);
  if (marks.empty()) complete(block);
}

void DeviceMemory::complete(Block* block) {
  pool_.put(block);
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

Block* DeviceMemory::grow(std::size_t rounded, std::size_t bytes, Stream* stream) {
  const std::size_t size = round_up(config_.caching ? config_.segment_size(rounded) : rounded, granularity_);
  if (static_cast<std::size_t>(pool_.stats().reserved_bytes[0].current) + size > limit_) return nullptr;
  void* address = nullptr;
  const npu_status status = driver().memory_map(driver_device(device_), size, &address);
  if (status == NPU_ERROR_OUT_OF_MEMORY) return nullptr;
  check(status, "memory_map");
  return pool_.take_fresh(stream, address, size, rounded, bytes);
}

Block* DeviceMemory::acquire_slowly(Lock& lock, std::size_t rounded, std::size_t bytes, Stream* stream) {
  if (Block* block = grow(rounded, bytes, stream); block != nullptr) return block;
  auto& stats = pool_.stats();
  if (config_.throw_on_oom) {
    ++stats.num_oom_rejections;
  } else {
    lock.unlock();
    ipc_collect();
    std::lock_guard reclaim(reclaiming_);
    lock.lock();
    // Another thread may have given memory back while this one waited for its turn.
    Block* block = config_.caching ? pool_.take(stream, rounded, bytes) : nullptr;
    if (block == nullptr) {
      wait_for_pending(lock);
      release_cached(lock);
      ++stats.num_alloc_retries;
      block = grow(rounded, bytes, stream);
    }
    // The driver may be full of segments that are partly in use; a piece of one may fit by now.
    if (block == nullptr && config_.caching) block = pool_.take(stream, rounded, bytes);
    if (block != nullptr) return block;
  }
  ++stats.num_ooms;
  report_out_of_memory(lock, bytes, round_up(config_.segment_size(rounded), granularity_));
}

void DeviceMemory::report_out_of_memory(Lock& lock, std::size_t bytes, std::size_t segment) {
  using c10::CachingAllocator::format_size;
  const auto& stats = pool_.stats();
  const auto allocated = static_cast<std::uint64_t>(stats.allocated_bytes[0].current);
  const auto active = static_cast<std::uint64_t>(stats.active_bytes[0].current);
  const auto reserved = static_cast<std::uint64_t>(stats.reserved_bytes[0].current);
  const std::size_t limit = limit_;
  lock.unlock();
  std::size_t free = 0;
  std::size_t total = total_;
  driver().memory_info(driver_device(device_), &free, &total);
  std::ostringstream text;
  text << "NPU out of memory. Tried to allocate " << format_size(std::max(bytes, segment)) << " (NPU " << device_
       << "; " << format_size(total) << " total capacity; " << format_size(allocated) << " already allocated; "
       << format_size(active) << " current active; " << format_size(free) << " free; ";
  if (limit != AllocatorConfig::kUnlimited) text << format_size(limit) << " allowed; ";
  text << format_size(reserved) << " reserved in total by PyTorch)";
  if (reserved - allocated >= bytes)
    text << " Enough of the reserved memory is not allocated, but in pieces: "
            "PYTORCH_NPU_ALLOC_CONF=max_split_size_mb:<n> can reduce "
            "fragmentation.";
  c10::reportOutOfMemoryToProfiler(static_cast<std::int64_t>(bytes), allocated, reserved,
                                   c10::Device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device_)));
  TORCH_CHECK_WITH(OutOfMemoryError, false, text.str(), error_suffix(Submodule::PTA, ErrorCode::MEMORY));
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

// Gives every free segment back.  Work that used it may still be queued on its stream, so that is drained first; the
// segments are out of the pool meanwhile, and the lock is free.
void DeviceMemory::release_cached(Lock& lock) {
  const std::vector<Segment*> segments = pool_.detach_free_segments();
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

std::vector<c10::CachingDeviceAllocator::SegmentInfo> DeviceMemory::snapshot() {
  Lock lock(mutex_);
  settle(lock);
  return pool_.snapshot(static_cast<c10::DeviceIndex>(device_));
}

}  // namespace npu
