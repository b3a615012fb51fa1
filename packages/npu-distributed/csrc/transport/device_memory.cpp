#include "transport/device_memory.h"

#include <string>
#include <string_view>

#include "transport/comm_error.h"

namespace npu::distributed {

size_t ExportCache::Hash::operator()(const Place& place) const noexcept {
  return std::hash<const void*>{}(place.address) * 31 + place.bytes;
}

npu_memory_handle ExportCache::Handle(const void* address, size_t bytes) {
  const Place place{address, bytes};
  if (const auto found = recent_.find(place); found != recent_.end()) return found->second;
  if (recent_.size() >= kMostRecentHandles) {
    older_.clear();
    recent_.swap(older_);
  }
  if (auto node = older_.extract(place); !node.empty()) return recent_.insert(std::move(node)).position->second;
  return recent_.emplace(place, memory_.Export(address, bytes)).first->second;
}

size_t ImportCache::Hash::operator()(const npu_memory_handle& handle) const noexcept {
  return std::hash<std::string_view>{}(
      std::string_view(reinterpret_cast<const char*>(handle.bytes), sizeof handle.bytes));
}

ImportCache::~ImportCache() {
  for (Generations& generations : imports_) {
    Drop(generations.recent);
    Drop(generations.older);
  }
}

void ImportCache::Drop(Table& table) noexcept {
  for (const auto& [handle, import] : table) memory_.Close(import.address);
  table.clear();
}

void* ImportCache::Address(int rank, const npu_memory_handle& handle, size_t bytes) {
  auto& [recent, older] = imports_[static_cast<size_t>(rank)];
  auto found = recent.find(handle);
  if (found == recent.end()) {
    if (recent.size() >= kMostRecentHandles) {
      Drop(older);
      recent.swap(older);
    }
    if (auto node = older.extract(handle); !node.empty()) {
      found = recent.insert(std::move(node)).position;
    } else {
      found = recent.emplace(handle, Import{memory_.Import(handle, bytes), bytes}).first;
    }
  }
  if (found->second.bytes < bytes) {
    throw CommError(NPU_ERROR_SYSTEM, "hccl: a peer offers " + std::to_string(bytes) + " bytes under a handle of " +
                                          std::to_string(found->second.bytes));
  }
  return found->second.address;
}

}  // namespace npu::distributed
