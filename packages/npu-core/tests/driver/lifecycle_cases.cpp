// Start, stop, start again; resources over thousands of objects; the environment; idleness.
#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "suite.h"

namespace npu::conformance {
namespace {

int entries(const char* folder) {
  DIR* directory = opendir(folder);
  int count = 0;
  while (directory != nullptr && readdir(directory) != nullptr) ++count;
  if (directory != nullptr) closedir(directory);
  return count;
}
int threads() { return entries("/proc/self/task"); }
int files() { return entries("/proc/self/fd"); }

size_t resident_bytes() {
  FILE* file = fopen("/proc/self/statm", "re");
  unsigned long total = 0, resident = 0;
  if (file != nullptr && fscanf(file, "%lu %lu", &total, &resident) != 2) resident = 0;
  if (file != nullptr) fclose(file);
  return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

}  // namespace

DRIVER_CASE(initialize_may_be_called_again_and_by_many_threads) {
  CHECK_OK(driver().shutdown());
  std::atomic<int> failed{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 8; ++i) {
    callers.emplace_back([&failed] {
      npu_error error{};
      if (driver().initialize(&error) != NPU_OK) ++failed;
    });
  }
  for (auto& caller : callers) caller.join();
  CHECK_EQUAL(failed.load(), 0);
  Stream stream;
  submit(stream, NPU_TASK_COMPUTE, [] {});
  synchronize(stream);
}

DRIVER_CASE(shutdown_drains_queued_work) {
  CHECK_OK(driver().shutdown());
  const int threads_before = threads();
  initialize();
  std::atomic<int> ran{0};
  std::vector<npu_driver_stream*> streams;
  std::vector<npu_driver_event*> events;
  for (int i = 0; i < 6; ++i) streams.push_back(Stream(0).release());
  for (int i = 0; i < 6; ++i) events.push_back(Event().release());
  for (size_t i = 0; i < 6; ++i) {
    if (i > 0) CHECK_OK(driver().event_wait(events[i - 1], streams[i]));
    for (int task = 0; task < 50; ++task) {
      submit(streams[i], static_cast<npu_task_kind>(task % 3), [&ran] {
        usleep(20);
        ++ran;
      });
    }
    CHECK_OK(driver().event_record(events[i], streams[i]));
  }
  CHECK_OK(driver().shutdown());
  CHECK_EQUAL(ran.load(), 300);
  CHECK_OK(driver().shutdown());  // idempotent
  CHECK_EQUAL(threads(), threads_before);

  npu_task task{};
  task.run = [](void*, npu_error*) { return NPU_OK; };
  npu_driver_stream* none = nullptr;
  npu_driver_event* no_event = nullptr;
  void* address = nullptr;
  size_t bytes = 0;
  npu_error error{};
  CHECK_EQUAL(driver().stream_create(0, 0, &none), NPU_ERROR_STOPPED);
  CHECK_EQUAL(driver().stream_submit(streams[0], &task), NPU_ERROR_STOPPED);
  CHECK_EQUAL(driver().stream_query(streams[0]), NPU_ERROR_STOPPED);
  CHECK_EQUAL(driver().stream_synchronize(streams[0], -1), NPU_ERROR_STOPPED);
  CHECK_EQUAL(driver().stream_take_error(streams[0], &error), NPU_ERROR_STOPPED);
  CHECK_EQUAL(driver().event_create(&no_event), NPU_ERROR_STOPPED);
  CHECK_EQUAL(driver().event_synchronize(events[0], -1), NPU_ERROR_STOPPED);
  CHECK_EQUAL(driver().memory_map(0, 2 << 20, &address), NPU_ERROR_STOPPED);
  CHECK_EQUAL(driver().memory_info(0, &bytes, &bytes), NPU_ERROR_STOPPED);
  CHECK_EQUAL(driver().host_allocate(64, &address), NPU_ERROR_STOPPED);
  CHECK(strlen(driver().last_error()) > 0);
  int32_t count = 0;
  CHECK_OK(driver().device_count(&count));

  // It starts again, and handles from before are refused, not mistaken for new ones.
  initialize();
  CHECK_EQUAL(driver().stream_submit(streams[1], &task), NPU_ERROR_STOPPED);
  Stream fresh;
  submit(fresh, NPU_TASK_BLOCKING, [&ran] { ++ran; });
  synchronize(fresh);
  CHECK_EQUAL(ran.load(), 301);
  for (auto* stream : streams) CHECK_EQUAL(driver().stream_destroy(stream), NPU_ERROR_STOPPED);
  for (auto* event : events) CHECK_OK(driver().event_destroy(event));
}

DRIVER_CASE(shutdown_with_an_unread_error) {
  npu_driver_stream* stream = Stream(0).release();
  submit(stream, NPU_TASK_COMPUTE, Body([](npu_error*) { return NPU_ERROR_TYPE; }));
  submit(stream, NPU_TASK_BLOCKING, [] {});
  CHECK_OK(driver().shutdown());
  CHECK_EQUAL(driver().stream_destroy(stream), NPU_ERROR_STOPPED);
}

DRIVER_CASE(shutdown_while_other_threads_submit) {
  for (int round = 0; round < 10; ++round) {
    initialize();
    static std::atomic<int> ran;
    ran = 0;
    std::atomic<int> submitted{0}, unexpected{0};
    std::vector<npu_driver_stream*> streams;
    for (int i = 0; i < 4; ++i) streams.push_back(Stream(0).release());
    std::vector<std::thread> producers;
    for (int p = 0; p < 4; ++p) {
      producers.emplace_back([&, p] {
        npu_task task{};
        task.run = [](void*, npu_error*) {
          ++ran;
          return NPU_OK;
        };
        task.kind = static_cast<uint16_t>(p % 3);
        for (;;) {
          npu_status status = driver().stream_submit(streams[static_cast<size_t>(p)], &task);
          if (status != NPU_OK) {
            if (status != NPU_ERROR_STOPPED) ++unexpected;
            return;
          }
          ++submitted;
        }
      });
    }
    sleep_ms(5);
    CHECK_OK(driver().shutdown());
    for (auto& producer : producers) producer.join();
    CHECK_EQUAL(unexpected.load(), 0);
    CHECK_EQUAL(ran.load(), submitted.load());  // what was accepted has run
    for (auto* stream : streams) driver().stream_destroy(stream);
  }
}

DRIVER_CASE(thousands_of_objects_leave_nothing_behind) {
  auto use = [](int i) {
    Stream stream(0, i % 3 - 1);
    Event event;
    if (i % 2 == 0) submit(stream, NPU_TASK_COMPUTE, [] {});
    if (i % 16 == 0) submit(stream, NPU_TASK_BLOCKING, [] {});
    if (i % 16 == 8) submit(stream, NPU_TASK_COPY, [] {});
    CHECK_OK(driver().event_record(event, stream));
  };
  for (int i = 0; i < 500; ++i) use(i);
  sleep_ms(20);
  int threads_before = threads(), files_before = files();
  size_t resident_before = resident_bytes();
  for (int i = 0; i < 10000 / kScale; ++i) use(i);
  sleep_ms(20);
  CHECK_EQUAL(files(), files_before);
  CHECK_EQUAL(threads(), threads_before);
  size_t grown = resident_bytes() > resident_before ? resident_bytes() - resident_before : 0;
  if (kScale == 1) CHECK(grown < (size_t{8} << 20));  // sanitizers keep freed memory
}

DRIVER_CASE(starting_and_stopping_leaves_nothing_behind) {
  CHECK_OK(driver().shutdown());
  int threads_before = threads(), files_before = files();
  for (int i = 0; i < 50; ++i) {
    initialize();
    void* address = nullptr;
    CHECK_OK(driver().memory_map(0, granularity(), &address));  // and not given back
    {
      Stream stream;
      CHECK_OK(driver().memory_set(stream, address, 1, granularity()));
      submit(stream, NPU_TASK_BLOCKING, [] {});
      synchronize(stream);
    }
    CHECK_OK(driver().shutdown());
  }
  CHECK_EQUAL(files(), files_before);
  CHECK_EQUAL(threads(), threads_before);
}

DRIVER_CASE(an_idle_driver_uses_no_processor_time) {
  Stream computing, copying, blocked, parked;
  Event event;
  Gate gate;
  DeviceMemory memory(8 << 20);
  submit(computing, NPU_TASK_COMPUTE, [] {});
  CHECK_OK(driver().memory_set(copying, memory.address, 1, memory.bytes));
  submit(blocked, NPU_TASK_BLOCKING, [] {});
  for (auto* stream : {&computing, &copying, &blocked}) synchronize(*stream);
  Stream gated;
  gate.hold(gated, NPU_TASK_BLOCKING);  // sleeps in steps of 100 us: about 1 % by itself
  CHECK_OK(driver().event_record(event, gated));
  CHECK_OK(driver().event_wait(event, parked));
  submit(parked, NPU_TASK_COMPUTE, [] {});
  std::thread waiter([&] { driver().stream_synchronize(parked, -1); });
  sleep_ms(100);  // longer than anything may spin
  double before = cpu_seconds();
  sleep_ms(500);
  double used = cpu_seconds() - before;
  gate.open();
  waiter.join();
  CHECK(used < 0.1 * kScale);
}

DRIVER_CASE(bad_environment_values_are_named) {
  if (!driver_is_host()) throw Skip("about the variables of the host driver");
  CHECK_OK(driver().shutdown());
  struct Bad {
    const char* name;
    const char* value;
  };
  for (const Bad& bad :
       {Bad{"NPU_HOST_DEVICE_COUNT", "0"}, Bad{"NPU_HOST_DEVICE_COUNT", "65"}, Bad{"NPU_HOST_DEVICE_COUNT", "two"},
        Bad{"NPU_HOST_DEVICE_COUNT", "-1"}, Bad{"NPU_HOST_MEMORY", "12parsecs"}, Bad{"NPU_HOST_MEMORY", "1"},
        Bad{"NPU_HOST_MEMORY", "99999999999999999999"}, Bad{"NPU_HOST_MEMORY", "9000TiB"},
        Bad{"NPU_HOST_SOC", "Ascend1"}, Bad{"NPU_HOST_COPY_THRESHOLD", "-5"}, Bad{"NPU_HOST_SPIN_US", "fast"}}) {
    std::string old = getenv(bad.name) != nullptr ? getenv(bad.name) : "";
    setenv(bad.name, bad.value, 1);
    npu_error error{};
    CHECK_EQUAL(driver().initialize(&error), NPU_ERROR_INVALID_ARGUMENT);
    CHECK(strstr(error.message, bad.name) != nullptr);
    CHECK(strstr(error.message, bad.value) != nullptr);
    CHECK(strstr(error.message, "expected") != nullptr);
    if (strcmp(bad.name, "NPU_HOST_DEVICE_COUNT") == 0) {
      int32_t count = 0;
      CHECK_EQUAL(driver().device_count(&count), NPU_ERROR_INVALID_ARGUMENT);
      CHECK(strstr(driver().last_error(), bad.value) != nullptr);
    }
    old.empty() ? unsetenv(bad.name) : setenv(bad.name, old.c_str(), 1);
  }
  initialize();
}

DRIVER_CASE(the_environment_shapes_the_devices) {
  if (!driver_is_host()) throw Skip("about the variables of the host driver");
  CHECK_OK(driver().shutdown());
  int32_t count = 0;
  unsetenv("NPU_HOST_DEVICE_COUNT");
  unsetenv("LOCAL_WORLD_SIZE");
  CHECK_OK(driver().device_count(&count));
  CHECK_EQUAL(count, 1);
  setenv("LOCAL_WORLD_SIZE", "3", 1);
  CHECK_OK(driver().device_count(&count));
  CHECK_EQUAL(count, 3);
  setenv("NPU_HOST_DEVICE_COUNT", "4", 1);
  setenv("NPU_HOST_MEMORY", "64MiB", 1);
  setenv("NPU_HOST_SOC", "Ascend910_9391", 1);
  CHECK_OK(driver().device_count(&count));
  CHECK_EQUAL(count, 4);
  initialize();
  npu_device_properties properties{};
  properties.struct_size = sizeof(properties);
  CHECK_OK(driver().device_properties(3, &properties));
  CHECK_EQUAL(std::string(properties.name), "Ascend910_9391");
  CHECK_EQUAL(properties.soc_version, 250);
  CHECK_EQUAL(properties.total_memory, 64u << 20);
}

}  // namespace npu::conformance
