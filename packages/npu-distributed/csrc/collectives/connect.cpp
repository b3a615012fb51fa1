#include "collectives/connect.h"

#include "collectives/hierarchical_collectives.h"
#include "collectives/local_collectives.h"
#include "transport/comm_error.h"

namespace npu::distributed {

std::unique_ptr<Collectives> Connect(const ConnectSettings& settings, KeyValueStore store, DeviceMemory& memory,
                                     const LinkFactory& make_link) {
  Meeting meeting = Rendezvous(store, settings.meeting);
  if (settings.met) settings.met(meeting.ranks);
  if (!settings.numbers.empty()) {
    for (auto* ranks : {&meeting.group, &meeting.ranks}) {
      for (ProcessIdentity& peer : *ranks) peer.rank = settings.numbers[static_cast<size_t>(peer.rank)];
    }
  }
  const auto [rank, size] = std::pair(settings.meeting.rank, settings.meeting.size);
  if (meeting.hosts.count() == 1) {
    return std::make_unique<LocalCollectives>(std::move(meeting), rank, memory, settings.execution_limit);
  }
  if (size > HierarchicalCollectives::kMostRanks) {
    throw CommError(NPU_ERROR_NOT_SUPPORTED, "hccl: a group over several machines may have " +
                                                 std::to_string(HierarchicalCollectives::kMostRanks) +
                                                 " ranks, but this one has " + std::to_string(size));
  }
  // A link connects every rank to every other one, so when it is there all have come, and all have read all keys.
  std::unique_ptr<HostLink> link = make_link(meeting.group.front().nonce);
  Retire(store, meeting, rank);
  auto collectives = std::make_unique<HierarchicalCollectives>(std::move(meeting), rank, memory,
                                                               settings.execution_limit, std::move(link));
  collectives->Barrier();  // now no key can be mistaken for one of the next group
  return collectives;
}

}  // namespace npu::distributed
