#include "transport/doorbell.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>

namespace npu::distributed {
namespace {

// About 3 us of pauses, then about 30 us of yields (each yield costs 0.3-1 us when no one else wants the core).
constexpr uint32_t kPauseSteps = 100;
constexpr uint32_t kYieldSteps = 60;
// A yield that takes longer let someone else run.  If that was not the awaited peer, waiting goes on asleep: who wakes
// up runs soon, who keeps yielding on a busy machine gets his turn last.
constexpr std::chrono::microseconds kLongYield{50};

void Pause() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

void Doorbell::Ring() noexcept {
  // Pairs with the increment in WaitFor: either the waiter sees the change, or this load sees the waiter.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (sleepers.load(std::memory_order_seq_cst) == 0) return;
  rings.fetch_add(1, std::memory_order_seq_cst);
  syscall(SYS_futex, &rings, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void Doorbell::Sleep(uint32_t seen, std::chrono::milliseconds limit) noexcept {
  timespec duration{};
  duration.tv_sec = static_cast<time_t>(limit.count() / 1000);
  duration.tv_nsec = static_cast<long>(limit.count() % 1000) * 1000000L;
  syscall(SYS_futex, &rings, FUTEX_WAIT, seen, &duration, nullptr, 0);
}

bool detail::SpinStep(uint32_t step) noexcept {
  if (step < kPauseSteps) {
    Pause();
    return true;
  }
  if (step < kPauseSteps + kYieldSteps) {
    const auto before = std::chrono::steady_clock::now();
    sched_yield();
    return std::chrono::steady_clock::now() - before < kLongYield;
  }
  return false;
}

}  // namespace npu::distributed
