// The device clock (CLOCK_MONOTONIC) and bounded spinning on it.
#pragma once

#include <sched.h>
#include <time.h>

#include <cstdint>

#include "futex.h"

namespace npu::host {

inline int64_t now_ns() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

// Turns a relative timeout (negative = for ever) into a deadline for futex_wait.
inline int64_t deadline_after(int64_t timeout_ns) {
  if (timeout_ns < 0) return kForever;
  int64_t now = now_ns();
  return timeout_ns > INT64_MAX - now ? kForever : now + timeout_ns;
}

// Polls `ready` for at most `limit_ns`.  The first microseconds poll without a break; after that each round offers the
// core to others: the thread that is polled for may be waiting for this very core.  Without the offer, an engine and a
// waiter that share one core of a busy machine take turns of `limit_ns` (measured: 106 us per round trip).
template <typename Ready>
bool spin_until(Ready&& ready, int64_t limit_ns) {
  constexpr int64_t kBusyNs = 2'000;
  int64_t begin = 0;
  for (;;) {
    for (int poll = 0; poll < 32; ++poll) {  // reading the clock costs more than polling
      if (ready()) return true;
      cpu_relax();
    }
    int64_t now = now_ns();
    if (begin == 0) begin = now;
    if (now - begin >= limit_ns) return false;
    if (now - begin >= kBusyNs) sched_yield();
  }
}

}  // namespace npu::host
