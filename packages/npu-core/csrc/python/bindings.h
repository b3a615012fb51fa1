#pragma once
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <utility>

namespace npu::python {

// Wraps a runtime call: c10 exceptions and warnings become the Python ones torch uses for them.
template <typename Function>
auto call(Function&& function) {
  return torch::wrap_pybind_function(std::forward<Function>(function));
}

// The same for calls that may wait for the device or take a long time.  `function` must not touch Python objects.
template <typename Function>
auto call_without_gil(Function&& function) {
  return torch::wrap_pybind_function_no_gil(std::forward<Function>(function));
}

void bind_devices(py::module_& module);
void bind_streams(py::module_& module);
void bind_memory(py::module_& module);
void bind_memory_history(py::module_& module);
void bind_memory_pools(py::module_& module);
void bind_random(py::module_& module);
void bind_options(py::module_& module);
void bind_ipc(py::module_& module);
void bind_compiled_kernels(py::module_& module);

}  // namespace npu::python
