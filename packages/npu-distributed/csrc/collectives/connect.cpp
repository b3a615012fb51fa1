#include "collectives/connect.h"

#include "collectives/hierarchical_collectives.h"
#include "collectives/local_collectives.h"
#include "transport/comm_error.h"

namespace npu::distributed {

std::unique_ptr<Collectives> Connect(const ConnectSettings& settings, KeyValueStore store, DeviceMemory& memory,
                                     const LinkFactory& make_link) {
  Meeting meeting = Rendezvous(store, settings.rank, settings.size, settings.connect_limit);
  if (meeting.hosts.count() == 1) {
    return std::make_unique<LocalCollectives>(std::move(meeting), settings.rank, memory, settings.execution_limit);
  }
  if (settings.size > HierarchicalCollectives::kMostRanks) {
    throw CommError(NPU_ERROR_NOT_SUPPORTED, "hccl: a group over several machines may have " +
                                                 std::to_string(HierarchicalCollectives::kMostRanks) +
                                                 " ranks, but this one has " + std::to_string(settings.size));
  }
  // A link connects every rank to every other one, so when it is there all have come, and all have read all keys.
  std::unique_ptr<HostLink> link = make_link(meeting.group.front().nonce);
  Retire(store, meeting, settings.rank);
  auto collectives = std::make_unique<HierarchicalCollectives>(std::move(meeting), settings.rank, memory,
                                                               settings.execution_limit, std::move(link));
  collectives->Barrier();  // now no key can be mistaken for one of the next group
  return collectives;
}

}  // namespace npu::distributed
