#include "mc2/moe_arguments.h"

#include <algorithm>
#include <array>

namespace npu::distributed {

MoePlacement CheckPlacement(const MoeGroupArguments& a) {
  MC2_CHECK(a.ep_world_size >= 1, a.op(), "ep_world_size", "expected at least 1, got ", a.ep_world_size);
  MC2_CHECK(a.ep_rank_id >= 0 && a.ep_rank_id < a.ep_world_size, a.op(), "ep_rank_id", "expected a rank in [0, ",
            a.ep_world_size, "), got ", a.ep_rank_id);
  MC2_CHECK(a.tp_world_size == 0 || a.tp_world_size == 1, a.op(), "tp_world_size", "expected 0 or 1, got ",
            a.tp_world_size,
            "; tensor parallelism inside of the experts is not supported here, gather the rows of the "
            "tensor-parallel group with torch.distributed");
  MC2_CHECK(a.expert_shard_type == 0, a.op(), "expert_shard_type",
            "expected 0 (shared experts on the first ranks), got ", a.expert_shard_type);
  const int64_t shared = a.shared_expert_rank_num, experts = a.shared_expert_num;
  MC2_CHECK(shared >= 0 && shared < a.ep_world_size, a.op(), "shared_expert_rank_num", "expected a number in [0, ",
            a.ep_world_size, "), got ", shared);
  if (shared == 0) {
    MC2_CHECK(experts == 0 || experts == 1, a.op(), "shared_expert_num",
              "expected 0 or 1 with shared_expert_rank_num=0, got ", experts);
  } else {
    MC2_CHECK(experts > 0 && experts <= shared && shared % experts == 0, a.op(), "shared_expert_num",
              "expected a divisor of shared_expert_rank_num=", shared, ", got ", experts);
    MC2_CHECK(!a.one_shared_expert || experts == 1, a.op(), "shared_expert_num", "expected 1, got ", experts,
              "; for more use the operators whose names end in _v2");
  }
  const int64_t ranks = a.ep_world_size - shared;
  MC2_CHECK(a.moe_expert_num > 0 && a.moe_expert_num % ranks == 0, a.op(), "moe_expert_num",
            "expected a multiple of ep_world_size - shared_expert_rank_num = ", ranks, ", got ", a.moe_expert_num);
  return {static_cast<int>(a.ep_world_size), a.moe_expert_num, shared == 0 ? 0 : experts, static_cast<int>(shared)};
}

Communicator& CheckGroup(const MoeGroupArguments& a) {
  Communicator& communicator = RequireCommunicator(a.op(), a.group_ep, a.ep_world_size);
  MC2_CHECK(a.ep_rank_id == communicator.rank(), a.op(), "ep_rank_id", "expected the rank in the communicator \"",
            a.group_ep, "\", ", communicator.rank(), ", got ", a.ep_rank_id);
  return communicator;
}

void* MoeTensors::Address(const char* argument, const at::Tensor& tensor) {
  RequireDevice(op_, {{argument, tensor}}, communicator_);
  tensors_.push_back(tensor.contiguous());
  return tensors_.back().numel() == 0 ? nullptr : tensors_.back().data_ptr();
}

void CheckShape(const char* op, const char* argument, const at::Tensor& tensor, at::IntArrayRef shape) {
  MC2_CHECK(tensor.sizes() == shape, op, argument, "expected shape ", shape, ", got ", tensor.sizes());
}

void CheckType(const char* op, const char* argument, const at::Tensor& tensor, at::ScalarType type) {
  MC2_CHECK(tensor.scalar_type() == type, op, argument, "expected ", type, ", got ", tensor.scalar_type());
}

void CheckExpertIds(const char* op, const at::Tensor& expert_ids) {
  MC2_CHECK(expert_ids.dim() == 2 && expert_ids.size(1) > 0, op, "expert_ids",
            "expected 2 dims, (tokens, experts per token), got shape ", expert_ids.sizes());
  CheckType(op, "expert_ids", expert_ids, at::kInt);
}

MoeMask CheckMask(const char* op, const OptionalTensor& mask, const at::Tensor& expert_ids, MoeTensors& tensors) {
  if (!Given(mask)) return {};
  CheckType(op, "x_active_mask", *mask, at::kBool);
  MC2_CHECK((mask->dim() == 1 && mask->size(0) == expert_ids.size(0)) || mask->sizes() == expert_ids.sizes(), op,
            "x_active_mask", "expected shape [", expert_ids.size(0), "] or ", expert_ids.sizes(), ", got ",
            mask->sizes());
  return {tensors.Data<const uint8_t>("x_active_mask", *mask), mask->dim() == 2};
}

int64_t CheckGlobalBatch(const char* op, int64_t global_bs, int64_t tokens, int64_t world) {
  MC2_CHECK(global_bs >= 0, op, "global_bs", "expected 0 or the most tokens of any rank times ep_world_size, got ",
            global_bs);
  if (global_bs == 0) return tokens;
  MC2_CHECK(tokens <= global_bs / world, op, "global_bs",
            "expected 0 or the most tokens of any rank times ep_world_size, at least ", tokens * world,
            " with the tokens of this rank, got ", global_bs);
  return global_bs / world;
}

void CheckElastic(const char* op, const OptionalTensor& elastic_info, int64_t world) {
  if (!Given(elastic_info)) return;
  CheckType(op, "elastic_info", *elastic_info, at::kInt);
  MC2_CHECK(elastic_info->dim() == 1 && (elastic_info->size(0) == 4 + 2 * world || elastic_info->size(0) == 4 + world),
            op, "elastic_info", "expected shape [", 4 + 2 * world, "], got ", elastic_info->sizes());
}

void CheckPerformance(const char* op, const OptionalTensor& performance_info, int64_t world) {
  if (!Given(performance_info)) return;
  CheckType(op, "performance_info", *performance_info, at::kLong);
  CheckShape(op, "performance_info", *performance_info, {world});
  MC2_CHECK(performance_info->is_contiguous(), op, "performance_info",
            "it is written to, so it should be contiguous, got strides ", performance_info->strides());
}

void CheckAlgorithm(const char* op, c10::string_view comm_alg) {
  constexpr std::array<const char*, 5> kNames = {"", "fullmesh", "fullmesh_v1", "fullmesh_v2", "hierarchy"};
  MC2_CHECK(std::any_of(kNames.begin(), kNames.end(), [&](const char* name) { return comm_alg == name; }), op,
            "comm_alg", "expected \"\", \"fullmesh\", \"fullmesh_v1\", \"fullmesh_v2\" or \"hierarchy\", got \"",
            std::string(comm_alg), "\"");
}

void CheckNotNegative(const char* op, const char* argument, int64_t number) {
  MC2_CHECK(number >= 0, op, argument, "expected 0 or more, got ", number);
}

}  // namespace npu::distributed
