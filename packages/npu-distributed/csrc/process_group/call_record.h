// What became of one collective: shared by its task, its Work, the watchdog, the recorder and the waiting streams.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "npu/driver.h"
#include "process_group/failed_streams.h"
#include "process_group/group_identity.h"

namespace npu::distributed {

class CallRecord {
 public:
  enum class State : int { kQueued, kRunning, kDone, kFailed };

  /// This is collective number `sequence` of the group whose progress that is.  To be said before the task is queued; a
  /// task that is several collectives counts as the last one.
  void CountAs(std::shared_ptr<GroupProgress> progress, int64_t sequence) noexcept {
    progress_ = std::move(progress);
    sequence_ = sequence;
  }

  /// This is a collective of group number `group`, whose waiting streams are remembered should it fail.  To be said
  /// before anybody waits.
  void BelongTo(size_t group) noexcept { group_ = group; }
  /// The calling thread has made `stream` wait for the collective.
  void AddWaiter(npu_stream* stream);

  State state() const noexcept { return state_.load(std::memory_order_acquire); }
  bool finished() const noexcept { return state() >= State::kDone; }
  bool failed() const noexcept { return state() == State::kFailed; }

  void Start() noexcept;
  void Succeed() noexcept;
  /// Only the first outcome counts.
  void Fail(npu_status status, const std::string& text) noexcept;

  /// False when `limit` passed first; a negative limit waits for ever.
  bool WaitFor(std::chrono::milliseconds limit) const;

  /// Valid once failed.
  npu_status status() const;
  std::string text() const;

  /// Nanoseconds of the wall clock; 0 when it has not happened yet.
  int64_t started_at() const noexcept { return started_at_.load(std::memory_order_acquire); }
  int64_t ended_at() const noexcept { return ended_at_.load(std::memory_order_acquire); }

 private:
  std::atomic<State> state_{State::kQueued};
  std::atomic<int64_t> started_at_{0};
  std::atomic<int64_t> ended_at_{0};
  std::shared_ptr<GroupProgress> progress_;
  int64_t sequence_ = 0;
  std::optional<size_t> group_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  npu_status status_ = NPU_OK;
  std::string text_;
  std::vector<WaitingStream> waiters_;
};

/// Nanoseconds of the wall clock now.
int64_t WallClock() noexcept;

}  // namespace npu::distributed
