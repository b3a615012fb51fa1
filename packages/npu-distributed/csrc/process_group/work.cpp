#include "process_group/work.h"

#include <c10/core/StreamGuard.h>
#include <c10/util/Exception.h>

#include <cstring>

namespace npu::distributed {
namespace {

c10::Stream AsTorchStream(npu_stream* stream, int device) {
  return c10::Stream(c10::Stream::UNSAFE,
                     c10::Device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device)),
                     Runtime().stream_id(stream));
}

using SharedRecord = std::shared_ptr<CallRecord>;

npu_status CheckTask(void* payload, npu_error* error) {
  const CallRecord& record = ***static_cast<SharedRecord**>(payload);
  if (!record.failed()) return NPU_OK;
  const std::string text = record.text();
  std::strncpy(error->message, text.c_str(), sizeof error->message - 1);
  error->message[sizeof error->message - 1] = '\0';
  return record.status();
}

void ReleaseCheck(void* payload) { delete *static_cast<SharedRecord**>(payload); }

}  // namespace

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

void WaitOnCurrentStream(int device, npu_event* end, const SharedRecord& record) {
  if (record->failed()) ThrowFailure(*record);
  const npu_runtime_api& runtime = Runtime();
  npu_stream* current = runtime.current_stream(device);
  CheckRuntime(runtime.event_wait(end, current), "waiting for a collective");
  if (record->finished()) return;
  auto* shared = new SharedRecord(record);
  npu_task task{};
  task.run = &CheckTask;
  task.destroy = &ReleaseCheck;
  task.name = "hccl::wait";
  task.payload = &shared;
  task.payload_size = sizeof shared;
  task.kind = NPU_TASK_COMPUTE;
  const npu_status status = runtime.launch(current, &task, nullptr, 0);
  if (status != NPU_OK) {
    delete shared;
    CheckRuntime(status, "waiting for a collective");
  }
}

WorkHCCL::WorkHCCL(Start start) : Work(start.rank, start.op), start_(std::move(start)), end_(MakeEvent()) {
  CheckRuntime(Runtime().event_record(end_.get(), start_.stream), "recording the end of a collective");
  const c10::Stream stream = AsTorchStream(start_.stream, start_.device);
  future_ = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()),
                                                     std::vector<c10::Device>{stream.device()});
  // The future records its own events, on whatever stream is current: make that the communication stream.
  const c10::StreamGuard guard(stream);
  future_->markCompleted(c10::IValue(start_.outputs));
}

bool WorkHCCL::isCompleted() { return start_.record->finished(); }

bool WorkHCCL::isSuccess() const { return start_.record->state() == CallRecord::State::kDone; }

std::exception_ptr WorkHCCL::exception() const {
  if (!start_.record->failed()) return nullptr;
  try {
    ThrowFailure(*start_.record);
  } catch (...) {
    return std::current_exception();
  }
}

std::vector<at::Tensor> WorkHCCL::result() { return start_.outputs; }

void WorkHCCL::synchronize() {
  WaitOnCurrentStream(start_.device, end_.get(), start_.record);
  if (start_.stash) start_.stash->Release();
}

void WorkHCCL::WaitOnHost(std::chrono::milliseconds timeout) {
  if (!start_.record->WaitFor(timeout.count() > 0 ? timeout : std::chrono::milliseconds(-1))) {
    const std::string text = "[Rank " + std::to_string(rank_) + "] " + Describe() + " timed out in blocking wait";
    if (start_.abort_on_timeout) start_.abort(text);
    C10_THROW_ERROR(DistBackendError, text);
  }
  if (start_.record->failed()) ThrowFailure(*start_.record);
}

bool WorkHCCL::wait(std::chrono::milliseconds timeout) {
  // Without blocks_host the host never waits: the watchdog looks after the time.
  if (start_.blocks_host) WaitOnHost(timeout == kNoTimeout ? start_.timeout : timeout);
  synchronize();
  return true;
}

void WorkHCCL::abort() { start_.abort("the Work of " + Describe() + " was aborted"); }

c10::intrusive_ptr<c10::ivalue::Future> WorkHCCL::getFuture() { return future_; }

uint64_t WorkHCCL::getSequencenumber() const { return start_.sequence; }

std::string WorkHCCL::Describe() const {
  return "WorkHCCL(SeqNum=" + std::to_string(start_.sequence) + ", OpType=" + c10d::opTypeToString(opType_) +
         ", Timeout(ms)=" + std::to_string(start_.timeout.count()) + ")";
}

}  // namespace npu::distributed
