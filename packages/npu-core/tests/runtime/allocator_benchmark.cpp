// Time of one cached allocate + free, median of several runs.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "runtime/caching_allocator.h"

namespace {

// Of this thread alone, so that a busy machine disturbs less.
double thread_ns() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec);
}

template <typename Body>
double median_ns(Body body) {
  constexpr int kRuns = 21;
  constexpr int kLoops = 100'000;
  std::vector<double> times;
  for (int run = 0; run < kRuns; ++run) {
    const double start = thread_ns();
    for (int i = 0; i < kLoops; ++i) body(i);
    times.push_back((thread_ns() - start) / kLoops);
  }
  std::sort(times.begin(), times.end());
  return times[kRuns / 2];
}

}  // namespace

int main() {
  setenv("NPU_DRIVER", "manual", 0);
  npu::CachingAllocator& allocator = npu::caching_allocator();
  npu::Stream* stream = npu::current_stream(0);
  for (const std::size_t bytes : {std::size_t{40}, std::size_t{4096}, std::size_t{1} << 19, std::size_t{4} << 20}) {
    const double one = median_ns([&](int) { allocator.allocate_on(bytes, stream); });
    const double current = median_ns([&](int) { allocator.allocate(bytes); });
    std::vector<c10::DataPtr> held(8);
    const double chain =
        median_ns([&](int i) { held[static_cast<std::size_t>(i) % 8] = allocator.allocate_on(bytes, stream); });
    std::printf("%8zu bytes: allocate+free %6.1f ns, on the current stream %6.1f ns, eight live %6.1f ns\n", bytes, one,
                current, chain);
  }
}
