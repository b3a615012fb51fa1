#include "pinned_memory.h"

#include <c10/util/Exception.h>
#include <pthread.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <vector>

#include "device.h"
#include "driver_loader.h"
#include "error.h"
#include "event.h"
#include "stream_marker.h"

namespace npu {
namespace {

constexpr std::size_t kSmallestBlock = 512;

struct HostBlock {
  std::byte* address = nullptr;
  std::size_t size = 0;
  bool live = false;
  std::uint32_t events = 0;
  std::vector<Stream*> used_by;
};

template <typename Body>
std::int64_t microseconds(Body body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - start).count();
}

class PinnedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes == 0) return {nullptr, c10::Device(c10::DeviceType::CPU)};
    initialize();
    note_host_thread();
    TORCH_CHECK_WITH(OutOfMemoryError, bytes < std::size_t{1} << 60, "pinned memory: tried to allocate ", bytes,
                     " bytes, more than 1 EiB", error_suffix(Submodule::PTA, ErrorCode::MEMORY));
    const std::size_t size = std::bit_ceil(std::max(bytes, kSmallestBlock));
    std::unique_lock lock(mutex_);
    settle(lock);
    auto& idle = idle_of(size);
    HostBlock* block = nullptr;
    if (!idle.empty()) {
      block = idle.back();
      idle.pop_back();
    } else {
      block = map(lock, size);
    }
    block->live = true;
    stats_.active_requests.increase(1);
    stats_.active_bytes.increase(size);
    return {block->address, block, &free_block, c10::Device(c10::DeviceType::CPU)};
  }

  void copy_data(void* target, const void* source, std::size_t bytes) const override {
    std::memcpy(target, source, bytes);
  }

  bool owns(const void* address) {
    std::lock_guard lock(mutex_);
    const HostBlock* block = find(address);
    return block != nullptr && block->live;
  }

  void record_stream(const void* address, Stream* stream) {
    note_host_thread();
    std::lock_guard lock(mutex_);
    HostBlock* block = find(address);
    if (block == nullptr || !block->live) return;
    auto& users = block->used_by;
    if (std::find(users.begin(), users.end(), stream) == users.end()) users.push_back(stream);
  }

  void empty_cache() {
    note_host_thread();
    std::unique_lock lock(mutex_);
    settle(lock);
    release_idle();
  }

  PinnedStats stats() {
    std::lock_guard lock(mutex_);
    return stats_;
  }

  void reset_peak_stats() {
    std::lock_guard lock(mutex_);
    for_each_stat([](auto& stat) { stat.reset_peak(); });
  }

  void reset_accumulated_stats() {
    std::lock_guard lock(mutex_);
    for_each_stat([](auto& stat) { stat.reset_accumulated(); });
    stats_.num_host_alloc = stats_.num_host_free = 0;
  }

  static PinnedAllocator& instance() {
    static auto* allocator = [] {
      pthread_atfork(nullptr, nullptr, [] { forked_.store(true, std::memory_order_relaxed); });
      return new PinnedAllocator;  // outlives static destructors, which may free tensors
    }();
    return *allocator;
  }

  // In a forked child the locks may be held for ever and the memory is the parent's.
  static bool forked() { return forked_.load(std::memory_order_relaxed) && in_bad_fork(); }

 private:
  using Lock = std::unique_lock<std::mutex>;

  static void free_block(void* context) noexcept {
    if (context == nullptr || forked()) return;
    instance().release(static_cast<HostBlock*>(context));
  }

  std::vector<HostBlock*>& idle_of(std::size_t size) { return idle_[static_cast<std::size_t>(std::countr_zero(size))]; }

  HostBlock* map(Lock& lock, std::size_t size) {
    void* address = nullptr;
    npu_status status = NPU_OK;
    const auto allocate = [&] { status = driver().host_allocate(size, &address); };
    stats_.host_alloc_time.increase(microseconds(allocate));
    if (status == NPU_ERROR_OUT_OF_MEMORY) {
      settle(lock);
      release_idle();
      stats_.host_alloc_time.increase(microseconds(allocate));
    }
    check(status, "host_allocate");
    auto* block = new HostBlock;
    block->address = static_cast<std::byte*>(address);
    block->size = size;
    blocks_.emplace(reinterpret_cast<std::uintptr_t>(address), block);
    stats_.allocations.increase(1);
    stats_.allocated_bytes.increase(size);
    ++stats_.num_host_alloc;
    return block;
  }

  void release(HostBlock* block) noexcept {
    Lock lock(mutex_);
    block->live = false;
    stats_.active_requests.decrease(1);
    stats_.active_bytes.decrease(block->size);
    if (block->used_by.empty()) {
      idle_of(block->size).push_back(block);
    } else if (is_host_thread()) {
      mark_and_queue(lock, block);
    } else {
      unmarked_.push_back(block);
    }
  }

  void mark_and_queue(Lock& lock, HostBlock* block) {
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
    if (marks.empty()) idle_of(block->size).push_back(block);
  }

  void settle(Lock& lock) {
    for (HostBlock* block : std::exchange(unmarked_, {})) mark_and_queue(lock, block);
    for (auto it = waiting_.begin(); it != waiting_.end();) {
      auto& queue = it->second;
      while (!queue.empty() && marker_passed(queue.front().first)) {
        const auto [marker, block] = queue.front();
        queue.pop_front();
        return_marker(marker);
        if (--block->events == 0) idle_of(block->size).push_back(block);
      }
      it = queue.empty() ? waiting_.erase(it) : std::next(it);
    }
  }

  void release_idle() {
    for (auto& idle : idle_) {
      for (HostBlock* block : std::exchange(idle, {})) {
        stats_.host_free_time.increase(microseconds([&] { driver().host_free(block->address, block->size); }));
        blocks_.erase(reinterpret_cast<std::uintptr_t>(block->address));
        stats_.allocations.decrease(1);
        stats_.allocated_bytes.decrease(block->size);
        ++stats_.num_host_free;
        delete block;
      }
    }
  }

  template <typename Function>
  void for_each_stat(Function function) {
    for (auto* stat : {&stats_.active_requests, &stats_.active_bytes, &stats_.allocations, &stats_.allocated_bytes})
      function(*stat);
    for (auto* stat : {&stats_.host_alloc_time, &stats_.host_free_time}) function(*stat);
  }

  HostBlock* find(const void* address) const {
    const auto key = reinterpret_cast<std::uintptr_t>(address);
    const auto after = blocks_.upper_bound(key);
    if (after == blocks_.begin()) return nullptr;
    const auto& [start, block] = *std::prev(after);
    return key - start < block->size ? block : nullptr;
  }

  static inline std::atomic<bool> forked_{false};

  std::mutex mutex_;                              // never held while waiting for a device or for room in a queue
  std::map<std::uintptr_t, HostBlock*> blocks_;   // by address
  std::array<std::vector<HostBlock*>, 64> idle_;  // by power of two
  std::vector<HostBlock*> unmarked_;              // freed by driver threads, markers still to be recorded
  std::map<Stream*, std::deque<std::pair<Event*, HostBlock*>>> waiting_;  // in stream order
  PinnedStats stats_;
};

}  // namespace

c10::Allocator* pinned_allocator() { return &PinnedAllocator::instance(); }

bool is_pinned(const void* address) {
  return address != nullptr && !PinnedAllocator::forked() && PinnedAllocator::instance().owns(address);
}

void pinned_record_stream(const void* address, Stream* stream) {
  if (!PinnedAllocator::forked()) PinnedAllocator::instance().record_stream(address, stream);
}

void pinned_empty_cache() {
  if (!PinnedAllocator::forked()) PinnedAllocator::instance().empty_cache();
}

PinnedStats pinned_stats() { return PinnedAllocator::forked() ? PinnedStats{} : PinnedAllocator::instance().stats(); }

void pinned_reset_peak_stats() {
  if (!PinnedAllocator::forked()) PinnedAllocator::instance().reset_peak_stats();
}

void pinned_reset_accumulated_stats() {
  if (!PinnedAllocator::forked()) PinnedAllocator::instance().reset_accumulated_stats();
}

}  // namespace npu
