#include <c10/util/Exception.h>

#include <vector>

#include "harness.h"
#include "runtime/caching_allocator.h"
#include "runtime/driver_loader.h"

using npu::caching_allocator;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

auto stats() { return caching_allocator().getDeviceStats(0); }
c10::DataPtr allocate(std::size_t bytes) { return caching_allocator().allocate(bytes); }

}  // namespace

NPU_TEST(out_of_memory_is_reported, {"NPU_MANUAL_MEMORY", "64"}, {"RANK", "3"}) {
  const c10::DataPtr held = allocate(40 * kMiB);
  CHECK_THROWS(c10::OutOfMemoryError, allocate(30 * kMiB),
               "NPU out of memory. Tried to allocate 32.00 MiB (NPU 0; 64.00 MiB total capacity; 40.00 MiB already "
               "allocated; 40.00 MiB current active; 22.00 MiB free; 42.00 MiB reserved in total by PyTorch)");
  CHECK_THROWS(c10::OutOfMemoryError, allocate(30 * kMiB), "Device:0, RankID:3) ERR00006 PTA memory error");
  CHECK_EQ(stats().num_ooms, 2);
  CHECK_EQ(stats().num_alloc_retries, 2);
  const c10::DataPtr fits = allocate(10 * kMiB);  // the device stays usable
}

NPU_TEST(cached_memory_is_released_before_giving_up, {"NPU_MANUAL_MEMORY", "64"}) {
  c10::DataPtr first = allocate(40 * kMiB);
  npu::Stream* stream = npu::current_stream(0);
  npu::driver().memory_set(stream->native, first.get(), 1, 40 * kMiB);  // unmapping must wait for it
  first.clear();
  const c10::DataPtr second = allocate(50 * kMiB);
  CHECK_EQ(stats().num_alloc_retries, 1);
  CHECK_EQ(stats().num_ooms, 0);
  CHECK_EQ(stats().reserved_bytes[0].current, static_cast<std::int64_t>(52 * kMiB));
}

NPU_TEST(pending_memory_is_waited_for_before_giving_up, {"NPU_MANUAL_MEMORY", "64"}) {
  c10::DataPtr first = allocate(40 * kMiB);
  npu::Stream* side = npu::stream_from_pool(0);
  caching_allocator().record_stream(first.get(), side);
  npu::driver().memory_set(side->native, first.get(), 1, 40 * kMiB);
  first.clear();
  const c10::DataPtr second = allocate(50 * kMiB);
  CHECK_EQ(stats().num_sync_all_streams, 1);
  CHECK(npu::stream_query(side));
}

NPU_TEST(the_fraction_limits_one_device, {"NPU_MANUAL_MEMORY", "100"}) {
  auto& allocator = caching_allocator();
  CHECK_EQ(allocator.memory_fraction(0), 1.0);
  allocator.set_memory_fraction(0.4, 0);
  CHECK_EQ(allocator.memory_fraction(0), 0.4);
  const c10::DataPtr fits = allocate(39 * kMiB);
  CHECK_THROWS(c10::OutOfMemoryError, allocate(2 * kMiB), "; 40.00 MiB allowed; 40.00 MiB reserved in total");
  const c10::DataPtr other = allocator.allocate_on(50 * kMiB, npu::current_stream(1));
  allocator.set_memory_fraction(1.0, 0);
  const c10::DataPtr now = allocate(2 * kMiB);
  CHECK_THROWS(c10::ValueError, allocator.set_memory_fraction(1.5, 0), "Invalid fraction value: 1.5");
  CHECK_THROWS(c10::ValueError, allocator.set_memory_fraction(-0.1, 0), "Allowed range: 0~1");
  CHECK_THROWS(c10::Error, allocator.set_memory_fraction(0.5, 2), "Invalid device id");
}

NPU_TEST(the_fraction_can_come_from_the_environment, {"NPU_MANUAL_MEMORY", "100"},
         {"PYTORCH_NPU_ALLOC_CONF", "per_process_memory_fraction:0.25"}) {
  CHECK_THROWS(c10::OutOfMemoryError, allocate(26 * kMiB), "25.00 MiB allowed");
}

NPU_TEST(rejection_instead_of_retry, {"NPU_MANUAL_MEMORY", "64"},
         {"PYTORCH_NPU_ALLOC_CONF", "throw_on_npumalloc_oom:True"}) {
  allocate(40 * kMiB);
  CHECK_THROWS(c10::OutOfMemoryError, allocate(50 * kMiB), "NPU out of memory");
  CHECK_EQ(stats().num_oom_rejections, 1);
  CHECK_EQ(stats().num_alloc_retries, 0);
}

NPU_TEST(absurd_sizes_are_out_of_memory) {
  CHECK_THROWS(c10::OutOfMemoryError, allocate(~std::size_t{0} - 100), "more than 1 EiB");
}

NPU_TEST(a_failing_driver_is_retried_once) {
  npu::current_stream(0);
  npu_fault fault{};
  fault.kind = NPU_FAULT_FAIL_MAP;
  fault.count = 1;
  npu::driver().inject_fault(0, &fault);
  const c10::DataPtr pointer = allocate(100);
  CHECK(pointer.get() != nullptr);
  CHECK_EQ(stats().num_alloc_retries, 1);
}

// Blocks of growing size with the older ones freed: best fit and merging must keep the reserved memory near what is
// live, or this workload would not fit.
NPU_TEST(fragmentation_stays_bounded, {"NPU_MANUAL_MEMORY", "220"}) {
  std::vector<c10::DataPtr> window(8);
  for (std::size_t step = 0; step < 4000; ++step) {
    const std::size_t bytes = ((step * 7919) % 19 + 1) * kMiB / 2;
    window[step % window.size()].clear();
    window[step % window.size()] = allocate(bytes);
  }
  CHECK_EQ(stats().num_ooms, 0);
}
