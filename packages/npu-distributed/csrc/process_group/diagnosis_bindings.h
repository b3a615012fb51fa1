// What Python calls to read the flight recorder.
#pragma once

#include <pybind11/pybind11.h>

namespace npu::distributed {

void BindDiagnosis(pybind11::module_& module);

}  // namespace npu::distributed
