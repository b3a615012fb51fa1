#pragma once
#include <cstdint>

namespace npu {

// A process of this machine, told apart from a later one with the same number by the time it started.
struct ProcessIdentity {
  std::uint64_t start_time;  // clock ticks since boot
  std::int32_t pid;
  std::int32_t reserved;

  bool operator==(const ProcessIdentity& other) const { return pid == other.pid && start_time == other.start_time; }
};

// Not kept: a forked child asks again.
ProcessIdentity this_process();

// False once the process has ended, also while its parent has not waited for it yet.
bool is_alive(const ProcessIdentity& process) noexcept;

}  // namespace npu
