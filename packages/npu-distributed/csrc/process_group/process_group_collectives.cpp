// The collectives of ProcessGroupHCCL: check the tensors, name their memory, queue the algorithm.
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>

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

void CheckReduceScatterTensors(const at::Tensor& output, const at::Tensor& input, int size) {
  CheckTensor(output);
  CheckTensor(input);
  TORCH_CHECK_TYPE(input.scalar_type() == output.scalar_type(),
                   "input tensor must be the same type as the output tensor., but got ", input.scalar_type(), " and ",
                   output.scalar_type());
  TORCH_CHECK_VALUE(output.numel() * size == input.numel(),
                    "input tensor must be the same size as output size times world size, but got ", input.numel(),
                    " and ", output.numel(), " * ", size);
}

}  // namespace

WorkPtr ProcessGroupHCCL::allreduce(std::vector<at::Tensor>& tensors, const c10d::AllreduceOptions& options) {
  const at::Tensor& tensor = Single(tensors, "allreduce");
  CheckTensor(tensor);
  const Reduction reduction = ReductionOf(options.reduceOp, tensor);
  Call call{OpType::ALLREDUCE, "hccl::all_reduce", {}, {tensor}, {}};
  if (reduction.factor.defined()) call.inputs.push_back(reduction.factor);
  call.body = [type = ElementTypeOf(tensor), reduction, data = RegionOf(tensor)](Collectives& group) {
    group.AllReduce(type, reduction.kind, reduction.Factor(), data);
  };
  call.timeout = options.timeout;
  return Run(std::move(call));
}

WorkPtr ProcessGroupHCCL::allreduce_coalesced(std::vector<at::Tensor>& tensors,
                                              const c10d::AllreduceCoalescedOptions& options) {
  TORCH_CHECK(!tensors.empty(), "Tensor list must be nonempty");
  CheckTensorList(tensors, tensors.front());
  const Reduction reduction = ReductionOf(options.reduceOp, tensors.front());
  Call call{OpType::ALLREDUCE_COALESCED, "hccl::all_reduce_coalesced", {}, tensors, {}};
  if (reduction.factor.defined()) call.inputs.push_back(reduction.factor);
  call.body = [type = ElementTypeOf(tensors.front()), reduction, regions = RegionsOf(tensors)](Collectives& group) {
    for (const Region& region : regions) group.AllReduce(type, reduction.kind, reduction.Factor(), region);
  };
  call.timeout = options.timeout;
  return Run(std::move(call));
}

WorkPtr ProcessGroupHCCL::broadcast(std::vector<at::Tensor>& tensors, const c10d::BroadcastOptions& options) {
  const at::Tensor& tensor = Single(tensors, "broadcast");
  CheckTensor(tensor);
  CheckRoot(options.rootRank, size_, "broadcast");
  Call call{OpType::BROADCAST, "hccl::broadcast", {}, {tensor}, {}};
  call.body = [type = ElementTypeOf(tensor), root = static_cast<int>(options.rootRank),
               data = RegionOf(tensor)](Collectives& group) { group.Broadcast(type, root, data); };
  call.timeout = options.timeout;
  return Run(std::move(call));
}

WorkPtr ProcessGroupHCCL::reduce(std::vector<at::Tensor>& tensors, const c10d::ReduceOptions& options) {
  const at::Tensor& tensor = Single(tensors, "reduce");
  CheckTensor(tensor);
  CheckRoot(options.rootRank, size_, "reduce");
  const Reduction reduction = ReductionOf(options.reduceOp, tensor);
  Call call{OpType::REDUCE, "hccl::reduce", {}, {tensor}, {}};
  if (reduction.factor.defined()) call.inputs.push_back(reduction.factor);
  call.body = [type = ElementTypeOf(tensor), reduction, root = static_cast<int>(options.rootRank),
               data = RegionOf(tensor)](Collectives& group) {
    group.Reduce(type, reduction.kind, reduction.Factor(), root, data);
  };
  call.timeout = options.timeout;
  return Run(std::move(call));
}

WorkPtr ProcessGroupHCCL::allgather(std::vector<std::vector<at::Tensor>>& outputs, std::vector<at::Tensor>& inputs,
                                    const c10d::AllgatherOptions& options) {
  const at::Tensor& input = Single(inputs, "allgather");
  TORCH_CHECK(outputs.size() == 1, "allgather: expected one list of outputs, but got ", outputs.size());
  CheckTensor(input);
  CheckTensorList(outputs.front(), input);
  TORCH_CHECK(outputs.front().size() == static_cast<size_t>(size_), "allgather: expected ", size_,
              " output tensors, one per rank, but got ", outputs.front().size());
  Call call{OpType::ALLGATHER, "hccl::all_gather", {input}, outputs.front(), {}};
  const Region from = RegionOf(input);
  std::vector<Region> to = RegionsOf(outputs.front());
  CheckSameLayout("all_gather", from, to[static_cast<size_t>(rank_)]);
  call.body = [type = ElementTypeOf(input), from, to = std::move(to)](Collectives& group) {
    group.AllGather(type, from, to);
  };
  call.timeout = options.timeout;
  return Run(std::move(call));
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
    CheckSameLayout("all_gather_into_tensor", pairs.back().from, pairs.back().to.front());
  }
  Call call{OpType::_ALLGATHER_BASE, "hccl::all_gather_into_tensor", inputs, outputs, {}};
  call.body = [pairs = std::move(pairs)](Collectives& group) {
    for (const Pair& pair : pairs) group.AllGather(pair.type, pair.from, pair.to);
  };
  call.timeout = options.timeout;
  return Run(std::move(call));
}

WorkPtr ProcessGroupHCCL::ReduceScatterInto(OpType op, at::Tensor& output, std::vector<at::Tensor> inputs,
                                            std::vector<Region> parts, const c10d::ReduceOp& reduce,
                                            std::chrono::milliseconds timeout) {
  const Reduction reduction = ScatteredReductionOf(reduce, output);
  const Region to = RegionOf(output);
  CheckSameLayout("reduce_scatter", parts[static_cast<size_t>(rank_)], to);
  Call call{op, "hccl::reduce_scatter", std::move(inputs), {output}, {}};
  if (reduction.factor.defined()) call.inputs.push_back(reduction.factor);
  call.body = [type = ElementTypeOf(output), reduction, from = std::move(parts), to](Collectives& group) {
    group.ReduceScatter(type, reduction.kind, reduction.Factor(), from, to);
  };
  call.timeout = timeout;
  return Run(std::move(call));
}

WorkPtr ProcessGroupHCCL::reduce_scatter(std::vector<at::Tensor>& outputs, std::vector<std::vector<at::Tensor>>& inputs,
                                         const c10d::ReduceScatterOptions& options) {
  at::Tensor output = Single(outputs, "reduce_scatter");
  TORCH_CHECK(inputs.size() == 1, "reduce_scatter: expected one list of inputs, but got ", inputs.size());
  CheckTensor(output);
  const std::vector<at::Tensor>& list = inputs.front();
  TORCH_CHECK(!list.empty(), "Tensor list must be nonempty");
  for (const at::Tensor& input : list) {
    TORCH_CHECK(input.device() == output.device(),
                "Corresponding input/output tensors to reduce_scatter must all reside on the same device, but got ",
                input.device(), " and ", output.device());
  }
  CheckTensorList(list, output);
  const bool one_per_rank = list.size() == static_cast<size_t>(size_);
  if (one_per_rank && list[static_cast<size_t>(rank_)].numel() == output.numel()) {
    return ReduceScatterInto(OpType::REDUCE_SCATTER, output, list, RegionsOf(list), options.reduceOp, options.timeout);
  }
  if (list.size() == 1 && list.front().numel() == output.numel() * size_) {
    return ReduceScatterInto(OpType::REDUCE_SCATTER, output, list, EqualParts(list.front(), size_), options.reduceOp,
                             options.timeout);
  }
  // Any other list counts as one long vector of which rank r takes the r-th stretch; what is missing reads as zero.
  const Reduction reduction = ScatteredReductionOf(options.reduceOp, output);
  Call call{OpType::REDUCE_SCATTER, "hccl::reduce_scatter", list, {output}, {}};
  call.timeout = options.timeout;
  std::vector<at::Tensor>& parts = call.inputs;
  for (at::Tensor& part : parts) part = part.contiguous();  // dense they are, but maybe channels last
  const std::vector<Region> from = RegionsOf(parts);
  const at::Tensor joined = at::empty({output.numel() * size_}, output.options());
  CheckSameLayout("reduce_scatter", RegionOf(joined), RegionOf(output));
  if (reduction.factor.defined()) call.inputs.push_back(reduction.factor);
  call.scratch.push_back(joined);
  call.body = [type = ElementTypeOf(output), reduction, from, room = RegionOf(joined),
               shares = EqualParts(joined, size_), to = RegionOf(output)](Collectives& group) {
    auto* const base = static_cast<std::byte*>(room.address);
    size_t filled = 0;
    for (const Region& part : from) {
      const size_t bytes = std::min(part.bytes, room.bytes - filled);
      if (bytes != 0) std::memcpy(base + filled, part.address, bytes);
      filled += bytes;
    }
    if (filled != room.bytes) std::memset(base + filled, 0, room.bytes - filled);
    group.ReduceScatter(type, reduction.kind, reduction.Factor(), shares, to);
  };
  return Run(std::move(call));
}

WorkPtr ProcessGroupHCCL::_reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                               const c10d::ReduceScatterOptions& options) {
  CheckReduceScatterTensors(output, input, size_);
  return ReduceScatterInto(OpType::_REDUCE_SCATTER_BASE, output, {input}, EqualParts(input, size_), options.reduceOp,
                           options.timeout);
}

WorkPtr ProcessGroupHCCL::reduce_scatter_tensor_coalesced(std::vector<at::Tensor>& outputs,
                                                          std::vector<at::Tensor>& inputs,
                                                          const c10d::ReduceScatterOptions& options) {
  TORCH_CHECK(!inputs.empty() && inputs.size() == outputs.size(),
              "reduce_scatter_tensor: expected as many outputs as inputs, at least one, but got ", outputs.size(),
              " and ", inputs.size());
  struct Pair {
    ElementType type;
    Reduction reduction;
    std::vector<Region> from;
    Region to;
  };
  std::vector<Pair> pairs;
  Call call{OpType::REDUCE_SCATTER_TENSOR_COALESCED, "hccl::reduce_scatter_tensor_coalesced", inputs, outputs, {}};
  for (size_t i = 0; i < inputs.size(); ++i) {
    CheckReduceScatterTensors(outputs[i], inputs[i], size_);
    Reduction reduction = ScatteredReductionOf(options.reduceOp, outputs[i]);
    if (reduction.factor.defined()) call.inputs.push_back(reduction.factor);
    pairs.push_back(
        {ElementTypeOf(outputs[i]), std::move(reduction), EqualParts(inputs[i], size_), RegionOf(outputs[i])});
    CheckSameLayout("reduce_scatter_tensor", pairs.back().from.front(), pairs.back().to);
  }
  call.body = [pairs = std::move(pairs)](Collectives& group) {
    for (const Pair& pair : pairs) {
      group.ReduceScatter(pair.type, pair.reduction.kind, pair.reduction.Factor(), pair.from, pair.to);
    }
  };
  call.timeout = options.timeout;
  return Run(std::move(call));
}

WorkPtr ProcessGroupHCCL::alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& output_splits,
                                        std::vector<int64_t>& input_splits, const c10d::AllToAllOptions& options) {
  CheckTensor(output);
  CheckTensor(input);
  TORCH_CHECK(input.dim() > 0 && output.dim() > 0, "all_to_all_single: tensors need at least one dimension");
  TORCH_CHECK(input.scalar_type() == output.scalar_type() &&
                  (!output_splits.empty() || !input_splits.empty() || input.numel() == output.numel()),
              "Tensors are not equal in size or data type");
  Call call{OpType::ALLTOALL_BASE, "hccl::all_to_all_single", {input}, {output}, {}};
  std::vector<Region> from = SplitParts(input, input_splits, size_, "the input");
  std::vector<Region> to = SplitParts(output, output_splits, size_, "the output");
  CheckOwnShare("all_to_all_single", rank_, input, from, to);
  call.body = [type = ElementTypeOf(input), from = std::move(from), to = std::move(to)](Collectives& group) {
    group.AllToAll(type, from, to);
  };
  call.timeout = options.timeout;
  return Run(std::move(call));
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
  Call call{OpType::ALLTOALL, "hccl::all_to_all", inputs, outputs, {}};
  std::vector<Region> from = RegionsOf(inputs);
  std::vector<Region> to = RegionsOf(outputs);
  CheckOwnShare("all_to_all", rank_, inputs.front(), from, to);
  call.body = [type = ElementTypeOf(inputs.front()), from = std::move(from), to = std::move(to)](Collectives& group) {
    group.AllToAll(type, from, to);
  };
  call.timeout = options.timeout;
  return Run(std::move(call));
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
  Call call{OpType::SCATTER, "hccl::scatter", sent, {output}, {}};
  std::vector<Region> from = RegionsOf(sent);
  const Region to = RegionOf(output);
  if (!from.empty()) CheckSameLayout("scatter", from[static_cast<size_t>(rank_)], to);
  call.body = [type = ElementTypeOf(output), root = static_cast<int>(options.rootRank), from = std::move(from),
               to](Collectives& group) { group.Scatter(type, root, from, to); };
  call.timeout = options.timeout;
  return Run(std::move(call));
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
  Call call{OpType::GATHER, "hccl::gather", {input}, received, {}};
  const Region from = RegionOf(input);
  std::vector<Region> to = RegionsOf(received);
  if (!to.empty()) CheckSameLayout("gather", from, to[static_cast<size_t>(rank_)]);
  call.body = [type = ElementTypeOf(input), root = static_cast<int>(options.rootRank), from,
               to = std::move(to)](Collectives& group) { group.Gather(type, root, from, to); };
  call.timeout = options.timeout;
  return Run(std::move(call));
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
    device = CurrentDevice();
  }
  const at::Device place(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device));
  Call call{OpType::BARRIER, "hccl::barrier", {}, {at::empty({0}, at::TensorOptions().device(place))}, {}};
  call.body = [](Collectives& group) { group.Barrier(); };
  call.blocks_host = true;
  call.timeout = options.timeout;
  return Run(std::move(call));
}

WorkPtr ProcessGroupHCCL::allgather_coalesced(std::vector<std::vector<at::Tensor>>& outputs,
                                              std::vector<at::Tensor>& inputs, const c10d::AllgatherOptions& options) {
  TORCH_CHECK(!inputs.empty(), "Tensor list must be nonempty");
  TORCH_CHECK(outputs.size() == static_cast<size_t>(size_), "all_gather_coalesced: expected ", size_,
              " lists of outputs, one per rank, but got ", outputs.size());
  Call call{OpType::ALLGATHER_COALESCED, "hccl::all_gather_coalesced", inputs, {}, {}};
  for (const std::vector<at::Tensor>& list : outputs) {
    TORCH_CHECK(list.size() == inputs.size(), "all_gather_coalesced: expected ", inputs.size(),
                " outputs per rank, one per input, but got ", list.size());
    call.outputs.insert(call.outputs.end(), list.begin(), list.end());
  }
  struct Part {
    ElementType type;
    Region from;
    std::vector<Region> to;
  };
  std::vector<Part> parts;
  for (size_t i = 0; i < inputs.size(); ++i) {
    CheckTensor(inputs[i]);
    std::vector<at::Tensor> gathered;
    for (const std::vector<at::Tensor>& list : outputs) gathered.push_back(list[i]);
    CheckTensorList(gathered, inputs[i]);
    parts.push_back({ElementTypeOf(inputs[i]), RegionOf(inputs[i]), RegionsOf(gathered)});
    CheckSameLayout("all_gather_coalesced", parts.back().from, parts.back().to[static_cast<size_t>(rank_)]);
  }
  call.body = [parts = std::move(parts)](Collectives& group) {
    for (const Part& part : parts) group.AllGather(part.type, part.from, part.to);
  };
  call.timeout = options.timeout;
  return Run(std::move(call));
}

WorkPtr ProcessGroupHCCL::allreduce_sparse(std::vector<at::Tensor>& /*tensors*/,
                                           const c10d::AllreduceOptions& /*options*/) {
  TORCH_CHECK_NOT_IMPLEMENTED(false,
                              "allreduce of sparse tensors: Tensors must be NPU and dense; call .to_dense() first");
}

}  // namespace npu::distributed
