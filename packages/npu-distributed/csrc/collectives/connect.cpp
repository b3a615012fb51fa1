#include "collectives/connect.h"

#include "collectives/local_collectives.h"

namespace npu::distributed {

std::unique_ptr<Collectives> Connect(const ConnectSettings& settings, KeyValueStore store, DeviceMemory& memory) {
  Meeting meeting = Rendezvous(store, settings.rank, settings.size, settings.connect_limit);
  return std::make_unique<LocalCollectives>(std::move(meeting), settings.rank, memory, settings.execution_limit);
}

}  // namespace npu::distributed
