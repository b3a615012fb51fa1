// Private memory pools, and memory that comes from elsewhere than the driver.
#include "runtime/memory_pool.h"

#include <cstdlib>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "harness.h"
#include "runtime/caching_allocator.h"
#include "runtime/driver_loader.h"

using npu::caching_allocator;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

auto stats() { return caching_allocator().getDeviceStats(0); }
std::int64_t reserved() { return stats().reserved_bytes[0].current; }
c10::DataPtr allocate(std::size_t bytes) { return caching_allocator().allocate(bytes); }

std::size_t held_by(c10::MempoolId_t id) {
  std::size_t bytes = 0;
  for (const auto& segment : caching_allocator().snapshot())
    if (segment.owner_private_pool_id == id) bytes += segment.total_size;
  return bytes;
}

// Makes the pool current while it lives.
struct Scope {
  explicit Scope(c10::MempoolId_t id) : id(id) { npu::begin_allocating_to_pool(0, id); }
  ~Scope() { npu::end_allocating_to_pool(0, id); }
  c10::MempoolId_t id;
};

class Heap final : public npu::SegmentSource {
 public:
  void* allocate(std::size_t bytes, int /*device*/, npu::Stream* stream) override {
    if (exhausted) return nullptr;
    void* address = std::malloc(bytes);
    live[address] = bytes;
    last_stream = stream;
    ++allocations;
    return address;
  }
  void free(void* address, std::size_t bytes, int /*device*/, npu::Stream* /*stream*/) override {
    wrong += live[address] != bytes;
    live.erase(address);
    std::free(address);
    ++frees;
  }

  std::map<void*, std::size_t> live;
  npu::Stream* last_stream = nullptr;
  int allocations = 0, frees = 0, wrong = 0;
  bool exhausted = false;
};

}  // namespace

NPU_TEST(pool_ids_are_never_used_twice) {
  const auto first = npu::new_memory_pool_id();
  const auto second = npu::new_memory_pool_id();
  CHECK(first != second && first.first == 0 && second.first == 0 && first.second != 0);
}

NPU_TEST(a_private_pool_is_apart) {
  const auto id = npu::new_memory_pool_id();
  npu::retain_memory_pool(0, id);
  CHECK_EQ(npu::memory_pool_uses(0, id), 1);
  const c10::DataPtr outside = allocate(1000);
  c10::DataPtr inside;
  {
    const Scope scope(id);
    CHECK_EQ(npu::memory_pool_uses(0, id), 2);
    inside = allocate(1000);
  }
  CHECK_EQ(npu::memory_pool_uses(0, id), 1);
  CHECK_EQ(held_by(id), 2 * kMiB);
  CHECK_EQ(held_by({0, 0}), 2 * kMiB);
  CHECK_EQ(reserved(), static_cast<std::int64_t>(4 * kMiB));
  CHECK_EQ(stats().allocated_bytes[0].current, 3072);
  void* const address = inside.get();
  inside.clear();
  CHECK(allocate(1000).get() != address);  // nobody else's
  {
    const Scope scope(id);
    CHECK(allocate(1000).get() == address);
  }
  npu::release_memory_pool(0, id);
  CHECK_EQ(npu::memory_pool_uses(0, id), 0);
  CHECK_EQ(held_by(id), 0u);
  CHECK_EQ(reserved(), static_cast<std::int64_t>(2 * kMiB));
  CHECK_THROWS(c10::Error, npu::release_memory_pool(0, id), "does not exist");
}

NPU_TEST(a_pool_concerns_the_thread_that_chose_it) {
  const auto id = npu::new_memory_pool_id();
  npu::retain_memory_pool(0, id);
  c10::DataPtr other;
  const Scope scope(id);
  std::thread([&] { other = allocate(1000); }).join();
  CHECK_EQ(held_by(id), 0u);
  const c10::DataPtr on_other_device = caching_allocator().allocate_on(1000, npu::current_stream(1));
  CHECK_EQ(held_by(id), 0u);
  const c10::DataPtr mine = allocate(1000);
  CHECK_EQ(held_by(id), 2 * kMiB);
}

NPU_TEST(pools_nest) {
  const auto outer = npu::new_memory_pool_id();
  const auto inner = npu::new_memory_pool_id();
  const Scope first(outer);
  std::vector<c10::DataPtr> held;
  {
    const Scope second(inner);
    held.push_back(allocate(5 * kMiB));
    CHECK_EQ(held_by(outer), 0u);
    CHECK_EQ(held_by(inner), 20 * kMiB);
  }
  held.push_back(allocate(5 * kMiB));
  CHECK_EQ(held_by(outer), 20 * kMiB);
  CHECK_THROWS(c10::Error, npu::end_allocating_to_pool(0, inner), "does not allocate to this pool");
}

NPU_TEST(live_memory_outlasts_its_pool) {
  const auto id = npu::new_memory_pool_id();
  c10::DataPtr kept;
  {
    const Scope scope(id);
    kept = allocate(5 * kMiB);
  }
  CHECK_EQ(npu::memory_pool_uses(0, id), 0);
  CHECK_EQ(held_by(id), 20 * kMiB);
  static_cast<char*>(kept.get())[0] = 1;
  kept.clear();
  caching_allocator().emptyCache();
  CHECK_EQ(reserved(), 0);
}

NPU_TEST(emptying_the_cache_spares_pools_in_use, {"NPU_MANUAL_MEMORY", "64"}) {
  const auto id = npu::new_memory_pool_id();
  npu::retain_memory_pool(0, id);
  {
    const Scope scope(id);
    allocate(20 * kMiB);
  }
  caching_allocator().emptyCache();
  CHECK_EQ(held_by(id), 22 * kMiB);
  CHECK_THROWS(c10::OutOfMemoryError, allocate(50 * kMiB),
               "- Held by private memory pools: 22.00 MiB, of which 0 bytes are allocated.");
  CHECK_THROWS(c10::OutOfMemoryError, allocate(50 * kMiB), "Dropping memory pools");
  caching_allocator().emptyCache(id);
  CHECK_EQ(held_by(id), 0u);
  CHECK_EQ(npu::memory_pool_uses(0, id), 1);
  allocate(50 * kMiB);
  npu::release_memory_pool(0, id);
}

NPU_TEST(a_pool_may_lend_its_memory, {"NPU_MANUAL_MEMORY", "64"}) {
  const auto id = npu::new_memory_pool_id();
  npu::retain_memory_pool(0, id, {.use_on_oom = true, .no_split = false, .source = nullptr});
  {
    const Scope scope(id);
    allocate(40 * kMiB);
  }
  const c10::DataPtr borrowed = allocate(38 * kMiB);
  CHECK_EQ(held_by(id), 42 * kMiB);
  CHECK_EQ(held_by({0, 0}), 0u);
  CHECK_EQ(stats().num_ooms, 0);
  const c10::DataPtr own = allocate(10 * kMiB);  // as long as the device has memory, that is used
  CHECK_EQ(held_by({0, 0}), 12 * kMiB);
}

NPU_TEST(a_pool_may_leave_blocks_whole) {
  const auto id = npu::new_memory_pool_id();
  npu::retain_memory_pool(0, id, {.use_on_oom = false, .no_split = true, .source = nullptr});
  const Scope scope(id);
  const c10::DataPtr first = allocate(1000);
  const c10::DataPtr second = allocate(1000);
  CHECK_EQ(held_by(id), 4 * kMiB);
  CHECK_EQ(stats().allocated_bytes[0].current, static_cast<std::int64_t>(4 * kMiB));
}

NPU_TEST(pool_memory_waits_for_other_streams) {
  const auto id = npu::new_memory_pool_id();
  npu::retain_memory_pool(0, id);
  npu::Stream* side = npu::stream_from_pool(0);
  const Scope scope(id);
  c10::DataPtr pointer = allocate(1000);
  void* const address = pointer.get();
  caching_allocator().record_stream(address, side);
  npu::driver().memory_set(side->native, address, 1, 1000);
  pointer.clear();
  CHECK(allocate(1000).get() != address);
  npu::driver().stream_synchronize(side->native, -1);
  CHECK_EQ(stats().active_bytes[0].current, 0);
}

NPU_TEST(a_pool_may_have_a_source_of_its_own) {
  const auto heap = std::make_shared<Heap>();
  const auto id = npu::new_memory_pool_id();
  npu::retain_memory_pool(0, id, {.use_on_oom = false, .no_split = false, .source = heap});
  {
    const Scope scope(id);
    const c10::DataPtr first = allocate(1000);
    const c10::DataPtr second = allocate(1000);
    CHECK_EQ(heap->allocations, 1);  // cached and split like any other
    CHECK(heap->last_stream == npu::current_stream(0));
    CHECK(heap->live.count(first.get()) == 1);
  }
  const c10::DataPtr outside = allocate(1000);
  CHECK_EQ(heap->allocations, 1);
  npu::release_memory_pool(0, id);
  CHECK_EQ(heap->frees, 1);
  CHECK_EQ(heap->wrong, 0);
}

NPU_TEST(all_memory_may_come_from_elsewhere) {
  const auto heap = std::make_shared<Heap>();
  npu::change_segment_source(heap);
  npu::Stream* stream = npu::current_stream(0);
  c10::DataPtr pointer = allocate(1000);
  CHECK_EQ(heap->live.at(pointer.get()), 1000u);
  CHECK_EQ(heap->allocations, 1);
  npu::driver().memory_set(stream->native, pointer.get(), 1, 1000);
  pointer.clear();
  CHECK(npu::stream_query(stream));  // the queued write ran before the memory went
  CHECK_EQ(heap->frees, 1);
  npu::Stream* side = npu::stream_from_pool(0);
  c10::DataPtr shared = allocate(1'000'000'000);
  caching_allocator().record_stream(shared.get(), side);
  npu::driver().memory_set(side->native, shared.get(), 1, 10);
  // A driver's thread frees it: it must not wait, so the memory goes with the next call.
  std::thread([&] { shared.clear(); }).join();
  CHECK_EQ(heap->frees, 1);
  npu::driver().stream_synchronize(side->native, -1);
  npu::driver().stream_synchronize(stream->native, -1);
  caching_allocator().emptyCache();
  CHECK_EQ(heap->frees, 2);
  CHECK_EQ(reserved(), 0);
  heap->exhausted = true;
  CHECK_THROWS(c10::OutOfMemoryError, allocate(10), "- The driver: the pluggable allocator returned no memory.");
  CHECK_EQ(heap->wrong, 0);
  CHECK_THROWS(c10::Error, npu::change_segment_source(heap), "Can't swap an already initialized allocator");
}

NPU_TEST(the_source_cannot_change_under_memory) {
  allocate(10);
  CHECK_THROWS(c10::Error, npu::change_segment_source(std::make_shared<Heap>()),
               "Can't swap an already initialized allocator");
}

NPU_TEST(pools_from_many_threads) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([] {
      for (int round = 0; round < 30; ++round) {
        const auto id = npu::new_memory_pool_id();
        c10::DataPtr kept;
        const Scope scope(id);
        for (std::size_t i = 1; i < 40; ++i) {
          kept = allocate(i * 1000);
          static_cast<char*>(kept.get())[i] = 1;
        }
        if (round % 7 == 0) caching_allocator().emptyCache();
        if (round % 10 == 0) caching_allocator().snapshot();
      }
    });
  for (std::thread& thread : threads) thread.join();
  caching_allocator().emptyCache();
  CHECK_EQ(reserved(), 0);
  CHECK_EQ(stats().active_bytes[0].current, 0);
}
