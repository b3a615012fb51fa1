#include <torch/csrc/DynamicTypes.h>
#include <torch/csrc/Storage.h>

#include <cstdint>
#include <string>

#include "bindings.h"
#include "runtime/event.h"
#include "runtime/ipc_memory.h"

namespace npu::python {
namespace {

py::bytes exported(const py::object& storage) {
  const c10::Storage unpacked = torch::createStorage(storage.ptr());
  std::string message;
  {
    py::gil_scoped_release release;
    message = export_storage(unpacked);
  }
  return py::bytes(message);
}

// Keeps the GIL: a storage that is here already may have a Python object, whose reference count it guards.
py::object imported(const py::bytes& message) {
  return py::reinterpret_steal<py::object>(torch::createPyObject(import_storage(std::string_view(message))));
}

Event* event_from(std::uintptr_t event_id) { return reinterpret_cast<Event*>(event_id); }

}  // namespace

void bind_ipc(py::module_& module) {
  module.def("_export_storage", call(exported));
  module.def("_import_storage", call(imported));
  module.def("_ipc_collect", call_without_gil([] { ipc_collect(); }));

  // `event_id` is torch.Event.event_id of an event that was recorded.
  module.def("_share_event", call_without_gil([](std::uintptr_t event_id) { share_event(event_from(event_id)); }));
  module.def("_event_handle",
             call([](std::uintptr_t event_id) { return py::bytes(event_handle(event_from(event_id))); }));
  module.def("_open_event", call([](std::uintptr_t event_id, const py::bytes& handle) {
               return open_event(event_from(event_id), std::string_view(handle));
             }));
}

}  // namespace npu::python
