// What diagnosis says about a group: who it is, who is in it, how far it has come.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace npu::distributed {

struct GroupIdentity {
  size_t number = 0;  ///< groups of this process in the order of their creation
  std::string id;     ///< name torch gave the group: "0" for the world
  std::string name;   ///< "group_name_" + id
  int rank = 0;
  int size = 1;
  std::vector<uint64_t> global_ranks;  ///< by rank in the group

  uint64_t GlobalRank(int rank_in_group) const {
    const auto index = static_cast<size_t>(rank_in_group);
    return index < global_ranks.size() ? global_ranks[index] : index;
  }
  uint64_t global_rank() const { return GlobalRank(rank); }
};

/// Sequence numbers of a group's collectives, -1 before the first.  Written where a collective is queued, begins and
/// ends; read by anybody.
struct GroupProgress {
  std::atomic<int64_t> enqueued{-1};
  std::atomic<int64_t> started{-1};
  std::atomic<int64_t> completed{-1};
};

}  // namespace npu::distributed
