// Sleeping and ordering primitives of the host driver: futex calls and the asymmetric fence pair.
#pragma once

#include <atomic>
#include <cstdint>

namespace npu::host {

constexpr int64_t kForever = -1;

// Sleeps while `word` holds `expected`, at most until `deadline_ns` (CLOCK_MONOTONIC, kForever = no limit).
// Returns false only when the deadline has passed.  Spurious returns are allowed: callers re-check.
bool futex_wait(std::atomic<uint32_t>& word, uint32_t expected, int64_t deadline_ns = kForever);
void futex_wake_one(std::atomic<uint32_t>& word);
void futex_wake_all(std::atomic<uint32_t>& word);

// One side of a store-then-load race runs often, the other rarely.  The frequent side calls light_fence(), the rare
// side heavy_fence(): membarrier then interrupts the running threads of the process, which makes their program order
// visible.  A seq_cst store on the frequent side would cost about as much as running an empty task.
void prepare_fences();  // once, before the first thread of the driver starts
void heavy_fence();

namespace detail {
extern bool light_fence_is_enough;

// Inline assembly, because ThreadSanitizer supports no stand-alone fence; it needs none either, as the data of the
// driver is ordered by acquire and release and the fences only decide who wakes whom.
inline void full_fence() {
#if defined(__x86_64__)
  __asm__ __volatile__("mfence" ::: "memory");
#elif defined(__aarch64__)
  __asm__ __volatile__("dmb ish" ::: "memory");
#else
  __sync_synchronize();
#endif
}
}  // namespace detail

inline void light_fence() {
  if (detail::light_fence_is_enough) [[likely]] {
    std::atomic_signal_fence(std::memory_order_seq_cst);
  } else {
    detail::full_fence();
  }
}

inline void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

}  // namespace npu::host
