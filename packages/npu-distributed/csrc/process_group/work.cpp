#include "process_group/work.h"

#include <c10/core/StreamGuard.h>
#include <c10/util/Exception.h>

#include "process_group/host_wait.h"
#include "process_group/process_group_hccl.h"

namespace npu::distributed {
void TensorStash::Keep(std::vector<at::Tensor> tensors) {
  const std::lock_guard lock(mutex_);
  tensors_ = std::move(tensors);
}

void TensorStash::Release() {
  std::vector<at::Tensor> released;  // freed outside of the lock
  const std::lock_guard lock(mutex_);
  released.swap(tensors_);
}

void ThrowStatus(npu_status status, const std::string& text) {
  switch (status) {
    case NPU_ERROR_NOT_SUPPORTED:
      C10_THROW_ERROR(NotImplementedError, text);
    case NPU_ERROR_OUT_OF_MEMORY:
      C10_THROW_ERROR(OutOfMemoryError, text);
    case NPU_ERROR_SYSTEM:
    case NPU_ERROR_TIMEOUT:
    case NPU_ERROR_STOPPED:
      C10_THROW_ERROR(DistBackendError, text);
    default:
      C10_THROW_ERROR(Error, text);
  }
}

void ThrowFailure(const CallRecord& record) { ThrowStatus(record.status(), record.text()); }

void WaitOnCurrentStream(int device, npu_event* end, const std::shared_ptr<CallRecord>& record) {
  if (record->failed()) ThrowFailure(*record);
  WaitOnStream(Runtime().current_stream(device), end, record);
}

bool WorkHCCL::isCompleted() { return start_.submission->record.finished(); }

bool WorkHCCL::isSuccess() const { return start_.submission->record.state() == CallRecord::State::kDone; }

std::exception_ptr WorkHCCL::exception() const {
  if (!start_.submission->record.failed()) return nullptr;
  try {
    ThrowFailure(start_.submission->record);
  } catch (...) {
    return std::current_exception();
  }
}

std::vector<at::Tensor> WorkHCCL::result() { return start_.outputs; }

void WorkHCCL::synchronize() {
  Submission& submission = *start_.submission;
  if (submission.record.failed()) ThrowFailure(submission.record);
  submission.Join(Runtime().current_stream(submission.device));
  if (start_.stash) start_.stash->Release();
}

void WorkHCCL::AbortGroup(const std::string& reason) {
  if (!start_.group) return;
  if (auto group = start_.group->lock()) static_cast<ProcessGroupHCCL&>(*group).Abort(reason);
}

void WorkHCCL::WaitOnHost(std::chrono::milliseconds timeout) {
  const CallRecord& record = start_.submission->record;
  TORCH_CHECK(start_.submission->submitted, Describe(),
              ": wait() would block the host for ever, because the call is submitted by _group_end() or the end of the "
              "coalescing block only; call wait() after it");
  if (!WaitInterruptibly(record, timeout.count() > 0 ? timeout : std::chrono::milliseconds(-1))) {
    const std::string text = "[Rank " + std::to_string(rank_) + "] " + Describe() + " timed out in blocking wait";
    if (start_.abort_on_timeout) AbortGroup(text);
    // Once aborted the call has failed, with a text that also says for whom the transport waited.
    C10_THROW_ERROR(DistBackendError, record.failed() ? record.text() : text);
  }
  if (record.failed()) ThrowFailure(record);
}

bool WorkHCCL::wait(std::chrono::milliseconds timeout) {
  // Without blocks_host the host never waits: the watchdog looks after the time.
  if (start_.blocks_host) WaitOnHost(timeout == kNoTimeout ? start_.timeout : timeout);
  synchronize();
  return true;
}

void WorkHCCL::abort() { AbortGroup("the Work of " + Describe() + " was aborted"); }

c10::intrusive_ptr<c10::ivalue::Future> WorkHCCL::getFuture() {
  const std::lock_guard lock(mutex_);
  const Submission& submission = *start_.submission;
  const bool failed = submission.record.failed();
  // One that was made before the failure was known says nothing of it.
  if (future_ && (!failed || future_->hasError())) return future_;
  TORCH_CHECK(
      submission.submitted, Describe(),
      ": get_future() before the call is submitted, which _group_end() or the end of the coalescing block does");
  const c10::Stream stream = AsTorchStream(submission.stream, submission.device);
  auto future = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()),
                                                         std::vector<c10::Device>{stream.device()});
  // A future records its own events, on whatever stream is current: make that the communication stream.
  const c10::StreamGuard guard(stream);
  if (failed) {
    future->setError(exception());
  } else {
    future->markCompleted(c10::IValue(start_.outputs));
  }
  future_ = std::move(future);
  return future_;
}

uint64_t WorkHCCL::getSequencenumber() const { return start_.sequence; }

float WorkHCCL::getDuration() const {
  const CallRecord& record = start_.submission->record;
  TORCH_CHECK(record.started_at() != 0 && record.ended_at() != 0, Describe(),
              ": it has no duration, because it has not run to its end");
  return static_cast<float>(record.ended_at() - record.started_at()) * 1e-6F;
}

std::string WorkHCCL::Describe() const { return DescribeCall(opType_, start_.sequence, start_.timeout); }

std::string DescribeCall(c10d::OpType op, uint64_t sequence, std::chrono::milliseconds timeout) {
  return "WorkHCCL(SeqNum=" + std::to_string(sequence) + ", OpType=" + c10d::opTypeToString(op) +
         ", Timeout(ms)=" + std::to_string(timeout.count()) + ")";
}

}  // namespace npu::distributed
