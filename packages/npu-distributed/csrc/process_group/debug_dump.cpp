#include "process_group/debug_dump.h"

#include <fcntl.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "process_group/file_output.h"
#include "process_group/flight_recorder.h"

namespace py = pybind11;

namespace npu::distributed {
namespace {

/// Runs `body` in a thread of its own and waits for it for `limit`: a thread that wants the interpreter lock may never
/// get it.  False when it has not ended by then; it then goes on alone.
bool RunWithin(std::chrono::milliseconds limit, std::function<void()> body) {
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
  };
  auto shared = std::make_shared<Shared>();
  std::thread([shared, body = std::move(body)] {
    try {
      body();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "hccl: warning: a part of the debug dump failed: %s\n", error.what());
    }
    const std::lock_guard lock(shared->mutex);
    shared->done = true;
    shared->changed.notify_all();
  }).detach();
  std::unique_lock lock(shared->mutex);
  return shared->changed.wait_for(lock, limit, [&] { return shared->done; });
}

void WritePythonStacks(const std::string& path) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
  if (fd < 0) return;
  {
    const py::gil_scoped_acquire gil;
    try {
      py::module_::import("faulthandler").attr("dump_traceback")(fd, true);
    } catch (const py::error_already_set& error) {
      std::fprintf(stderr, "hccl: warning: the Python stacks could not be written: %s\n", error.what());
    }
  }
  close(fd);
}

}  // namespace

void WriteDebugDump(const DiagnosisSettings& settings, uint64_t global_rank) noexcept try {
  FlightRecorder& recorder = FlightRecorder::Instance();
  if (!recorder.enabled()) return;
  static std::mutex one_at_a_time;  // a watchdog and the monitor may both want it
  const std::lock_guard lock(one_at_a_time);
  const std::string path = settings.dump_stem + std::to_string(global_rank);
  auto text = std::make_shared<std::string>();
  const bool with_stacks = Py_IsInitialized() != 0 && RunWithin(settings.dump_limit / 2, [=] {
                             WritePythonStacks(path + "_py_traceback");
                             *text = FlightRecorder::Instance().DumpPickle({});
                           });
  const bool written =
      WriteWholeFile(path, with_stacks && !text->empty() ? *text : recorder.DumpPickle({.stacks = false}));
  if (written)
    std::fprintf(stderr, "[Rank %d] hccl: debug information is in %s\n", static_cast<int>(global_rank), path.c_str());
} catch (const std::exception& error) {
  std::fprintf(stderr, "hccl: warning: the debug dump failed: %s\n", error.what());
}

}  // namespace npu::distributed
