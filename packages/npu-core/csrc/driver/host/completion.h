// A counter that one thread advances and any thread may wait for.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

#include "futex.h"

namespace npu::host {

class Completion {
 public:
  uint64_t value() const { return done_.load(std::memory_order_acquire); }
  uint64_t value_for_owner() const { return done_.load(std::memory_order_relaxed); }

  // Runs once per task, so it costs a store and a predictable branch; a waiter asks for the bell in wake_at_.
  void publish(uint64_t value) {
    done_.store(value, std::memory_order_release);
    light_fence();
    if (value >= wake_at_.load(std::memory_order_relaxed)) [[unlikely]]
      ring();
  }

  // Waits until value() >= target: spins for `spin_ns`, then sleeps.  False when the deadline passed first.
  bool wait(uint64_t target, int64_t deadline_ns, int64_t spin_ns);

 private:
  void ring();

  alignas(64) std::atomic<uint64_t> done_{0};
  // The smallest value somebody sleeps for.  On its own line: publish() reads it per task, waiters write it rarely.
  alignas(64) std::atomic<uint64_t> wake_at_{UINT64_MAX};
  std::atomic<uint32_t> bell_{0};
  std::mutex mutex_;
};

}  // namespace npu::host
