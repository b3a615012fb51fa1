// What a forked child inherits of the process it came from, and must leave alone.
#pragma once

#include <atomic>
#include <cstdint>

namespace npu::distributed {

/// A number that differs in a child from what it was in the process that the child was forked from.
uint64_t ForkCount() noexcept;

/// An object of this process.  It outlives groups that are destroyed during exit, and a forked child gets a fresh one:
/// the threads that the old one counts on, or that hold its locks, are not there.
template <class Object>
class PerProcess {
 public:
  Object& Get() {
    const uint64_t forks = ForkCount();
    Entry* present = current_.load(std::memory_order_acquire);
    if (present != nullptr && present->forks == forks) return present->object;
    auto* made = new Entry{forks, {}};
    if (current_.compare_exchange_strong(present, made, std::memory_order_acq_rel)) return made->object;
    delete made;  // another thread was first
    return present->object;
  }

 private:
  struct Entry {
    uint64_t forks;
    Object object;
  };
  std::atomic<Entry*> current_{nullptr};
};

}  // namespace npu::distributed
