// Waiting for another process on a word of shared memory.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace npu::distributed {

/// Lives in shared memory.  Whoever changes what others wait for rings; a waiter spins briefly, then sleeps in a futex.
struct Doorbell {
  std::atomic<uint32_t> rings{0};
  std::atomic<uint32_t> sleepers{0};

  /// Call after the change is stored.  One atomic load when nobody sleeps.
  void Ring() noexcept;
  /// Sleeps until the next ring after `seen`, or for `limit`.  May return early.
  void Sleep(uint32_t seen, std::chrono::milliseconds limit) noexcept;
};

static_assert(std::atomic<uint32_t>::is_always_lock_free, "shared memory needs address-free atomics");

/// Calls `ready` until it is true.  While asleep, `check` runs every `kCheckInterval`; it throws to give up.
template <class Ready, class Check>
void WaitFor(Doorbell& bell, Ready ready, Check check);

/// How often a sleeping waiter looks whether its peers live.
inline constexpr std::chrono::milliseconds kCheckInterval{50};

namespace detail {
/// One short step of the spinning phase; false when it is time to sleep.  Pauses first, then yields the core: on a
/// machine with as many busy threads as cores the peer needs this core to make progress.
bool SpinStep(uint32_t step) noexcept;
}  // namespace detail

template <class Ready, class Check>
void WaitFor(Doorbell& bell, Ready ready, Check check) {
  for (uint32_t step = 0;; ++step) {
    if (ready()) return;
    if (!detail::SpinStep(step)) break;
  }
  struct Sleeper {
    explicit Sleeper(Doorbell& bell) : bell(bell) { bell.sleepers.fetch_add(1, std::memory_order_seq_cst); }
    ~Sleeper() { bell.sleepers.fetch_sub(1, std::memory_order_seq_cst); }
    Doorbell& bell;
  } sleeper(bell);
  for (;;) {
    const uint32_t seen = bell.rings.load(std::memory_order_seq_cst);
    if (ready()) return;
    check();
    bell.Sleep(seen, kCheckInterval);
  }
}

}  // namespace npu::distributed
