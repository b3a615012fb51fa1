#include "process_group/communicator_registry.h"

#include <c10/util/Exception.h>

#include <map>
#include <mutex>
#include <utility>

namespace npu::distributed {
namespace {

struct Registry {
  std::mutex mutex;
  std::map<std::pair<std::string, int>, Communicator*> table;
};

Registry& TheRegistry() {
  static Registry* registry = new Registry;  // outlives groups that are destroyed during exit
  return *registry;
}

}  // namespace

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
