#include "process_group/communicator_registry.h"

#include <c10/util/Exception.h>

#include <map>
#include <mutex>
#include <utility>

#include "process_group/per_process.h"

namespace npu::distributed {
namespace {

struct Registry {
  std::mutex mutex;
  std::map<std::pair<std::string, int>, Communicator*> table;
  struct Holder {
    std::string name;
    std::string description;
  };
  std::map<size_t, Holder> holders;
};

Registry& TheRegistry() {
  static PerProcess<Registry> registry;
  return registry.Get();
}

}  // namespace

std::string HoldName(size_t group, const std::string& name, const std::string& description, bool only_if_free) {
  if (name.empty()) return "";
  Registry& registry = TheRegistry();
  const std::lock_guard lock(registry.mutex);
  if (only_if_free) {
    for (const auto& [number, holder] : registry.holders) {
      if (number != group && holder.name == name) return holder.description;
    }
  }
  registry.holders[group] = {name, description};
  return "";
}

void ReleaseName(size_t group) noexcept {
  Registry& registry = TheRegistry();
  const std::lock_guard lock(registry.mutex);
  registry.holders.erase(group);
}

void RegisterCommunicator(const std::string& name, int device, Communicator* communicator) {
  Registry& registry = TheRegistry();
  const std::lock_guard lock(registry.mutex);
  const bool added = registry.table.emplace(std::make_pair(name, device), communicator).second;
  TORCH_CHECK(added, "hccl: a communicator named \"", name, "\" already exists on npu:", device,
              "; give the group another name (_set_hccl_comm_name) or destroy the old group first");
}

void UnregisterCommunicator(const std::string& name, int device) noexcept {
  Registry& registry = TheRegistry();
  const std::lock_guard lock(registry.mutex);
  registry.table.erase({name, device});
}

Communicator* FindCommunicator(const std::string& name, int device) {
  Registry& registry = TheRegistry();
  const std::lock_guard lock(registry.mutex);
  const auto found = registry.table.find({name, device});
  return found == registry.table.end() ? nullptr : found->second;
}

}  // namespace npu::distributed
