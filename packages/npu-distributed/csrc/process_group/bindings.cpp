// Python classes ProcessGroupHCCL and ProcessGroupHCCL.Options, and what the Python side of the wheel calls.
#include <pybind11/chrono.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "collectives/reduction.h"
#include "process_group/process_group_hccl.h"

namespace py = pybind11;

namespace npu::distributed {
namespace {

using NoGil = py::call_guard<py::gil_scoped_release>;
using GroupPtr = c10::intrusive_ptr<ProcessGroupHCCL>;
using OptionsPtr = c10::intrusive_ptr<ProcessGroupHCCL::Options>;
using StorePtr = c10::intrusive_ptr<c10d::Store>;

void BindOptions(py::class_<ProcessGroupHCCL, GroupPtr, c10d::Backend>& group) {
  using Options = ProcessGroupHCCL::Options;
  py::class_<Options, OptionsPtr, c10d::Backend::Options>(group, "Options", "Settings of a ProcessGroupHCCL.")
      .def(py::init<>())
      .def_readwrite("op_timeout", &Options::op_timeout)
      .def_readwrite("is_high_priority_stream", &Options::is_high_priority_stream)
      .def_readwrite("group_id", &Options::group_id)
      .def_readwrite("hccl_config", &Options::hccl_config);
}

void BindGroup(py::module_& module) {
  py::class_<ProcessGroupHCCL, GroupPtr, c10d::Backend> group(
      module, "ProcessGroupHCCL", "Backend of torch.distributed that moves npu tensors between processes.");
  BindOptions(group);
  group
      .def(py::init([](StorePtr store, int rank, int size, OptionsPtr options) {
             return c10::make_intrusive<ProcessGroupHCCL>(std::move(store), rank, size, std::move(options));
           }),
           py::arg("store"), py::arg("rank"), py::arg("size"), py::arg("options"), NoGil())
      .def(py::init([](StorePtr store, int rank, int size, std::chrono::milliseconds timeout) {
             auto options = c10::make_intrusive<ProcessGroupHCCL::Options>();
             options->timeout = timeout;
             return c10::make_intrusive<ProcessGroupHCCL>(std::move(store), rank, size, std::move(options));
           }),
           py::arg("store"), py::arg("rank"), py::arg("size"), py::arg("timeout") = kBackendDefaultTimeout, NoGil())
      .def_property_readonly("options", &ProcessGroupHCCL::options)
      .def("get_hccl_comm_name", &ProcessGroupHCCL::CommName, py::arg("rankid"), py::kw_only(),
           py::arg("init_comm") = true, NoGil())
      .def("_set_hccl_comm_name", &ProcessGroupHCCL::SetCommName, py::arg("name"), NoGil())
      .def("get_hccl_comm", &ProcessGroupHCCL::CommHandle, py::arg("rankid"), NoGil())
      .def("get_coll_stream_id", &ProcessGroupHCCL::CollectiveStreamId, py::arg("device"), NoGil())
      .def(
          "_get_stream_id",
          [](const ProcessGroupHCCL& self, bool p2p, int peer) {
            return p2p ? self.PairStreamId(peer) : self.ExistingStreamId();
          },
          py::arg("p2p") = false, py::arg("peer") = -1, NoGil())
      .def("_set_default_timeout", &ProcessGroupHCCL::SetDefaultTimeout, py::arg("timeout"), NoGil())
      .def("_add_ephemeral_timeout", &ProcessGroupHCCL::AddEphemeralTimeout, py::arg("timeout"), NoGil())
      .def("clear_workmeta_list", &ProcessGroupHCCL::ClearWatchedWorks, NoGil())
      .def(
          "has_failed", [](ProcessGroupHCCL& self) { return self.getError() != c10d::ErrorType::SUCCESS; }, NoGil(),
          "Whether a collective of this group has failed, so that the group needs to be rebuilt.")
      .def("abort_hccl_comm", &ProcessGroupHCCL::Abort, py::arg("reason"), NoGil());
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  py::module_::import("torch._C._distributed_c10d");
  BindGroup(module);
  module.def("shutdown_all_groups", &ShutdownAllGroups, py::arg("limit"), NoGil());
  module.def("available_isas", &AvailableIsas,
             "Instruction sets whose reduction kernels this CPU can run, best first.");
}

}  // namespace npu::distributed
