// The first collectives of a process, one line each, for tools that plan the network's load (NSLB_CP).
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

#include "process_group/environment.h"

namespace npu::distributed {

class TrafficRecord {
 public:
  static TrafficRecord& Instance();

  /// Adds a line to the file of this communicator until the process has recorded its limit.  Throws c10::Error when
  /// RANK or MASTER_ADDR, parts of the file's name, are not set.
  void Add(const DiagnosisSettings& settings, const std::string& communicator, const std::string& op, size_t bytes);

 private:
  std::mutex mutex_;
  size_t count_ = 0;
};

}  // namespace npu::distributed
