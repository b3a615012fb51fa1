// Everything one group writes down about its collectives: flight recorder, status file, traffic record, desync report.
// The group announces its calls here, the watchdog reports what became of them.
#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

#include "process_group/call_record.h"
#include "process_group/environment.h"
#include "process_group/group_identity.h"
#include "process_group/heartbeat_monitor.h"
#include "process_group/progress_report.h"

namespace torch {
struct CapturedTraceback;
}

namespace npu::distributed {

/// A call as it is queued.
struct AnnouncedCall {
  std::string op;              ///< c10d's name, "ALLREDUCE"
  std::string profiling_name;  ///< see the flight recorder: "" for a single collective
  uint64_t sequence = 0;       ///< of the collective; 0 for point-to-point calls
  uint64_t p2p_sequence = 0;
  std::vector<int> peers;  ///< of a point-to-point call, both ranks; empty: all ranks take part
  int device = -1;
  bool in_batch = false;  ///< a member of a batch: it is recorded, its last entry stands for what became of it
  bool is_block = false;  ///< the end of a coalescing block or batch
  std::vector<at::Tensor> inputs;
  std::vector<at::Tensor> outputs;
  std::chrono::milliseconds timeout{};
  std::shared_ptr<const CallRecord> record;
  std::shared_ptr<torch::CapturedTraceback> frames;
};

class GroupDiagnosis {
 public:
  GroupDiagnosis(GroupIdentity group, const Environment& environment, const c10::intrusive_ptr<c10d::Store>& store);
  ~GroupDiagnosis();
  GroupDiagnosis(const GroupDiagnosis&) = delete;
  GroupDiagnosis& operator=(const GroupDiagnosis&) = delete;

  const GroupIdentity& group() const { return *group_; }
  const std::shared_ptr<GroupProgress>& progress() const { return progress_; }

  // ---- told by the group ----
  /// Python frames of the caller, when they are recorded.  Takes the interpreter lock: call it without other locks.
  std::shared_ptr<torch::CapturedTraceback> CaptureFrames() const;
  void CommunicatorMade(const std::string& name, const std::string& description);
  /// Throws c10::Error when a record that was asked for cannot be named (NSLB_CP).
  void Announce(const AnnouncedCall& call);
  void EnableTiming();
  /// The group ends in order.  Idempotent.
  void End();

  // ---- told by the watchdog ----
  /// Whether Tick has something to do even when no collective is pending.
  bool wants_ticks() const;
  void Tick(const std::string& oldest_pending_op) noexcept;
  void Retire(const CallRecord* record);
  /// A work timed out or failed: writes what is wanted.  `text` says what happened.
  void Fail(const std::string& text) noexcept;
  /// Text that names the lagging ranks; empty when not wanted.
  std::string DescribeLag(int64_t sequence, const std::string& op) noexcept;
  Heartbeat& heart() { return *heart_; }

 private:
  bool is_world() const { return group_->id.empty() || group_->id == "0"; }
  void WriteStatus(const std::string& failure, bool is_end) noexcept;

  const std::shared_ptr<const GroupIdentity> group_;
  const DiagnosisSettings settings_;
  const std::shared_ptr<GroupProgress> progress_ = std::make_shared<GroupProgress>();
  const std::shared_ptr<Heartbeat> heart_ = std::make_shared<Heartbeat>();
  std::unique_ptr<DumpSignal> signal_;
  std::unique_ptr<ProgressReport> report_;
  std::chrono::steady_clock::time_point next_status_{};
  std::atomic<int> device_{-1};
  std::atomic<bool> ended_{false};
  std::mutex mutex_;  // guards what follows
  std::string communicator_;
  uint64_t op_id_ = 0;
  std::string failure_;
};

}  // namespace npu::distributed
