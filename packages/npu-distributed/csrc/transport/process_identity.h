// Who a rank is: enough to tell whether two ranks can share memory, and whether a peer still lives.
#pragma once

#include <cstdint>
#include <string>

namespace npu::distributed {

struct ProcessIdentity {
  std::string host;           ///< host name, for people
  std::string boot;           ///< boot id of the kernel: equal for processes of one machine
  std::string pid_namespace;  ///< pids mean the same to processes that share it
  uint32_t user = 0;
  int32_t pid = 0;
  uint64_t start_time = 0;  ///< clock ticks after boot: tells a reused pid from the process that was met
  int32_t page_fd = -1;     ///< file descriptor of the control page (rank 0)
  uint64_t nonce = 0;       ///< identifies the control page (rank 0)

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
