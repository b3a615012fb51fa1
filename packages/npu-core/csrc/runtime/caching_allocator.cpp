#include "caching_allocator.h"

#include <c10/util/Exception.h>
#include <pthread.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <mutex>
#include <unordered_map>

#include "allocator_config.h"
#include "device.h"
#include "device_memory.h"
#include "error.h"
#include "ipc_memory.h"
#include "memory_history.h"
#include "memory_pool.h"
#include "stream_marker.h"

namespace npu {
namespace {

std::atomic<bool> g_forked{false};  // in a child of a process that had device memory: none of it is ours

const AllocatorConfig& config() {
  static const AllocatorConfig instance = AllocatorConfig::from_environment();
  return instance;
}

// The context of every DataPtr is its Block.
void release_block(void* context) noexcept {
  auto* block = static_cast<Block*>(context);
  if (block == nullptr || g_forked.load(std::memory_order_relaxed)) [[unlikely]]
    return;
  static_cast<DeviceMemory*>(block->owner)->release(block);
}

c10::Device torch_device(int device) { return {c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device)}; }

[[noreturn]] void reject_pointer(const void* address) {
  TORCH_CHECK(false, "invalid device pointer: ", address, " is not the start of memory this allocator handed out",
              error_suffix(Submodule::PTA, ErrorCode::PTR));
}

class NpuCachingAllocator final : public CachingAllocator {
 public:
  c10::DataPtr allocate(size_t bytes) override { return allocate_on(bytes, current_stream()); }

  c10::DataPtr allocate_on(size_t bytes, Stream* stream) override {
    const c10::Device device = torch_device(stream->device);
    if (bytes == 0) return {nullptr, device};
    Block* block = acquire(bytes, stream);
    return {block->address, block, &release_block, device};
  }

  // Raw memory is freed by address, so these blocks, and only these, are also kept by address: nobody can free a
  // tensor's memory by its pointer.
  void* raw_allocate(size_t bytes, Stream* stream) override {
    if (bytes == 0) return nullptr;
    Block* block = acquire(bytes, stream);
    std::lock_guard lock(raw_mutex_);
    raw_blocks_.emplace(block->address, block);
    return block->address;
  }

  void raw_free(void* address) override {
    if (address == nullptr || g_forked.load(std::memory_order_relaxed)) return;
    Block* block = nullptr;
    {
      std::lock_guard lock(raw_mutex_);
      const auto found = raw_blocks_.find(address);
      if (found == raw_blocks_.end()) reject_pointer(address);
      block = found->second;
      raw_blocks_.erase(found);
    }
    release_block(block);
  }

  void record_stream(const void* address, Stream* stream) override {
    for_each_memory([&](DeviceMemory& memory) { return memory.record_stream(address, stream); });
  }

  void erase_stream(const void* address, Stream* stream) override {
    note_host_thread();
    for_each_memory([&](DeviceMemory& memory) { return memory.erase_stream(address, stream); });
  }

  bool find_block(const void* address, void** base, size_t* size) override {
    bool found = false;
    for_each_memory([&](DeviceMemory& memory) { return found = memory.find_live(address, base, size); });
    return found;
  }

  std::vector<Stream*> users_of(const void* address) override {
    std::vector<Stream*> users;
    for_each_memory([&](DeviceMemory& memory) { return memory.find_users(address, &users); });
    return users;
  }

  void set_memory_fraction(double fraction, int device) override {
    TORCH_CHECK_VALUE(fraction >= 0.0 && fraction <= 1.0, "Invalid fraction value: ", fraction, ". Allowed range: 0~1",
                      error_suffix(Submodule::PTA, ErrorCode::VALUE));
    memory_of(device).set_fraction(fraction);
  }

  double memory_fraction(int device) override { return memory_of(device).fraction(); }

  std::vector<c10::CachingDeviceAllocator::SegmentInfo> snapshot() override { return snapshot_with_traces().segments; }

  MemorySnapshot snapshot_with_traces() {
    MemorySnapshot all;
    all.traces.resize(static_cast<std::size_t>(device_count()));
    for (std::size_t device = 0; device < all.traces.size(); ++device) {
      DeviceMemory* memory = existing(static_cast<int>(device));
      if (memory == nullptr) continue;
      auto segments = memory->snapshot(all.traces[device]);
      std::move(segments.begin(), segments.end(), std::back_inserter(all.segments));
    }
    return all;
  }

  void record_history(const HistoryOptions& options, bool clear) {
    std::lock_guard lock(creating_);  // a device's memory that is being created reads the old options or the new
    set_history_options(options);
    for_each_memory([&](DeviceMemory& memory) {
      memory.set_history(options, clear);
      return false;
    });
  }

  void change_source(std::shared_ptr<SegmentSource> source) {
    std::lock_guard lock(creating_);
    bool used = source_ != nullptr;
    for (const auto& memory : memories_) used |= memory.load(std::memory_order_relaxed) != nullptr;
    TORCH_CHECK(!used, "Can't swap an already initialized allocator", error_suffix(Submodule::PTA, ErrorCode::PTR));
    source_ = std::move(source);
  }

  DeviceMemory& memory_of(int device) {
    initialize();
    return memory(checked(device));
  }

  // ---- c10::DeviceAllocator

  bool initialized() override { return is_initialized(); }

  void emptyCache(c10::MempoolId_t pool) override {
    bool found = pool == c10::MempoolId_t{0, 0};
    const bool everything = found;
    ipc_collect();
    for_each_memory([&](DeviceMemory& memory) {
      if (everything) {
        memory.empty_cache();
      } else {
        found |= memory.empty_cache(pool);
      }
      return false;
    });
    TORCH_CHECK(found, "emptyCache: memory pool (", pool.first, ", ", pool.second, ") does not exist",
                error_suffix(Submodule::PTA, ErrorCode::NOT_FOUND));
  }

  void recordStream(const c10::DataPtr& pointer, c10::Stream stream) override {
    if (!pointer || g_forked.load(std::memory_order_relaxed)) return;
    Stream* target = stream_from_id(stream.device_index(), stream.id());
    if (pointer.get_deleter() == &release_block) {
      auto* block = static_cast<Block*>(pointer.get_context());
      static_cast<DeviceMemory*>(block->owner)->record_stream(block, target);
    } else {
      // A foreign DataPtr may still alias our memory; memory of others (imports) is their owner's business.
      record_stream(pointer.get(), target);
    }
  }

  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    DeviceMemory* found = existing(checked(device));
    return found == nullptr ? c10::CachingDeviceAllocator::DeviceStats{} : found->stats();
  }

  void resetAccumulatedStats(c10::DeviceIndex device) override {
    if (DeviceMemory* found = existing(checked(device)); found != nullptr) found->reset_accumulated_stats();
  }

  void resetPeakStats(c10::DeviceIndex device) override {
    if (DeviceMemory* found = existing(checked(device)); found != nullptr) found->reset_peak_stats();
  }

  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex device) override {
    if (DeviceMemory* found = existing(checked(device)); found != nullptr) found->settle();
    return memory_info(device);
  }

  // ---- c10::Allocator

  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }  // the context is not the address

  void copy_data(void* target, const void* source, std::size_t bytes) const override {
    copy_memory(current_stream(), target, source, bytes);
  }

 private:
  static int checked(int device) {
    check_device_index(device);
    return device;
  }

  Block* acquire(size_t bytes, Stream* stream) {
    // In a forked child initialize() raises the error that tells to spawn.
    if (g_forked.load(std::memory_order_relaxed)) [[unlikely]]
      initialize();
    constexpr size_t kMost = size_t{1} << 60;
    TORCH_CHECK_WITH(OutOfMemoryError, bytes < kMost, "NPU out of memory. Tried to allocate ", bytes,
                     " bytes, more than 1 EiB (NPU ", stream->device, ")",
                     error_suffix(Submodule::PTA, ErrorCode::MEMORY));
    return memory(stream->device).acquire(bytes, stream);
  }

  DeviceMemory& memory(int device) {
    DeviceMemory* found = memories_[static_cast<std::size_t>(device)].load(std::memory_order_acquire);
    return found != nullptr ? *found : create(device);
  }

  // nullptr before the device's first allocation, and in a forked child, where its lock may be held for ever.
  DeviceMemory* existing(int device) const {
    if (g_forked.load(std::memory_order_relaxed)) return nullptr;
    return memories_[static_cast<std::size_t>(device)].load(std::memory_order_acquire);
  }

  DeviceMemory& create(int device) {
    static std::once_flag once;
    std::call_once(once,
                   [] { pthread_atfork(nullptr, nullptr, [] { g_forked.store(true, std::memory_order_relaxed); }); });
    std::lock_guard lock(creating_);
    auto& slot = memories_[static_cast<std::size_t>(device)];
    if (slot.load(std::memory_order_relaxed) == nullptr)
      slot.store(new DeviceMemory(device, config(), source_), std::memory_order_release);
    return *slot.load(std::memory_order_relaxed);
  }

  // Stops when the function returns true.
  template <typename Function>
  void for_each_memory(Function function) const {
    for (int device = 0; device < kMaxDevices; ++device)
      if (DeviceMemory* found = existing(device); found != nullptr && function(*found)) return;
  }

  std::mutex creating_;
  std::shared_ptr<SegmentSource> source_;  // instead of the driver; set before any memory is created
  std::array<std::atomic<DeviceMemory*>, kMaxDevices> memories_{};
  std::mutex raw_mutex_;
  std::unordered_map<void*, Block*> raw_blocks_;
};

NpuCachingAllocator& native_allocator() {
  static auto* instance = new NpuCachingAllocator;  // outlives static destructors, which may free tensors
  return *instance;
}

}  // namespace

CachingAllocator& caching_allocator() { return native_allocator(); }

void record_memory_history(const HistoryOptions& options, bool clear) {
  native_allocator().record_history(options, clear);
}

MemorySnapshot memory_snapshot_with_traces() { return native_allocator().snapshot_with_traces(); }

void retain_memory_pool(int device, c10::MempoolId_t id, const MemoryPoolOptions& options) {
  native_allocator().memory_of(device).retain_pool(id, options);
}

void release_memory_pool(int device, c10::MempoolId_t id) {
  if (!g_forked.load(std::memory_order_relaxed)) native_allocator().memory_of(device).release_pool(id);
}

int memory_pool_uses(int device, c10::MempoolId_t id) { return native_allocator().memory_of(device).pool_uses(id); }

void begin_allocating_to_pool(int device, c10::MempoolId_t id) {
  DeviceMemory& memory = native_allocator().memory_of(device);
  memory.retain_pool(id, {});
  choose_pool(device, memory.use_pool(id));
}

void end_allocating_to_pool(int device, c10::MempoolId_t id) {
  DeviceMemory& memory = native_allocator().memory_of(device);
  leave_pool(device, memory.use_pool(id));
  memory.release_pool(id);
}

void change_segment_source(std::shared_ptr<SegmentSource> source) {
  native_allocator().change_source(std::move(source));
}

// With the lowest priority, so that a pluggable allocator can take its place.
[[maybe_unused]] static const bool g_registered = [] {
  c10::SetAllocator(c10::DeviceType::PrivateUse1, &caching_allocator());
  return true;
}();

}  // namespace npu
