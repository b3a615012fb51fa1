#include "process_group/call_record.h"

namespace npu::distributed {

int64_t WallClock() noexcept {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

void CallRecord::Start() noexcept {
  started_at_.store(WallClock(), std::memory_order_release);
  if (progress_) progress_->started.store(sequence_, std::memory_order_relaxed);
  state_.store(State::kRunning, std::memory_order_release);
}

void CallRecord::Succeed() noexcept {
  const std::lock_guard lock(mutex_);
  if (state_.load(std::memory_order_relaxed) >= State::kDone) return;
  ended_at_.store(WallClock(), std::memory_order_release);
  if (progress_) progress_->completed.store(sequence_, std::memory_order_relaxed);
  state_.store(State::kDone, std::memory_order_release);
  changed_.notify_all();
}

void CallRecord::Fail(npu_status status, const std::string& text) noexcept {
  const std::lock_guard lock(mutex_);
  if (state_.load(std::memory_order_relaxed) >= State::kDone) return;
  ended_at_.store(WallClock(), std::memory_order_release);
  status_ = status;
  text_ = text;
  for (const WaitingStream& waiting : waiters_) NoteFailedStream(*group_, waiting);
  waiters_.clear();
  state_.store(State::kFailed, std::memory_order_release);
  changed_.notify_all();
}

void CallRecord::AddWaiter(npu_stream* stream) {
  if (!group_) return;
  const WaitingStream waiting{stream, std::this_thread::get_id()};
  const std::lock_guard lock(mutex_);
  if (!finished()) {
    waiters_.push_back(waiting);
  } else if (failed()) {
    NoteFailedStream(*group_, waiting);
  }
}

bool CallRecord::WaitFor(std::chrono::milliseconds limit) const {
  std::unique_lock lock(mutex_);
  const auto ready = [this] { return finished(); };
  if (limit.count() < 0) {
    changed_.wait(lock, ready);
    return true;
  }
  return changed_.wait_for(lock, limit, ready);
}

npu_status CallRecord::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

std::string CallRecord::text() const {
  const std::lock_guard lock(mutex_);
  return text_;
}

}  // namespace npu::distributed
