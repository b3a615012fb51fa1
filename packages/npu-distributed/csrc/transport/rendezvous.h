// The first meeting of a group: finds out which ranks share a machine and gives those of each machine a control page.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "transport/control_page.h"
#include "transport/host_map.h"
#include "transport/process_identity.h"

namespace npu::distributed {

/// The part of a c10d store that a rendezvous uses.  Neither waits for a key: other threads may use the same store.
struct KeyValueStore {
  std::function<void(const std::string& key, const std::string& value)> set;
  std::function<std::optional<std::string>(const std::string& key)> find;
  std::string name = "the store";  ///< in texts
};

struct MeetingSettings {
  int rank = 0;
  int size = 1;
  std::chrono::milliseconds limit{};  ///< how long to wait for the other ranks
  std::vector<std::string> names{};   ///< of the ranks in texts; empty: "rank 0", "rank 1", ...
  /// Called again and again while waiting; throws to give up.  May be empty.
  std::function<void()> check{};
  /// The process that a rank that has not come is known to have been, if it has ended.  May be empty.
  std::function<std::optional<ProcessIdentity>(int rank)> ended{};
};

struct Meeting {
  std::vector<ProcessIdentity> group;  ///< all ranks
  HostMap hosts;
  std::vector<ProcessIdentity> ranks;  ///< those that share this machine, in increasing order
  int local_rank = 0;                  ///< own place among them
  std::unique_ptr<ControlPage> page;   ///< theirs
};

/// Collective over the group; blocks.  Throws CommError when a peer has died or the limit passes (the text then names
/// the rank that is missing), and what `check` throws.
///
/// When the ranks live on several machines the keys stay in the store: see Retire.
Meeting Rendezvous(KeyValueStore& store, const MeetingSettings& settings);

/// Second half of a meeting over several machines: call it when every rank is known to have read every key, and let all
/// ranks come together once more before a group of the same name may be made.
void Retire(KeyValueStore& store, const Meeting& meeting, int rank);

}  // namespace npu::distributed
