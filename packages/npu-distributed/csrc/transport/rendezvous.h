// The first meeting of a group: finds out whether all ranks share a machine and gives everyone the control page.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "transport/control_page.h"
#include "transport/process_identity.h"

namespace npu::distributed {

/// The part of a c10d store that a rendezvous uses.  `get` waits for the key and throws when it does not come.
struct KeyValueStore {
  std::function<void(const std::string& key, const std::string& value)> set;
  std::function<std::string(const std::string& key, std::chrono::milliseconds limit)> get;
};

struct Meeting {
  std::vector<ProcessIdentity> ranks;
  std::unique_ptr<ControlPage> page;
};

/// Collective over the group; blocks.  Throws CommError when ranks live on different machines, a peer dies or
/// `limit` passes (the text then names the ranks that are missing).
Meeting Rendezvous(KeyValueStore& store, int rank, int size, std::chrono::milliseconds limit);

}  // namespace npu::distributed
