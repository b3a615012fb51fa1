// Memory used by several streams.  The driver runs a stream only when a test waits for it, so "not yet finished" is a
// fact here, not a race.
#include <thread>

#include "harness.h"
#include "runtime/caching_allocator.h"
#include "runtime/driver_loader.h"
#include "runtime/event.h"

using npu::caching_allocator;

namespace {

constexpr std::size_t kBytes = 3000;

auto stats() { return caching_allocator().getDeviceStats(0); }
c10::DataPtr allocate() { return caching_allocator().allocate(kBytes); }
void queue_write(npu::Stream* stream, void* address) { npu::driver().memory_set(stream->native, address, 1, kBytes); }
void run(npu::Stream* stream) { npu::driver().stream_synchronize(stream->native, -1); }

}  // namespace

NPU_TEST(a_recorded_block_waits_for_its_other_stream) {
  npu::Stream* side = npu::stream_from_pool(0);
  c10::DataPtr pointer = allocate();
  void* const address = pointer.get();
  queue_write(side, address);
  caching_allocator().record_stream(address, side);
  pointer.clear();
  CHECK_EQ(stats().allocated_bytes[0].current, 0);
  CHECK_EQ(stats().active_bytes[0].current, 3072);
  CHECK_EQ(stats().requested_bytes[0].current, 3000);
  c10::DataPtr meanwhile = allocate();
  CHECK(meanwhile.get() != address);
  run(side);
  const c10::DataPtr after = allocate();
  CHECK(after.get() == address);
}

NPU_TEST(work_queued_after_the_free_is_not_waited_for) {
  npu::Stream* side = npu::stream_from_pool(0);
  c10::DataPtr pointer = allocate();
  void* const address = pointer.get();
  caching_allocator().record_stream(address, side);
  queue_write(side, address);
  pointer.clear();
  npu_event* passed = npu::create_event(false);
  npu::record_event(passed, side);
  c10::DataPtr scratch = caching_allocator().allocate_on(kBytes, side);
  queue_write(side, scratch.get());
  npu::synchronize_event(passed);
  CHECK(!npu::stream_query(side));
  CHECK(allocate().get() == address);
  npu::destroy_event(passed);
}

NPU_TEST(a_block_waits_for_all_of_its_streams) {
  npu::Stream* first = npu::stream_from_pool(0);
  npu::Stream* second = npu::stream_from_pool(1);  // of another device
  c10::DataPtr pointer = allocate();
  void* const address = pointer.get();
  for (npu::Stream* stream : {first, second, first}) {
    caching_allocator().record_stream(static_cast<char*>(address) + 100, stream);
    queue_write(stream, address);
  }
  pointer.clear();
  run(first);
  CHECK_EQ(stats().active_bytes[0].current, 3072);
  run(second);
  CHECK_EQ(stats().active_bytes[0].current, 0);
  CHECK(allocate().get() == address);
}

NPU_TEST(recording_the_own_stream_costs_nothing) {
  c10::DataPtr pointer = allocate();
  queue_write(npu::current_stream(0), pointer.get());
  caching_allocator().record_stream(pointer.get(), npu::current_stream(0));
  pointer.clear();
  CHECK_EQ(stats().active_bytes[0].current, 0);
}

NPU_TEST(erasing_a_stream_undoes_recording_it) {
  npu::Stream* side = npu::stream_from_pool(0);
  c10::DataPtr pointer = allocate();
  void* const address = pointer.get();
  queue_write(side, address);
  caching_allocator().record_stream(address, side);
  caching_allocator().erase_stream(address, side);
  pointer.clear();
  CHECK(allocate().get() == address);

  c10::DataPtr again = allocate();
  caching_allocator().record_stream(again.get(), side);
  queue_write(side, again.get());
  again.clear();
  CHECK_EQ(stats().active_bytes[0].current, 3072);
  caching_allocator().erase_stream(address, side);  // already freed: reusable at once
  CHECK_EQ(stats().active_bytes[0].current, 0);
}

NPU_TEST(recordStream_finds_the_block_through_the_pointer) {
  npu::Stream* side = npu::stream_from_pool(0);
  c10::DataPtr pointer = allocate();
  queue_write(side, pointer.get());
  caching_allocator().recordStream(pointer, c10::Stream(c10::Stream::UNSAFE, pointer.device(), side->id));
  pointer.clear();
  CHECK_EQ(stats().active_bytes[0].current, 3072);
  // Foreign and empty pointers are somebody else's business.
  c10::DataPtr foreign(&side, c10::Device(c10::DeviceType::PrivateUse1, 0));
  caching_allocator().recordStream(foreign, c10::Stream(c10::Stream::UNSAFE, foreign.device(), side->id));
  caching_allocator().recordStream(c10::DataPtr(), c10::Stream(c10::Stream::UNSAFE, foreign.device(), side->id));
  run(side);
}

NPU_TEST(empty_cache_finishes_pending_frees) {
  npu::Stream* side = npu::stream_from_pool(0);
  c10::DataPtr pointer = allocate();
  caching_allocator().record_stream(pointer.get(), side);
  queue_write(side, pointer.get());
  pointer.clear();
  caching_allocator().emptyCache();
  CHECK_EQ(stats().reserved_bytes[0].current, 0);
  CHECK_EQ(stats().num_sync_all_streams, 1);
}

NPU_TEST(frees_on_a_foreign_thread_are_marked_by_the_next_host_call) {
  npu::Stream* side = npu::stream_from_pool(0);
  c10::DataPtr pointer = allocate();
  void* const address = pointer.get();
  caching_allocator().record_stream(address, side);
  // A thread that has not used the runtime, as an engine's: it must not submit anything.
  std::thread([&] { pointer.clear(); }).join();
  CHECK(npu::stream_query(side));
  CHECK(allocate().get() != address);  // records the marker, which has not passed
  CHECK(!npu::stream_query(side));
  run(side);
  CHECK(stats().active_bytes[0].current == 0);
}

NPU_TEST(a_pending_block_shows_in_the_snapshot) {
  npu::Stream* side = npu::stream_from_pool(0);
  c10::DataPtr pointer = allocate();
  caching_allocator().record_stream(pointer.get(), side);
  queue_write(side, pointer.get());
  pointer.clear();
  const auto segment = caching_allocator().snapshot().at(0);
  CHECK(segment.blocks[0].active && !segment.blocks[0].allocated);
  CHECK_EQ(segment.active_size, 3072u);
  CHECK_EQ(segment.allocated_size, 0u);
  run(side);
}
