// What became of one collective: shared by its task, its Work, the watchdog and the waiting streams.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>

#include "npu/driver.h"

namespace npu::distributed {

class CallRecord {
 public:
  enum class State : int { kQueued, kRunning, kDone, kFailed };

  State state() const noexcept { return state_.load(std::memory_order_acquire); }
  bool finished() const noexcept { return state() >= State::kDone; }
  bool failed() const noexcept { return state() == State::kFailed; }

  void Start() noexcept { state_.store(State::kRunning, std::memory_order_release); }
  void Succeed() noexcept;
  /// Only the first outcome counts.
  void Fail(npu_status status, const std::string& text) noexcept;

  /// False when `limit` passed first; a negative limit waits for ever.
  bool WaitFor(std::chrono::milliseconds limit) const;

  /// Valid once failed.
  npu_status status() const;
  std::string text() const;

 private:
  std::atomic<State> state_{State::kQueued};
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  npu_status status_ = NPU_OK;
  std::string text_;
};

}  // namespace npu::distributed
