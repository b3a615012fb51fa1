#include "transport/process_directory.h"

#include <map>
#include <mutex>

namespace npu::distributed {
namespace {

struct Directory {
  std::mutex mutex;
  std::map<uint64_t, std::map<const MetProcesses*, ProcessIdentity>> by_rank;
};

Directory& TheDirectory() {
  static Directory* directory = new Directory;  // outlives groups that are destroyed during exit
  return *directory;
}

}  // namespace

MetProcesses::~MetProcesses() {
  Directory& directory = TheDirectory();
  const std::lock_guard lock(directory.mutex);
  for (auto& [rank, known] : directory.by_rank) known.erase(this);
  std::erase_if(directory.by_rank, [](const auto& entry) { return entry.second.empty(); });
}

void MetProcesses::Add(uint64_t global_rank, const ProcessIdentity& identity) {
  Directory& directory = TheDirectory();
  const std::lock_guard lock(directory.mutex);
  directory.by_rank[global_rank][this] = identity;
}

std::optional<ProcessIdentity> MetProcesses::Ended(uint64_t global_rank) {
  Directory& directory = TheDirectory();
  const std::lock_guard lock(directory.mutex);
  const auto found = directory.by_rank.find(global_rank);
  if (found == directory.by_rank.end()) return std::nullopt;
  // Groups that were made before and after the rank was given to another process know different ones.
  for (const auto& [owner, identity] : found->second) {
    if (IsAlive(identity)) return std::nullopt;
  }
  return found->second.begin()->second;
}

}  // namespace npu::distributed
