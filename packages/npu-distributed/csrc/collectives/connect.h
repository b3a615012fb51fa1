// The first step of a group: its ranks meet, and get the collectives that fit where they live.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "collectives/collectives.h"
#include "collectives/host_link.h"
#include "transport/device_memory.h"
#include "transport/rendezvous.h"

namespace npu::distributed {

struct ConnectSettings {
  MeetingSettings meeting{};
  std::chrono::milliseconds execution_limit{};  ///< how long a call waits for peers; zero: for ever
  std::vector<int> numbers{};                   ///< of the ranks in texts; empty: 0, 1, ...
  /// Told of the ranks of this machine, this one included, as soon as all have come.  May be empty.
  std::function<void(const std::vector<ProcessIdentity>& ranks)> met{};
};

/// Collective over the group; blocks.  `make_link` is called only when the ranks live on several machines.  `memory`
/// must outlive the result.  Throws CommError.
std::unique_ptr<Collectives> Connect(const ConnectSettings& settings, KeyValueStore store, DeviceMemory& memory,
                                     const LinkFactory& make_link);

}  // namespace npu::distributed
