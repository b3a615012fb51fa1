// Events: a handle that names the newest marker recorded through it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

#include "failure.h"
#include "npu/driver.h"
#include "spin_lock.h"

namespace npu::host {

class Stream;

// One recorded point of one stream.  Shared by the event, the slot that completes it and the slots that wait for it,
// so that re-recording or destroying the event disturbs none of them.
class Marker {
 public:
  explicit Marker(uint64_t stream_id) : stream_id_(stream_id) {}

  void retain() { references_.fetch_add(1, std::memory_order_relaxed); }
  void release() {
    if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

  bool done() const { return state_.load(std::memory_order_acquire) == kDone; }
  uint64_t stream_id() const { return stream_id_; }
  int64_t time_ns() const { return time_ns_; }  // valid once done
  // The error the stream carried when it came here.  Set before complete(), read once done.
  void set_failure(std::shared_ptr<Failure> failure) { failure_ = std::move(failure); }
  const std::shared_ptr<Failure>& failure() const { return failure_; }
  bool failed() const { return failure_ != nullptr && !failure_->taken.load(std::memory_order_acquire); }

  // Marks the point as reached and returns the streams that were parked on it (linked by Stream::next); their
  // ownership passes to the caller.
  Stream* complete();
  // Parks `stream`, whose ownership the marker takes over; false when the marker is complete already.
  bool park(Stream* stream);
  // Takes `stream` back, and its ownership to the caller; false when it is not parked here (any more).
  bool unpark(Stream* stream);
  bool wait(int64_t deadline_ns, int64_t spin_ns);

 private:
  ~Marker() = default;
  static constexpr uint32_t kPending = 0, kPendingWithSleeper = 1, kDone = 2;

  std::atomic<uint32_t> references_{1};
  std::atomic<uint32_t> state_{kPending};
  const uint64_t stream_id_;
  int64_t time_ns_ = 0;
  std::shared_ptr<Failure> failure_;
  SpinLock lock_;
  Stream* parked_ = nullptr;
};

class Event {
 public:
  Event() = default;
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() {
    if (newest_ != nullptr) newest_->release();
  }

  // Makes `marker` the newest one; takes over the caller's reference.
  void replace(Marker* marker);
  // The newest marker with a reference for the caller, or nullptr when the event was never recorded.
  Marker* newest();

 private:
  SpinLock lock_;
  Marker* newest_ = nullptr;
};

}  // namespace npu::host
