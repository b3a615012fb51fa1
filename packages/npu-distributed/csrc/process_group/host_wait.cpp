#include "process_group/host_wait.h"

#include <pybind11/pybind11.h>

#include <algorithm>

namespace py = pybind11;

namespace npu::distributed {
namespace {

constexpr std::chrono::milliseconds kSlice{50};

void RunSignalHandlers() {
  if (Py_IsInitialized() == 0) return;
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

}  // namespace

bool WaitInterruptibly(const CallRecord& record, std::chrono::milliseconds limit) {
  const auto begin = std::chrono::steady_clock::now();
  for (;;) {
    std::chrono::milliseconds slice = kSlice;
    if (limit.count() >= 0) {
      const auto passed = std::chrono::steady_clock::now() - begin;
      const auto left = limit - std::chrono::duration_cast<std::chrono::milliseconds>(passed);
      if (left.count() <= 0) return record.finished();
      slice = std::min(slice, left);
    }
    if (record.WaitFor(slice)) return true;
    RunSignalHandlers();
  }
}

}  // namespace npu::distributed
