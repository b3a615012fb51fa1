// The first step of a group: its ranks meet, and get the collectives that fit where they live.
#pragma once

#include <chrono>
#include <memory>

#include "collectives/collectives.h"
#include "collectives/host_link.h"
#include "transport/device_memory.h"
#include "transport/rendezvous.h"

namespace npu::distributed {

struct ConnectSettings {
  int rank = 0;
  int size = 1;
  std::chrono::milliseconds connect_limit{};    ///< how long to wait for the other ranks
  std::chrono::milliseconds execution_limit{};  ///< how long a call waits for peers; zero: for ever
};

/// Collective over the group; blocks.  `make_link` is called only when the ranks live on several machines.  `memory`
/// must outlive the result.  Throws CommError.
std::unique_ptr<Collectives> Connect(const ConnectSettings& settings, KeyValueStore store, DeviceMemory& memory,
                                     const LinkFactory& make_link);

}  // namespace npu::distributed
