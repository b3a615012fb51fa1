// Point-to-point calls: one by one on the link of a pair, or many as one exchange.
#include <c10/util/Exception.h>

#include "process_group/process_group_hccl.h"
#include "process_group/tensor_checks.h"

namespace npu::distributed {
namespace {

using c10d::OpType;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;

Transfer TransferOf(bool is_send, const at::Tensor& tensor, int peer) {
  return {.is_send = is_send, .peer = peer, .element = ElementTypeOf(tensor), .data = RegionOf(tensor)};
}

}  // namespace

WorkPtr ProcessGroupHCCL::Transport(OpType op, std::vector<at::Tensor>& tensors, int peer) {
  const bool is_send = op == OpType::SEND;
  const char* name = is_send ? "send" : "recv";
  TORCH_CHECK(tensors.size() == 1, name, ": expected one tensor, but got ", tensors.size());
  const at::Tensor& tensor = tensors.front();
  CheckTensor(tensor);
  TORCH_CHECK_VALUE(peer >= 0 && peer < size_, name, ": the peer should be a rank in [0, ", size_, "), but got ", peer);
  TORCH_CHECK_VALUE(peer != rank_, name, ": rank ", rank_, " cannot be its own peer; copy the tensor instead");
  Call call{op, is_send ? "hccl::send" : "hccl::recv", {}, {}, {}};
  (is_send ? call.inputs : call.outputs).push_back(tensor);
  call.transfers.push_back(TransferOf(is_send, tensor, peer));
  call.peer = peer;
  return Run(std::move(call));
}

WorkPtr ProcessGroupHCCL::send(std::vector<at::Tensor>& tensors, int peer, int /*tag*/) {
  return Transport(OpType::SEND, tensors, peer);
}

WorkPtr ProcessGroupHCCL::recv(std::vector<at::Tensor>& tensors, int peer, int /*tag*/) {
  return Transport(OpType::RECV, tensors, peer);
}

WorkPtr ProcessGroupHCCL::recvAnysource(std::vector<at::Tensor>& /*tensors*/, int /*tag*/) {
  TORCH_CHECK(false,
              "ProcessGroupHCCL does not support recv from any source; say which rank sends: recv(tensor, src=<rank>)");
}

WorkPtr ProcessGroupHCCL::BatchTransfers(const std::vector<std::string>& ops, std::vector<at::Tensor>& tensors,
                                         const std::vector<int64_t>& peers) {
  TORCH_CHECK(!ops.empty() && ops.size() == tensors.size() && ops.size() == peers.size(),
              "batch_isend_irecv: expected as many operations as tensors and ranks, at least one, but got ", ops.size(),
              ", ", tensors.size(), " and ", peers.size());
  Call call{OpType::COALESCED, "hccl::batch_isend_irecv", {}, {}, {}};
  for (size_t i = 0; i < ops.size(); ++i) {
    const bool is_send = ops[i] == "isend";
    TORCH_CHECK_VALUE(is_send || ops[i] == "irecv", "batch_isend_irecv: operation ", i,
                      " should be \"isend\" or \"irecv\", but got \"", ops[i], "\"");
    TORCH_CHECK_VALUE(peers[i] >= 0 && peers[i] < size_, "batch_isend_irecv: the rank of operation ", i,
                      " should be in [0, ", size_, "), but got ", peers[i]);
    CheckTensor(tensors[i]);
    (is_send ? call.inputs : call.outputs).push_back(tensors[i]);
    call.transfers.push_back(TransferOf(is_send, tensors[i], static_cast<int>(peers[i])));
  }
  return Run(std::move(call));
}

}  // namespace npu::distributed
