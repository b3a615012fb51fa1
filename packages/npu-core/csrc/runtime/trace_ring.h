#pragma once
#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "npu/trace.h"

namespace npu {

// Records of one thread on their way to the sink: one writer (the thread), one reader at a time (whoever holds the
// drain lock).
class TraceRing {
 public:
  static constexpr std::size_t kCapacity = 1024;  // 172 KB per recording thread

  // False when full.
  bool push(const npu_trace_record& record) noexcept {
    const std::uint64_t head = head_.load(std::memory_order_relaxed);
    if (head - seen_tail_ == kCapacity) {
      seen_tail_ = tail_.load(std::memory_order_acquire);
      if (head - seen_tail_ == kCapacity) return false;
    }
    slots_[head % kCapacity] = record;
    head_.store(head + 1, std::memory_order_release);
    return true;
  }

  // Writer's view; exact or too high.
  std::size_t used() const noexcept {
    return static_cast<std::size_t>(head_.load(std::memory_order_relaxed) - tail_.load(std::memory_order_relaxed));
  }

  // Passes what is in the ring to `consume(records, count)`, in at most two runs.
  template <typename Consume>
  void drain(Consume consume) {
    std::uint64_t tail = tail_.load(std::memory_order_relaxed);
    const std::uint64_t head = head_.load(std::memory_order_acquire);
    while (tail != head) {
      const std::size_t start = tail % kCapacity;
      const std::size_t run = std::min<std::size_t>(head - tail, kCapacity - start);
      consume(&slots_[start], run);
      tail += run;
      tail_.store(tail, std::memory_order_release);
    }
  }

  // The writer has ended; the ring goes once it is empty.
  std::atomic<bool> orphan{false};

 private:
  alignas(64) std::atomic<std::uint64_t> head_{0};
  std::uint64_t seen_tail_ = 0;  // the writer's copy, refreshed when the ring looks full
  alignas(64) std::atomic<std::uint64_t> tail_{0};
  alignas(64) std::array<npu_trace_record, kCapacity> slots_;
};

}  // namespace npu
