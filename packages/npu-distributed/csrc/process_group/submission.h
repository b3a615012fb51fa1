// One task on a communication stream, shared by the Works of the calls that it carries out.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "process_group/call_record.h"
#include "process_group/runtime_access.h"

namespace npu::distributed {

/// Made when the first call is noted; submitted at once, or later with the whole unit (coalescing, _group_start).
struct Submission : std::enable_shared_from_this<Submission> {
  CallRecord record;
  EventPtr end = MakeEvent();  ///< recorded behind the task
  npu_stream* stream = nullptr;
  int device = 0;
  std::atomic<bool> submitted{false};

  /// Has `waiting` wait for the end: now, or as soon as the task has been submitted.
  void Join(npu_stream* waiting);
  /// Records the end; to be called once, when the task is on the stream.
  void MarkSubmitted();

 private:
  std::mutex mutex_;
  std::vector<npu_stream*> joining_;
};

inline std::shared_ptr<CallRecord> RecordOf(const std::shared_ptr<Submission>& submission) {
  return {submission, &submission->record};
}

/// Makes later work of `stream` wait for `end`, and fail with the text of `record` if the collective failed: a program
/// that never looks at the communication stream must not compute with wrong numbers.
void WaitOnStream(npu_stream* stream, npu_event* end, const std::shared_ptr<CallRecord>& record);

}  // namespace npu::distributed
