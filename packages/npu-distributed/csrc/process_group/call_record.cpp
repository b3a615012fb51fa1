#include "process_group/call_record.h"

namespace npu::distributed {

void CallRecord::Succeed() noexcept {
  const std::lock_guard lock(mutex_);
  if (state_.load(std::memory_order_relaxed) >= State::kDone) return;
  state_.store(State::kDone, std::memory_order_release);
  changed_.notify_all();
}

void CallRecord::Fail(npu_status status, const std::string& text) noexcept {
  const std::lock_guard lock(mutex_);
  if (state_.load(std::memory_order_relaxed) >= State::kDone) return;
  status_ = status;
  text_ = text;
  state_.store(State::kFailed, std::memory_order_release);
  changed_.notify_all();
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
