#include "runtime/pinned_memory.h"

#include <thread>

#include "harness.h"
#include "runtime/driver_loader.h"

namespace {

c10::DataPtr allocate(std::size_t bytes) { return npu::pinned_allocator()->allocate(bytes); }

}  // namespace

NPU_TEST(pinned_blocks_are_powers_of_two_and_reused) {
  c10::DataPtr pointer = allocate(1000);
  void* const address = pointer.get();
  CHECK(pointer.device().is_cpu());
  CHECK_EQ(npu::pinned_stats().active_bytes.current, 1024);
  CHECK_EQ(npu::pinned_stats().active_requests.current, 1);
  pointer.clear();
  CHECK_EQ(npu::pinned_stats().active_bytes.current, 0);
  CHECK_EQ(npu::pinned_stats().allocated_bytes.current, 1024);
  const c10::DataPtr again = allocate(600);
  CHECK(again.get() == address);
  CHECK_EQ(npu::pinned_stats().num_host_alloc, 1);
  CHECK(allocate(0).get() == nullptr);
}

NPU_TEST(only_live_pinned_memory_is_pinned) {
  CHECK(!npu::is_pinned(nullptr));
  int on_stack = 0;
  CHECK(!npu::is_pinned(&on_stack));
  c10::DataPtr pointer = allocate(4096);
  auto* const address = static_cast<char*>(pointer.get());
  CHECK(npu::is_pinned(address));
  CHECK(npu::is_pinned(address + 4095));
  CHECK(!npu::is_pinned(address + 4096));
  pointer.clear();
  CHECK(!npu::is_pinned(address));
}

NPU_TEST(pinned_blocks_wait_for_queued_copies) {
  npu::Stream* stream = npu::current_stream(0);
  c10::DataPtr pointer = allocate(1000);
  void* const address = pointer.get();
  npu::driver().memory_set(stream->native, address, 1, 1000);
  npu::pinned_record_stream(static_cast<char*>(address) + 10, stream);
  pointer.clear();
  c10::DataPtr other = allocate(1000);
  CHECK(other.get() != address);
  npu::pinned_empty_cache();  // does not touch the pending block
  CHECK_EQ(npu::pinned_stats().allocations.current, 2);
  npu::synchronize_stream(stream);
  CHECK(allocate(1000).get() == address);
}

NPU_TEST(pinned_frees_on_a_foreign_thread) {
  npu::Stream* stream = npu::current_stream(0);
  c10::DataPtr pointer = allocate(1000);
  void* const address = pointer.get();
  npu::pinned_record_stream(address, stream);
  std::thread([&] { pointer.clear(); }).join();
  CHECK(npu::stream_query(stream));
  CHECK(allocate(1000).get() != address);
  npu::synchronize_stream(stream);
  CHECK(allocate(1000).get() == address);
}

NPU_TEST(pinned_cache_is_given_back) {
  {
    const c10::DataPtr pointer = allocate(100'000);
  }
  npu::pinned_empty_cache();
  auto stats = npu::pinned_stats();
  CHECK_EQ(stats.allocated_bytes.current, 0);
  CHECK_EQ(stats.num_host_free, 1);
  CHECK_EQ(stats.active_bytes.peak, 131072);
  CHECK_EQ(stats.allocated_bytes.peak, 131072);
  npu::pinned_reset_peak_stats();
  CHECK_EQ(npu::pinned_stats().active_bytes.peak, 0);
}

NPU_TEST(pinned_memory_from_many_threads) {
  npu::Stream* stream = npu::current_stream(0);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::size_t i = 1; i < 1000; ++i) {
        const c10::DataPtr pointer = allocate(i * 64);
        static_cast<char*>(pointer.get())[i] = static_cast<char>(t);
        if (i % 5 == 0) npu::pinned_record_stream(pointer.get(), stream);
        if (i % 100 == 0) npu::driver().stream_synchronize(stream->native, -1);
        if (i % 300 == 0) npu::pinned_empty_cache();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(npu::pinned_stats().active_requests.current, 0);
  CHECK_EQ(npu::pinned_stats().active_bytes.current, 0);
}

NPU_TEST(pinned_statistics_add_up) {
  {
    const c10::DataPtr first = allocate(1000);
    const c10::DataPtr second = allocate(3000);
  }
  allocate(1000);
  npu::pinned_empty_cache();
  auto stats = npu::pinned_stats();
  CHECK_EQ(stats.active_requests.allocated, 3);
  CHECK_EQ(stats.active_requests.freed, 3);
  CHECK_EQ(stats.active_requests.peak, 2);
  CHECK_EQ(stats.active_bytes.allocated, 1024 + 4096 + 1024);
  CHECK_EQ(stats.active_bytes.freed, 1024 + 4096 + 1024);
  CHECK_EQ(stats.allocations.allocated, 2);
  CHECK_EQ(stats.allocations.freed, 2);
  CHECK_EQ(stats.allocated_bytes.allocated, 1024 + 4096);
  CHECK_EQ(stats.num_host_alloc, 2);
  CHECK_EQ(stats.num_host_free, 2);
  CHECK_EQ(stats.host_alloc_time.count, 2);
  CHECK_EQ(stats.host_free_time.count, 2);
  CHECK(stats.host_alloc_time.min <= stats.host_alloc_time.max);
  CHECK(stats.host_alloc_time.max <= stats.host_alloc_time.total);

  const c10::DataPtr kept = allocate(5000);
  npu::pinned_reset_accumulated_stats();
  npu::pinned_reset_peak_stats();
  stats = npu::pinned_stats();
  CHECK_EQ(stats.active_bytes.current, 8192);
  CHECK_EQ(stats.active_bytes.peak, 8192);
  CHECK_EQ(stats.active_bytes.allocated, 0);
  CHECK_EQ(stats.allocations.freed, 0);
  CHECK_EQ(stats.num_host_alloc, 0);
  CHECK_EQ(stats.num_host_free, 0);
  CHECK_EQ(stats.host_alloc_time.count, 0);
  CHECK_EQ(stats.host_alloc_time.total, 0);
  CHECK_EQ(stats.host_free_time.max, 0);
}
