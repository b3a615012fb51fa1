// How one rank asks all others of the job to write their debug dumps.
#pragma once

#include <chrono>
#include <cstdint>

#include "process_group/job_store.h"

namespace npu::distributed {

class DumpSignal {
 public:
  explicit DumpSignal(const c10::intrusive_ptr<c10d::Store>& group_store);

  void Raise() noexcept;
  /// Whether somebody has raised it since the last time this said so.
  bool Raised() noexcept;
  /// Tells those who wait in AwaitDumps that this rank has written its dump.
  void Acknowledge() noexcept;
  /// Gives the monitors of so many ranks, the own one included, time to look at the signal and to write.
  void AwaitDumps(int ranks, std::chrono::milliseconds limit) noexcept;

 private:
  JobStore store_;
  int64_t seen_;
  int64_t written_before_ = 0;
};

}  // namespace npu::distributed
