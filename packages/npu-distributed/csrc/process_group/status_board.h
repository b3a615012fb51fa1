// What every group of this process did last, as a file that tools read while a job runs and after it has failed.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "process_group/call_record.h"
#include "process_group/environment.h"
#include "process_group/group_identity.h"

namespace npu::distributed {

class StatusBoard {
 public:
  static StatusBoard& Instance();

  /// `ranks`: "all", or the ranks of a point-to-point call, each followed by a space.
  void NoteCall(const GroupIdentity& group, uint64_t sequence, const std::string& op, const std::string& ranks,
                std::shared_ptr<const CallRecord> record);

  /// Writes the file of this process.  `failure` is empty while all is well; `is_end`: the group ends.
  void Write(const DiagnosisSettings& settings, const GroupIdentity& group, int device, const std::string& failure,
             bool is_end) noexcept;

  /// Forgets the calls: the world of these groups has ended.
  void Clear();

 private:
  struct LastCall {
    std::string group;
    uint64_t sequence = 0;
    std::string op;
    std::string ranks;
    std::shared_ptr<const CallRecord> record;
  };

  std::mutex mutex_;
  std::map<size_t, LastCall> calls_;
  int64_t start_milliseconds_ = 0;
};

}  // namespace npu::distributed
