// Streams as queues: order, asynchrony, payloads, back-pressure, many producers.
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <mutex>

#include "suite.h"

namespace npu::conformance {
namespace {

// Whether a thread of this process sleeps in the kernel.
bool sleeps(int thread) {
  const std::string path = "/proc/self/task/" + std::to_string(thread) + "/stat";
  char state = '?';
  if (FILE* file = fopen(path.c_str(), "re")) {
    if (fscanf(file, "%*d (%*[^)]) %c", &state) != 1) state = '?';
    fclose(file);
  }
  return state == 'S';
}

}  // namespace

DRIVER_CASE(tasks_run_in_submission_order) {
  Stream stream;
  std::vector<int> ran;  // written by one task at a time
  const int count = 20000 / kScale;
  for (int i = 0; i < count; ++i) {
    submit(stream, NPU_TASK_COMPUTE, [&ran, i] { ran.push_back(i); });
  }
  synchronize(stream);
  CHECK_EQUAL(ran.size(), count);
  for (int i = 0; i < count; ++i) CHECK_EQUAL(ran[static_cast<size_t>(i)], i);
}

DRIVER_CASE(tasks_of_all_kinds_keep_their_order) {
  Stream stream;
  DeviceMemory memory(4 << 20);
  std::vector<int> ran;
  const int count = 400;
  const npu_task_kind kinds[] = {NPU_TASK_COMPUTE, NPU_TASK_BLOCKING, NPU_TASK_COPY,
                                 NPU_TASK_COMPUTE, NPU_TASK_COPY,     NPU_TASK_BLOCKING};
  for (int i = 0; i < count; ++i) {
    submit(stream, kinds[i % 6], [&ran, i] { ran.push_back(i); });
    if (i % 20 == 0) CHECK_OK(driver().memory_set(stream, memory.data(), i % 251, i % 40 == 0 ? 64 : 4 << 20));
    if (i % 20 == 0) {
      submit(stream, NPU_TASK_COMPUTE, [&memory, &ran, i] {
        if (memory.data()[63] != i % 251) ran.push_back(-1);
      });
    }
  }
  synchronize(stream);
  CHECK_EQUAL(ran.size(), count);
  for (int i = 0; i < count; ++i) CHECK_EQUAL(ran[static_cast<size_t>(i)], i);
}

DRIVER_CASE(submit_does_not_wait_for_the_task) {
  Stream stream;
  Gate gate;
  CHECK_OK(driver().stream_query(stream));  // nothing submitted yet
  for (npu_task_kind kind : {NPU_TASK_COMPUTE, NPU_TASK_COPY, NPU_TASK_BLOCKING}) {
    Gate each;
    each.hold(stream, kind);
    std::atomic<bool> after{false};
    submit(stream, NPU_TASK_COMPUTE, [&after] { after = true; });
    each.await_entered();
    CHECK_EQUAL(driver().stream_query(stream), NPU_ERROR_NOT_READY);
    CHECK(!after);
    each.open();
    synchronize(stream);
    CHECK(after);
    CHECK_OK(driver().stream_query(stream));
  }
}

DRIVER_CASE(synchronize_times_out_and_can_be_repeated) {
  Stream stream;
  Gate gate;
  gate.hold(stream);
  uint64_t begin = driver().clock_ns();
  CHECK_EQUAL(driver().stream_synchronize(stream, 30 * kMillisecond), NPU_ERROR_TIMEOUT);
  uint64_t waited = driver().clock_ns() - begin;
  CHECK(waited >= 29 * kMillisecond);
  CHECK(strlen(driver().last_error()) > 0);
  CHECK_EQUAL(driver().stream_synchronize(stream, 0), NPU_ERROR_TIMEOUT);
  gate.open();
  synchronize(stream);
  CHECK_OK(driver().stream_synchronize(stream, -1));
}

DRIVER_CASE(synchronize_does_not_wait_for_later_tasks) {
  Stream stream;
  Gate first, second;
  first.hold(stream);
  first.await_entered();
  std::atomic<bool> returned{false};
  std::atomic<int> waiter_id{0};
  std::thread waiter([&] {
    waiter_id = gettid();
    driver().stream_synchronize(stream, -1);
    returned = true;
  });
  EVENTUALLY(waiter_id != 0 && sleeps(waiter_id));  // it is in the call now
  second.hold(stream);
  CHECK(!returned);
  first.open();
  EVENTUALLY(second.entered());
  EVENTUALLY(returned.load());
  second.open();
  waiter.join();
}

DRIVER_CASE(payloads_of_every_size_arrive) {
  Stream stream;
  std::vector<uint32_t> sizes;
  for (uint32_t size = 0; size <= 1100; size += size < 40 ? 1 : 17) sizes.push_back(size);
  for (uint32_t size : {447u, 448u, 449u, 479u, 480u, 481u, 511u, 512u, 513u, 4096u, 65535u, 65536u}) {
    sizes.push_back(size);
  }
  static std::atomic<int> wrong, destroyed, ran;
  wrong = destroyed = ran = 0;
  std::vector<unsigned char> payload(65536 + 8);
  // The payload starts with its own size (when it has room) and continues with a pattern that depends on it.
  auto fill = [](unsigned char* bytes, uint32_t size) {
    for (uint32_t i = 0; i < size; ++i) bytes[i] = static_cast<unsigned char>(i * 7 + size);
    if (size >= 4) memcpy(bytes, &size, 4);
  };
  for (int repeat = 0; repeat < 4; ++repeat) {
    for (uint32_t size : sizes) {
      fill(payload.data(), size);
      npu_task task{};
      task.run = [](void* bytes, npu_error*) {
        ++ran;
        if (reinterpret_cast<uintptr_t>(bytes) % 16 != 0) ++wrong;
        return NPU_OK;
      };
      if (size >= 4) {
        task.run = [](void* data, npu_error*) {
          ++ran;
          const auto* bytes = static_cast<unsigned char*>(data);
          uint32_t size;
          memcpy(&size, bytes, 4);
          if (reinterpret_cast<uintptr_t>(bytes) % 16 != 0 || size > 65536) {
            ++wrong;
            return NPU_OK;
          }
          for (uint32_t i = 4; i < size; ++i) {
            if (bytes[i] != static_cast<unsigned char>(i * 7 + size)) ++wrong;
          }
          return NPU_OK;
        };
      }
      task.destroy = [](void*) { ++destroyed; };
      task.name = "test::payload";
      task.payload = size == 0 ? nullptr : payload.data();
      task.payload_size = size;
      CHECK_OK(driver().stream_submit(stream, &task));
      memset(payload.data(), 0xEE, size);  // it was copied: what happens to the original does not matter
    }
  }
  synchronize(stream);
  CHECK_EQUAL(ran.load(), 4 * sizes.size());
  CHECK_EQUAL(destroyed.load(), 4 * sizes.size());
  CHECK_EQUAL(wrong.load(), 0);
}

DRIVER_CASE(a_full_queue_blocks_the_producer_and_loses_nothing) {
  Stream stream;
  Gate gate;
  gate.hold(stream);
  gate.await_entered();
  const int count = 30000 / kScale;
  std::atomic<int> submitted{0}, ran{0}, misplaced{0};
  std::thread producer([&] {
    for (int i = 0; i < count; ++i) {
      submit(stream, NPU_TASK_COMPUTE, [&, i] {
        if (ran++ != i) ++misplaced;
      });
      ++submitted;
    }
  });
  int before = -1;
  while (before != submitted) {  // until it stands still: the queue is full, or unbounded
    before = submitted;
    sleep_ms(50);
  }
  CHECK_EQUAL(ran.load(), 0);
  if (driver_is_host()) CHECK(submitted < count);
  gate.open();
  producer.join();
  synchronize(stream);
  CHECK_EQUAL(ran.load(), count);
  CHECK_EQUAL(misplaced.load(), 0);
}

DRIVER_CASE(many_producers_on_one_stream) {
  Stream stream;
  const int producers = 8, each = 4000 / kScale;
  std::vector<int> next(producers, 0);
  std::atomic<int> total{0}, misplaced{0};
  std::vector<std::thread> threads;
  for (int p = 0; p < producers; ++p) {
    threads.emplace_back([&, p] {
      for (int i = 0; i < each; ++i) {
        npu_task_kind kind = i % 500 == 499 ? NPU_TASK_BLOCKING : NPU_TASK_COMPUTE;
        submit(stream, kind, [&, p, i] {
          if (next[static_cast<size_t>(p)]++ != i) ++misplaced;
          ++total;
        });
        if (i % 1000 == 999) driver().stream_synchronize(stream, kPatience);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  synchronize(stream);
  CHECK_EQUAL(total.load(), producers * each);
  CHECK_EQUAL(misplaced.load(), 0);
}

DRIVER_CASE(many_producers_on_many_streams) {
  const int producers = 8, each = 3000 / kScale;
  std::vector<Stream> streams;
  for (int p = 0; p < producers; ++p) streams.emplace_back(0);
  std::vector<int> ran(producers, 0);
  std::atomic<int> misplaced{0};
  std::vector<std::thread> threads;
  for (int p = 0; p < producers; ++p) {
    threads.emplace_back([&, p] {
      auto index = static_cast<size_t>(p);
      for (int i = 0; i < each; ++i) {
        submit(streams[index], NPU_TASK_COMPUTE, [&, index, i] {
          if (ran[index]++ != i) ++misplaced;
        });
        if (i % 100 == 99) driver().stream_synchronize(streams[index], kPatience);  // empty streams come and go
      }
      driver().stream_synchronize(streams[index], kPatience);
    });
  }
  for (auto& thread : threads) thread.join();
  for (int p = 0; p < producers; ++p) CHECK_EQUAL(ran[static_cast<size_t>(p)], each);
  CHECK_EQUAL(misplaced.load(), 0);
}

DRIVER_CASE(destroy_function_runs_once_after_run) {
  Stream stream;
  static std::atomic<int> state;  // 0 submitted, 1 ran, 2 destroyed
  static std::atomic<int> wrong;
  static std::thread::id caller;
  state = wrong = 0;
  caller = std::this_thread::get_id();
  for (int i = 0; i < 100; ++i) {
    int value = i;
    npu_task task{};
    task.run = [](void*, npu_error*) {
      if (state.exchange(1) != 0) ++wrong;
      return NPU_OK;
    };
    task.destroy = [](void*) {
      if (state.exchange(0) != 1) ++wrong;
      if (std::this_thread::get_id() == caller) ++wrong;
    };
    task.payload = &value;
    task.payload_size = sizeof(value);
    task.kind = static_cast<uint16_t>(i % 3);
    CHECK_OK(driver().stream_submit(stream, &task));  // a NULL name is allowed
  }
  synchronize(stream);
  CHECK_EQUAL(wrong.load(), 0);
  CHECK_EQUAL(state.load(), 0);
}

DRIVER_CASE(stream_destroy_waits_for_queued_tasks) {
  std::atomic<int> ran{0};
  for (npu_task_kind kind : {NPU_TASK_COMPUTE, NPU_TASK_COPY, NPU_TASK_BLOCKING}) {
    ran = 0;
    Stream stream;
    for (int i = 0; i < 50; ++i) {
      submit(stream, kind, [&ran] {
        std::this_thread::sleep_for(std::chrono::microseconds(100));
        ++ran;
      });
    }
    CHECK_OK(driver().stream_destroy(stream.release()));
    CHECK_EQUAL(ran.load(), 50);
  }
}

DRIVER_CASE(a_blocking_task_may_use_other_streams) {
  Stream outer, inner;
  std::atomic<int> sum{0};
  for (int i = 0; i < 50; ++i) {
    submit(outer, NPU_TASK_BLOCKING, Body([&](npu_error*) {
             submit(inner, NPU_TASK_COMPUTE, [&sum] { ++sum; });
             return driver().stream_synchronize(inner, kPatience);
           }));
  }
  synchronize(outer);
  CHECK_EQUAL(sum.load(), 50);
}

DRIVER_CASE(invalid_arguments_are_refused) {
  Stream stream;
  npu_task task{};
  CHECK_EQUAL(driver().stream_submit(stream, &task), NPU_ERROR_INVALID_ARGUMENT);  // no run
  task.run = [](void*, npu_error*) { return NPU_OK; };
  task.kind = 17;
  CHECK_EQUAL(driver().stream_submit(stream, &task), NPU_ERROR_INVALID_ARGUMENT);
  CHECK(strlen(driver().last_error()) > 0);
  task.kind = NPU_TASK_COMPUTE;
  task.payload_size = 8;  // and no payload
  CHECK_EQUAL(driver().stream_submit(stream, &task), NPU_ERROR_INVALID_ARGUMENT);
  int32_t count = 0;
  CHECK_OK(driver().device_count(&count));
  npu_driver_stream* none = nullptr;
  CHECK_EQUAL(driver().stream_create(count, 0, &none), NPU_ERROR_INVALID_ARGUMENT);
  CHECK_EQUAL(driver().stream_create(-1, 0, &none), NPU_ERROR_INVALID_ARGUMENT);
  CHECK_EQUAL(driver().memory_copy(stream, nullptr, nullptr, 8), NPU_ERROR_INVALID_ARGUMENT);
  synchronize(stream);
}

}  // namespace npu::conformance
