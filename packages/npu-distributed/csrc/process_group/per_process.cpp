#include "process_group/per_process.h"

#include <pthread.h>

namespace npu::distributed {
namespace {

std::atomic<uint64_t> forks{0};

}  // namespace

uint64_t ForkCount() noexcept {
  [[maybe_unused]] static const int watching =
      pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });
  return forks.load(std::memory_order_relaxed);
}

}  // namespace npu::distributed
