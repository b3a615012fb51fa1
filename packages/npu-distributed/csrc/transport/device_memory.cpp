#include "transport/device_memory.h"

#include <string_view>

namespace npu::distributed {

// A training step reuses its buffers; a program that keeps sending new ones must not grow the table for ever.
static constexpr size_t kMostImportsPerRank = 2048;

size_t ImportCache::Hash::operator()(const npu_memory_handle& handle) const noexcept {
  return std::hash<std::string_view>{}(
      std::string_view(reinterpret_cast<const char*>(handle.bytes), sizeof handle.bytes));
}

ImportCache::~ImportCache() {
  for (Table& table : imports_) Drop(table);
}

void ImportCache::Drop(Table& table) noexcept {
  for (const auto& [handle, address] : table) memory_.Close(address);
  table.clear();
}

void* ImportCache::Address(int rank, const npu_memory_handle& handle, size_t bytes) {
  Table& table = imports_[static_cast<size_t>(rank)];
  if (const auto found = table.find(handle); found != table.end()) return found->second;
  if (table.size() >= kMostImportsPerRank) Drop(table);
  void* address = memory_.Import(handle, bytes);
  table.emplace(handle, address);
  return address;
}

}  // namespace npu::distributed
