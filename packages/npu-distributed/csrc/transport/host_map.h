// Which ranks of a group share a machine.
#pragma once

#include <vector>

#include "transport/process_identity.h"

namespace npu::distributed {

/// Hosts are numbered by their lowest rank; the ranks of a host stand in increasing order.
struct HostMap {
  std::vector<std::vector<int>> members;  ///< ranks of each host
  std::vector<int> host_of;               ///< host of each rank
  std::vector<int> index_of;              ///< place of each rank in the members of its host

  static HostMap Of(const std::vector<ProcessIdentity>& ranks);

  int count() const { return static_cast<int>(members.size()); }
  const std::vector<int>& MembersOf(int host) const { return members[static_cast<size_t>(host)]; }
  int HostOf(int rank) const { return host_of[static_cast<size_t>(rank)]; }
  int IndexOf(int rank) const { return index_of[static_cast<size_t>(rank)]; }
  /// Number of ranks on the largest host.
  int widest() const;
  /// The rank of `host` that has number `index` modulo the size of the host: spreads work over hosts of any size.
  int Pick(int host, int index) const;
};

}  // namespace npu::distributed
