#include <optional>
#include <string>

#include "bindings.h"
#include "runtime/error.h"
#include "runtime/options.h"

namespace npu::python {

void bind_options(py::module_& module) {
  // Callbacks of an option may synchronise the device.
  module.def("_set_option",
             call_without_gil([](const std::string& name, const std::string& value) { set_option(name, value); }));
  module.def("_get_option", call([](const std::string& name) { return get_option(name); }));
  module.def("_env_flag",
             call([](const std::string& name, bool fallback) { return env_flag(name.c_str(), fallback); }));
  module.def("_error_suffix", call([](int submodule, int code) {
               return error_suffix(static_cast<Submodule>(submodule), static_cast<ErrorCode>(code));
             }));
}

}  // namespace npu::python
