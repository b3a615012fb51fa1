// Who a rank is: enough to tell whether two ranks can share memory, and whether a peer still lives.
#pragma once

#include <cstdint>
#include <string>

namespace npu::distributed {

struct ProcessIdentity {
  std::string host;           ///< host name, for people
  std::string host_id = "-";  ///< NPU_HCCL_HOST_ID: processes of one machine that name different hosts are on two
  std::string boot;           ///< boot id of the kernel: equal for processes of one machine
  std::string pid_namespace;  ///< pids mean the same to processes that share it
  uint32_t user = 0;
  int32_t pid = 0;
  uint64_t start_time = 0;  ///< clock ticks after boot: tells a reused pid from the process that was met
  uint64_t nonce = 0;       ///< random: tells this meeting from every other one
  int32_t rank = -1;        ///< number in the group; not sent

  /// With a new nonce.  Throws CommError when NPU_HCCL_HOST_ID cannot be used.
  static ProcessIdentity OfThisProcess();

  /// One line of text, to be sent through a store.
  std::string Serialize() const;
  /// Throws CommError when `text` was not made by Serialize.
  static ProcessIdentity Parse(const std::string& text);

  bool SharesMemoryWith(const ProcessIdentity& other) const;
};

/// False when the process has ended (also as a zombie) or its pid belongs to another process now.
bool IsAlive(const ProcessIdentity& identity);

}  // namespace npu::distributed
