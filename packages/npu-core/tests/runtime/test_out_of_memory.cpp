#include <c10/util/Exception.h>

#include <vector>

#include "harness.h"
#include "runtime/caching_allocator.h"
#include "runtime/driver_loader.h"
#include "runtime/out_of_memory.h"

using npu::caching_allocator;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

auto stats() { return caching_allocator().getDeviceStats(0); }
c10::DataPtr allocate(std::size_t bytes) { return caching_allocator().allocate(bytes); }

// The report of a request that fails; fails itself when it does not.
std::string report(std::size_t bytes) {
  try {
    allocate(bytes);
  } catch (const c10::OutOfMemoryError& error) {
    return error.msg();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

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

NPU_TEST(the_report_says_what_is_in_pieces, {"NPU_MANUAL_MEMORY", "64"}) {
  std::vector<c10::DataPtr> pieces;
  for (int i = 0; i < 12; ++i) pieces.push_back(allocate(5 * kMiB - 32));  // four fill a segment
  for (std::size_t i = 0; i < pieces.size(); i += 2) pieces[i].clear();
  const std::string text = report(12 * kMiB);
  CHECK(contains(text, "needs a block of 12.00 MiB on stream 0, and its pool would have to grow by 14.00 MiB."));
  CHECK(contains(text, "- Cached for that stream: 30.00 MiB in 6 blocks, the largest 5.00 MiB."));
  CHECK(contains(text, "- The driver: capacity exceeded."));
  CHECK(contains(text,
                 "Enough of the reserved memory is not allocated, but in pieces: "
                 "PYTORCH_NPU_ALLOC_CONF=expandable_segments:True"));
  CHECK(!contains(text, "fraction of"));
  CHECK(!contains(text, "emulated"));  // this driver does not say so
}

NPU_TEST(the_report_tells_a_limit_from_a_full_device, {"NPU_MANUAL_MEMORY", "100"}) {
  caching_allocator().set_memory_fraction(0.25, 0);
  const c10::DataPtr held = allocate(10 * kMiB);
  const std::string text = report(20 * kMiB);
  CHECK(contains(text, "- This process may hold 25.00 MiB, a fraction of 0.25 of the device."));
  CHECK(contains(text, "torch.npu.set_per_process_memory_fraction(f) with f above 0.25"));
  CHECK(!contains(text, "in pieces"));
  CHECK(!contains(text, "The driver:"));  // was not asked
}

NPU_TEST(the_report_names_memory_that_waits_for_streams, {"NPU_MANUAL_MEMORY", "64"},
         {"PYTORCH_NPU_ALLOC_CONF", "throw_on_npumalloc_oom:True"}) {
  c10::DataPtr used = allocate(30 * kMiB - 32);
  c10::DataPtr cached = caching_allocator().allocate_on(20 * kMiB - 32, npu::stream_from_pool(0));
  npu::Stream* side = npu::stream_from_pool(0);
  caching_allocator().record_stream(used.get(), side);
  npu::driver().memory_set(side->native, used.get(), 1, kMiB);
  used.clear();
  cached.clear();
  const std::string text = report(40 * kMiB);
  CHECK(contains(text, "- Cached for other streams or sizes: 20.00 MiB in 1 block."));
  CHECK(contains(text, "- Freed, but still used by other streams (record_stream): 30.00 MiB in 1 block."));
  CHECK(contains(text, "torch.npu.empty_cache()"));
  CHECK(contains(text, "torch.npu.synchronize()"));
}

NPU_TEST(the_report_counts_what_others_hold, {"NPU_MANUAL_MEMORY", "64"}) {
  npu::current_stream(0);
  void* foreign = nullptr;
  npu::driver().memory_map(0, 30 * kMiB, &foreign);
  const c10::DataPtr held = allocate(20 * kMiB - 32);
  CHECK(contains(report(20 * kMiB), "- Used on the device outside of this allocator: 30.00 MiB."));
}

NPU_TEST(observers_hear_of_running_out, {"NPU_MANUAL_MEMORY", "64"}) {
  std::vector<std::vector<std::size_t>> calls;
  for (int i = 0; i < 2; ++i)
    npu::attach_out_of_memory_observer(
        [&](int device, std::size_t requested, std::size_t capacity, std::size_t free_bytes) {
          calls.push_back({static_cast<std::size_t>(device), requested, capacity, free_bytes});
          stats();  // no lock is held
        });
  const c10::DataPtr held = allocate(40 * kMiB - 32);
  CHECK(calls.empty());
  report(30 * kMiB);
  CHECK_EQ(calls.size(), 2u);
  CHECK(calls[0] == (std::vector<std::size_t>{0, 30 * kMiB, 64 * kMiB, 24 * kMiB}));
  CHECK(calls[1] == calls[0]);
  caching_allocator().set_memory_fraction(0.5, 0);
  report(30 * kMiB);
  CHECK_EQ(calls.at(2).at(2), 32 * kMiB);
}
