#include "event.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "clock.h"
#include "stream.h"

namespace npu::host {

Stream* Marker::complete() {
  time_ns_ = now_ns();
  Stream* parked;
  {
    std::lock_guard lock(lock_);
    parked = std::exchange(parked_, nullptr);
    if (state_.exchange(kDone, std::memory_order_acq_rel) != kPendingWithSleeper) return parked;
  }
  futex_wake_all(state_);
  return parked;
}

bool Marker::park(Stream* stream) {
  if (done()) return false;
  std::lock_guard lock(lock_);
  if (done()) return false;
  stream->next = parked_;
  parked_ = stream;
  return true;
}

bool Marker::unpark(Stream* stream) {
  std::lock_guard lock(lock_);
  for (Stream** link = &parked_; *link != nullptr; link = &(*link)->next) {
    if (*link != stream) continue;
    *link = stream->next;
    return true;
  }
  return false;
}

bool Marker::wait(int64_t deadline_ns, int64_t spin_ns) {
  if (done()) return true;
  if (deadline_ns != kForever) spin_ns = std::min(spin_ns, deadline_ns - now_ns());
  if (spin_ns > 0 && spin_until([&] { return done(); }, spin_ns)) return true;
  for (;;) {
    uint32_t state = kPending;
    state_.compare_exchange_strong(state, kPendingWithSleeper, std::memory_order_acq_rel);
    if (state == kDone) return true;
    if (!futex_wait(state_, kPendingWithSleeper, deadline_ns)) return done();
  }
}

void Event::replace(Marker* marker) {
  Marker* old;
  {
    std::lock_guard lock(lock_);
    old = std::exchange(newest_, marker);
  }
  if (old != nullptr) old->release();
}

Marker* Event::newest() {
  std::lock_guard lock(lock_);
  if (newest_ != nullptr) newest_->retain();
  return newest_;
}

}  // namespace npu::host
