// npu_driver_conformance --measure: what the calls cost.  Prints the best and the median of many short runs: on a busy
// machine the best one is the cost of the code, the median that of the machine.
#include "measurements.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "suite.h"

namespace npu::conformance {
namespace {

double now() { return static_cast<double>(driver().clock_ns()); }

// `measure` returns nanoseconds; the result is printed per `units` of work.
template <typename Measure>
void report(const char* what, int runs, double units, Measure&& measure) {
  std::vector<double> times;
  for (int i = 0; i < runs; ++i) times.push_back(measure() / units);
  std::sort(times.begin(), times.end());
  printf("%-62s best %10.1f ns   median %10.1f ns\n", what, times.front(), times[times.size() / 2]);
}

npu_status empty(void*, npu_error*) { return NPU_OK; }

npu_task empty_task(const void* payload, uint32_t size, npu_task_kind kind = NPU_TASK_COMPUTE) {
  npu_task task{};
  task.run = empty;
  task.name = "measure::empty";
  task.payload = payload;
  task.payload_size = size;
  task.kind = static_cast<uint16_t>(kind);
  return task;
}

void measure_queue() {
  constexpr int kBurst = 800;  // fits the queue
  static unsigned char payload[448];
  Stream stream;
  for (uint32_t size : {0u, 32u, 160u, 448u}) {
    npu_task task = empty_task(payload, size);
    char what[80];
    snprintf(what, sizeof(what), "submit, engine running, payload %u", size);
    report(what, 1000, kBurst, [&] {
      double begin = now();
      for (int i = 0; i < kBurst; ++i) driver().stream_submit(stream, &task);
      double submitted = now();
      synchronize(stream);
      return submitted - begin;
    });
    snprintf(what, sizeof(what), "submit and run, per task, payload %u", size);
    report(what, 1000, kBurst, [&] {
      double begin = now();
      for (int i = 0; i < kBurst; ++i) driver().stream_submit(stream, &task);
      synchronize(stream);
      return now() - begin;
    });
    snprintf(what, sizeof(what), "submit, engine held, payload %u", size);
    report(what, 200, kBurst, [&] {
      Gate gate;
      gate.hold(stream);
      gate.await_entered();
      double begin = now();
      for (int i = 0; i < kBurst; ++i) driver().stream_submit(stream, &task);
      double submitted = now();
      gate.open();
      synchronize(stream);
      return submitted - begin;
    });
    snprintf(what, sizeof(what), "run queued tasks, payload %u", size);
    report(what, 200, kBurst, [&] {
      static std::atomic<uint64_t> first, last;
      Gate gate;
      gate.hold(stream);
      gate.await_entered();
      submit(stream, NPU_TASK_COMPUTE, [] { first = driver().clock_ns(); });
      for (int i = 0; i < kBurst; ++i) driver().stream_submit(stream, &task);
      submit(stream, NPU_TASK_COMPUTE, [] { last = driver().clock_ns(); });
      gate.open();
      synchronize(stream);
      return static_cast<double>(last - first);
    });
  }
}

void measure_latency() {
  Stream stream;
  Event event;
  for (npu_task_kind kind : {NPU_TASK_COMPUTE, NPU_TASK_COPY, NPU_TASK_BLOCKING}) {
    npu_task task = empty_task(nullptr, 0, kind);
    const char* names[] = {"compute", "copy", "blocking"};
    char what[80];
    snprintf(what, sizeof(what), "submit + synchronize, %s, thread spinning", names[kind]);
    report(what, 2000, 1, [&] {
      double begin = now();
      driver().stream_submit(stream, &task);
      synchronize(stream);
      return now() - begin;
    });
    snprintf(what, sizeof(what), "submit + synchronize, %s, thread asleep", names[kind]);
    report(what, 100, 1, [&] {
      sleep_ms(2);
      double begin = now();
      driver().stream_submit(stream, &task);
      synchronize(stream);
      return now() - begin;
    });
  }
  report("event_record on an idle stream", 1000, 100, [&] {
    double begin = now();
    for (int i = 0; i < 100; ++i) driver().event_record(event, stream);
    return now() - begin;
  });
  Stream first, second;
  npu_task task = empty_task(nullptr, 0);
  report("task, record, wait on another stream, task; per pair", 500, 50, [&] {
    double begin = now();
    for (int i = 0; i < 50; ++i) {
      driver().stream_submit(first, &task);
      driver().event_record(event, first);
      driver().event_wait(event, second);
      driver().stream_submit(second, &task);
    }
    synchronize(second);
    return now() - begin;
  });
}

void measure_memory() {
  constexpr size_t kBytes = 64 << 20;
  auto in_gigabytes = [](const char* what, auto&& measure) {
    std::vector<double> rates;
    for (int i = 0; i < 9; ++i) rates.push_back(static_cast<double>(kBytes) / measure());
    std::sort(rates.begin(), rates.end());
    printf("%-62s best %10.2f GB/s median %8.2f GB/s\n", what, rates.back(), rates[rates.size() / 2]);
  };
  in_gigabytes("first fill of mapped memory", [] {
    DeviceMemory memory(kBytes);
    double begin = now();
    memset(memory.address, 1, kBytes);
    return now() - begin;
  });
#ifdef MADV_POPULATE_WRITE
  in_gigabytes("populate mapped memory, then fill it", [] {
    DeviceMemory memory(kBytes);
    double begin = now();
    madvise(memory.address, kBytes, MADV_POPULATE_WRITE);
    memset(memory.address, 1, kBytes);
    return now() - begin;
  });
#endif
  in_gigabytes("unmap touched memory", [] {
    DeviceMemory memory(kBytes);
    memset(memory.address, 1, kBytes);
    double begin = now();
    driver().memory_unmap(0, memory.address, kBytes);
    double end = now();
    memory.address = nullptr;
    return end - begin;
  });
  DeviceMemory source(kBytes), target(kBytes);
  Stream stream;
  memset(source.address, 1, kBytes);
  memset(target.address, 1, kBytes);
  in_gigabytes("memory_copy 64 MiB", [&] {
    double begin = now();
    driver().memory_copy(stream, target.address, source.address, kBytes);
    synchronize(stream);
    return now() - begin;
  });
}

// The same task-copy-task sequence with the copy inline and on the copy engine: the difference is the price of two
// hops.
void measure_copy_threshold() {
  for (const char* threshold : {"1TiB", "1"}) {
    driver().shutdown();
    setenv("NPU_HOST_COPY_THRESHOLD", threshold, 1);
    initialize();
    Stream stream;
    DeviceMemory source(16 << 20), target(16 << 20);
    memset(source.address, 1, source.bytes);
    memset(target.address, 1, target.bytes);
    npu_task task = empty_task(nullptr, 0);
    for (size_t bytes = 64 << 10; bytes <= (16 << 20); bytes *= 4) {
      char what[80];
      snprintf(what, sizeof(what), "task, copy %5zu KiB %s, task", bytes >> 10,
               strcmp(threshold, "1") == 0 ? "on the copy engine" : "inline");
      report(what, 300, 1, [&] {
        double begin = now();
        driver().stream_submit(stream, &task);
        driver().memory_copy(stream, target.address, source.address, bytes);
        driver().stream_submit(stream, &task);
        synchronize(stream);
        return now() - begin;
      });
    }
  }
  unsetenv("NPU_HOST_COPY_THRESHOLD");
}

}  // namespace

int measure() {
  initialize();
  measure_queue();
  measure_latency();
  measure_memory();
  if (driver_is_host()) measure_copy_threshold();
  driver().shutdown();
  return 0;
}

}  // namespace npu::conformance
