#include "transport/device_memory.h"

#include <string>
#include <string_view>

#include "transport/comm_error.h"

namespace npu::distributed {

static constexpr size_t kMostRecentImports = 1024;

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
    if (recent.size() >= kMostRecentImports) {
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
