#include "transport/host_map.h"

#include <algorithm>

namespace npu::distributed {

HostMap HostMap::Of(const std::vector<ProcessIdentity>& ranks) {
  HostMap map;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const auto host = std::find_if(map.members.begin(), map.members.end(), [&](const std::vector<int>& members) {
      return ranks[static_cast<size_t>(members.front())].SharesMemoryWith(ranks[rank]);
    });
    map.host_of.push_back(static_cast<int>(host - map.members.begin()));
    if (host == map.members.end()) {
      map.index_of.push_back(0);
      map.members.push_back({static_cast<int>(rank)});
    } else {
      map.index_of.push_back(static_cast<int>(host->size()));
      host->push_back(static_cast<int>(rank));
    }
  }
  return map;
}

int HostMap::widest() const {
  size_t widest = 0;
  for (const std::vector<int>& ranks : members) widest = std::max(widest, ranks.size());
  return static_cast<int>(widest);
}

int HostMap::Pick(int host, int index) const {
  const std::vector<int>& ranks = MembersOf(host);
  return ranks[static_cast<size_t>(index) % ranks.size()];
}

}  // namespace npu::distributed
