#include "futex.h"

#include <linux/futex.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <ctime>

namespace npu::host {
namespace {

uint32_t* raw(std::atomic<uint32_t>& word) {
  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));
  return reinterpret_cast<uint32_t*>(&word);
}

}  // namespace

bool futex_wait(std::atomic<uint32_t>& word, uint32_t expected, int64_t deadline_ns) {
  timespec deadline{};
  if (deadline_ns != kForever) {
    deadline.tv_sec = deadline_ns / 1'000'000'000;
    deadline.tv_nsec = deadline_ns % 1'000'000'000;
  }
  // WAIT_BITSET takes an absolute time, so a spurious return does not stretch the caller's timeout.
  long result = syscall(SYS_futex, raw(word), FUTEX_WAIT_BITSET_PRIVATE, expected,
                        deadline_ns == kForever ? nullptr : &deadline, nullptr, FUTEX_BITSET_MATCH_ANY);
  return !(result != 0 && errno == ETIMEDOUT);
}

void futex_wake_one(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, raw(word), FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
}

void futex_wake_all(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, raw(word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

namespace detail {
bool light_fence_is_enough = false;
}

void prepare_fences() {
#if defined(__SANITIZE_THREAD__)
  detail::light_fence_is_enough = false;
#else
  detail::light_fence_is_enough = syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
#endif
}

void heavy_fence() {
  if (detail::light_fence_is_enough) {
    syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
  } else {
    detail::full_fence();
  }
}

}  // namespace npu::host
