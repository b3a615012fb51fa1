// garbage_collection_threshold: cached segments go, the longest unused first, before the device grows past the
// threshold.
#include <set>

#include "harness.h"
#include "runtime/caching_allocator.h"
#include "runtime/driver_loader.h"

using npu::caching_allocator;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

auto stats() { return caching_allocator().getDeviceStats(0); }
std::int64_t reserved() { return stats().reserved_bytes[0].current; }
c10::DataPtr allocate(std::size_t bytes) { return caching_allocator().allocate(bytes); }
// Each takes a segment of its own size plus 2 MiB.
c10::DataPtr segment(std::size_t mib) { return allocate(mib * kMiB); }

std::set<std::size_t> sizes() {
  std::set<std::size_t> all;
  for (const auto& segment : caching_allocator().snapshot()) all.insert(segment.total_size / kMiB);
  return all;
}

}  // namespace

NPU_TEST(garbage_goes_oldest_first, {"NPU_MANUAL_MEMORY", "200"},
         {"PYTORCH_NPU_ALLOC_CONF", "garbage_collection_threshold:0.5"}) {
  c10::DataPtr a = segment(20);
  c10::DataPtr b = segment(22);
  c10::DataPtr c = segment(24);
  CHECK_EQ(reserved(), static_cast<std::int64_t>(72 * kMiB));
  b.clear();
  a.clear();
  c.clear();
  // 28 MiB more just fit below 100: nothing goes.
  const c10::DataPtr d = segment(26);
  CHECK(sizes() == (std::set<std::size_t>{22, 24, 26, 28}));
  CHECK_EQ(stats().num_device_free, 0);
  // 32 more exceed it: the segment freed first goes (24), then the next (22), and that is enough; the youngest stays.
  const c10::DataPtr e = segment(30);
  CHECK(sizes() == (std::set<std::size_t>{26, 28, 32}));
  const auto now = stats();
  CHECK_EQ(now.num_device_free, 2);
  CHECK_EQ(now.segment[0].freed, 2);
  CHECK_EQ(now.reserved_bytes[0].freed, static_cast<std::int64_t>(46 * kMiB));
  CHECK_EQ(now.num_alloc_retries, 0);  // nothing had failed
}

NPU_TEST(using_a_cached_segment_makes_it_young, {"NPU_MANUAL_MEMORY", "200"},
         {"PYTORCH_NPU_ALLOC_CONF", "garbage_collection_threshold:0.4"}) {
  c10::DataPtr a = segment(20);
  c10::DataPtr b = segment(40);
  a.clear();
  b.clear();
  segment(20);  // from the cache, and back
  const c10::DataPtr c = segment(44);
  CHECK(sizes() == (std::set<std::size_t>{22, 46}));
}

NPU_TEST(garbage_is_measured_against_the_fraction, {"NPU_MANUAL_MEMORY", "200"},
         {"PYTORCH_NPU_ALLOC_CONF", "garbage_collection_threshold:0.5,per_process_memory_fraction:0.5"}) {
  segment(20);
  const c10::DataPtr fits = segment(24);
  CHECK(sizes() == (std::set<std::size_t>{22, 26}));
  const c10::DataPtr more = segment(22);  // 72 of at most 50
  CHECK(sizes() == (std::set<std::size_t>{24, 26}));
  caching_allocator().set_memory_fraction(1.0, 0);
  segment(16);
  const c10::DataPtr last = segment(30);  // 100 of 100
  CHECK(sizes() == (std::set<std::size_t>{18, 24, 26, 32}));
}

NPU_TEST(memory_in_use_is_no_garbage, {"NPU_MANUAL_MEMORY", "200"},
         {"PYTORCH_NPU_ALLOC_CONF", "garbage_collection_threshold:0.1"}) {
  const c10::DataPtr a = segment(20);
  c10::DataPtr pending = segment(22);
  npu::Stream* side = npu::stream_from_pool(0);
  caching_allocator().record_stream(pending.get(), side);
  npu::driver().memory_set(side->native, pending.get(), 1, 22 * kMiB);
  pending.clear();
  const c10::DataPtr c = segment(24);
  CHECK(sizes() == (std::set<std::size_t>{22, 24, 26}));
  CHECK(!npu::stream_query(side));  // collecting garbage waits for no other stream
}

NPU_TEST(garbage_waits_for_the_work_that_uses_it, {"NPU_MANUAL_MEMORY", "200"},
         {"PYTORCH_NPU_ALLOC_CONF", "garbage_collection_threshold:0.1"}) {
  c10::DataPtr a = segment(20);
  npu::Stream* stream = npu::current_stream(0);
  npu::driver().memory_set(stream->native, a.get(), 1, 20 * kMiB);
  a.clear();
  const c10::DataPtr b = segment(24);  // would unmap memory under the queued write otherwise
  CHECK(npu::stream_query(stream));
  CHECK(sizes() == (std::set<std::size_t>{26}));
}

NPU_TEST(without_a_threshold_the_cache_keeps_everything, {"NPU_MANUAL_MEMORY", "200"}) {
  segment(20);
  segment(40);
  segment(80);
  CHECK(sizes() == (std::set<std::size_t>{22, 42, 82}));
}
