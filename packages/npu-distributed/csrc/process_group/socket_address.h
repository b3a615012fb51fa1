// Which address of this machine the ranks of other machines connect to.
#pragma once

#include <string>

namespace npu::distributed {

/// At most one of the two is set; none means the address of the host name.
struct SocketAddress {
  std::string interface;
  std::string ip;

  /// HCCL_IF_IP, else HCCL_SOCKET_IFNAME, else GLOO_SOCKET_IFNAME.  Throws CommError when a variable names nothing that
  /// this machine has.
  static SocketAddress OfEnvironment();
};

}  // namespace npu::distributed
