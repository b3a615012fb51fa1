// The first meeting of a group: finds out which ranks share a machine and gives those of each machine a control page.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "transport/control_page.h"
#include "transport/host_map.h"
#include "transport/process_identity.h"

namespace npu::distributed {

/// The part of a c10d store that a rendezvous uses.  `get` waits for the key and throws when it does not come.
struct KeyValueStore {
  std::function<void(const std::string& key, const std::string& value)> set;
  std::function<std::string(const std::string& key, std::chrono::milliseconds limit)> get;
};

struct Meeting {
  std::vector<ProcessIdentity> group;  ///< all ranks
  HostMap hosts;
  std::vector<ProcessIdentity> ranks;  ///< those that share this machine, in increasing order
  int local_rank = 0;                  ///< own place among them
  std::unique_ptr<ControlPage> page;   ///< theirs
};

/// Collective over the group; blocks.  Throws CommError when a peer dies or `limit` passes (the text then names the
/// ranks that are missing).
///
/// When the ranks live on several machines the keys stay in the store: see Retire.
Meeting Rendezvous(KeyValueStore& store, int rank, int size, std::chrono::milliseconds limit);

/// Second half of a meeting over several machines: call it when every rank is known to have read every key, and let all
/// ranks come together once more before a group of the same name may be made.
void Retire(KeyValueStore& store, const Meeting& meeting, int rank);

}  // namespace npu::distributed
