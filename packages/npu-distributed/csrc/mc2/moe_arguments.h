// The arguments that the MoE operators have in common, checked.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstring>
#include <string>
#include <vector>

#include "mc2/argument_checks.h"
#include "mc2/fused_call.h"
#include "mc2/moe_dispatch.h"

namespace npu::distributed {

/// Where the experts of a call live and who takes part in it.
struct MoeGroupArguments {
  const char* label = nullptr;  ///< "npu::" and the name of the operator
  std::string group_ep;
  int64_t ep_world_size = 0;
  int64_t ep_rank_id = 0;
  int64_t moe_expert_num = 0;
  int64_t tp_world_size = 0;
  int64_t expert_shard_type = 0;
  int64_t shared_expert_num = 1;
  int64_t shared_expert_rank_num = 0;
  bool one_shared_expert = false;  ///< the operators without _v2

  const char* op() const { return label + std::strlen("npu::"); }
};

/// Throws c10::Error when the numbers do not fit together.
MoePlacement CheckPlacement(const MoeGroupArguments& arguments);
/// The communicator of the call.  Throws c10::Error unless it has that size and this rank in it.
Communicator& CheckGroup(const MoeGroupArguments& arguments);

/// Tensors of one call on the communicator's device, made contiguous and kept for FusedCall::Communicate.
class MoeTensors {
 public:
  MoeTensors(const char* op, const Communicator& communicator) : op_(op), communicator_(communicator) {}

  /// The data of `tensor`; throws c10::Error unless it is on the device of the communicator.
  template <class T>
  T* Data(const char* argument, const at::Tensor& tensor) {
    return static_cast<T*>(Address(argument, tensor));
  }
  template <class T>
  T* Data(const char* argument, const OptionalTensor& tensor) {
    return Given(tensor) ? Data<T>(argument, *tensor) : nullptr;
  }
  const std::vector<at::Tensor>& all() const { return tensors_; }

 private:
  void* Address(const char* argument, const at::Tensor& tensor);

  const char* op_;
  const Communicator& communicator_;
  std::vector<at::Tensor> tensors_;
};

void CheckShape(const char* op, const char* argument, const at::Tensor& tensor, at::IntArrayRef shape);
void CheckType(const char* op, const char* argument, const at::Tensor& tensor, at::ScalarType type);

/// The expert ids, (tokens, slots) int32.
void CheckExpertIds(const char* op, const at::Tensor& expert_ids);
/// The mask in the form the calls take; throws c10::Error unless it is bool, (tokens,) or (tokens, slots).
MoeMask CheckMask(const char* op, const OptionalTensor& mask, const at::Tensor& expert_ids, MoeTensors& tensors);
/// Most tokens of any rank; throws c10::Error when this rank has more.
int64_t CheckGlobalBatch(const char* op, int64_t global_bs, int64_t tokens, int64_t world);
/// Throws c10::Error unless these are elastic_info, performance_info and comm_alg as documented.
void CheckElastic(const char* op, const OptionalTensor& elastic_info, int64_t world);
void CheckPerformance(const char* op, const OptionalTensor& performance_info, int64_t world);
void CheckAlgorithm(const char* op, c10::string_view comm_alg);
void CheckNotNegative(const char* op, const char* argument, int64_t number);

}  // namespace npu::distributed
