// The collectives of ProcessGroupHCCL: check the tensors, name their memory, queue the algorithm.
#include <c10/util/Exception.h>

#include <numeric>

#include "process_group/process_group_hccl.h"
#include "process_group/tensor_checks.h"

namespace npu::distributed {
namespace {

using c10d::OpType;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;

const at::Tensor& Single(const std::vector<at::Tensor>& tensors, const char* op) {
  TORCH_CHECK(tensors.size() == 1, op, ": expected one tensor per process, but got ", tensors.size());
  return tensors.front();
}

void CheckRoot(int64_t root, int size, const char* op) {
  TORCH_CHECK_VALUE(root >= 0 && root < size, op, ": the root should be a rank in [0, ", size, "), but got ", root);
}

[[noreturn]] void NotInThisVersion(const char* op, const char* advice) {
  C10_THROW_ERROR(NotImplementedError,
                  std::string("backend \"hccl\" of this version of npu-distributed has no ") + op + ": " + advice);
}

/// `parts` views of `tensor`, one below the other along dimension 0, as regions.
std::vector<Region> EqualParts(const at::Tensor& tensor, int parts) {
  std::vector<Region> regions(static_cast<size_t>(parts));
  const size_t bytes = tensor.nbytes() / static_cast<size_t>(parts);
  if (bytes == 0) return regions;
  auto* base = static_cast<std::byte*>(tensor.data_ptr());
  for (size_t i = 0; i < regions.size(); ++i) regions[i] = {base + i * bytes, bytes};
  return regions;
}

/// Parts of `tensor` with the given numbers of rows.
std::vector<Region> SplitParts(const at::Tensor& tensor, const std::vector<int64_t>& splits, int size,
                               const char* what) {
  if (splits.empty()) {
    TORCH_CHECK(tensor.size(0) % size == 0, "Tensor's dim 0 does not divide equally across group size: ", what, " has ",
                tensor.size(0), " rows for ", size, " ranks");
    return EqualParts(tensor, size);
  }
  TORCH_CHECK(splits.size() == static_cast<size_t>(size), "Number of tensor splits not equal to group size: ", what,
              " has ", splits.size(), " splits for ", size, " ranks");
  TORCH_CHECK(std::accumulate(splits.begin(), splits.end(), int64_t{0}) == tensor.size(0),
              "Split sizes doesn't match total dim 0 size of ", what);
  std::vector<Region> regions;
  const size_t row = tensor.size(0) == 0 ? 0 : tensor.nbytes() / static_cast<size_t>(tensor.size(0));
  size_t offset = 0;
  for (const int64_t rows : splits) {
    TORCH_CHECK(rows >= 0, "Split sizes should not be negative: ", what, " is split into ", splits);
    const size_t bytes = static_cast<size_t>(rows) * row;
    if (bytes == 0) {
      regions.push_back({});
    } else {
      regions.push_back({static_cast<std::byte*>(tensor.data_ptr()) + offset, bytes});
    }
    offset += bytes;
  }
  return regions;
}

}  // namespace

WorkPtr ProcessGroupHCCL::allreduce(std::vector<at::Tensor>& tensors, const c10d::AllreduceOptions& options) {
  const at::Tensor& tensor = Single(tensors, "allreduce");
  CheckTensor(tensor);
  const Reduction reduction = ReductionOf(options.reduceOp, tensor);
  Launch launch{OpType::ALLREDUCE, "hccl::all_reduce", {}, {tensor}, {}};
  if (reduction.factor.defined()) launch.inputs.push_back(reduction.factor);
  launch.body = [type = ElementTypeOf(tensor), reduction, data = RegionOf(tensor)](Collectives& group) {
    group.AllReduce(type, reduction.kind, reduction.Factor(), data);
  };
  launch.timeout = options.timeout;
  return Run(std::move(launch));
}

WorkPtr ProcessGroupHCCL::allreduce_coalesced(std::vector<at::Tensor>& tensors,
                                              const c10d::AllreduceCoalescedOptions& options) {
  TORCH_CHECK(!tensors.empty(), "Tensor list must be nonempty");
  CheckTensorList(tensors, tensors.front());
  const Reduction reduction = ReductionOf(options.reduceOp, tensors.front());
  Launch launch{OpType::ALLREDUCE_COALESCED, "hccl::all_reduce_coalesced", {}, tensors, {}};
  if (reduction.factor.defined()) launch.inputs.push_back(reduction.factor);
  launch.body = [type = ElementTypeOf(tensors.front()), reduction, regions = RegionsOf(tensors)](Collectives& group) {
    for (const Region& region : regions) group.AllReduce(type, reduction.kind, reduction.Factor(), region);
  };
  launch.timeout = options.timeout;
  return Run(std::move(launch));
}

WorkPtr ProcessGroupHCCL::broadcast(std::vector<at::Tensor>& tensors, const c10d::BroadcastOptions& options) {
  const at::Tensor& tensor = Single(tensors, "broadcast");
  CheckTensor(tensor);
  CheckRoot(options.rootRank, size_, "broadcast");
  Launch launch{OpType::BROADCAST, "hccl::broadcast", {}, {tensor}, {}};
  launch.body = [type = ElementTypeOf(tensor), root = static_cast<int>(options.rootRank),
                 data = RegionOf(tensor)](Collectives& group) { group.Broadcast(type, root, data); };
  launch.timeout = options.timeout;
  return Run(std::move(launch));
}

WorkPtr ProcessGroupHCCL::reduce(std::vector<at::Tensor>& tensors, const c10d::ReduceOptions& options) {
  const at::Tensor& tensor = Single(tensors, "reduce");
  CheckTensor(tensor);
  CheckRoot(options.rootRank, size_, "reduce");
  const Reduction reduction = ReductionOf(options.reduceOp, tensor);
  Launch launch{OpType::REDUCE, "hccl::reduce", {}, {tensor}, {}};
  if (reduction.factor.defined()) launch.inputs.push_back(reduction.factor);
  launch.body = [type = ElementTypeOf(tensor), reduction, root = static_cast<int>(options.rootRank),
                 data = RegionOf(tensor)](Collectives& group) {
    group.Reduce(type, reduction.kind, reduction.Factor(), root, data);
  };
  launch.timeout = options.timeout;
  return Run(std::move(launch));
}

WorkPtr ProcessGroupHCCL::allgather(std::vector<std::vector<at::Tensor>>& outputs, std::vector<at::Tensor>& inputs,
                                    const c10d::AllgatherOptions& options) {
  const at::Tensor& input = Single(inputs, "allgather");
  TORCH_CHECK(outputs.size() == 1, "allgather: expected one list of outputs, but got ", outputs.size());
  CheckTensor(input);
  CheckTensorList(outputs.front(), input);
  TORCH_CHECK(outputs.front().size() == static_cast<size_t>(size_), "allgather: expected ", size_,
              " output tensors, one per rank, but got ", outputs.front().size());
  Launch launch{OpType::ALLGATHER, "hccl::all_gather", {input}, outputs.front(), {}};
  launch.body = [type = ElementTypeOf(input), from = RegionOf(input),
                 to = RegionsOf(outputs.front())](Collectives& group) { group.AllGather(type, from, to); };
  launch.timeout = options.timeout;
  return Run(std::move(launch));
}

WorkPtr ProcessGroupHCCL::_allgather_base(at::Tensor& output, at::Tensor& input,
                                          const c10d::AllgatherOptions& options) {
  std::vector<at::Tensor> outputs{output};
  std::vector<at::Tensor> inputs{input};
  return allgather_into_tensor_coalesced(outputs, inputs, options);
}

WorkPtr ProcessGroupHCCL::allgather_into_tensor_coalesced(std::vector<at::Tensor>& outputs,
                                                          std::vector<at::Tensor>& inputs,
                                                          const c10d::AllgatherOptions& options) {
  TORCH_CHECK(!inputs.empty() && inputs.size() == outputs.size(),
              "all_gather_into_tensor: expected as many outputs as inputs, at least one, but got ", outputs.size(),
              " and ", inputs.size());
  struct Pair {
    ElementType type;
    Region from;
    std::vector<Region> to;
  };
  std::vector<Pair> pairs;
  for (size_t i = 0; i < inputs.size(); ++i) {
    CheckTensor(inputs[i]);
    CheckTensor(outputs[i]);
    TORCH_CHECK_TYPE(inputs[i].scalar_type() == outputs[i].scalar_type(),
                     "output tensor must have the same type as input tensor, but got ", outputs[i].scalar_type(),
                     " and ", inputs[i].scalar_type());
    TORCH_CHECK_VALUE(inputs[i].numel() * size_ == outputs[i].numel(),
                      "output tensor size must be equal to world_size times input tensor size, but got ",
                      outputs[i].numel(), " and ", size_, " * ", inputs[i].numel());
    pairs.push_back({ElementTypeOf(inputs[i]), RegionOf(inputs[i]), EqualParts(outputs[i], size_)});
  }
  Launch launch{OpType::_ALLGATHER_BASE, "hccl::all_gather_into_tensor", inputs, outputs, {}};
  launch.body = [pairs = std::move(pairs)](Collectives& group) {
    for (const Pair& pair : pairs) group.AllGather(pair.type, pair.from, pair.to);
  };
  launch.timeout = options.timeout;
  return Run(std::move(launch));
}

WorkPtr ProcessGroupHCCL::ReduceScatterInto(OpType op, at::Tensor& output, std::vector<at::Tensor> inputs,
                                            const c10d::ReduceOp& reduce, std::chrono::milliseconds timeout) {
  TORCH_CHECK(output.scalar_type() != at::kByte && output.scalar_type() != at::kBool,
              "Unsupported data type for reduce_scatter with HCCL: ", output.scalar_type());
  const Reduction reduction = ReductionOf(reduce, output);
  const std::vector<Region> from = inputs.size() == 1 ? EqualParts(inputs.front(), size_) : RegionsOf(inputs);
  Launch launch{op, "hccl::reduce_scatter", std::move(inputs), {output}, {}};
  if (reduction.factor.defined()) launch.inputs.push_back(reduction.factor);
  launch.body = [type = ElementTypeOf(output), reduction, from, to = RegionOf(output)](Collectives& group) {
    group.ReduceScatter(type, reduction.kind, reduction.Factor(), from, to);
  };
  launch.timeout = timeout;
  return Run(std::move(launch));
}

WorkPtr ProcessGroupHCCL::reduce_scatter(std::vector<at::Tensor>& outputs, std::vector<std::vector<at::Tensor>>& inputs,
                                         const c10d::ReduceScatterOptions& options) {
  at::Tensor output = Single(outputs, "reduce_scatter");
  TORCH_CHECK(inputs.size() == 1, "reduce_scatter: expected one list of inputs, but got ", inputs.size());
  CheckTensor(output);
  std::vector<at::Tensor>& list = inputs.front();
  CheckTensorList(list, output);
  const bool one_per_rank = list.size() == static_cast<size_t>(size_) && size_ > 1;
  if (one_per_rank && list[static_cast<size_t>(rank_)].numel() == output.numel()) {
    return ReduceScatterInto(OpType::REDUCE_SCATTER, output, list, options.reduceOp, options.timeout);
  }
  // Any other list counts as one long vector of which rank r takes the r-th stretch; what is missing reads as zero.
  std::vector<at::Tensor> flat;
  flat.reserve(list.size());
  for (const at::Tensor& tensor : list) flat.push_back(tensor.reshape({-1}));
  const at::Tensor joined = at::cat(flat);
  at::Tensor padded = at::zeros({output.numel() * size_}, output.options());
  const int64_t used = std::min(joined.numel(), padded.numel());
  padded.narrow(0, 0, used).copy_(joined.narrow(0, 0, used));
  return ReduceScatterInto(OpType::REDUCE_SCATTER, output, {padded}, options.reduceOp, options.timeout);
}

WorkPtr ProcessGroupHCCL::_reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                               const c10d::ReduceScatterOptions& options) {
  CheckTensor(output);
  CheckTensor(input);
  TORCH_CHECK_TYPE(input.scalar_type() == output.scalar_type(),
                   "input tensor must be the same type as the output tensor., but got ", input.scalar_type(), " and ",
                   output.scalar_type());
  TORCH_CHECK_VALUE(output.numel() * size_ == input.numel(),
                    "input tensor must be the same size as output size times world size, but got ", input.numel(),
                    " and ", output.numel(), " * ", size_);
  return ReduceScatterInto(OpType::_REDUCE_SCATTER_BASE, output, {input}, options.reduceOp, options.timeout);
}

WorkPtr ProcessGroupHCCL::reduce_scatter_tensor_coalesced(std::vector<at::Tensor>& outputs,
                                                          std::vector<at::Tensor>& inputs,
                                                          const c10d::ReduceScatterOptions& options) {
  TORCH_CHECK(!inputs.empty() && inputs.size() == outputs.size(),
              "reduce_scatter_tensor: expected as many outputs as inputs, at least one, but got ", outputs.size(),
              " and ", inputs.size());
  startCoalescing();
  for (size_t i = 0; i < inputs.size(); ++i) _reduce_scatter_base(outputs[i], inputs[i], options);
  return endCoalescing();
}

WorkPtr ProcessGroupHCCL::alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& output_splits,
                                        std::vector<int64_t>& input_splits, const c10d::AllToAllOptions& options) {
  CheckTensor(output);
  CheckTensor(input);
  TORCH_CHECK(input.dim() > 0 && output.dim() > 0, "all_to_all_single: tensors need at least one dimension");
  TORCH_CHECK(input.scalar_type() == output.scalar_type() &&
                  (!output_splits.empty() || !input_splits.empty() || input.numel() == output.numel()),
              "Tensors are not equal in size or data type");
  Launch launch{OpType::ALLTOALL_BASE, "hccl::all_to_all_single", {input}, {output}, {}};
  launch.body = [type = ElementTypeOf(input), from = SplitParts(input, input_splits, size_, "the input"),
                 to = SplitParts(output, output_splits, size_, "the output")](Collectives& group) {
    group.AllToAll(type, from, to);
  };
  launch.timeout = options.timeout;
  return Run(std::move(launch));
}

WorkPtr ProcessGroupHCCL::alltoall(std::vector<at::Tensor>& outputs, std::vector<at::Tensor>& inputs,
                                   const c10d::AllToAllOptions& options) {
  const auto size = static_cast<size_t>(size_);
  TORCH_CHECK(outputs.size() == size, "the size of output_tensors and worldsize must equal, but got ", outputs.size(),
              " and ", size_);
  TORCH_CHECK(inputs.size() == size, "the size of input_tensors and worldsize must equal, but got ", inputs.size(),
              " and ", size_);
  CheckTensorList(inputs, inputs.front());
  CheckTensorList(outputs, inputs.front());
  Launch launch{OpType::ALLTOALL, "hccl::all_to_all", inputs, outputs, {}};
  launch.body = [type = ElementTypeOf(inputs.front()), from = RegionsOf(inputs),
                 to = RegionsOf(outputs)](Collectives& group) { group.AllToAll(type, from, to); };
  launch.timeout = options.timeout;
  return Run(std::move(launch));
}

WorkPtr ProcessGroupHCCL::scatter(std::vector<at::Tensor>& outputs, std::vector<std::vector<at::Tensor>>& inputs,
                                  const c10d::ScatterOptions& options) {
  const at::Tensor& output = Single(outputs, "scatter");
  CheckTensor(output);
  CheckRoot(options.rootRank, size_, "scatter");
  std::vector<at::Tensor> sent;
  if (rank_ == options.rootRank) {
    TORCH_CHECK(inputs.size() == 1 && inputs.front().size() == static_cast<size_t>(size_), "scatter: the root passes ",
                size_, " input tensors, one per rank");
    CheckTensorList(inputs.front(), output);
    sent = inputs.front();
  }
  Launch launch{OpType::SCATTER, "hccl::scatter", sent, {output}, {}};
  launch.body = [type = ElementTypeOf(output), root = static_cast<int>(options.rootRank), from = RegionsOf(sent),
                 to = RegionOf(output)](Collectives& group) { group.Scatter(type, root, from, to); };
  launch.timeout = options.timeout;
  return Run(std::move(launch));
}

WorkPtr ProcessGroupHCCL::gather(std::vector<std::vector<at::Tensor>>& outputs, std::vector<at::Tensor>& inputs,
                                 const c10d::GatherOptions& options) {
  const at::Tensor& input = Single(inputs, "gather");
  CheckTensor(input);
  CheckRoot(options.rootRank, size_, "gather");
  std::vector<at::Tensor> received;
  if (rank_ == options.rootRank) {
    TORCH_CHECK(outputs.size() == 1 && outputs.front().size() == static_cast<size_t>(size_), "gather: the root passes ",
                size_, " output tensors, one per rank");
    CheckTensorList(outputs.front(), input);
    received = outputs.front();
  }
  Launch launch{OpType::GATHER, "hccl::gather", {input}, received, {}};
  launch.body = [type = ElementTypeOf(input), root = static_cast<int>(options.rootRank), from = RegionOf(input),
                 to = RegionsOf(received)](Collectives& group) { group.Gather(type, root, from, to); };
  launch.timeout = options.timeout;
  return Run(std::move(launch));
}

WorkPtr ProcessGroupHCCL::barrier(const c10d::BarrierOptions& options) {
  int device = -1;
  {
    const std::lock_guard lock(mutex_);
    device = device_;
  }
  if (!options.device_ids.empty()) {
    device = static_cast<int>(options.device_ids.front());
  } else if (options.device && options.device->type() == c10::DeviceType::PrivateUse1 && options.device->has_index()) {
    device = options.device->index();
  } else if (device < 0) {
    int32_t current = 0;
    CheckRuntime(Runtime().current_device(&current), "reading the current device");
    device = current;
  }
  const at::Device place(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device));
  Launch launch{OpType::BARRIER, "hccl::barrier", {}, {at::empty({0}, at::TensorOptions().device(place))}, {}};
  launch.body = [](Collectives& group) { group.Barrier(); };
  launch.blocks_host = true;
  launch.timeout = options.timeout;
  return Run(std::move(launch));
}

// ---- not in this version
// ----------------------------------------------------------------------------------------------

WorkPtr ProcessGroupHCCL::send(std::vector<at::Tensor>& /*tensors*/, int /*peer*/, int /*tag*/) {
  NotInThisVersion("send", "use broadcast in a group of two ranks, or send a CPU tensor over a \"gloo\" group");
}

WorkPtr ProcessGroupHCCL::recv(std::vector<at::Tensor>& /*tensors*/, int /*peer*/, int /*tag*/) {
  NotInThisVersion("recv", "use broadcast in a group of two ranks, or receive a CPU tensor over a \"gloo\" group");
}

WorkPtr ProcessGroupHCCL::recvAnysource(std::vector<at::Tensor>& /*tensors*/, int /*tag*/) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, "ProcessGroupHCCL does not support recv from any source: pass src=<rank>");
}

WorkPtr ProcessGroupHCCL::allreduce_sparse(std::vector<at::Tensor>& /*tensors*/,
                                           const c10d::AllreduceOptions& /*options*/) {
  NotInThisVersion("allreduce of sparse tensors", "Tensors must be NPU and dense; call .to_dense() first");
}

WorkPtr ProcessGroupHCCL::allgather_coalesced(std::vector<std::vector<at::Tensor>>& /*outputs*/,
                                              std::vector<at::Tensor>& /*inputs*/,
                                              const c10d::AllgatherOptions& /*options*/) {
  NotInThisVersion("all_gather_coalesced", "call all_gather for each tensor");
}

}  // namespace npu::distributed
