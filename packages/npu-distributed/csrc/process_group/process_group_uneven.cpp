// Collectives whose ranks have shares of different sizes, and the memory pool they may use.
#include <c10/util/Exception.h>

#include <cstring>

#include <algorithm>

#include "process_group/process_group_hccl.h"
#include "process_group/tensor_checks.h"

namespace npu::distributed {
namespace {

using c10d::OpType;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;

void CheckShare(const char* op, const char* what, const at::Tensor& share, const Region& part) {
  TORCH_CHECK_VALUE(share.nbytes() == part.bytes, op, ": this rank's ", what, " should have ",
                    part.bytes / share.element_size(), " elements, as its split says, but has ", share.numel());
}

}  // namespace

WorkPtr ProcessGroupHCCL::ReduceScatterUneven(at::Tensor& output, at::Tensor& input, const std::vector<int64_t>& splits,
                                              const c10d::ReduceScatterOptions& options) {
  CheckTensor(output);
  CheckTensor(input);
  TORCH_CHECK(output.scalar_type() == input.scalar_type(),
              "output tensor must have the same type as input tensor, but got ", output.scalar_type(), " and ",
              input.scalar_type());
  TORCH_CHECK(input.dim() > 0, "reduce_scatter_tensor_uneven: the input needs at least one dimension");
  std::vector<Region> parts = SplitParts(input, splits, size_, "the input");
  CheckShare("reduce_scatter_tensor_uneven", "output", output, parts[static_cast<size_t>(rank_)]);
  return ReduceScatterInto(OpType::_REDUCE_SCATTER_BASE, output, {input}, std::move(parts), options.reduceOp,
                           options.timeout);
}

WorkPtr ProcessGroupHCCL::AllGatherUneven(at::Tensor& output, at::Tensor& input, const std::vector<int64_t>& splits,
                                          const c10d::AllgatherOptions& options) {
  CheckTensor(output);
  CheckTensor(input);
  TORCH_CHECK(output.scalar_type() == input.scalar_type(),
              "output tensor must have the same type as input tensor, but got ", output.scalar_type(), " and ",
              input.scalar_type());
  TORCH_CHECK(output.dim() > 0, "all_gather_into_tensor_uneven: the output needs at least one dimension");
  std::vector<Region> parts = SplitParts(output, splits, size_, "the output");
  CheckShare("all_gather_into_tensor_uneven", "input", input, parts[static_cast<size_t>(rank_)]);
  const Region from = RegionOf(input);
  CheckSameLayout("all_gather_into_tensor_uneven", from, parts[static_cast<size_t>(rank_)]);
  Call call{OpType::_ALLGATHER_BASE, "hccl::all_gather_into_tensor_uneven", {input}, {output}, {}};
  call.body = [type = ElementTypeOf(input), from, to = std::move(parts)](Collectives& group) {
    group.AllGather(type, from, to);
  };
  call.timeout = options.timeout;
  return Run(std::move(call));
}

at::Tensor ProcessGroupHCCL::RegisterWindow(int64_t bytes, const std::vector<int64_t>& peers) {
  TORCH_CHECK_VALUE(bytes > 0, "_window_register_and_exchange: window_size should be positive, but got ", bytes);
  TORCH_CHECK(!environment_.zero_copy, "_window_register_and_exchange: cannot be used with TORCH_HCCL_ZERO_COPY=1");
  for (const int64_t peer : peers) {
    TORCH_CHECK_VALUE(peer >= 0 && peer < size_, "_window_register_and_exchange: peer_ranks should be in [0, ", size_,
                      "), but got ", peer);
  }
  const int device = CurrentDevice();
  const std::lock_guard lock(mutex_);
  TORCH_CHECK(!window_.defined(), "_window_register_and_exchange: a window of ",
              window_.defined() ? window_.numel() : 0, " bytes is registered already; a group has one");
  // The transport reads and writes the tensors of a collective in place, so memory from here needs no other treatment
  // than any tensor: meeting the peers is all that is left of the registration.
  CommunicatorOn(device);
  const at::Device place(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device));
  window_ = at::empty({bytes}, at::TensorOptions().dtype(at::kChar).device(place));
  return window_;
}

at::Tensor ProcessGroupHCCL::Window() const {
  const std::lock_guard lock(mutex_);
  TORCH_CHECK(window_.defined(), "_get_window_mem: no window yet; call _window_register_and_exchange first");
  return window_;
}

bool ProcessGroupHCCL::SwitchNic(int rank, int ranks_count, const std::vector<int64_t>& ranks,
                                 const std::vector<bool>& use_backup) const {
  TORCH_CHECK_VALUE(rank >= 0, "_set_switch_nic_comm: rankid should not be negative, but got ", rank);
  const auto count = static_cast<size_t>(std::max(ranks_count, 0));
  TORCH_CHECK_VALUE(ranks_count >= 0 && ranks.size() == count && use_backup.size() == count,
                    "_set_switch_nic_comm: expected nRanks=", ranks_count, " entries in ranks and useBackup, but got ",
                    ranks.size(), " and ", use_backup.size());
  for (const int64_t switched : ranks) {
    TORCH_CHECK_VALUE(switched >= 0 && switched < size_, "_set_switch_nic_comm: ranks should be in [0, ", size_,
                      "), but got ", switched);
  }
  return true;
}

WorkPtr ProcessGroupHCCL::ReduceInto(at::Tensor& output, at::Tensor& input, const c10d::ReduceOptions& options) {
  CheckTensor(output);
  CheckTensor(input);
  TORCH_CHECK(output.scalar_type() == input.scalar_type(), "_reduce_oop: output and input must have one type, but got ",
              output.scalar_type(), " and ", input.scalar_type());
  TORCH_CHECK_VALUE(output.numel() == input.numel(),
                    "_reduce_oop: output and input must have the same number of elements, but got ", output.numel(),
                    " and ", input.numel());
  TORCH_CHECK_VALUE(options.rootRank >= 0 && options.rootRank < size_, "_reduce_oop: the root should be a rank in [0, ",
                    size_, "), but got ", options.rootRank);
  const Reduction reduction = ReductionOf(options.reduceOp, input);
  const bool is_root = rank_ == options.rootRank;
  const Region from = RegionOf(input);
  const Region to = RegionOf(output);
  if (is_root) CheckSameLayout("_reduce_oop", from, to);
  Call call{OpType::REDUCE, "hccl::reduce", {input}, {output}, {}};
  if (reduction.factor.defined()) call.inputs.push_back(reduction.factor);
  call.body = [type = ElementTypeOf(input), reduction, root = static_cast<int>(options.rootRank), is_root, from,
               to](Collectives& group) {
    if (is_root && from.bytes != 0) std::memmove(to.address, from.address, from.bytes);
    group.Reduce(type, reduction.kind, reduction.Factor(), root, is_root ? to : from);
  };
  call.timeout = options.timeout;
  return Run(std::move(call));
}

}  // namespace npu::distributed
