// Which process each rank of the job was when this process met it.
#pragma once

#include <cstdint>
#include <optional>

#include "transport/process_identity.h"

namespace npu::distributed {

/// Processes of this machine that a communicator has met.  They can be looked up as long as the communicator stands:
/// when it goes, the job may give their ranks to other processes.
class MetProcesses {
 public:
  MetProcesses() = default;
  ~MetProcesses();
  MetProcesses(const MetProcesses&) = delete;
  MetProcesses& operator=(const MetProcesses&) = delete;

  void Add(uint64_t global_rank, const ProcessIdentity& identity);

  /// The process that any standing communicator knows as this rank of the job, if it has ended.  Thread-safe.
  static std::optional<ProcessIdentity> Ended(uint64_t global_rank);
};

}  // namespace npu::distributed
