// Several processes: exported memory, the death of a peer, fork.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "suite.h"

namespace npu::conformance {
namespace {

constexpr size_t kBytes = 64 << 10;

// A peer that exports two ranges, fills them, and lets its parent work with them until told to end.
PEER_ROLE(exporter) {
  try {
    initialize();
    DeviceMemory memory(1);
    memset(memory.address, 0x21, kBytes);
    memset(memory.data() + kBytes, 0x22, kBytes);
    for (size_t i = 0; i < 2; ++i) {
      npu_memory_handle handle;
      CHECK_OK(driver().memory_export(memory.data() + i * kBytes, kBytes, &handle));
      write_exactly(STDOUT_FILENO, &handle, sizeof(handle));
    }
    char order;
    read_exactly(STDIN_FILENO, &order, 1);  // 'c': report what the parent has written; 's': shut down and stay
    if (order == 'c') write_exactly(STDOUT_FILENO, memory.address, 1);
    if (order == 's') {
      CHECK_OK(driver().shutdown());
      write_exactly(STDOUT_FILENO, &order, 1);
    }
    read_exactly(STDIN_FILENO, &order, 1);
    return 0;
  } catch (const std::exception& failure) {
    fprintf(stderr, "exporter: %s\n", failure.what());
    return 1;
  }
}

// A peer that imports a range, checks it, changes it through a task and answers.
PEER_ROLE(importer) {
  try {
    initialize();
    npu_memory_handle handle;
    read_exactly(STDIN_FILENO, &handle, sizeof(handle));
    void* address = nullptr;
    size_t bytes = 0;
    CHECK_OK(driver().memory_import(&handle, &address, &bytes));
    CHECK_EQUAL(bytes, kBytes);
    auto* data = static_cast<unsigned char*>(address);
    CHECK_EQUAL(static_cast<int>(data[0]), 0x31);
    CHECK_EQUAL(static_cast<int>(data[kBytes - 1]), 0x31);
    Stream stream;
    CHECK_OK(driver().memory_set(stream, address, 0x32, kBytes));
    synchronize(stream);
    CHECK_OK(driver().memory_close(address));
    CHECK_OK(driver().shutdown());
    return 0;
  } catch (const std::exception& failure) {
    fprintf(stderr, "importer: %s\n", failure.what());
    return 1;
  }
}

// Runs `body` in a forked child with a time limit.  Returns what it returned, or 128 + the signal.
int in_forked_child(int (*body)()) {
  fflush(nullptr);
  pid_t child = fork();
  if (child == 0) {
    alarm(30);
    _exit(body());
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

DRIVER_CASE(exported_memory_is_seen_by_another_process) {
  DeviceMemory memory(1);
  memset(memory.address, 0x31, kBytes);
  npu_memory_handle handle;
  CHECK_OK(driver().memory_export(memory.address, kBytes, &handle));
  PeerProcess peer("importer");
  peer.write(&handle, sizeof(handle));
  CHECK_EQUAL(peer.wait(), 0);
  CHECK_EQUAL(static_cast<int>(memory.data()[0]), 0x32);
  CHECK_EQUAL(static_cast<int>(memory.data()[kBytes - 1]), 0x32);
  CHECK_EQUAL(static_cast<int>(memory.data()[kBytes]), 0);
}

DRIVER_CASE(imported_ranges_of_one_peer) {
  PeerProcess peer("exporter");
  npu_memory_handle handles[2];
  peer.read(handles, sizeof(handles));
  void *first = nullptr, *second = nullptr, *again = nullptr;
  size_t bytes = 0;
  CHECK_OK(driver().memory_import(&handles[0], &first, &bytes));
  CHECK_EQUAL(bytes, kBytes);
  CHECK_OK(driver().memory_import(&handles[1], &second, &bytes));
  CHECK_OK(driver().memory_import(&handles[0], &again, &bytes));
  CHECK_EQUAL(static_cast<int>(*static_cast<unsigned char*>(first)), 0x21);
  CHECK_EQUAL(static_cast<int>(*static_cast<unsigned char*>(second)), 0x22);
  if (driver_is_host()) {
    CHECK(again == first);  // one mapping of the peer's arena serves all its ranges
    CHECK(static_cast<char*>(second) == static_cast<char*>(first) + kBytes);
  }
  int32_t owner = 0;
  CHECK_EQUAL(driver().memory_owner(first, &owner), NPU_ERROR_INVALID_ARGUMENT);  // no device of this process
  *static_cast<unsigned char*>(first) = 0x55;
  peer.write("c", 1);
  unsigned char seen = 0;
  peer.read(&seen, 1);
  CHECK_EQUAL(static_cast<int>(seen), 0x55);
  // Each import needs its own close.
  CHECK_OK(driver().memory_close(first));
  CHECK_EQUAL(static_cast<int>(*static_cast<unsigned char*>(again)), 0x55);
  CHECK_OK(driver().memory_close(again));
  CHECK_EQUAL(static_cast<int>(*static_cast<unsigned char*>(second)), 0x22);
  CHECK_OK(driver().memory_close(second));
  CHECK_EQUAL(driver().memory_close(second), NPU_ERROR_INVALID_ARGUMENT);
  CHECK(strlen(driver().last_error()) > 0);
}

DRIVER_CASE(an_import_survives_the_death_of_the_peer) {
  PeerProcess peer("exporter");
  npu_memory_handle handles[2];
  peer.read(handles, sizeof(handles));
  void* address = nullptr;
  size_t bytes = 0;
  CHECK_OK(driver().memory_import(&handles[0], &address, &bytes));
  peer.kill();
  auto* data = static_cast<unsigned char*>(address);
  CHECK_EQUAL(static_cast<int>(data[kBytes - 1]), 0x21);
  data[0] = 1;
  CHECK_OK(driver().memory_close(address));
  CHECK_EQUAL(driver().memory_import(&handles[0], &address, &bytes), NPU_ERROR_INVALID_ARGUMENT);
  CHECK(strstr(driver().last_error(), "ended") != nullptr);
}

DRIVER_CASE(handles_of_a_stopped_driver_are_refused) {
  PeerProcess peer("exporter");
  npu_memory_handle handles[2];
  peer.read(handles, sizeof(handles));
  peer.write("s", 1);
  char answer;
  peer.read(&answer, 1);
  void* address = nullptr;
  size_t bytes = 0;
  CHECK_EQUAL(driver().memory_import(&handles[0], &address, &bytes), NPU_ERROR_INVALID_ARGUMENT);
  CHECK(strlen(driver().last_error()) > 0);
}

DRIVER_CASE(an_own_handle_gives_the_own_address) {
  DeviceMemory memory(1);
  npu_memory_handle handle;
  CHECK_OK(driver().memory_export(memory.data() + 128, 256, &handle));
  void* address = nullptr;
  size_t bytes = 0;
  CHECK_OK(driver().memory_import(&handle, &address, &bytes));
  CHECK(address == memory.data() + 128);
  CHECK_EQUAL(bytes, 256);
  CHECK_OK(driver().memory_import(&handle, &address, &bytes));
  CHECK_OK(driver().memory_close(address));
  CHECK_OK(driver().memory_close(address));
  CHECK_EQUAL(driver().memory_close(address), NPU_ERROR_INVALID_ARGUMENT);
  memory.data()[128] = 1;  // still mapped
  CHECK_EQUAL(driver().memory_export(memory.address, memory.bytes + 1, &handle), NPU_ERROR_INVALID_ARGUMENT);
  int local = 0;
  CHECK_EQUAL(driver().memory_export(&local, 4, &handle), NPU_ERROR_INVALID_ARGUMENT);
}

DRIVER_CASE(damaged_handles_are_refused) {
  DeviceMemory memory(1);
  npu_memory_handle handle;
  CHECK_OK(driver().memory_export(memory.address, 256, &handle));
  for (size_t i = 0; i < sizeof(handle.bytes); ++i) {
    npu_memory_handle damaged = handle;
    damaged.bytes[i] ^= 0x40;
    void* address = nullptr;
    size_t bytes = 0;
    CHECK_EQUAL(driver().memory_import(&damaged, &address, &bytes), NPU_ERROR_INVALID_ARGUMENT);
  }
}

DRIVER_CASE(a_forked_child_is_refused_and_never_hangs) {
  static npu_driver_stream* stream = nullptr;
  static npu_driver_event* event = nullptr;
  Stream used;
  Event recorded;
  DeviceMemory memory(1);
  submit(used, NPU_TASK_COMPUTE, [] {});
  CHECK_OK(driver().event_record(recorded, used));
  synchronize(used);
  stream = used;
  event = recorded;
  static void* address = memory.address;
  int status = in_forked_child([] {
    const npu_driver& d = driver();
    int line = 0;
    auto stopped = [&line](npu_status status) {
      ++line;
      if (status != NPU_ERROR_STOPPED || strstr(driver().last_error(), "fork") == nullptr) _exit(line);
    };
    npu_error error{};
    npu_task task{};
    task.run = [](void*, npu_error*) { return NPU_OK; };
    npu_driver_stream* new_stream = nullptr;
    npu_driver_event* new_event = nullptr;
    void* new_address = nullptr;
    size_t bytes = 0;
    uint64_t time = 0;
    int32_t count = 0;
    npu_memory_handle handle{};
    stopped(d.initialize(&error));
    stopped(d.stream_create(0, 0, &new_stream));
    stopped(d.stream_submit(stream, &task));
    stopped(d.stream_query(stream));
    stopped(d.stream_synchronize(stream, -1));
    stopped(d.stream_take_error(stream, &error));
    stopped(d.memory_map(0, 2 << 20, &new_address));
    stopped(d.memory_info(0, &bytes, &bytes));
    stopped(d.memory_copy(stream, address, address, 16));
    stopped(d.memory_set(stream, address, 0, 16));
    stopped(d.memory_export(address, 16, &handle));
    stopped(d.event_create(&new_event));
    stopped(d.event_record(event, stream));
    stopped(d.event_wait(event, stream));
    stopped(d.event_query(event));
    stopped(d.event_synchronize(event, -1));
    stopped(d.event_time(event, &time));
    stopped(d.event_destroy(event));
    stopped(d.stream_destroy(stream));
    if (d.device_count(&count) != NPU_OK || count < 1) return 100;
    d.shutdown();  // must return
    return 0;
  });
  CHECK_EQUAL(status, 0);
  synchronize(used);  // the parent is not disturbed
}

DRIVER_CASE(fork_before_the_first_use_is_safe) {
  CHECK_OK(driver().shutdown());
  PeerProcess fresh("fork_first");
  CHECK_EQUAL(fresh.wait(), 0);
}

// Asks for the number of devices, then forks; the child uses the device.
PEER_ROLE(fork_first) {
  int32_t count = 0;
  if (driver().device_count(&count) != NPU_OK || count < 1) return 10;
  npu_driver_stream* stream = nullptr;
  if (driver().stream_create(0, 0, &stream) != NPU_ERROR_STOPPED) return 11;  // device_count initialises nothing
  return in_forked_child([] {
    try {
      initialize();
      Stream inner;
      std::atomic<bool> ran{false};
      submit(inner, NPU_TASK_COMPUTE, [&ran] { ran = true; });
      synchronize(inner);
      return ran ? 0 : 12;
    } catch (const std::exception& failure) {
      fprintf(stderr, "fork_first: %s\n", failure.what());
      return 13;
    }
  });
}

}  // namespace npu::conformance
