// Who lags: every rank tells the store how far it has come, and whoever times out reads what all have told.
#pragma once

#include <memory>
#include <string>

#include "process_group/group_identity.h"
#include "process_group/job_store.h"

namespace npu::distributed {

class ProgressReport {
 public:
  ProgressReport(std::shared_ptr<const GroupIdentity> group, std::shared_ptr<GroupProgress> progress,
                 const c10::intrusive_ptr<c10d::Store>& store);

  /// Tells the store what has changed.  `current` is the op of the oldest unfinished collective, or of the last one.
  void Publish(const std::string& current) noexcept;

  /// Lines about every rank, and which of them keep `sequence` from finishing.
  std::string Describe(int64_t sequence, const std::string& op) noexcept;

 private:
  std::string Key(int rank) const;

  const std::shared_ptr<const GroupIdentity> group_;
  const std::shared_ptr<GroupProgress> progress_;
  JobStore store_;
  std::string published_;
};

}  // namespace npu::distributed
