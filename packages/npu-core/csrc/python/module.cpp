// npu_core._C: the Python face of the runtime.
#include "bindings.h"
#include "runtime/driver_loader.h"

PYBIND11_MODULE(_C, module) {
  module.doc() = "Bindings of the npu runtime. Use torch.npu; nothing here is a public interface.";
  npu::python::bind_devices(module);
  npu::python::bind_streams(module);
  npu::python::bind_memory(module);
  npu::python::bind_memory_history(module);
  npu::python::bind_memory_pools(module);
  npu::python::bind_random(module);
  npu::python::bind_options(module);
  npu::python::bind_ipc(module);
  npu::python::bind_compiled_kernels(module);
  // The driver library also carries the driver's ATen kernels, which must be registered before the first tensor.
  // This loads code; it starts no thread and opens no device.
  module.def("_load_driver", npu::python::call([] { npu::driver(); }));
}
