#include "process_group/diagnosis_bindings.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "process_group/flight_recorder.h"

namespace py = pybind11;

namespace npu::distributed {

void BindDiagnosis(py::module_& module) {
  module.def(
      "_dump_hccl_trace_json",
      [](std::optional<bool> collectives, std::optional<bool> only_active) {
        std::string text;
        {
          const py::gil_scoped_release no_gil;
          text = FlightRecorder::Instance().DumpJson(
              {.collectives = collectives.value_or(true), .stacks = false, .only_active = only_active.value_or(false)});
        }
        return py::bytes(text);
      },
      py::arg("includeCollectives") = py::none(), py::arg("onlyActive") = py::none(),
      "The flight recorder of this process as JSON text.\n\n"
      "Parameters\n----------\n"
      "includeCollectives : bool, default True\n    Whether the entries are wanted, or the groups only.\n"
      "onlyActive : bool, default False\n    Leave out what has completed.\n\n"
      "Returns\n-------\nbytes");
  module.def(
      "_dump_hccl_trace",
      [](std::optional<bool> collectives, std::optional<bool> stacks, std::optional<bool> only_active) {
        std::string text;
        {
          const py::gil_scoped_release no_gil;
          text = FlightRecorder::Instance().DumpPickle({.collectives = collectives.value_or(true),
                                                        .stacks = stacks.value_or(true),
                                                        .only_active = only_active.value_or(false)});
        }
        return py::bytes(text);
      },
      py::arg("includeCollectives") = py::none(), py::arg("includeStackTraces") = py::none(),
      py::arg("onlyActive") = py::none(),
      "The flight recorder of this process, to be read with pickle.loads().\n\n"
      "Parameters\n----------\n"
      "includeCollectives : bool, default True\n    Whether the entries are wanted, or the groups only.\n"
      "includeStackTraces : bool, default True\n    Add the Python frames of each call.\n"
      "onlyActive : bool, default False\n    Leave out what has completed.\n\n"
      "Returns\n-------\nbytes");
}

}  // namespace npu::distributed
