// Meant for the thread sanitizer as much as for its checks.
#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "harness.h"
#include "runtime/caching_allocator.h"
#include "runtime/driver_loader.h"

using npu::caching_allocator;

namespace {

// Each block is filled with its owner's mark and must still carry it when it is freed.
void fill(const c10::DataPtr& pointer, std::size_t bytes, std::uint8_t mark) {
  auto* data = static_cast<std::uint8_t*>(pointer.get());
  data[0] = data[bytes / 2] = data[bytes - 1] = mark;
}
bool carries(const c10::DataPtr& pointer, std::size_t bytes, std::uint8_t mark) {
  const auto* data = static_cast<const std::uint8_t*>(pointer.get());
  return data[0] == mark && data[bytes / 2] == mark && data[bytes - 1] == mark;
}

struct Owned {
  c10::DataPtr pointer;
  std::size_t bytes;
};

}  // namespace

NPU_TEST(threads_allocate_and_free_each_others_blocks, {"NPU_MANUAL_MEMORY", "2048"}) {
  constexpr int kThreads = 4;
  constexpr int kSteps = 3000;
  npu::Stream* stream = npu::current_stream(0);
  npu::Stream* side = npu::stream_from_pool(0);
  std::mutex exchange_mutex;
  std::vector<c10::DataPtr> exchange;
  std::atomic<int> corrupted{0};
  const auto work = [&](unsigned seed) {
    std::mt19937 random(seed);
    std::vector<Owned> mine;
    for (int step = 0; step < kSteps; ++step) {
      const std::size_t bytes = 1 + random() % (random() % 10 == 0 ? 3'000'000 : 5'000);
      Owned block{caching_allocator().allocate_on(bytes, random() % 2 == 0 ? stream : side), bytes};
      fill(block.pointer, bytes, static_cast<std::uint8_t>(seed));
      if (random() % 8 == 0) caching_allocator().record_stream(block.pointer.get(), side);
      mine.push_back(std::move(block));
      if (mine.size() > 20) {
        const std::size_t index = random() % mine.size();
        if (!carries(mine[index].pointer, mine[index].bytes, static_cast<std::uint8_t>(seed))) ++corrupted;
        std::lock_guard lock(exchange_mutex);
        exchange.push_back(std::move(mine[index].pointer));
        mine.erase(mine.begin() + static_cast<std::ptrdiff_t>(index));
        if (exchange.size() > 50) exchange.erase(exchange.begin(), exchange.begin() + 25);
      }
      if (step % 500 == 0) {
        npu::driver().stream_synchronize(side->native, -1);
        caching_allocator().emptyCache();
        caching_allocator().snapshot();
      }
    }
  };
  std::vector<std::thread> threads;
  for (unsigned seed = 1; seed <= kThreads; ++seed) threads.emplace_back(work, seed);
  for (std::thread& thread : threads) thread.join();
  exchange.clear();
  CHECK_EQ(corrupted.load(), 0);
  caching_allocator().emptyCache();
  const auto stats = caching_allocator().getDeviceStats(0);
  CHECK_EQ(stats.allocated_bytes[0].current, 0);
  CHECK_EQ(stats.active_bytes[0].current, 0);
  CHECK_EQ(stats.requested_bytes[0].current, 0);
  CHECK_EQ(stats.inactive_split_bytes[0].current, 0);
  CHECK_EQ(stats.reserved_bytes[0].current, 0);
  CHECK_EQ(stats.allocation[0].allocated, kThreads * kSteps);
}

NPU_TEST(threads_share_a_small_device, {"NPU_MANUAL_MEMORY", "100"}) {
  // Each thread holds at most 20 MiB, so all fit at any time, but only if cached memory is given back in turn.
  std::atomic<int> refused{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int step = 0; step < 200; ++step) {
        try {
          const std::size_t bytes = (static_cast<std::size_t>((step * 31 + t * 7) % 9) + 10) << 20;
          const c10::DataPtr pointer = caching_allocator().allocate_on(bytes, npu::current_stream(0));
        } catch (const std::exception&) {
          ++refused;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(refused.load(), 0);
}
