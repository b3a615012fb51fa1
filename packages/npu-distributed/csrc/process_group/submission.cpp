#include "process_group/submission.h"

#include <cstring>

namespace npu::distributed {
namespace {

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

void WaitOnStream(npu_stream* stream, npu_event* end, const SharedRecord& record) {
  const npu_runtime_api& runtime = Runtime();
  CheckRuntime(runtime.event_wait(end, stream), "waiting for a collective");
  if (record->state() == CallRecord::State::kDone) return;
  record->AddWaiter(stream);
  auto* shared = new SharedRecord(record);
  npu_task task{};
  task.run = &CheckTask;
  task.destroy = &ReleaseCheck;
  task.name = "hccl::wait";
  task.payload = &shared;
  task.payload_size = sizeof shared;
  task.kind = NPU_TASK_COMPUTE;
  const npu_status status = runtime.launch(stream, &task, nullptr, 0);
  if (status != NPU_OK) {
    delete shared;
    CheckRuntime(status, "waiting for a collective");
  }
}

void Submission::Join(npu_stream* waiting) {
  {
    const std::lock_guard lock(mutex_);
    if (!submitted) {
      joining_.push_back(waiting);
      return;
    }
  }
  WaitOnStream(waiting, end.get(), RecordOf(shared_from_this()));
}

void Submission::MarkSubmitted() {
  CheckRuntime(Runtime().event_record(end.get(), stream), "recording the end of a collective");
  std::vector<npu_stream*> joining;
  {
    const std::lock_guard lock(mutex_);
    submitted = true;
    joining.swap(joining_);
  }
  for (npu_stream* waiting : joining) WaitOnStream(waiting, end.get(), RecordOf(shared_from_this()));
}

}  // namespace npu::distributed
