// The private memory pools of one device.
#include <c10/util/Exception.h>

#include <utility>

#include "device_memory.h"
#include "error.h"
#include "stream_marker.h"

namespace npu {

DeviceMemory::PrivatePool& DeviceMemory::private_pool(c10::MempoolId_t id) {
  const auto found = private_pools_.find(id);
  TORCH_CHECK(found != private_pools_.end(), "memory pool (", id.first, ", ", id.second, ") does not exist on NPU ",
              device_, error_suffix(Submodule::PTA, ErrorCode::NOT_FOUND));
  return *found->second;
}

void DeviceMemory::retain_pool(c10::MempoolId_t id, const MemoryPoolOptions& options) {
  std::lock_guard lock(mutex_);
  auto& pool = private_pools_[id];
  if (pool == nullptr) {
    PoolTraits traits{id, options.no_split, options.use_on_oom, options.source};
    pool.reset(new PrivatePool{BlockPool(config_, this, stats_, std::move(traits)), 0});
  }
  ++pool->uses;
}

void DeviceMemory::release_pool(c10::MempoolId_t id) {
  note_host_thread();
  std::lock_guard reclaim(reclaiming_);
  Lock lock(mutex_);
  PrivatePool& pool = private_pool(id);
  TORCH_CHECK(pool.uses > 0, "memory pool (", id.first, ", ", id.second, ") was released already",
              error_suffix(Submodule::PTA, ErrorCode::PARAM));
  if (--pool.uses != 0) return;
  settle(lock);
  give_back(lock, pool.blocks.detach_free_segments());
}

int DeviceMemory::pool_uses(c10::MempoolId_t id) {
  std::lock_guard lock(mutex_);
  const auto found = private_pools_.find(id);
  return found == private_pools_.end() ? 0 : found->second->uses;
}

BlockPool* DeviceMemory::use_pool(c10::MempoolId_t id) {
  std::lock_guard lock(mutex_);
  return &private_pool(id).blocks;
}

void DeviceMemory::forget_unused_pools() {
  std::erase_if(private_pools_,
                [](const auto& entry) { return entry.second->uses == 0 && entry.second->blocks.empty(); });
}

}  // namespace npu
