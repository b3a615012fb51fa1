// The link between machines: c10d's Gloo backend as a mover of bytes.
#pragma once

#include <torch/csrc/distributed/c10d/Store.hpp>

#include "collectives/host_link.h"
#include "process_group/communicator.h"

namespace npu::distributed {

/// Makes links over Gloo.  The ranks find each other through `store`; the address they offer comes from HCCL_IF_IP,
/// HCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME.
LinkFactory GlooLinks(c10::intrusive_ptr<c10d::Store> store, const CommunicatorSettings& settings);

}  // namespace npu::distributed
