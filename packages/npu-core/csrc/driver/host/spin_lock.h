// A lock for sections of a few dozen instructions.
#pragma once

#include <sched.h>

#include <atomic>

#include "futex.h"

namespace npu::host {

class SpinLock {
 public:
  void lock() {
    while (locked_.exchange(true, std::memory_order_acquire)) [[unlikely]] {
      int spins = 0;
      while (locked_.load(std::memory_order_relaxed)) {
        if (++spins < 200) {
          cpu_relax();
        } else {
          sched_yield();  // the holder may have been preempted: on few cores spinning on would keep it from running
        }
      }
    }
  }
  void unlock() { locked_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool> locked_{false};
};

}  // namespace npu::host
