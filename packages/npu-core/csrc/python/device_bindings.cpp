#include <torch/csrc/utils/device_lazy_init.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

#include "bindings.h"
#include "runtime/device.h"
#include "runtime/driver_loader.h"
#include "runtime/error.h"

namespace npu::python {
namespace {

constexpr auto kDeviceType = c10::DeviceType::PrivateUse1;

struct Uuid {
  std::array<std::uint8_t, 16> bytes;

  std::string str() const {
    std::string text;
    char pair[3];
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
      std::snprintf(pair, sizeof(pair), "%02x", bytes[i]);
      text += pair;
    }
    return text;
  }
};

Uuid uuid_of(const npu_device_properties& properties) {
  Uuid uuid;
  std::memcpy(uuid.bytes.data(), properties.uuid, uuid.bytes.size());
  return uuid;
}

int multiprocessor_count(const npu_device_properties& properties) {
  return properties.vector_core_num > 0 ? properties.vector_core_num : properties.cube_core_num;
}

std::string properties_repr(const npu_device_properties& properties) {
  constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
  return std::string("_NPUDeviceProperties(name='") + properties.name +
         "', total_memory=" + std::to_string(properties.total_memory / kMiB) +
         "MB, cube_core_num=" + std::to_string(properties.cube_core_num) +
         ", vector_core_num=" + std::to_string(properties.vector_core_num) + ", uuid=" + uuid_of(properties).str() +
         ", L2_cache_size=" + std::to_string(properties.l2_cache_size / kMiB) + "MB)";
}

void bind_properties(py::module_& module) {
  py::class_<Uuid>(module, "_NPUuuid")
      .def_property_readonly("bytes",
                             [](const Uuid& uuid) { return std::vector<int>(uuid.bytes.begin(), uuid.bytes.end()); })
      .def("__str__", &Uuid::str);

  using Properties = npu_device_properties;
  // Fields that exist for programs written for CUDA and mean nothing on this device.
  const auto zero = [](const Properties&) { return 0; };
  py::class_<Properties>(module, "_NPUDeviceProperties")
      .def_property_readonly("name", [](const Properties& p) { return std::string(p.name); })
      .def_property_readonly("driver", [](const Properties& p) { return std::string(p.driver); })
      .def_property_readonly("is_emulated", [](const Properties& p) { return p.is_emulated != 0; })
      .def_readonly("total_memory", &Properties::total_memory)
      .def_readonly("cube_core_num", &Properties::cube_core_num)
      .def_readonly("vector_core_num", &Properties::vector_core_num)
      .def_readonly("L2_cache_size", &Properties::l2_cache_size)
      .def_readonly("soc_version", &Properties::soc_version)
      .def_property_readonly("uuid", uuid_of)
      .def_property_readonly("multi_processor_count", multiprocessor_count)
      .def_property_readonly("major", zero)
      .def_property_readonly("minor", zero)
      .def_property_readonly("is_multi_gpu_board", zero)
      .def_property_readonly("is_integrated", zero)
      .def_property_readonly("max_threads_per_multi_processor", zero)
      .def_property_readonly("warp_size", zero)
      .def_property_readonly("regs_per_multiprocessor", zero)
      .def_property_readonly("gcnArchName", [](const Properties&) { return std::string(); })
      .def("__repr__", properties_repr);
}

void inject_fault(int device, int kind, const std::string& match, std::int64_t count, std::uint64_t delay_ns,
                  int status) {
  npu_fault fault{};
  fault.kind = kind;
  fault.status = status;
  fault.count = count;
  fault.delay_ns = delay_ns;
  TORCH_CHECK_VALUE(match.size() < sizeof(fault.match), "match must be shorter than ", sizeof(fault.match),
                    " characters, got ", match.size());
  std::memcpy(fault.match, match.c_str(), match.size() + 1);
  check(driver().inject_fault(driver_device(device), &fault), "inject_fault");
}

unsigned long main_thread() {
  static const auto id = py::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>();
  return id;
}

// Ctrl-C while the main thread waits for the device.
void check_signals() {
  if (PyThread_get_thread_ident() != main_thread() || !Py_IsInitialized() || _Py_IsFinalizing()) return;
  py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() == 0) return;
  python_error raised;
  raised.persist();
  throw raised;
}

std::terminate_handler g_previous_terminate = nullptr;

// Python ends a daemon thread, once the interpreter shuts down, by unwinding it where it asks for the GIL.  In torch
// that is inside destructors, which must not be unwound: the process would be aborted, although nothing is wrong.  The
// thread sleeps instead until the process has ended.
[[noreturn]] void end_daemon_thread_or_terminate() {
  if (_Py_IsFinalizing() && PyThread_get_thread_ident() != main_thread()) {
    for (;;) pause();
  }
  g_previous_terminate();
  std::abort();
}

// Behind all atexit handlers, so that they may use the device, and when Python runs no other thread any more.
void finalize_at_exit() {
  static bool registered = false;
  if (registered) return;
  TORCH_CHECK(Py_AtExit([] { finalize(); }) == 0, "npu: Python has no room for another exit function");
  registered = true;
  main_thread();
  g_previous_terminate = std::set_terminate(&end_daemon_thread_or_terminate);
}

}  // namespace

void bind_devices(py::module_& module) {
  main_thread();
  set_interrupt_check(&check_signals);
  bind_properties(module);

  module.def("_driver_name", call([] { return std::string(driver_name()); }));
  module.def("_device_count", call([] { return device_count(); }));
  module.def("_is_initialized", call([] { return is_initialized(); }));
  module.def("_is_in_bad_fork", call([] { return in_bad_fork(); }));
  module.def("_initialize", call_without_gil([] { initialize(); }));
  module.def("_drain", call_without_gil([] { drain(); }));
  module.def("_finalize_at_exit", call(finalize_at_exit));
  // torch calls torch.npu._lazy_init once before it builds the first npu tensor from Python; a forked child must ask
  // again, so that the fork guard can speak.
  module.def("_register_fork_handler", call([] { torch::utils::register_fork_handler_for_device_init(kDeviceType); }));

  module.def("_current_device", call([] { return current_device(); }));
  module.def("_set_device", call_without_gil([](int device) { set_device(device); }));
  module.def("_exchange_device", call_without_gil([](int device) { return exchange_device(device); }));
  module.def("_device_properties", call_without_gil([](int device) { return device_properties(device); }));
  module.def("_can_access_peer", call_without_gil([](int device, int peer) { return can_access_peer(device, peer); }));
  module.def("_memory_info", call_without_gil([](int device) { return memory_info(device); }));
  module.def("_synchronize_device", call_without_gil([](int device) { synchronize_device(device); }));
  module.def("_stop_device", call_without_gil([](int device) { stop_device(device); }));
  module.def("_restart_device", call_without_gil([](int device) { restart_device(device); }));

  module.def("_set_sync_debug_mode", call([](int mode) { set_sync_debug_mode(mode); }));
  module.def("_get_sync_debug_mode", call([] { return sync_debug_mode(); }));

  module.def("_inject_fault", call_without_gil(inject_fault), py::arg("device"), py::arg("kind"), py::arg("match") = "",
             py::arg("count") = 1, py::arg("delay_ns") = 0,
             py::arg("status") = static_cast<int>(NPU_ERROR_TASK_FAILED));
  module.attr("_FAULT_NONE") = static_cast<int>(NPU_FAULT_NONE);
  module.attr("_FAULT_FAIL_TASK") = static_cast<int>(NPU_FAULT_FAIL_TASK);
  module.attr("_FAULT_DELAY_TASK") = static_cast<int>(NPU_FAULT_DELAY_TASK);
  module.attr("_FAULT_FAIL_MAP") = static_cast<int>(NPU_FAULT_FAIL_MAP);
}

}  // namespace npu::python
