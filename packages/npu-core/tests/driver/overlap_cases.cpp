// Who runs beside whom: engines, blocking tasks, parked streams, priorities.
#include <mutex>

#include "suite.h"

namespace npu::conformance {
namespace {

constexpr size_t kLarge = 32 << 20;

void nothing() {}

}  // namespace

DRIVER_CASE(a_large_copy_runs_beside_a_compute_task) {
  Stream computing, copying;
  DeviceMemory source(kLarge), target(kLarge);
  source.data()[kLarge - 1] = 42;
  // Also when the compute engine has just served the copying stream and may still look after it.
  for (int used_before = 0; used_before < 2; ++used_before) {
    target.data()[kLarge - 1] = 0;
    if (used_before == 1) {
      submit(copying, NPU_TASK_COMPUTE, nothing);
      synchronize(copying);
    }
    Gate gate;
    gate.hold(computing);
    gate.await_entered();
    CHECK_OK(driver().memory_copy(copying, target.address, source.address, kLarge));
    synchronize(copying);
    CHECK_EQUAL(static_cast<int>(target.data()[kLarge - 1]), 42);
    CHECK_EQUAL(driver().stream_query(computing), NPU_ERROR_NOT_READY);
    gate.open();
    synchronize(computing);
  }
}

DRIVER_CASE(copy_and_blocking_tasks_run_beside_a_compute_task) {
  for (npu_task_kind kind : {NPU_TASK_COPY, NPU_TASK_BLOCKING}) {
    for (int used_before = 0; used_before < 2; ++used_before) {
      Stream computing, other;
      if (used_before == 1) submit(other, NPU_TASK_COMPUTE, nothing);
      if (used_before == 1) synchronize(other);
      Gate gate;
      gate.hold(computing);
      gate.await_entered();
      std::atomic<bool> ran{false};
      submit(other, kind, [&ran] { ran = true; });
      synchronize(other);
      CHECK(ran);
      CHECK_EQUAL(driver().stream_query(computing), NPU_ERROR_NOT_READY);
    }
  }
}

DRIVER_CASE(a_compute_task_runs_beside_copy_and_blocking_tasks) {
  Stream copying, blocked, computing;
  Gate gate;
  gate.hold(copying, NPU_TASK_COPY);
  gate.hold(blocked, NPU_TASK_BLOCKING);
  gate.await_entered(2);
  std::atomic<bool> ran{false};
  submit(computing, NPU_TASK_COMPUTE, [&ran] { ran = true; });
  synchronize(computing);
  CHECK(ran);
}

DRIVER_CASE(blocking_tasks_of_many_streams_wait_for_each_other) {
  // The members of a collective, all in one process: each task ends only when all have started.
  const int members = 12;
  std::vector<Stream> streams;
  for (int i = 0; i < members; ++i) streams.emplace_back(0);
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> arrived{0};
    for (auto& stream : streams) {
      submit(stream, NPU_TASK_BLOCKING, [&arrived] {
        ++arrived;
        while (arrived < members) std::this_thread::yield();
      });
    }
    for (auto& stream : streams) synchronize(stream);
  }
}

DRIVER_CASE(a_blocking_task_may_wait_for_a_compute_task_of_another_stream) {
  Stream waiting, computing;
  std::atomic<bool> computed{false};
  submit(waiting, NPU_TASK_BLOCKING, [&computed] {
    while (!computed) std::this_thread::yield();
  });
  sleep_ms(5);
  submit(computing, NPU_TASK_COMPUTE, [&computed] { computed = true; });
  synchronize(waiting);
}

DRIVER_CASE(a_waiting_stream_holds_no_engine) {
  Stream gated, waiting_compute, waiting_copy, free_stream;
  Event event;
  Gate gate;
  DeviceMemory memory(kLarge), other_memory(64);
  gate.hold(gated, NPU_TASK_BLOCKING);
  CHECK_OK(driver().event_record(event, gated));
  std::atomic<int> ran{0};
  submit(waiting_compute, NPU_TASK_COMPUTE, nothing);
  CHECK_OK(driver().event_wait(event, waiting_compute));
  submit(waiting_compute, NPU_TASK_COMPUTE, [&ran] { ++ran; });
  CHECK_OK(driver().memory_set(waiting_copy, memory.address, 1, kLarge));
  CHECK_OK(driver().event_wait(event, waiting_copy));
  CHECK_OK(driver().memory_set(waiting_copy, memory.address, 2, kLarge));
  for (int i = 0; i < 100; ++i) submit(free_stream, NPU_TASK_COMPUTE, nothing);
  CHECK_OK(driver().memory_set(free_stream, other_memory.data(), 3, 64));
  submit(free_stream, NPU_TASK_COPY, nothing);
  synchronize(free_stream);
  CHECK_EQUAL(ran.load(), 0);
  CHECK_EQUAL(driver().stream_query(waiting_compute), NPU_ERROR_NOT_READY);
  CHECK_EQUAL(driver().stream_query(waiting_copy), NPU_ERROR_NOT_READY);
  gate.open();
  synchronize(waiting_compute);
  synchronize(waiting_copy);
  CHECK_EQUAL(ran.load(), 1);
  CHECK_EQUAL(static_cast<int>(memory.data()[0]), 2);
}

DRIVER_CASE(compute_tasks_never_run_at_the_same_time) {
  // One thread runs them all: it owns the thread team of the kernels.
  int32_t devices = 0;
  CHECK_OK(driver().device_count(&devices));
  std::vector<Stream> streams;
  for (int i = 0; i < 6; ++i) streams.emplace_back(i % devices, i % 3 - 1);
  std::atomic<int> inside{0}, overlaps{0}, foreign{0};
  std::atomic<std::thread::id> engine{};
  for (int i = 0; i < 600 / kScale; ++i) {
    for (auto& stream : streams) {
      submit(stream, NPU_TASK_COMPUTE, [&] {
        if (++inside > 1) ++overlaps;
        std::thread::id none;
        if (!engine.compare_exchange_strong(none, std::this_thread::get_id()) && none != std::this_thread::get_id()) {
          ++foreign;
        }
        --inside;
      });
    }
    if (i % 50 == 0) submit(streams[0], NPU_TASK_BLOCKING, nothing);
  }
  for (auto& stream : streams) synchronize(stream);
  CHECK_EQUAL(overlaps.load(), 0);
  if (driver_is_host()) CHECK_EQUAL(foreign.load(), 0);
}

DRIVER_CASE(streams_of_equal_priority_share_the_engine) {
  Stream gated, first, second;
  Gate gate;
  gate.hold(gated);
  gate.await_entered();
  std::vector<char> order;
  for (int i = 0; i < 200; ++i) submit(first, NPU_TASK_COMPUTE, [&order] { order.push_back('1'); });
  for (int i = 0; i < 200; ++i) submit(second, NPU_TASK_COMPUTE, [&order] { order.push_back('2'); });
  gate.open();
  synchronize(first);
  synchronize(second);
  size_t first_done = 0, second_begun = order.size();
  for (size_t i = 0; i < order.size(); ++i) {
    if (order[i] == '1') first_done = i;
    if (order[i] == '2' && second_begun == order.size()) second_begun = i;
  }
  CHECK_EQUAL(order.size(), 400);
  CHECK(second_begun < 100);  // not after all of the first stream
  CHECK(first_done > 250);
}

DRIVER_CASE(urgent_streams_run_first) {
  Stream gated, low(0, 5), normal(0, 0), high(0, -1);
  Gate gate;
  gate.hold(gated);
  gate.await_entered();
  std::vector<char> order;
  for (int i = 0; i < 30; ++i) submit(low, NPU_TASK_COMPUTE, [&order] { order.push_back('l'); });
  for (int i = 0; i < 30; ++i) submit(normal, NPU_TASK_COMPUTE, [&order] { order.push_back('n'); });
  for (int i = 0; i < 30; ++i) submit(high, NPU_TASK_COMPUTE, [&order] { order.push_back('h'); });
  gate.open();
  for (auto* stream : {&low, &normal, &high}) synchronize(*stream);
  std::string expected = std::string(30, 'h') + std::string(30, 'n') + std::string(30, 'l');
  CHECK_EQUAL(std::string(order.begin(), order.end()), expected);
}

DRIVER_CASE(an_urgent_task_overtakes_a_running_stream) {
  Stream normal(0, 0), high(0, -1);
  for (int used_before = 0; used_before < 2; ++used_before) {
    if (used_before == 1) {
      submit(high, NPU_TASK_COMPUTE, nothing);
      synchronize(high);
    }
    std::atomic<int> ran{0};
    std::atomic<int> overtaken{-1};
    Gate gate;
    gate.hold(normal);
    for (int i = 0; i < 200; ++i) submit(normal, NPU_TASK_COMPUTE, [&ran] { ++ran; });
    gate.await_entered();
    submit(high, NPU_TASK_COMPUTE, [&] { overtaken = ran.load(); });
    gate.open();
    synchronize(normal);
    synchronize(high);
    CHECK(overtaken >= 0);
    CHECK(overtaken <= 2);
  }
}

}  // namespace npu::conformance
