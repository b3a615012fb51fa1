#include "process_group/progress_report.h"

#include <algorithm>
#include <sstream>

namespace npu::distributed {

ProgressReport::ProgressReport(std::shared_ptr<const GroupIdentity> group, std::shared_ptr<GroupProgress> progress,
                               const c10::intrusive_ptr<c10d::Store>& store)
    : group_(std::move(group)), progress_(std::move(progress)), store_(store, /*shared_by_job=*/false) {
  Publish("");  // a group of the same name may have left its own here
}

std::string ProgressReport::Key(int rank) const { return "hccl/progress/" + group_->name + "/" + std::to_string(rank); }

void ProgressReport::Publish(const std::string& current) noexcept {
  const std::string text =
      std::to_string(progress_->enqueued.load()) + " " + std::to_string(progress_->completed.load()) + " " + current;
  if (text == published_) return;
  store_.Set(Key(group_->rank), text);
  published_ = text;
}

std::string ProgressReport::Describe(int64_t sequence, const std::string& op) noexcept {
  Publish(op);
  std::ostringstream lines;
  std::string lagging;
  for (int rank = 0; rank < group_->size; ++rank) {
    lines << "\n  rank " << rank << " (global rank " << group_->GlobalRank(rank) << "): ";
    const auto text = store_.Get(Key(rank));
    int64_t enqueued = -1, completed = -1;
    std::string current;
    if (text) std::istringstream(*text) >> enqueued >> completed >> current;
    if (enqueued < 0) {
      lines << "has called no collective of this group";
    } else {
      lines << "has called " << enqueued << ", finished " << std::max<int64_t>(completed, 0);
      if (completed < enqueued) lines << ", is in number " << std::max<int64_t>(completed, 0) + 1 << " " << current;
    }
    if (enqueued >= sequence) continue;
    lines << "  <- lags";
    lagging += (lagging.empty() ? "" : ", ") + std::to_string(rank);
  }
  const std::string what = "collective " + std::to_string(sequence) + " (" + op + ") of group " + group_->name;
  const std::string verdict =
      lagging.empty() ? "all ranks have called " + what : "rank(s) " + lagging + " have not called " + what;
  return "hccl desync report: " + verdict + lines.str();
}

}  // namespace npu::distributed
