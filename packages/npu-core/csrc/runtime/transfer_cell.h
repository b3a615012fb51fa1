#pragma once
#include <atomic>
#include <cstdint>

#include "process_identity.h"

namespace npu {

// One reference to a block of memory that another process was sent.  Lives in a page of the process that owns the
// block.  Owner, receivers, and receivers that send the block on work on it at the same time.
struct TransferCell {
  enum State : std::uint64_t {
    kFree = 0,
    kClaimed = 1,  // being filled in
    kSent = 2,     // on its way: whoever receives the message becomes the holder
    kHeld = 3,
  };
  // State, how often the cell was used (so that a stale message does not match), and the process that fills it in,
  // has sent it, or holds it.
  std::atomic<std::uint64_t> word;
  std::atomic<std::uint64_t> start_time;  // of the holder; 0 while there is none, and for a moment after
  std::atomic<std::uint64_t> block;
  std::atomic<std::uint32_t> ready;  // changes once the sender's work on the memory is done

  static constexpr std::uint64_t pack(State state, std::uint32_t use, std::int32_t pid) {
    return static_cast<std::uint64_t>(state) << 56 | static_cast<std::uint64_t>(use & 0xffffff) << 32 |
           static_cast<std::uint32_t>(pid);
  }
  static State state_of(std::uint64_t word) { return static_cast<State>(word >> 56); }
  static std::uint32_t use_of(std::uint64_t word) { return static_cast<std::uint32_t>(word >> 32) & 0xffffff; }
  static std::int32_t pid_of(std::uint64_t word) { return static_cast<std::int32_t>(word); }

  // Takes a free cell; `use` then tells this use of it from others.
  bool claim(const ProcessIdentity& process, std::uint64_t for_block, std::uint32_t* use) {
    std::uint64_t seen = word.load(std::memory_order_relaxed);
    if (state_of(seen) != kFree) return false;
    *use = (use_of(seen) + 1) & 0xffffff;
    if (!word.compare_exchange_strong(seen, pack(kClaimed, *use, process.pid), std::memory_order_acq_rel)) return false;
    block.store(for_block, std::memory_order_relaxed);
    ready.store(0, std::memory_order_relaxed);
    word.store(pack(kSent, *use, process.pid), std::memory_order_release);
    return true;
  }

  // The receiver's side: false when this use of the cell is over or has a holder already.
  bool hold(const ProcessIdentity& process, std::uint32_t use) {
    std::uint64_t seen = word.load(std::memory_order_acquire);
    if (state_of(seen) != kSent || use_of(seen) != use) return false;
    if (!word.compare_exchange_strong(seen, pack(kHeld, use, process.pid), std::memory_order_acq_rel)) return false;
    start_time.store(process.start_time, std::memory_order_release);
    return true;
  }

  // The holder's side, and the owner's for a holder that has died.
  void release(std::uint32_t use) {
    std::uint64_t seen = word.load(std::memory_order_acquire);
    if (use_of(seen) != use || state_of(seen) == kFree) return;
    start_time.store(0, std::memory_order_relaxed);  // the next holder is not this one
    word.compare_exchange_strong(seen, pack(kFree, use, 0), std::memory_order_acq_rel);
  }
};

}  // namespace npu
