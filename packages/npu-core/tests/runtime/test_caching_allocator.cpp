#include "runtime/caching_allocator.h"

#include <c10/util/Exception.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "harness.h"
#include "runtime/device.h"
#include "runtime/driver_loader.h"

using npu::caching_allocator;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

auto stats(int device = 0) { return caching_allocator().getDeviceStats(static_cast<c10::DeviceIndex>(device)); }
std::int64_t allocated(int device = 0) { return stats(device).allocated_bytes[0].current; }
std::int64_t reserved(int device = 0) { return stats(device).reserved_bytes[0].current; }
c10::DataPtr allocate(std::size_t bytes) { return caching_allocator().allocate(bytes); }

void check_request(std::size_t bytes, std::int64_t block, std::int64_t segment, bool small) {
  caching_allocator().emptyCache();
  CHECK_EQ(reserved(), 0);
  const c10::DataPtr pointer = allocate(bytes);
  const auto now = stats();
  const std::size_t pool = small ? 1 : 2;
  CHECK_EQ(now.allocated_bytes[0].current, block);
  CHECK_EQ(now.allocated_bytes[pool].current, block);
  CHECK_EQ(now.reserved_bytes[pool].current, segment);
  CHECK_EQ(now.reserved_bytes[0].current, segment);
  CHECK_EQ(now.requested_bytes[0].current, static_cast<std::int64_t>(bytes));
  CHECK_EQ(now.allocation[pool].current, 1);
  CHECK_EQ(now.segment[pool].current, 1);
}

}  // namespace

NPU_TEST(documented_sizes) {
  check_request(40, 512, 2097152, true);
  check_request(481, 1024, 2097152, true);
  check_request(1048544, 1048576, 2097152, true);
  // The remainder of a large segment above 1 MiB is split off.
  check_request(1048576, 1049088, 20971520, false);
  // 12582912 - 10486272 leaves more than 1 MiB, too.
  check_request(10485760, 10486272, 12582912, false);
}

NPU_TEST(nothing_is_allocated_for_zero_bytes) {
  const c10::DataPtr pointer = allocate(0);
  CHECK(pointer.get() == nullptr);
  CHECK(pointer.device() == c10::Device(c10::DeviceType::PrivateUse1, 0));
  CHECK_EQ(stats().allocation[0].allocated, 0);
}

NPU_TEST(the_pointer_names_its_device) {
  const c10::DataPtr pointer = caching_allocator().allocate_on(100, npu::current_stream(1));
  CHECK(pointer.device() == c10::Device(c10::DeviceType::PrivateUse1, 1));
  CHECK_EQ(allocated(0), 0);
  CHECK_EQ(allocated(1), 512);
  std::memset(pointer.get(), 1, 512);
}

NPU_TEST(a_freed_block_is_reused_by_its_stream_only) {
  c10::DataPtr pointer = allocate(3000);
  void* const address = pointer.get();
  pointer.clear();
  npu::Stream* other = npu::stream_from_pool(0);
  const c10::DataPtr elsewhere = caching_allocator().allocate_on(3000, other);
  CHECK(elsewhere.get() != address);
  const c10::DataPtr again = allocate(3000);
  CHECK(again.get() == address);
}

NPU_TEST(peaks_and_totals) {
  {
    const c10::DataPtr a = allocate(1000);
    const c10::DataPtr b = allocate(1000);
  }
  auto now = stats();
  CHECK_EQ(now.allocated_bytes[0].peak, 3072);
  CHECK_EQ(now.allocated_bytes[0].current, 0);
  CHECK_EQ(now.allocated_bytes[0].allocated, 3072);
  CHECK_EQ(now.allocated_bytes[0].freed, 3072);
  CHECK_EQ(now.inactive_split[0].current, 0);
  caching_allocator().resetPeakStats(0);
  caching_allocator().resetAccumulatedStats(0);
  now = stats();
  CHECK_EQ(now.allocated_bytes[0].peak, 0);
  CHECK_EQ(now.allocated_bytes[0].allocated, 0);
  CHECK_EQ(now.reserved_bytes[0].current, 2097152);
}

NPU_TEST(inactive_splits_are_the_free_pieces_of_used_segments) {
  const c10::DataPtr a = allocate(1000);
  c10::DataPtr b = allocate(1000);
  const c10::DataPtr c = allocate(1000);
  CHECK_EQ(stats().inactive_split[0].current, 1);
  CHECK_EQ(stats().inactive_split_bytes[0].current, 2097152 - 3 * 1536);
  b.clear();
  CHECK_EQ(stats().inactive_split[0].current, 2);
  CHECK_EQ(stats().inactive_split_bytes[0].current, 2097152 - 2 * 1536);
}

NPU_TEST(raw_memory_by_address) {
  auto& allocator = caching_allocator();
  void* const address = allocator.raw_allocate(5000, npu::current_stream(0));
  CHECK_EQ(allocated(), 5120);
  void* base = nullptr;
  std::size_t size = 0;
  CHECK(allocator.find_block(static_cast<char*>(address) + 4000, &base, &size));
  CHECK(base == address);
  CHECK_EQ(size, 5120u);
  CHECK(!allocator.find_block(&size, &base, &size));
  CHECK_THROWS(c10::Error, allocator.raw_free(static_cast<char*>(address) + 512), "invalid device pointer");
  CHECK_THROWS(c10::Error, allocator.raw_free(&size), "invalid device pointer");
  const c10::DataPtr tensor = allocate(5000);
  CHECK_THROWS(c10::Error, allocator.raw_free(tensor.get()), "invalid device pointer");
  allocator.raw_free(address);
  CHECK_THROWS(c10::Error, allocator.raw_free(address), "invalid device pointer");
  CHECK(!allocator.find_block(address, &base, &size));
  CHECK_EQ(allocated(), 5120);
}

NPU_TEST(empty_cache_keeps_segments_in_use) {
  const c10::DataPtr kept = allocate(100);
  c10::DataPtr large = allocate(8 * kMiB);
  large.clear();
  caching_allocator().emptyCache();
  const auto now = stats();
  CHECK_EQ(now.reserved_bytes[0].current, 2097152);
  CHECK_EQ(now.num_device_free, 1);
  std::size_t free_bytes = 0;
  std::size_t total = 0;
  npu::driver().memory_info(0, &free_bytes, &total);
  CHECK_EQ(total - free_bytes, 2097152u);
  CHECK_THROWS(c10::Error, caching_allocator().emptyCache({0, 7}), "does not exist");
}

NPU_TEST(snapshot_blocks_tile_their_segment) {
  const c10::DataPtr a = allocate(1000);
  const c10::DataPtr b = allocate(3 * kMiB);
  const auto segments = caching_allocator().snapshot();
  CHECK_EQ(segments.size(), 2u);
  for (const auto& segment : segments) {
    std::size_t covered = 0;
    for (const auto& block : segment.blocks) covered += block.size;
    CHECK_EQ(covered, segment.total_size);
    CHECK(!segment.is_expandable);
    CHECK(segment.blocks[0].allocated && segment.blocks[0].active);
    CHECK(!segment.blocks[1].allocated && !segment.blocks[1].active);
    CHECK_EQ(segment.blocks[0].requested_size, segment.is_large ? 3 * kMiB : 1000u);
    CHECK_EQ(segment.address, reinterpret_cast<std::size_t>((segment.is_large ? b : a).get()));
  }
}

NPU_TEST(expandable_segments_are_reported, {"PYTORCH_NPU_ALLOC_CONF", "expandable_segments:True"}) {
  const c10::DataPtr a = allocate(1000);
  CHECK(caching_allocator().snapshot()[0].is_expandable);
}

NPU_TEST(bad_configuration_is_reported_at_first_use, {"PYTORCH_NPU_ALLOC_CONF", "nonsense:1"}) {
  CHECK_THROWS(c10::Error, allocate(1), "Unrecognized key 'nonsense'");
}

NPU_TEST(oversize_blocks_are_not_split, {"PYTORCH_NPU_ALLOC_CONF", "max_split_size_mb:21"}) {
  c10::DataPtr big = allocate(60 * kMiB);
  auto now = stats();
  CHECK_EQ(now.oversize_allocations.current, 1);
  CHECK_EQ(now.oversize_segments.current, 1);
  CHECK_EQ(now.max_split_size, static_cast<std::int64_t>(21 * kMiB));
  big.clear();
  // Neither a small request nor one that wastes 20 MiB or more takes the block.
  const c10::DataPtr small = allocate(5 * kMiB);
  const c10::DataPtr medium = allocate(30 * kMiB);
  CHECK_EQ(stats().segment[0].current, 3);
  const c10::DataPtr near = allocate(50 * kMiB);
  now = stats();
  CHECK_EQ(now.segment[0].current, 3);
  CHECK_EQ(now.oversize_allocations.current, 2);
}

NPU_TEST(without_caching_every_free_returns_the_memory, {"PYTORCH_NO_NPU_MEMORY_CACHING", "1"}) {
  c10::DataPtr pointer = allocate(1000);
  CHECK_EQ(reserved(), 4096);  // the driver's granularity
  CHECK_EQ(allocated(), 4096);
  npu::Stream* stream = npu::current_stream(0);
  // Queued work may still use the memory: it goes once the stream has passed.
  npu::driver().memory_set(stream->native, pointer.get(), 1, 1000);
  pointer.clear();
  CHECK_EQ(allocated(), 0);
  CHECK_EQ(reserved(), 4096);
  npu::synchronize_stream(stream);
  CHECK_EQ(reserved(), 0);
  CHECK_EQ(stats().num_device_free, 1);
}

NPU_TEST(empty_cache_waits_for_queued_work) {
  c10::DataPtr pointer = allocate(1000);
  npu::Stream* stream = npu::current_stream(0);
  npu::driver().memory_set(stream->native, pointer.get(), 1, 1000);
  pointer.clear();
  CHECK(!npu::stream_query(stream));
  caching_allocator().emptyCache();  // would be a write to unmapped memory otherwise
  CHECK(npu::stream_query(stream));
  CHECK_EQ(reserved(), 0);
}

NPU_TEST(frees_in_a_forked_child_are_harmless) {
  c10::DataPtr pointer = allocate(1000);
  const pid_t child = fork();
  if (child == 0) {
    pointer.clear();
    bool refused = false;
    try {
      caching_allocator().allocate(100);
    } catch (const c10::Error& error) {
      refused = std::strstr(error.what(), "Cannot re-initialize NPU in forked subprocess") != nullptr;
    }
    caching_allocator().emptyCache();
    _exit(refused ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK_EQ(status, 0);
  CHECK_EQ(allocated(), 1536);
}

NPU_TEST(frees_after_shutdown_are_harmless) {
  c10::DataPtr plain = allocate(1000);
  c10::DataPtr shared = allocate(1000);
  caching_allocator().record_stream(shared.get(), npu::stream_from_pool(0));
  npu::finalize();
  plain.clear();
  shared.clear();
  CHECK_EQ(stats().active_bytes[0].current, 0);
}

NPU_TEST(copy_data_copies_in_stream_order) {
  const c10::DataPtr source = allocate(256);
  const c10::DataPtr target = allocate(256);
  std::memset(source.get(), 7, 256);
  caching_allocator().copy_data(target.get(), source.get(), 256);
  npu::synchronize_stream(npu::current_stream(0));
  CHECK_EQ(std::memcmp(source.get(), target.get(), 256), 0);
}
