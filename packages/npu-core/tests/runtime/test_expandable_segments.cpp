// expandable_segments:True: a stream's pool is one segment that grows, and what is free in it can be given back in
// part.
#include <array>
#include <cstring>
#include <vector>

#include "harness.h"
#include "runtime/caching_allocator.h"
#include "runtime/driver_loader.h"
#include "runtime/memory_history.h"

using npu::caching_allocator;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;
#define EXPANDABLE {"PYTORCH_NPU_ALLOC_CONF", "expandable_segments:True"}

auto stats() { return caching_allocator().getDeviceStats(0); }
std::int64_t reserved() { return stats().reserved_bytes[0].current; }
c10::DataPtr allocate(std::size_t bytes) { return caching_allocator().allocate(bytes); }
// A block of exactly this size.
c10::DataPtr block(std::size_t mib) { return allocate(mib * kMiB - 32); }

std::size_t free_on_device() {
  std::size_t free = 0;
  std::size_t total = 0;
  npu::driver().memory_info(0, &free, &total);
  return free;
}

void check_tiling() {
  std::size_t total = 0;
  for (const auto& segment : caching_allocator().snapshot()) {
    std::size_t covered = 0;
    for (const auto& piece : segment.blocks) covered += piece.size;
    CHECK_EQ(covered, segment.total_size);
    CHECK(segment.is_expandable);
    total += segment.total_size;
  }
  CHECK_EQ(static_cast<std::int64_t>(total), reserved());
}

}  // namespace

NPU_TEST(expandable_pool_is_one_segment, EXPANDABLE) {
  std::vector<c10::DataPtr> held;
  for (int i = 0; i < 5; ++i) {
    held.push_back(block(30));
    std::memset(held.back().get(), i, 30 * kMiB - 32);
  }
  const auto segments = caching_allocator().snapshot();
  CHECK_EQ(segments.size(), 1u);
  CHECK_EQ(segments[0].total_size, 150 * kMiB);
  CHECK(segments[0].is_expandable && segments[0].is_large);
  CHECK_EQ(stats().segment[0].current, 1);
  CHECK_EQ(stats().num_device_alloc, 5);
  for (int i = 0; i < 5; ++i)
    CHECK_EQ(static_cast<int>(*static_cast<char*>(held[static_cast<std::size_t>(i)].get())), i);
  check_tiling();
}

NPU_TEST(expandable_segments_grow_by_what_is_missing, EXPANDABLE, {"NPU_MANUAL_MEMORY", "100"}) {
  c10::DataPtr first = block(40);
  c10::DataPtr second = block(20);
  second.clear();
  // 20 MiB at the end are free: 50 need only 30 more.  Segments apart would need 40 + 20 + 50.
  const c10::DataPtr third = block(50);
  CHECK_EQ(reserved(), static_cast<std::int64_t>(90 * kMiB));
  CHECK_EQ(stats().num_alloc_retries, 0);
  first.clear();
  check_tiling();
}

NPU_TEST(expandable_segments_merge_across_what_was_mapped, EXPANDABLE, {"NPU_MANUAL_MEMORY", "100"}) {
  std::vector<c10::DataPtr> held;
  for (int i = 0; i < 4; ++i) held.push_back(block(20));
  for (c10::DataPtr& pointer : held) pointer.clear();
  const c10::DataPtr whole = block(80);
  CHECK_EQ(stats().num_device_alloc, 4);
  CHECK_EQ(reserved(), static_cast<std::int64_t>(80 * kMiB));
}

NPU_TEST(expandable_small_pool_grows_too, EXPANDABLE) {
  std::vector<c10::DataPtr> held;
  for (int i = 0; i < 20; ++i) held.push_back(allocate(1'000'000));
  CHECK_EQ(stats().segment[1].current, 1);
  CHECK_EQ(reserved(), static_cast<std::int64_t>(20 * kMiB));  // 20 x 1000448 bytes in steps of 2 MiB
  check_tiling();
}

NPU_TEST(empty_cache_gives_back_parts_of_an_expandable_segment, EXPANDABLE, {"NPU_MANUAL_MEMORY", "256"}) {
  std::vector<c10::DataPtr> held;
  for (int i = 0; i < 6; ++i) held.push_back(block(20));
  std::memset(held[1].get(), 7, 20 * kMiB - 32);
  for (const std::size_t i : {0, 2, 3, 5}) held[i].clear();
  CHECK_EQ(stats().inactive_split_bytes[0].current, static_cast<std::int64_t>(80 * kMiB));
  caching_allocator().emptyCache();
  CHECK_EQ(reserved(), static_cast<std::int64_t>(40 * kMiB));
  CHECK_EQ(free_on_device(), 216 * kMiB);
  CHECK_EQ(stats().num_device_free, 4);
  CHECK_EQ(stats().segment[0].current, 2);
  CHECK_EQ(stats().inactive_split_bytes[0].current, 0);
  check_tiling();
  CHECK_EQ(static_cast<int>(*static_cast<char*>(held[1].get())), 7);
  // It goes on growing, and everything can go in the end.
  const c10::DataPtr more = block(30);
  check_tiling();
  held.clear();
  caching_allocator().emptyCache();
  CHECK_EQ(reserved(), static_cast<std::int64_t>(30 * kMiB));
}

NPU_TEST(parts_in_use_of_an_expandable_segment_stay, EXPANDABLE) {
  c10::DataPtr a = block(20);
  c10::DataPtr b = block(20);
  c10::DataPtr c = block(20);
  c10::DataPtr across = allocate(1);
  b.clear();
  const c10::DataPtr part = block(5);  // at the start of b: its range is in use, 15 MiB of it free
  caching_allocator().emptyCache();
  CHECK_EQ(reserved(), static_cast<std::int64_t>(62 * kMiB));
  c.clear();
  caching_allocator().emptyCache();
  CHECK_EQ(reserved(), static_cast<std::int64_t>(42 * kMiB));
  check_tiling();
}

NPU_TEST(an_expandable_segment_that_cannot_grow_gets_a_second, EXPANDABLE) {
  npu::Stream* other = npu::stream_from_pool(0);
  const c10::DataPtr first = block(20);
  const c10::DataPtr between = caching_allocator().allocate_on(20 * kMiB - 32, other);
  const c10::DataPtr second = block(20);
  CHECK_EQ(caching_allocator().snapshot().size(), 3u);
  CHECK_EQ(reserved(), static_cast<std::int64_t>(60 * kMiB));
  const c10::DataPtr third = block(20);  // the second one grows
  CHECK_EQ(caching_allocator().snapshot().size(), 3u);
  check_tiling();
}

NPU_TEST(expandable_segments_keep_to_the_fraction, EXPANDABLE, {"NPU_MANUAL_MEMORY", "200"}) {
  caching_allocator().set_memory_fraction(0.25, 0);
  c10::DataPtr first = block(40);
  CHECK_THROWS(c10::OutOfMemoryError, block(12), "; 50.00 MiB allowed; 40.00 MiB reserved in total");
  const c10::DataPtr fits = block(10);
  first.clear();
  const c10::DataPtr again = block(40);
  CHECK_EQ(reserved(), static_cast<std::int64_t>(50 * kMiB));
}

NPU_TEST(a_full_device_takes_back_parts_of_expandable_segments, EXPANDABLE, {"NPU_MANUAL_MEMORY", "64"}) {
  npu::Stream* other = npu::stream_from_pool(0);
  c10::DataPtr first = block(20);
  const c10::DataPtr last = block(20);
  npu::driver().memory_set(npu::current_stream(0)->native, first.get(), 1, 20 * kMiB - 32);  // must run before it goes
  first.clear();
  const c10::DataPtr elsewhere = caching_allocator().allocate_on(40 * kMiB - 32, other);
  CHECK_EQ(stats().num_alloc_retries, 1);
  CHECK_EQ(reserved(), static_cast<std::int64_t>(60 * kMiB));
  check_tiling();
}

NPU_TEST(expandable_history_maps_and_unmaps, EXPANDABLE) {
  npu::current_stream(0);
  npu::HistoryOptions options;
  options.events = true;
  options.max_entries = 100;
  npu::record_memory_history(options, false);
  c10::DataPtr first = block(20);
  const c10::DataPtr second = block(30);
  const auto start = reinterpret_cast<std::size_t>(first.get());
  first.clear();
  caching_allocator().emptyCache();
  std::vector<std::array<std::size_t, 3>> mapped;
  const auto snapshot = npu::memory_snapshot_with_traces();
  for (const auto& entry : snapshot.traces.at(0))
    if (entry.action_ == npu::TraceEntry::SEGMENT_MAP || entry.action_ == npu::TraceEntry::SEGMENT_UNMAP)
      mapped.push_back({static_cast<std::size_t>(entry.action_ == npu::TraceEntry::SEGMENT_MAP), entry.addr_ - start,
                        entry.size_ / kMiB});
  CHECK(mapped == (std::vector<std::array<std::size_t, 3>>{{1, 0, 20}, {1, 20 * kMiB, 30}, {0, 0, 20}}));
}

NPU_TEST(expandable_random_walk, EXPANDABLE, {"NPU_MANUAL_MEMORY", "160"}) {
  std::vector<c10::DataPtr> window(12);
  npu::Stream* other = npu::stream_from_pool(0);
  for (std::size_t step = 0; step < 4000; ++step) {
    const std::size_t bytes = step % 3 == 0 ? (step * 7919) % 900'000 + 1 : ((step * 7919) % 19 + 1) * kMiB / 2;
    c10::DataPtr& slot = window[(step * 31) % window.size()];
    slot.clear();
    slot = caching_allocator().allocate_on(bytes, step % 5 == 0 ? other : npu::current_stream(0));
    static_cast<char*>(slot.get())[0] = static_cast<char*>(slot.get())[bytes - 1] = 1;
    if (step % 100 == 0) caching_allocator().emptyCache();
    if (step % 50 == 0) check_tiling();
  }
  window.clear();
  caching_allocator().emptyCache();
  CHECK_EQ(reserved(), 0);
  CHECK_EQ(stats().segment[0].current, 0);
  CHECK_EQ(stats().inactive_split[0].current, 0);
  CHECK_EQ(free_on_device(), 160 * kMiB);
}
