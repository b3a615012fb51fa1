// The Work of one collective.
#pragma once

#include <ATen/core/ivalue.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <vector>

#include "process_group/submission.h"

namespace npu::distributed {

/// Tensors a collective uses, kept until somebody knows that it has finished with them (MULTI_STREAM_MEMORY_REUSE=2).
class TensorStash {
 public:
  void Keep(std::vector<at::Tensor> tensors);
  void Release();

 private:
  std::mutex mutex_;
  std::vector<at::Tensor> tensors_;
};

class WorkHCCL final : public c10d::Work {
 public:
  struct Start {
    int rank = 0;
    c10d::OpType op = c10d::OpType::UNKNOWN;
    uint64_t sequence = 0;
    std::chrono::milliseconds timeout{};  ///< zero: never
    bool blocks_host = false;             ///< wait() also waits on the host (barrier, TORCH_HCCL_BLOCKING_WAIT)
    bool abort_on_timeout = false;        ///< TORCH_HCCL_BLOCKING_WAIT: wait() gives up after the timeout
    std::vector<at::Tensor> outputs;
    std::shared_ptr<Submission> submission;
    std::shared_ptr<TensorStash> stash;                           ///< may be null
    std::optional<c10::weak_intrusive_ptr<c10d::Backend>> group;  ///< a ProcessGroupHCCL
  };

  explicit WorkHCCL(Start start) : Work(start.rank, start.op), start_(std::move(start)) {}

  bool isCompleted() override;
  bool isSuccess() const override;
  std::exception_ptr exception() const override;
  std::vector<at::Tensor> result() override;
  void synchronize() override;
  bool wait(std::chrono::milliseconds timeout = kNoTimeout) override;
  void blockCurrentStream() override { synchronize(); }
  void abort() override;
  /// Made by the first caller; of a call that is known to have failed it raises the failure.
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override;
  uint64_t getSequencenumber() const override;
  /// Milliseconds from the start to the end of the task; raises before the end.
  float getDuration() const override;

  std::shared_ptr<CallRecord> record() const { return RecordOf(start_.submission); }
  const std::vector<at::Tensor>& outputs() const { return start_.outputs; }
  /// "WorkHCCL(SeqNum=1, OpType=ALLREDUCE, Timeout(ms)=1800000)".
  std::string Describe() const;

 private:
  void WaitOnHost(std::chrono::milliseconds timeout);
  void AbortGroup(const std::string& reason);

  Start start_;
  c10::intrusive_ptr<c10::ivalue::Future> future_;  // guarded by mutex_
};

/// "WorkHCCL(SeqNum=1, OpType=ALLREDUCE, Timeout(ms)=1800000)".
std::string DescribeCall(c10d::OpType op, uint64_t sequence, std::chrono::milliseconds timeout);

/// WaitOnStream for the calling thread's current stream; raises at once when the collective has failed already.
void WaitOnCurrentStream(int device, npu_event* end, const std::shared_ptr<CallRecord>& record);

/// Raises the failure of `record` as the exception that fits its status.
[[noreturn]] void ThrowFailure(const CallRecord& record);
[[noreturn]] void ThrowStatus(npu_status status, const std::string& text);

}  // namespace npu::distributed
