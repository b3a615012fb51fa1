#include "completion.h"

#include <algorithm>

#include "clock.h"

namespace npu::host {

bool Completion::wait(uint64_t target, int64_t deadline_ns, int64_t spin_ns) {
  if (value() >= target) return true;
  if (deadline_ns != kForever) spin_ns = std::min(spin_ns, deadline_ns - now_ns());
  if (spin_ns > 0 && spin_until([&] { return value() >= target; }, spin_ns)) return true;
  for (;;) {
    uint32_t bell;
    {
      std::lock_guard lock(mutex_);
      if (target < wake_at_.load(std::memory_order_relaxed)) wake_at_.store(target, std::memory_order_relaxed);
      bell = bell_.load(std::memory_order_relaxed);
    }
    heavy_fence();  // pairs with the light fence of publish(): one of the two sees the other's store
    if (value() >= target) return true;
    if (!futex_wait(bell_, bell, deadline_ns)) return value() >= target;
  }
}

void Completion::ring() {
  {
    std::lock_guard lock(mutex_);
    wake_at_.store(UINT64_MAX, std::memory_order_relaxed);  // whoever needs more asks again
    bell_.fetch_add(1, std::memory_order_relaxed);
  }
  futex_wake_all(bell_);
}

}  // namespace npu::host
