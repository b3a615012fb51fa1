// Python classes ProcessGroupHCCL and ProcessGroupHCCL.Options, and what the Python side of the wheel calls.
#include <pybind11/chrono.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <limits>

#include "collectives/reduction.h"
#include "process_group/diagnosis_bindings.h"
#include "process_group/process_group_hccl.h"

namespace py = pybind11;

namespace npu::distributed {
namespace {

using NoGil = py::call_guard<py::gil_scoped_release>;
using GroupPtr = c10::intrusive_ptr<ProcessGroupHCCL>;
using OptionsPtr = c10::intrusive_ptr<ProcessGroupHCCL::Options>;
using StorePtr = c10::intrusive_ptr<c10d::Store>;

/// Values of types that no key takes are kept by type: they are refused when the communicator is made.
HcclConfig ConfigOf(const py::dict& values) {
  HcclConfig config;
  for (const auto& [key, value] : values) {
    const auto name = py::cast<std::string>(key);
    if (py::isinstance<py::str>(value)) {
      config[name] = py::cast<std::string>(value);
    } else if (py::isinstance<py::bool_>(value) || !py::isinstance<py::int_>(value)) {
      config[name] = ForeignValue{py::cast<std::string>(py::type::handle_of(value).attr("__name__"))};
    } else if (value < py::int_(0)) {
      config[name] = py::cast<int64_t>(value);
    } else {
      const auto number = py::cast<uint64_t>(value);
      const bool is_signed = number <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
      config[name] = is_signed ? ConfigValue(static_cast<int64_t>(number)) : ConfigValue(number);
    }
  }
  return config;
}

py::dict DictOf(const HcclConfig& config) {
  py::dict values;
  for (const auto& [name, value] : config) {
    const py::str key(name);
    if (const auto* foreign = std::get_if<ForeignValue>(&value)) {
      values[key] = py::str("<" + foreign->type + ">");
    } else if (const auto* text = std::get_if<std::string>(&value)) {
      values[key] = py::str(*text);
    } else if (const auto* number = std::get_if<int64_t>(&value)) {
      values[key] = py::int_(*number);
    } else {
      values[key] = py::int_(std::get<uint64_t>(value));
    }
  }
  return values;
}

void BindOptions(py::class_<ProcessGroupHCCL, GroupPtr, c10d::Backend>& group) {
  using Options = ProcessGroupHCCL::Options;
  py::class_<Options, OptionsPtr, c10d::Backend::Options>(group, "Options", "Settings of a ProcessGroupHCCL.")
      .def(py::init<>())
      .def_readwrite("op_timeout", &Options::op_timeout)
      .def_readwrite("is_high_priority_stream", &Options::is_high_priority_stream)
      .def_readwrite("group_id", &Options::group_id)
      .def_property(
          "hccl_config", [](const Options& self) { return DictOf(self.hccl_config); },
          [](Options& self, const py::dict& values) { self.hccl_config = ConfigOf(values); },
          "Settings of the communicators; see docs.  Reading it gives a copy.");
}

GroupPtr MakeGroup(StorePtr store, int rank, int size, OptionsPtr options) {
  return c10::make_intrusive<ProcessGroupHCCL>(std::move(store), rank, size, std::move(options));
}

GroupPtr MakeGroupWithTimeout(StorePtr store, int rank, int size, std::chrono::milliseconds timeout) {
  auto options = c10::make_intrusive<ProcessGroupHCCL::Options>();
  options->timeout = timeout;
  return MakeGroup(std::move(store), rank, size, std::move(options));
}

void BindGroup(py::module_& module) {
  py::class_<ProcessGroupHCCL, GroupPtr, c10d::Backend> group(
      module, "ProcessGroupHCCL", "Backend of torch.distributed that moves npu tensors between processes.");
  BindOptions(group);
  group
      .def(py::init(torch::wrap_pybind_function_no_gil(&MakeGroup)), py::arg("store"), py::arg("rank"), py::arg("size"),
           py::arg("options"))
      .def(py::init(torch::wrap_pybind_function_no_gil(&MakeGroupWithTimeout)), py::arg("store"), py::arg("rank"),
           py::arg("size"), py::arg("timeout") = kBackendDefaultTimeout)
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
      .def(
          "get_p2p_stream_id",
          [](ProcessGroupHCCL& self, int device, int peer, int is_batched) {
            return is_batched != 0 ? self.CollectiveStreamId(device) : self.PairStreamId(peer);
          },
          py::arg("device"), py::arg("peer"), py::arg("is_batched") = 0, NoGil())
      .def("batch_isend_irecv", &ProcessGroupHCCL::BatchTransfers, py::arg("op_type"), py::arg("tensors"),
           py::arg("remote_rank_list"), NoGil())
      .def("_reduce_oop", &ProcessGroupHCCL::ReduceInto, py::arg("output"), py::arg("input"),
           py::arg("opts") = c10d::ReduceOptions(), NoGil())
      .def("reduce_scatter_tensor_uneven", &ProcessGroupHCCL::ReduceScatterUneven, py::arg("output"), py::arg("input"),
           py::arg("input_split_sizes") = std::vector<int64_t>(), py::arg("opts") = c10d::ReduceScatterOptions(),
           NoGil())
      .def("all_gather_into_tensor_uneven", &ProcessGroupHCCL::AllGatherUneven, py::arg("output"), py::arg("input"),
           py::arg("output_split_sizes") = std::vector<int64_t>(), py::arg("opts") = c10d::AllgatherOptions(), NoGil())
      .def(
          "_group_start", [](ProcessGroupHCCL&) { ProcessGroupHCCL::GroupStart(); }, NoGil())
      .def(
          "_group_end", [](ProcessGroupHCCL&) { ProcessGroupHCCL::GroupEnd(); }, NoGil())
      .def("_window_register_and_exchange", &ProcessGroupHCCL::RegisterWindow, py::arg("window_size"),
           py::arg("peer_ranks"), NoGil())
      .def("_get_window_mem", &ProcessGroupHCCL::Window, NoGil())
      .def("_set_switch_nic_comm", &ProcessGroupHCCL::SwitchNic, py::arg("rankid"), py::arg("nRanks"),
           py::arg("ranks") = std::vector<int64_t>(), py::arg("useBackup") = std::vector<bool>(), NoGil())
      .def("resume_hccl_comm", &ProcessGroupHCCL::Resume, py::arg("device"), NoGil())
      .def("_delete_tcpstore_key", &ProcessGroupHCCL::DeleteStoreKeys, NoGil())
      .def("_set_default_timeout", &ProcessGroupHCCL::SetDefaultTimeout, py::arg("timeout"), NoGil())
      .def("_add_ephemeral_timeout", &ProcessGroupHCCL::AddEphemeralTimeout, py::arg("timeout"), NoGil())
      .def("set_watchdog_status", &ProcessGroupHCCL::SetWatchdogStatus, py::arg("status"), NoGil())
      .def("clear_workmeta_list", &ProcessGroupHCCL::ClearWatchedWorks, NoGil())
      .def(
          "has_failed", [](ProcessGroupHCCL& self) { return self.getError() != c10d::ErrorType::SUCCESS; }, NoGil(),
          "Whether a collective of this group has failed, so that the group needs to be rebuilt.")
      .def("abort_hccl_comm", &ProcessGroupHCCL::Abort, py::arg("reason"), NoGil());
  py::class_<ProcessGroupLCCL, c10::intrusive_ptr<ProcessGroupLCCL>, ProcessGroupHCCL>(
      module, "ProcessGroupLCCL", "ProcessGroupHCCL under the name of backend \"lccl\".")
      .def(py::init([](StorePtr store, int rank, int size) {
             return c10::make_intrusive<ProcessGroupLCCL>(std::move(store), rank, size,
                                                          c10::make_intrusive<ProcessGroupHCCL::Options>("lccl"));
           }),
           py::arg("store"), py::arg("rank"), py::arg("size"), NoGil())
      .def(py::init([](StorePtr store, int rank, int size, OptionsPtr options) {
             return c10::make_intrusive<ProcessGroupLCCL>(std::move(store), rank, size, std::move(options));
           }),
           py::arg("store"), py::arg("rank"), py::arg("size"), py::arg("options"), NoGil());
}

}  // namespace

void BindWork(py::module_& module) {
  py::class_<WorkHCCL, c10::intrusive_ptr<WorkHCCL>, c10d::Work>(module, "WorkHCCL",
                                                                 "What a collective on npu tensors returns.")
      .def("__repr__", &WorkHCCL::Describe)
      .def("abort", &WorkHCCL::abort, NoGil(), "Ends the communicators of the group; its pending works fail.");
}

PYBIND11_MODULE(_C, module) {
  py::module_::import("torch._C._distributed_c10d");
  BindGroup(module);
  BindWork(module);
  module.def(
      "shutdown_all_groups",
      [](std::chrono::milliseconds limit, const py::function& before_end) {
        const py::gil_scoped_release no_gil;
        ShutdownAllGroups(limit, [&before_end] {
          const py::gil_scoped_acquire gil;
          before_end();
        });
      },
      py::arg("limit"), py::arg("before_end"));
  BindDiagnosis(module);
  module.def("available_isas", &AvailableIsas,
             "Instruction sets whose reduction kernels this CPU can run, best first.");
}

}  // namespace npu::distributed
