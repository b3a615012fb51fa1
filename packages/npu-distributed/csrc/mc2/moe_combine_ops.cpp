// npu::npu_moe_distribute_combine, its second version, and the one with a residual and a norm behind it.
#include <ATen/ATen.h>

#include <tuple>

#include "mc2/moe_arguments.h"
#include "mc2/moe_combine.h"
#include "mc2/operator_registration.h"

namespace npu::distributed {
namespace {

struct CombineArguments {
  MoeGroupArguments group;
  bool second_version = true;
  at::Tensor expand_x, expert_ids, metadata, ep_send_counts, expert_scales;
  OptionalTensor x_active_mask, shared_expert_x, elastic_info, ori_x, alpha1, alpha2, const_v, performance_info;
  int64_t global_bs = 0, out_dtype = 0, comm_quant_mode = 0;
  int64_t zero_experts = 0, copy_experts = 0, const_experts = 0;
};

struct NormArguments {
  at::Tensor residual, gamma;
  double epsilon = 0;
};

at::ScalarType OutputType(const CombineArguments& a) {
  const char* op = a.group.op();
  const at::ScalarType type = a.expand_x.scalar_type();
  MC2_CHECK(type == at::kBFloat16 || type == at::kHalf || type == at::kInt, op, "expand_x",
            "expected bfloat16, float16 or int32, got ", type);
  MC2_CHECK(a.out_dtype == 0 || a.out_dtype == 1, op, "out_dtype", "expected 0 (bfloat16) or 1 (float16), got ",
            a.out_dtype);
  MC2_CHECK(a.comm_quant_mode == 0 || a.comm_quant_mode == 2, op, "comm_quant_mode",
            "expected 0 (none) or 2 (int8), got ", a.comm_quant_mode);
  MC2_CHECK(type != at::kInt || a.comm_quant_mode == 0, op, "comm_quant_mode",
            "expected 0 with expand_x of int32, got ", a.comm_quant_mode);
  if (type != at::kInt) return type;
  return a.out_dtype == 0 ? at::kBFloat16 : at::kHalf;
}

/// A tensor of `type` and `shape` that special experts or the shared expert's result need.
void CheckRows(const char* op, const char* argument, const OptionalTensor& tensor, at::ScalarType type,
               at::IntArrayRef shape) {
  if (!Given(tensor)) return;
  CheckType(op, argument, *tensor, type);
  CheckShape(op, argument, *tensor, shape);
}

void CheckSpecialExperts(const CombineArguments& a, at::ScalarType type) {
  const char* op = a.group.op();
  const int64_t tokens = a.expert_ids.size(0), columns = a.expand_x.size(1);
  CheckNotNegative(op, "zero_expert_num", a.zero_experts);
  CheckNotNegative(op, "copy_expert_num", a.copy_experts);
  CheckNotNegative(op, "const_expert_num", a.const_experts);
  MC2_CHECK(Given(a.ori_x) || a.copy_experts + a.const_experts == 0, op, "ori_x",
            "is needed with copy_expert_num=", a.copy_experts, ", const_expert_num=", a.const_experts);
  CheckRows(op, "ori_x", a.ori_x, type, {tokens, columns});
  const std::pair<const char*, const OptionalTensor*> constants[] = {
      {"const_expert_alpha_1", &a.alpha1}, {"const_expert_alpha_2", &a.alpha2}, {"const_expert_v", &a.const_v}};
  for (const auto& [name, tensor] : constants) {
    MC2_CHECK(Given(*tensor) || a.const_experts == 0, op, name, "is needed with const_expert_num=", a.const_experts);
    if (a.const_experts > 0) CheckRows(op, name, *tensor, type, {a.const_experts, columns});
  }
}

void CheckSharedResult(const CombineArguments& a, at::ScalarType type) {
  if (!Given(a.shared_expert_x)) return;
  const char* op = a.group.op();
  const at::Tensor& shared = *a.shared_expert_x;
  CheckType(op, "shared_expert_x", shared, type);
  const int64_t tokens = a.expert_ids.size(0), columns = a.expand_x.size(1);
  MC2_CHECK(
      (shared.dim() == 2 || shared.dim() == 3) && shared.size(-1) == columns && shared.numel() == tokens * columns, op,
      "shared_expert_x", "expected shape [", tokens, ", ", columns, "] or [a, b, ", columns, "] with a * b = ", tokens,
      ", got ", shared.sizes());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> Combine(const CombineArguments& a, const NormArguments* norm) {
  const char* op = a.group.op();
  MC2_CHECK(a.expand_x.dim() == 2 && a.expand_x.size(1) > 0, op, "expand_x",
            "expected 2 dims, (rows, hidden), got shape ", a.expand_x.sizes());
  CheckExpertIds(op, a.expert_ids);
  const at::ScalarType type = OutputType(a);
  const MoePlacement placement = CheckPlacement(a.group);
  const int64_t world = placement.world, tokens = a.expert_ids.size(0), slots = a.expert_ids.size(1);
  const int64_t columns = a.expand_x.size(1);
  const int64_t counts = world * placement.LocalExperts(static_cast<int>(a.group.ep_rank_id));
  CheckType(op, "ep_send_counts", a.ep_send_counts, at::kInt);
  MC2_CHECK(a.ep_send_counts.numel() >= counts, op, "ep_send_counts", "expected at least ", counts,
            " elements, ep_world_size * experts of this rank, got ", a.ep_send_counts.numel());
  const char* metadata = a.second_version && norm == nullptr ? "assist_info_for_combine" : "expand_idx";
  CheckType(op, metadata, a.metadata, at::kInt);
  MC2_CHECK(a.second_version || a.metadata.numel() == tokens * slots, op, metadata, "expected ", tokens * slots,
            " elements, one for each of expert_ids, got ", a.metadata.numel());
  CheckType(op, "expert_scales", a.expert_scales, at::kFloat);
  CheckShape(op, "expert_scales", a.expert_scales, a.expert_ids.sizes());
  CheckSharedResult(a, type);
  CheckSpecialExperts(a, type);
  CheckElastic(op, a.elastic_info, world);
  CheckPerformance(op, a.performance_info, world);
  if (norm != nullptr) {
    CheckType(op, "residual_x", norm->residual, type);
    MC2_CHECK(norm->residual.sizes() == at::IntArrayRef({tokens, 1, columns}) ||
                  norm->residual.sizes() == at::IntArrayRef({tokens, columns}),
              op, "residual_x", "expected shape [", tokens, ", 1, ", columns, "] or [", tokens, ", ", columns,
              "], got ", norm->residual.sizes());
    CheckType(op, "gamma", norm->gamma, type);
    CheckShape(op, "gamma", norm->gamma, {columns});
  }
  const int64_t most_tokens = CheckGlobalBatch(op, a.global_bs, tokens, world);
  Communicator& communicator = CheckGroup(a.group);

  MoeTensors tensors(op, communicator);
  MoeCombine job;
  job.placement = placement;
  job.zero_experts = a.zero_experts;
  job.copy_experts = a.copy_experts;
  job.const_experts = a.const_experts;
  job.tokens = tokens;
  job.slots = slots;
  job.most_tokens = most_tokens;
  job.columns = columns;
  job.in = static_cast<npu_dtype>(a.expand_x.scalar_type());
  job.out = static_cast<npu_dtype>(type);
  job.int8_transit = a.comm_quant_mode == 2;
  job.expand_x = tensors.Data<const std::byte>("expand_x", a.expand_x);
  job.expand_rows = a.expand_x.size(0);
  job.expert_ids = tensors.Data<const int32_t>("expert_ids", a.expert_ids);
  job.mask = CheckMask(op, a.x_active_mask, a.expert_ids, tensors);
  job.expert_scales = tensors.Data<const float>("expert_scales", a.expert_scales);
  job.ep_send_counts = tensors.Data<const int32_t>("ep_send_counts", a.ep_send_counts);
  job.by_rows = a.second_version;
  (a.second_version ? job.assist_info : job.ordinals) = tensors.Data<const int32_t>(metadata, a.metadata);
  job.assist_rows = a.metadata.numel() / 3;
  job.elastic = tensors.Data<const int32_t>("elastic_info", a.elastic_info);
  job.performance = tensors.Data<int64_t>("performance_info", a.performance_info);
  job.shared_expert_x = tensors.Data<const std::byte>("shared_expert_x", a.shared_expert_x);
  job.ori_x = tensors.Data<const std::byte>("ori_x", a.ori_x);
  job.alpha1 = tensors.Data<const std::byte>("const_expert_alpha_1", a.alpha1);
  job.alpha2 = tensors.Data<const std::byte>("const_expert_alpha_2", a.alpha2);
  job.const_v = tensors.Data<const std::byte>("const_expert_v", a.const_v);

  const auto make = [&](at::IntArrayRef shape, at::ScalarType dtype) {
    return at::empty(shape, a.expand_x.options().dtype(dtype));
  };
  at::Tensor output, y, rstd;
  if (norm == nullptr) {
    output = make({tokens, columns}, type);
  } else {
    output = make({tokens, 1, columns}, type);
    y = make({tokens, 1, columns}, type);
    rstd = make({tokens, 1, 1}, at::kFloat);
    job.norm.is_wanted = true;
    job.norm.residual = tensors.Data<const std::byte>("residual_x", norm->residual);
    job.norm.gamma = tensors.Data<const std::byte>("gamma", norm->gamma);
    job.norm.epsilon = norm->epsilon;
    job.norm.y = tensors.Data<std::byte>("y", y);
    job.norm.rstd = tensors.Data<float>("rstd", rstd);
  }
  job.output = tensors.Data<std::byte>("output", output);
  const at::Tensor scratch = make({static_cast<int64_t>(job.scratch_bytes())}, at::kByte);
  job.scratch = tensors.Data<std::byte>("scratch", scratch);

  FusedCall call(communicator, a.group.label, "");
  call.Communicate(tensors.all(), [job](Collectives& group) { job.Run(group); });
  call.Join();
  return {output, y, rstd};
}

at::Tensor CombineV1(const at::Tensor& expand_x, const at::Tensor& expert_ids, const at::Tensor& expand_idx,
                     const at::Tensor& ep_send_counts, const at::Tensor& expert_scales, c10::string_view group_ep,
                     int64_t ep_world_size, int64_t ep_rank_id, int64_t moe_expert_num,
                     const OptionalTensor& /*tp_send_counts*/, const OptionalTensor& x_active_mask,
                     const OptionalTensor& /*activation_scale*/, const OptionalTensor& /*weight_scale*/,
                     const OptionalTensor& /*group_list*/, const OptionalTensor& /*expand_scales*/,
                     const OptionalTensor& shared_expert_x, c10::string_view /*group_tp*/, int64_t tp_world_size,
                     int64_t /*tp_rank_id*/, int64_t expert_shard_type, int64_t shared_expert_num,
                     int64_t shared_expert_rank_num, int64_t global_bs, int64_t out_dtype, int64_t comm_quant_mode,
                     int64_t /*group_list_type*/) {
  CombineArguments a;
  a.group = {"npu::npu_moe_distribute_combine",
             std::string(group_ep),
             ep_world_size,
             ep_rank_id,
             moe_expert_num,
             tp_world_size,
             expert_shard_type,
             shared_expert_num,
             shared_expert_rank_num,
             true};
  a.second_version = false;
  a.expand_x = expand_x;
  a.expert_ids = expert_ids;
  a.metadata = expand_idx;
  a.ep_send_counts = ep_send_counts;
  a.expert_scales = expert_scales;
  a.x_active_mask = x_active_mask;
  a.shared_expert_x = shared_expert_x;
  a.global_bs = global_bs;
  a.out_dtype = out_dtype;
  a.comm_quant_mode = comm_quant_mode;
  return std::get<0>(Combine(a, nullptr));
}

at::Tensor CombineV2(const at::Tensor& expand_x, const at::Tensor& expert_ids,
                     const at::Tensor& assist_info_for_combine, const at::Tensor& ep_send_counts,
                     const at::Tensor& expert_scales, c10::string_view group_ep, int64_t ep_world_size,
                     int64_t ep_rank_id, int64_t moe_expert_num, const OptionalTensor& /*tp_send_counts*/,
                     const OptionalTensor& x_active_mask, const OptionalTensor& /*expand_scales*/,
                     const OptionalTensor& shared_expert_x, const OptionalTensor& elastic_info,
                     const OptionalTensor& ori_x, const OptionalTensor& const_expert_alpha_1,
                     const OptionalTensor& const_expert_alpha_2, const OptionalTensor& const_expert_v,
                     const OptionalTensor& performance_info, c10::string_view /*group_tp*/, int64_t tp_world_size,
                     int64_t /*tp_rank_id*/, int64_t expert_shard_type, int64_t shared_expert_num,
                     int64_t shared_expert_rank_num, int64_t global_bs, int64_t comm_quant_mode,
                     c10::string_view comm_alg, int64_t zero_expert_num, int64_t copy_expert_num,
                     int64_t const_expert_num) {
  CombineArguments a;
  a.group = {"npu::npu_moe_distribute_combine_v2",
             std::string(group_ep),
             ep_world_size,
             ep_rank_id,
             moe_expert_num,
             tp_world_size,
             expert_shard_type,
             shared_expert_num,
             shared_expert_rank_num,
             false};
  CheckAlgorithm(a.group.op(), comm_alg);
  a.expand_x = expand_x;
  a.expert_ids = expert_ids;
  a.metadata = assist_info_for_combine;
  a.ep_send_counts = ep_send_counts;
  a.expert_scales = expert_scales;
  a.x_active_mask = x_active_mask;
  a.shared_expert_x = shared_expert_x;
  a.elastic_info = elastic_info;
  a.ori_x = ori_x;
  a.alpha1 = const_expert_alpha_1;
  a.alpha2 = const_expert_alpha_2;
  a.const_v = const_expert_v;
  a.performance_info = performance_info;
  a.global_bs = global_bs;
  a.comm_quant_mode = comm_quant_mode;
  a.zero_experts = zero_expert_num;
  a.copy_experts = copy_expert_num;
  a.const_experts = const_expert_num;
  return std::get<0>(Combine(a, nullptr));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> CombineAddRmsNorm(
    const at::Tensor& expand_x, const at::Tensor& expert_ids, const at::Tensor& expand_idx,
    const at::Tensor& ep_send_counts, const at::Tensor& expert_scales, const at::Tensor& residual_x,
    const at::Tensor& gamma, c10::string_view group_ep, int64_t ep_world_size, int64_t ep_rank_id,
    int64_t moe_expert_num, const OptionalTensor& /*tp_send_counts*/, const OptionalTensor& x_active_mask,
    const OptionalTensor& /*activation_scale*/, const OptionalTensor& /*weight_scale*/,
    const OptionalTensor& /*group_list*/, const OptionalTensor& /*expand_scales*/,
    const OptionalTensor& shared_expert_x, const OptionalTensor& elastic_info, const OptionalTensor& ori_x,
    const OptionalTensor& const_expert_alpha_1, const OptionalTensor& const_expert_alpha_2,
    const OptionalTensor& const_expert_v, c10::string_view /*group_tp*/, int64_t tp_world_size, int64_t /*tp_rank_id*/,
    int64_t expert_shard_type, int64_t shared_expert_num, int64_t shared_expert_rank_num, int64_t global_bs,
    int64_t out_dtype, int64_t comm_quant_mode, int64_t /*group_list_type*/, c10::string_view comm_alg, double norm_eps,
    int64_t zero_expert_num, int64_t copy_expert_num, int64_t const_expert_num) {
  CombineArguments a;
  a.group = {"npu::npu_moe_distribute_combine_add_rms_norm",
             std::string(group_ep),
             ep_world_size,
             ep_rank_id,
             moe_expert_num,
             tp_world_size,
             expert_shard_type,
             shared_expert_num,
             shared_expert_rank_num,
             false};
  CheckAlgorithm(a.group.op(), comm_alg);
  a.expand_x = expand_x;
  a.expert_ids = expert_ids;
  a.metadata = expand_idx;
  a.ep_send_counts = ep_send_counts;
  a.expert_scales = expert_scales;
  a.x_active_mask = x_active_mask;
  a.shared_expert_x = shared_expert_x;
  a.elastic_info = elastic_info;
  a.ori_x = ori_x;
  a.alpha1 = const_expert_alpha_1;
  a.alpha2 = const_expert_alpha_2;
  a.const_v = const_expert_v;
  a.global_bs = global_bs;
  a.out_dtype = out_dtype;
  a.comm_quant_mode = comm_quant_mode;
  a.zero_experts = zero_expert_num;
  a.copy_experts = copy_expert_num;
  a.const_experts = const_expert_num;
  const NormArguments norm{residual_x, gamma, norm_eps};
  const auto [x, y, rstd] = Combine(a, &norm);
  return {y, rstd, x};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(npu, m) {
  DefineFusedOperator<&CombineV1>(
      m,
      "npu_moe_distribute_combine(Tensor expand_x, Tensor expert_ids, Tensor expand_idx, Tensor ep_send_counts, "
      "Tensor expert_scales, str group_ep, int ep_world_size, int ep_rank_id, int moe_expert_num, *, "
      "Tensor? tp_send_counts=None, Tensor? x_active_mask=None, Tensor? activation_scale=None, "
      "Tensor? weight_scale=None, Tensor? group_list=None, Tensor? expand_scales=None, Tensor? shared_expert_x=None, "
      "str group_tp=\"\", int tp_world_size=0, int tp_rank_id=0, int expert_shard_type=0, int shared_expert_num=1, "
      "int shared_expert_rank_num=0, int global_bs=0, int out_dtype=0, int comm_quant_mode=0, int group_list_type=0) "
      "-> Tensor");
  DefineFusedOperator<&CombineV2>(
      m,
      "npu_moe_distribute_combine_v2(Tensor expand_x, Tensor expert_ids, Tensor assist_info_for_combine, "
      "Tensor ep_send_counts, Tensor expert_scales, str group_ep, int ep_world_size, int ep_rank_id, "
      "int moe_expert_num, *, Tensor? tp_send_counts=None, Tensor? x_active_mask=None, Tensor? expand_scales=None, "
      "Tensor? shared_expert_x=None, Tensor? elastic_info=None, Tensor? ori_x=None, "
      "Tensor? const_expert_alpha_1=None, Tensor? const_expert_alpha_2=None, Tensor? const_expert_v=None, "
      "Tensor? performance_info=None, str group_tp=\"\", int tp_world_size=0, int tp_rank_id=0, "
      "int expert_shard_type=0, int shared_expert_num=1, int shared_expert_rank_num=0, int global_bs=0, "
      "int comm_quant_mode=0, str comm_alg=\"\", int zero_expert_num=0, int copy_expert_num=0, "
      "int const_expert_num=0) -> Tensor");
  DefineFusedOperator<&CombineAddRmsNorm>(
      m,
      "npu_moe_distribute_combine_add_rms_norm(Tensor expand_x, Tensor expert_ids, Tensor expand_idx, "
      "Tensor ep_send_counts, Tensor expert_scales, Tensor residual_x, Tensor gamma, str group_ep, int ep_world_size, "
      "int ep_rank_id, int moe_expert_num, *, Tensor? tp_send_counts=None, Tensor? x_active_mask=None, "
      "Tensor? activation_scale=None, Tensor? weight_scale=None, Tensor? group_list=None, Tensor? expand_scales=None, "
      "Tensor? shared_expert_x=None, Tensor? elastic_info=None, Tensor? ori_x=None, "
      "Tensor? const_expert_alpha_1=None, Tensor? const_expert_alpha_2=None, Tensor? const_expert_v=None, "
      "str group_tp=\"\", int tp_world_size=0, int tp_rank_id=0, int expert_shard_type=0, int shared_expert_num=1, "
      "int shared_expert_rank_num=0, int global_bs=0, int out_dtype=0, int comm_quant_mode=0, int group_list_type=0, "
      "str comm_alg=\"\", float norm_eps=1e-06, int zero_expert_num=0, int copy_expert_num=0, "
      "int const_expert_num=0) -> (Tensor, Tensor, Tensor)");
}

}  // namespace npu::distributed
