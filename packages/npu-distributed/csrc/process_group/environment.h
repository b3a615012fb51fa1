// Settings of a process group, read from the environment when the group is made.
#pragma once

#include <chrono>
#include <cstddef>

namespace npu::distributed {

enum class ErrorHandling : int {
  kNone = 0,          ///< works are not watched
  kTearDown = 1,      ///< abort the communicators, then end the process
  kCleanUpOnly = 2,   ///< abort the communicators
  kTearDownOnly = 3,  ///< end the process
};

enum class MemoryReuse : int {
  kRecordStream = 0,
  kRecordStreamErase = 1,  ///< as 0 here: an early release is an optimisation of the allocator
  kHoldReferences = 2,     ///< the Work keeps the tensors until wait() or completion
  kRecordStreamReclaim = 3,
};

struct Environment {
  std::chrono::milliseconds connect_timeout{120'000};     ///< HCCL_CONNECT_TIMEOUT
  std::chrono::milliseconds execution_timeout{1836'000};  ///< HCCL_EXEC_TIMEOUT; zero = never
  ErrorHandling error_handling = ErrorHandling::kTearDown;
  bool blocking_wait = false;
  bool high_priority = false;
  size_t point_to_point_megabytes = 20;  ///< P2P_HCCL_BUFFSIZE; 0: send and recv use the group's stream
  bool zero_copy = false;                ///< TORCH_HCCL_ZERO_COPY
  MemoryReuse memory_reuse = MemoryReuse::kRecordStreamErase;

  /// Throws c10::Error when a variable holds a value that has no meaning.
  static Environment Read();

  /// How long a work of a group with this timeout may take: the group's own, or, when that was left at torch's default
  /// and a time-out would end the process, half an hour more than HCCL_EXEC_TIMEOUT.  Zero = for ever.
  std::chrono::milliseconds WorkTimeout(std::chrono::milliseconds group_timeout) const;
};

}  // namespace npu::distributed
