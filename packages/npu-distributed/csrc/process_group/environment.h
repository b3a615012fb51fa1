// Settings of a process group, read from the environment when the group is made.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

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

/// What is written down about collectives, and when.
struct DiagnosisSettings {
  bool desync = false;                              ///< TORCH_HCCL_DESYNC_DEBUG
  bool monitoring = false;                          ///< TORCH_HCCL_ENABLE_MONITORING
  std::chrono::seconds heartbeat_timeout{600};      ///< TORCH_HCCL_HEARTBEAT_TIMEOUT_SEC
  std::chrono::milliseconds coordination{1000};     ///< TORCH_HCCL_COORD_CHECK_MILSEC
  bool dump_on_timeout = false;                     ///< TORCH_HCCL_DUMP_ON_TIMEOUT
  std::chrono::milliseconds dump_limit{60'000};     ///< TORCH_HCCL_WAIT_TIMEOUT_DUMP_MILSEC
  size_t trace_entries = 0;                         ///< TORCH_HCCL_TRACE_BUFFER_SIZE
  std::string dump_stem = "/tmp/hccl_trace_rank_";  ///< TORCH_HCCL_DEBUG_INFO_TEMP_FILE
  std::string pipe_stem;                            ///< TORCH_HCCL_DEBUG_INFO_PIPE_FILE; empty: no pipe
  bool status_files = false;                        ///< TORCH_HCCL_STATUS_SAVE_ENABLE
  std::string status_folder = "/tmp";               ///< TORCH_HCCL_STATUS_SAVE_PATH
  std::chrono::seconds status_interval{2};          ///< TORCH_HCCL_STATUS_SAVE_INTERVAL
  std::string traffic_folder;                       ///< NSLB_CP; empty: no record
  size_t traffic_limit = 1000;                      ///< NSLB_MAX_RECORD_NUM
};

struct Environment {
  std::chrono::milliseconds connect_timeout{120'000};     ///< HCCL_CONNECT_TIMEOUT
  std::chrono::milliseconds execution_timeout{1836'000};  ///< HCCL_EXEC_TIMEOUT; zero = never
  std::chrono::milliseconds event_timeout{1866'000};      ///< HCCL_EVENT_TIMEOUT; zero = never
  ErrorHandling error_handling = ErrorHandling::kTearDown;
  bool blocking_wait = false;
  bool high_priority = false;
  MemoryReuse memory_reuse = MemoryReuse::kRecordStreamErase;
  size_t buffer_megabytes = 200;         ///< HCCL_BUFFSIZE; nothing is staged, so it is only checked
  size_t point_to_point_megabytes = 20;  ///< P2P_HCCL_BUFFSIZE; 0: send and recv use the group's stream
  bool zero_copy = false;                ///< TORCH_HCCL_ZERO_COPY; nothing is staged either way
  bool derived_communicators = false;    ///< ROOTINFO_SUBCOMM_ENABLE
  std::string rank_table;                ///< RANK_TABLE_FILE, when it is a readable file
  DiagnosisSettings diagnosis;

  /// Throws c10::Error when a variable holds a value that has no meaning.
  static Environment Read();

  /// How long a work of a group with this timeout may take: the group's own, or, when that was left at torch's default
  /// and a time-out would end the process, half an hour more than HCCL_EXEC_TIMEOUT.  Zero = for ever.
  std::chrono::milliseconds WorkTimeout(std::chrono::milliseconds group_timeout) const;

  /// Warns when a group's own timeout ends works before HCCL_EXEC_TIMEOUT could name the rank that is missing.
  void WarnIfTimeoutIsShort(std::chrono::milliseconds group_timeout) const;
};

}  // namespace npu::distributed
